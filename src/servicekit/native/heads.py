"""What opens an RPC: from the fields of a request's header block to what gRPC makes of them.

Made once for a block of fields; a block that comes again, as nearly all do, brings it along.
"""

from __future__ import annotations

import binascii
import functools
import re
from typing import TYPE_CHECKING, Final

from servicekit.errors import Code, Error
from servicekit.wire import Status

from .codings import ACCEPTED, IDENTITY, KNOWN

if TYPE_CHECKING:
    from collections.abc import Iterable

    from servicekit.http2.headers import RequestFields
    from servicekit.metadata import Pairs

METHOD_NOT_ALLOWED: Final = 405
UNSUPPORTED_MEDIA_TYPE: Final = 415

_CONTENT_TYPE: Final = re.compile(rb"application/grpc(\+proto)?[ \t]*(;.*)?", re.DOTALL)
_TIMEOUT: Final = re.compile(rb"(\d{1,8})([HMSmun])")
_UNITS: Final = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_NO_NAMES: Final[frozenset[str]] = frozenset()

_OURS: Final = frozenset(
    {
        b"content-length",
        b"content-type",
        b"grpc-accept-encoding",
        b"grpc-encoding",
        b"grpc-message",
        b"grpc-message-type",
        b"grpc-status",
        b"grpc-timeout",
        b"host",
        b"te",
    }
)
"""Fields that are the transport's, and never metadata."""


class Opening:
    """What a request's header fields say. Either all of it holds, or ``http`` or ``status`` refuse it.

    ``http`` is the status of an answer that is no gRPC at all; 0 means 200.
    """

    __slots__ = ("accepts", "encoding", "http", "metadata", "path", "status", "timeout")

    def __init__(self, method: bytes, path: bytes, fields: Iterable[tuple[bytes, bytes]]) -> None:
        """Read a request that HTTP/2 has found to be well-formed; ``fields`` are all but the pseudo-header fields."""
        self.http = 0
        self.status: Status | None = None
        self.path = path.decode(errors="replace")
        self.metadata: Pairs = ()
        self.timeout: float | None = None
        self.encoding = IDENTITY
        self.accepts = _NO_NAMES
        try:
            self._read(method, fields)
        except Error as error:
            self.status = Status(code=error.code, message=error.message, trailers=error.trailers)

    @classmethod
    def of(cls, headers: RequestFields) -> Opening:
        """Read a section; of one that begins as others do, only what it has behind that."""
        lead = headers.lead
        if lead is not None:
            known = lead.memo
            if type(known) is not Opening:
                known = lead.memo = cls(lead.method, lead.path, lead.regular)
            made = known._followed_by(headers.rest)
            if made is not None:
                return made
        return cls(headers.method, headers.path, headers.regular)

    def _followed_by(self, fields: Iterable[tuple[bytes, bytes]]) -> Opening | None:
        """Return what these fields and then ``fields`` say, unless it takes all of them together to know it."""
        if self.http or self.status is not None:
            return None
        timeout = self.timeout
        rest: list[tuple[bytes, bytes]] = []
        try:
            for field in fields:
                if field[0] == b"grpc-timeout":
                    timeout = seconds(field[1])
                elif field[0] in _OURS:
                    return None
                else:
                    rest.append(field)
            more = metadata(rest)
        except Error:
            return None
        made: Opening = Opening.__new__(Opening)
        made.http = 0
        made.status = None
        made.path = self.path
        made.metadata = self.metadata + more
        made.timeout = timeout
        made.encoding = self.encoding
        made.accepts = self.accepts
        return made

    def _read(self, method: bytes, fields: Iterable[tuple[bytes, bytes]]) -> None:
        own: dict[bytes, bytes] = {}
        rest: list[tuple[bytes, bytes]] = []
        for field in fields:
            name = field[0]
            if name in _OURS:
                own[name] = field[1]
            else:
                rest.append(field)
        if method != b"POST":
            self.http = METHOD_NOT_ALLOWED
            return
        content_type = own.get(b"content-type", b"")
        if content_type != b"application/grpc" and not _CONTENT_TYPE.fullmatch(content_type.lower()):
            self.http = UNSUPPORTED_MEDIA_TYPE
            return
        if b"trailers" not in own.get(b"te", b"").lower():
            raise Error(Code.INTERNAL, "te: trailers is missing, so something on the way does not speak gRPC")
        if (timeout := own.get(b"grpc-timeout")) is not None:
            self.timeout = seconds(timeout)
        self.metadata = metadata(rest)
        if (accepts := own.get(b"grpc-accept-encoding")) is not None:
            self.accepts = _names(accepts)
        if (encoding := own.get(b"grpc-encoding")) is None:
            return
        self.encoding = encoding.decode(errors="replace")
        if self.encoding not in KNOWN:
            # doc/compression.md of gRPC: "the server MUST … include a grpc-accept-encoding"
            raise Error(
                Code.UNIMPLEMENTED,
                f"grpc-encoding {self.encoding[:40]!r} is none of {ACCEPTED}",
                trailers=(("grpc-accept-encoding", ACCEPTED),),
            )


def seconds(timeout: bytes) -> float:
    """Return the seconds of a ``grpc-timeout``: one to eight digits and a unit. Raises Error for anything else."""
    found = _TIMEOUT.fullmatch(timeout)
    if found is None:
        raise Error(Code.INTERNAL, "grpc-timeout is not one to eight digits and a unit")
    return int(found[1]) * _UNITS[found[2]]


def metadata(fields: Iterable[tuple[bytes, bytes]]) -> Pairs:
    """Return header fields as metadata. Raises Error, naming the key, for a value that metadata cannot have.

    A key that ends in ``-bin`` holds base64, padded or not, and several values with commas between them ("Custom-
    Metadata" in the protocol's text).
    """
    pairs: list[tuple[str, str | bytes]] = []
    for name, value in fields:
        if name.endswith(b"-bin"):
            key = name.decode()  # HTTP/2 has seen to it that it is ASCII
            if b"," in value:
                pairs.extend((key, _binary(key, part.strip(b" \t"))) for part in value.split(b","))
            else:
                pairs.append((key, _binary(key, value)))
        elif value.isascii() and (text := value.decode()).isprintable():
            pairs.append((name.decode(), text))
        else:
            raise Error(Code.INTERNAL, f"metadata {name.decode()!r} is not printable ASCII")
    return tuple(pairs)


def _binary(key: str, value: bytes) -> bytes:
    try:
        return binascii.a2b_base64(value + b"=" * (-len(value) % 4), strict_mode=True) if value else b""
    except binascii.Error:
        raise Error(Code.INTERNAL, f"metadata {key!r} is not base64") from None


@functools.lru_cache(maxsize=64)  # a client says the same in every call, among what differs
def _names(value: bytes) -> frozenset[str]:
    return frozenset(name.strip() for name in value.decode(errors="replace").split(",")) & KNOWN
