"""Messages on the wire: a flag, a length and the bytes (gRPC over HTTP/2, "Length-Prefixed-Message")."""

from __future__ import annotations

import struct
from typing import Final

from servicekit.errors import Code, Error

from .codings import decompressed

PREFIX: Final = 5
"""Bytes before each message: one of flags, four of length."""

prefix: Final = struct.Struct(">BL").pack
"""``prefix(flags, length)`` is what goes before a message; flags are 1 for a compressed one, else 0."""

_prefix_at: Final = struct.Struct(">BL").unpack_from
_NONE: Final[tuple[bytes, ...]] = ()


def framed(data: bytes) -> bytes:
    """Return ``data`` as it travels uncompressed."""
    return prefix(0, len(data)) + data


def framed_compressed(data: bytes) -> bytes:
    """Return ``data``, which is compressed already, as it travels."""
    return prefix(1, len(data)) + data


class Messages:
    """Takes the bytes of one direction of an RPC as they come, and gives the messages in them.

    ``limit`` is the most bytes of one message, as it came and as it is when it was decompressed. ``encoding`` is the
    ``grpc-encoding`` of the RPC.
    """

    __slots__ = ("_compressed", "_encoding", "_limit", "_missing", "_parts", "_start", "held")

    def __init__(self, limit: int, encoding: str) -> None:
        """Begin between two messages."""
        self._limit = limit
        self._encoding = encoding
        self._start = b""  # of a prefix that is not whole
        self._missing = -1  # bytes of the message under way; -1 between two messages
        self._compressed = False
        self._parts: list[bytes] = []
        self.held = 0
        """Bytes of a message that is not whole, its prefix among them; 0 between two messages."""

    def feed(self, data: bytes) -> list[bytes] | tuple[bytes, ...]:
        """Return the messages that ``data`` completes, in order.

        Raises Error: RESOURCE_EXHAUSTED as soon as a length above the limit is known, INTERNAL for what is no message.
        """
        size = len(data)
        if self._missing < 0 and not self._start and size >= PREFIX and data[0] == 0:
            # What nearly every frame of small messages is: one whole message and nothing else.
            length = int.from_bytes(data[1:PREFIX], "big")
            if length + PREFIX == size and length <= self._limit:
                return (data[PREFIX:],)
        if self._missing > size:
            self._missing -= size
            self.held += size
            self._parts.append(data)
            return _NONE
        return self._parsed(data)

    def _parsed(self, data: bytes) -> list[bytes]:
        whole: list[bytes] = []
        if self._start:
            data = self._start + data
            self._start = b""
        at, end = 0, len(data)
        while True:
            if self._missing < 0:
                if end - at < PREFIX:
                    self._start = data[at:]
                    self.held = end - at
                    return whole
                flags, length = _prefix_at(data, at)
                at += PREFIX
                if not flags and length <= self._limit and length <= end - at:
                    whole.append(data[at : at + length])
                    at += length
                    continue
                self._begin(flags, length)
            if end - at < self._missing:
                self._parts.append(data[at:])
                self._missing -= end - at
                self.held += end - at
                return whole
            self._parts.append(data[at : at + self._missing])
            at += self._missing
            whole.append(self._complete())

    def _begin(self, flags: int, length: int) -> None:
        if flags > 1:
            raise Error(Code.INTERNAL, f"a message begins with {flags}, which is no flag of gRPC's")
        if length > self._limit:
            raise too_large(length, self._limit)
        self._compressed = flags == 1
        self._missing = length
        self.held = PREFIX

    def _complete(self) -> bytes:
        parts = self._parts
        message = parts[0] if len(parts) == 1 else b"".join(parts)
        self._parts = []
        self._missing = -1
        self.held = 0
        return decompressed(message, self._encoding, self._limit) if self._compressed else message


def too_large(size: int, limit: int) -> Error:
    """Return the error of a message that came in with more bytes than there may be."""
    return Error(Code.RESOURCE_EXHAUSTED, f"received a message of {size} bytes, more than {limit}")
