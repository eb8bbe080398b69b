"""What answers an RPC: headers, trailers and refusals as header fields (gRPC over HTTP/2, "Responses")."""

from __future__ import annotations

import binascii
from typing import TYPE_CHECKING, Final, TypeAlias

from servicekit.errors import Code

from .heads import METHOD_NOT_ALLOWED

if TYPE_CHECKING:
    from servicekit.metadata import Pairs
    from servicekit.wire import Status

Fields: TypeAlias = "list[tuple[bytes, bytes]]"

HEADERS: Final = ((b":status", b"200"), (b"content-type", b"application/grpc"))
"""What the headers of every response begin with."""

TRAILERS: Final = ((b"grpc-status", b"0"),)
"""The trailers of an RPC that went well and has nothing to add."""

_CODES: Final = {code: (b"grpc-status", b"%d" % code) for code in Code}

# "Percent-Encoded": what is printable ASCII and no percent sign stays as it is.
_ENCODED: Final = [
    bytes([byte]) if ord(" ") <= byte <= ord("~") and byte != ord("%") else b"%%%02X" % byte for byte in range(256)
]


def headers_of(metadata: Pairs, encoding: str | None = None) -> Fields:
    """Return the fields of a response's headers, with the ``encoding`` that its messages may be in."""
    fields = [*HEADERS]
    if encoding is not None:
        fields.append((b"grpc-encoding", encoding.encode()))
    fields.extend(fields_of(metadata))
    return fields


def trailers_of(status: Status) -> Fields:
    """Return the fields of the trailers that say ``status``."""
    fields = [_CODES[status.code]]
    if status.message:
        fields.append((b"grpc-message", percent_encoded(status.message)))
    fields.extend(fields_of(status.trailers))
    return fields


def trailers_only(status: Status) -> Fields:
    """Return the fields of an answer that is a status and nothing else ("Trailers-Only")."""
    return [*HEADERS, *trailers_of(status)]


REFUSED: Final = b"gRPC is spoken here: POST, with content-type application/grpc\n"


def refusal(http: int) -> Fields:
    """Return the fields of an answer to what is no gRPC at all: an HTTP status."""
    fields = [(b":status", b"%d" % http), (b"content-type", b"text/plain; charset=utf-8")]
    if http == METHOD_NOT_ALLOWED:
        fields.append((b"allow", b"POST"))  # RFC 9110, section 15.5.6
    return fields


def fields_of(metadata: Pairs) -> Fields:
    """Return metadata as header fields: bytes in base64, without padding."""
    return [
        (key.encode(), value.encode() if isinstance(value, str) else binascii.b2a_base64(value).rstrip(b"=\n"))
        for key, value in metadata
    ]


def percent_encoded(message: str) -> bytes:
    """Return a status message as it travels. A lone surrogate, which UTF-8 does not have, becomes a question mark."""
    return b"".join([_ENCODED[byte] for byte in message.encode(errors="replace")])
