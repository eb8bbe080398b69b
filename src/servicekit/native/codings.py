"""Compression of messages: what this end understands, and how much it unpacks at most."""

from __future__ import annotations

import zlib
from typing import Final

from servicekit.errors import Code, Error

IDENTITY: Final = "identity"

ACCEPTED: Final = "identity,deflate,gzip"
"""What ``grpc-accept-encoding`` says of this end."""

_WINDOW: Final = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}  # zlib's way to choose the format
_LEVEL: Final = 6

KNOWN: Final = frozenset({IDENTITY, *_WINDOW})
"""The encodings there are."""


def compressed(data: bytes, encoding: str) -> bytes:
    """Return ``data`` in ``encoding``, which is a known one other than identity."""
    packer = zlib.compressobj(_LEVEL, zlib.DEFLATED, _WINDOW[encoding])
    return packer.compress(data) + packer.flush()


def decompressed(data: bytes, encoding: str, limit: int) -> bytes:
    """Return what ``data`` is without ``encoding``.

    Raises Error: INTERNAL when it is not of that encoding, or there is none (doc/compression.md of gRPC);
    RESOURCE_EXHAUSTED when it is more than ``limit`` bytes, of which no more than one too many is ever unpacked.
    """
    window = _WINDOW.get(encoding)
    if window is None:
        raise Error(Code.INTERNAL, "a message is marked as compressed, but its call names no grpc-encoding")
    unpacker = zlib.decompressobj(window)
    try:
        plain = unpacker.decompress(data, limit + 1)
    except zlib.error:
        raise Error(Code.INTERNAL, f"a message is not what {encoding} makes") from None
    if len(plain) > limit:
        raise Error(Code.RESOURCE_EXHAUSTED, f"received a message of more than {limit} bytes when decompressed")
    if not unpacker.eof or unpacker.unused_data:
        raise Error(Code.INTERNAL, f"a message is not what {encoding} makes")
    return plain
