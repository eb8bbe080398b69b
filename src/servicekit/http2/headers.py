"""Which header and trailer sections are well-formed: RFC 9113, sections 8.1 to 8.3."""

from __future__ import annotations

import contextlib
from typing import Final, NoReturn

from .errors import ErrorCode, StreamFault
from .hpack_decoder import HeaderBlock

Field = tuple[bytes, bytes]

_CONNECTION_SPECIFIC: Final = frozenset(
    {b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade"}
)
"""Fields that speak about an HTTP/1.1 connection (8.2.2)."""

_NAME_OCTETS: Final = bytes(octet for octet in range(0x21, 0x7F) if not 0x41 <= octet <= 0x5A)
"""What a field name may consist of: no controls, no space, no capitals, ASCII only (8.2.1); of colons, see below."""
_NO_VALUE_OCTETS: Final = b"\0\r\n"
"""What no field value may contain (8.2.1)."""
_REQUEST_PSEUDO: Final = frozenset({b":method", b":scheme", b":authority", b":path"})
_RESPONSE_PSEUDO: Final = frozenset({b":status"})
_NO_PSEUDO: Final[frozenset[bytes]] = frozenset()
_MOST_DIGITS: Final = 19
_MOST_LEADS: Final = 16
_LONGEST_LEAD: Final = 512  # octets
_OPEN: Final = _REQUEST_PSEUDO | {
    b"accept-encoding",
    b"content-type",
    b"grpc-accept-encoding",
    b"grpc-encoding",
    b"te",
    b"user-agent",
}
"""Fields that hold no secrets."""
_COLON: Final = ord(":")
_WATCHED: Final = _CONNECTION_SPECIFIC | {b"te", b"content-length"}


class RequestFields:
    """The header section of a request: valid, and shared by all requests whose block was the same octets.

    ``regular`` are the fields that are not pseudo-header fields, in their order. ``size`` is counted as by RFC 9113,
    section 6.5.2. ``memo`` is free for whoever stands above; it lives as long as the section.

    ``lead`` is None, or a section that this one begins with, and that others do too; ``rest`` are the regular fields
    behind it.
    """

    __slots__ = ("authority", "content_length", "lead", "memo", "method", "path", "regular", "rest", "scheme", "size")

    lead: RequestFields | None
    rest: tuple[Field, ...]

    def __init__(self, pseudo: dict[bytes, bytes], regular: tuple[Field, ...], size: int) -> None:
        self.method = pseudo[b":method"]
        self.scheme = pseudo.get(b":scheme", b"")
        self.authority = pseudo.get(b":authority", b"")
        self.path = pseudo.get(b":path", b"")
        self.regular = regular
        self.content_length: int | None = None
        self.size = size
        self.memo: object | None = None
        self.lead = None
        self.rest = ()

    def followed_by(self, rest: tuple[Field, ...], size: int) -> RequestFields:
        """Return the section that has ``rest``, well-formed regular fields, behind this one."""
        fields: RequestFields = RequestFields.__new__(RequestFields)
        fields.method = self.method
        fields.scheme = self.scheme
        fields.authority = self.authority
        fields.path = self.path
        fields.regular = self.regular + rest
        fields.content_length = self.content_length
        fields.size = size
        fields.memo = None
        fields.lead = self
        fields.rest = rest
        return fields


class ResponseFields:
    """The header section of a response; ``status`` has three digits. See RequestFields for the rest."""

    __slots__ = ("content_length", "memo", "regular", "size", "status")

    def __init__(self, status: int, regular: tuple[Field, ...], size: int) -> None:
        self.status = status
        self.regular = regular
        self.content_length: int | None = None
        self.size = size
        self.memo: object | None = None


class TrailerFields:
    """The trailer section of a message. See RequestFields."""

    __slots__ = ("memo", "regular", "size")

    def __init__(self, regular: tuple[Field, ...], size: int) -> None:
        self.regular = regular
        self.size = size
        self.memo: object | None = None


class Leads:
    """The beginnings of requests of one connection, checked once: what a client says anew in each call comes behind.

    They are the entries of HPACK's tables that a block begins with, as far as these are fields that say nothing secret:
    they are kept for longer than the tables keep them. And they are few and short, whatever a client sends.
    """

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[tuple[Field, ...], RequestFields | None] = {}

    def request(self, stream_id: int, block: HeaderBlock) -> RequestFields:
        """Return the fields of a request, as ``request`` does."""
        fields = block.fields
        count = 0
        for field in fields[: block.leading]:
            if field[0] not in _OPEN:
                break
            count += 1
        if not count:
            return request(stream_id, block)
        leading = fields[:count]
        try:
            lead = self._known[leading]
        except KeyError:
            lead = self._learn(leading)
        rest = fields[count:]
        if lead is None or not _is_plain(rest):
            return request(stream_id, block)
        made = block.memo = lead.followed_by(rest, block.size)
        return made

    def _learn(self, fields: tuple[Field, ...]) -> RequestFields | None:
        """Return the section of ``fields`` alone, or None if that is none or too long; once there are too many, all go."""
        size = sum(len(name) + len(value) for name, value in fields)
        if size > _LONGEST_LEAD:
            return None
        lead: RequestFields | None = None
        with contextlib.suppress(StreamFault):
            lead = request(0, HeaderBlock(fields, 0))
        if len(self._known) >= _MOST_LEADS:
            self._known.clear()
        self._known[fields] = lead
        return lead


def request(stream_id: int, block: HeaderBlock) -> RequestFields:
    """Return the fields of a request, checked once for each block. Raises StreamFault when they are malformed."""
    known = block.memo
    if type(known) is RequestFields:
        return known
    pseudo, regular, length = _checked(stream_id, block, _REQUEST_PSEUDO)
    if b":method" not in pseudo:
        _malformed(stream_id, "a request without :method")  # 8.3.1
    if pseudo[b":method"] == b"CONNECT":
        if b":scheme" in pseudo or b":path" in pseudo or b":authority" not in pseudo:
            _malformed(stream_id, "a CONNECT with :scheme or :path, or without :authority")  # 8.5
    elif b":scheme" not in pseudo or not pseudo.get(b":path"):
        _malformed(stream_id, "a request without :scheme or :path")  # 8.3.1
    fields = RequestFields(pseudo, regular, block.size)
    fields.content_length = length
    block.memo = fields
    return fields


def response(stream_id: int, block: HeaderBlock) -> ResponseFields:
    """Return the fields of a response, checked once for each block. Raises StreamFault when they are malformed."""
    known = block.memo
    if type(known) is ResponseFields:
        return known
    pseudo, regular, length = _checked(stream_id, block, _RESPONSE_PSEUDO)
    status = pseudo.get(b":status", b"")
    if len(status) != 3 or not status.isdigit() or status in (b"101", b"000"):  # 8.3.2, 8.6
        _malformed(stream_id, "a response without a good :status")
    fields = ResponseFields(int(status), regular, block.size)
    fields.content_length = None if fields.status in (204, 304) else length  # RFC 9110, 8.6: it describes another one
    block.memo = fields
    return fields


def trailers(stream_id: int, block: HeaderBlock) -> TrailerFields:
    """Return the fields of a trailer section, checked once for each block. Raises StreamFault when malformed."""
    known = block.memo
    if type(known) is TrailerFields:
        return known
    _, regular, _ = _checked(stream_id, block, _NO_PSEUDO)
    fields = TrailerFields(regular, block.size)
    block.memo = fields
    return fields


def _checked(  # noqa: C901 - one rule a branch, one pass over the fields
    stream_id: int, block: HeaderBlock, allowed: frozenset[bytes]
) -> tuple[dict[bytes, bytes], tuple[Field, ...], int | None]:
    """Return the pseudo-header fields, the others, and the content-length, by the rules that all sections share."""
    fields = block.fields
    if not fields:
        return {}, fields, None
    names, values = zip(*fields, strict=True)
    all_names = b"".join(names)
    if wrong := _wrong(names, all_names, values):
        _malformed(stream_id, wrong)
    pseudo: dict[bytes, bytes] = {}
    length: int | None = None
    for name, value in fields:
        if name[0] != _COLON:
            break
        if name not in allowed:
            _malformed(stream_id, "an unknown or misplaced pseudo-header field")  # 8.3
        if name in pseudo:
            _malformed(stream_id, f"{name!r} twice")  # 8.3
        pseudo[name] = value
    if all_names.count(b":") != len(pseudo):
        _malformed(stream_id, "a pseudo-header field behind a regular one, or a colon within a name")  # 8.3, 8.2.1
    for name in _WATCHED.intersection(names):
        if name in _CONNECTION_SPECIFIC:
            _malformed(stream_id, f"the connection-specific field {name!r}")  # 8.2.2
        if name == b"te" and names.count(name) == 1 and values[names.index(name)] == b"trailers":
            continue  # as in every gRPC request
        of_name = [value for other, value in fields if other == name]
        if name == b"te" and set(of_name) != {b"trailers"}:
            _malformed(stream_id, "te with another value than trailers")  # 8.2.2
        if name == b"content-length":
            if len(set(of_name)) != 1 or not of_name[0].isdigit() or len(of_name[0]) > _MOST_DIGITS:
                _malformed(stream_id, "a bad content-length")  # 8.1.1, RFC 9110, 8.6
            length = int(of_name[0])
    return pseudo, fields[len(pseudo) :], length


def _wrong(names: tuple[bytes, ...], all_names: bytes, values: tuple[bytes, ...]) -> str:
    """Return what is wrong with the octets of fields, or ""."""
    # All names at once, and all values: one by one, this would be most of what a fresh block costs.
    if all_names.translate(None, _NAME_OCTETS) or b"" in names:
        return "a field name with octets that none may have"
    all_values = b"\n".join(values)
    if len(all_values.translate(None, _NO_VALUE_OCTETS)) != len(all_values) - len(values) + 1:
        return "a field value with octets that none may have"
    edged = b"\n%b\n" % all_values  # no value has a line feed within: one at white space is an end (8.2.1)
    if b" \n" in edged or b"\t\n" in edged or b"\n " in edged or b"\n\t" in edged:
        return "a field value with white space at an end"
    return ""


def _is_plain(fields: tuple[Field, ...]) -> bool:
    """Return whether ``fields`` are well-formed behind any good beginning, whatever that is."""
    names, values = zip(*fields, strict=True)
    all_names = b"".join(names)
    return b":" not in all_names and _WATCHED.isdisjoint(names) and not _wrong(names, all_names, values)


def _malformed(stream_id: int, reason: str) -> NoReturn:
    """A malformed message is a stream error PROTOCOL_ERROR (8.1.1)."""
    raise StreamFault(stream_id, ErrorCode.PROTOCOL_ERROR, f"malformed: {reason}")
