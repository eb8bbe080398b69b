"""Frames: their types and flags, and how they look on the wire (RFC 9113, sections 4.1 and 6)."""

from __future__ import annotations

import struct
from typing import Final

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""What a client says first (section 3.4)."""

DATA: Final = 0x0
HEADERS: Final = 0x1
PRIORITY: Final = 0x2
RST_STREAM: Final = 0x3
SETTINGS: Final = 0x4
PUSH_PROMISE: Final = 0x5
PING: Final = 0x6
GOAWAY: Final = 0x7
WINDOW_UPDATE: Final = 0x8
CONTINUATION: Final = 0x9

END_STREAM: Final = 0x1
ACK: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
PRIORITISED: Final = 0x20
"""HEADERS begins with the five octets of a PRIORITY frame (section 6.2)."""

FRAME_HEADER: Final = struct.Struct(">LBL")
"""Length and type in one word (``length << 8 | type``), flags, stream: the nine octets before every payload."""
WORD: Final = struct.Struct(">L")
TWO_WORDS: Final = struct.Struct(">LL")

STREAM_MASK: Final = 0x7FFF_FFFF
"""The highest bit of a stream's identifier, and of a window's increment, is reserved and to be ignored."""


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    """Return a whole frame."""
    return FRAME_HEADER.pack(len(payload) << 8 | kind, flags, stream_id) + payload


def rst_stream(stream_id: int, code: int) -> bytes:
    """Return a RST_STREAM (section 6.4)."""
    return frame(RST_STREAM, 0, stream_id, WORD.pack(code))


def window_update(stream_id: int, increment: int) -> bytes:
    """Return a WINDOW_UPDATE; stream 0 is the connection (section 6.9)."""
    return frame(WINDOW_UPDATE, 0, stream_id, WORD.pack(increment))


def goaway(last_id: int, code: int, debug: bytes = b"") -> bytes:
    """Return a GOAWAY (section 6.8)."""
    return frame(GOAWAY, 0, 0, TWO_WORDS.pack(last_id, code) + debug)
