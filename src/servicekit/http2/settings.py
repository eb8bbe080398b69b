"""SETTINGS: what each one is called, which values it may have, and how they look on the wire (RFC 9113, section 6.5)."""

from __future__ import annotations

import enum
import struct
from typing import Final

from .errors import ConnectionFault, ErrorCode

MOST_WINDOW: Final = (1 << 31) - 1
DEFAULT_WINDOW: Final = 65_535
DEFAULT_FRAME_SIZE: Final = 16_384
MOST_FRAME_SIZE: Final = (1 << 24) - 1

_SETTING: Final = struct.Struct(">HL")


class Setting(enum.IntEnum):
    """The identifiers of RFC 9113, section 6.5.2. One that is not here is to be ignored."""

    HEADER_TABLE_SIZE = 0x1
    ENABLE_PUSH = 0x2
    MAX_CONCURRENT_STREAMS = 0x3
    INITIAL_WINDOW_SIZE = 0x4
    MAX_FRAME_SIZE = 0x5
    MAX_HEADER_LIST_SIZE = 0x6


def pack_settings(settings: dict[int, int]) -> bytes:
    """Return the payload of a SETTINGS frame."""
    return b"".join(_SETTING.pack(name, value) for name, value in settings.items())


def parse_settings(payload: bytes, *, from_server: bool) -> dict[int, int]:
    """Return what a SETTINGS frame says; of a value given twice, the last. Raises ConnectionFault by section 6.5.2."""
    if len(payload) % _SETTING.size:
        raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "SETTINGS of a length that is no multiple of 6")
    settings = dict(_SETTING.iter_unpack(payload))
    push = settings.get(Setting.ENABLE_PUSH, 0)
    if push > 1 or (push and from_server):
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"ENABLE_PUSH = {push}")
    if settings.get(Setting.INITIAL_WINDOW_SIZE, 0) > MOST_WINDOW:
        raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "INITIAL_WINDOW_SIZE over 2^31-1")
    if not DEFAULT_FRAME_SIZE <= settings.get(Setting.MAX_FRAME_SIZE, DEFAULT_FRAME_SIZE) <= MOST_FRAME_SIZE:
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "MAX_FRAME_SIZE out of its range")
    return settings
