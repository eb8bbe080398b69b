"""What can go wrong on an HTTP/2 connection: the codes of RFC 9113, section 7, and the two scopes of an error."""

from __future__ import annotations

import enum


class ErrorCode(enum.IntEnum):
    """The error codes of RFC 9113, section 7. A code that it does not name arrives as a plain ``int``."""

    NO_ERROR = 0x0
    PROTOCOL_ERROR = 0x1
    INTERNAL_ERROR = 0x2
    FLOW_CONTROL_ERROR = 0x3
    SETTINGS_TIMEOUT = 0x4
    STREAM_CLOSED = 0x5
    FRAME_SIZE_ERROR = 0x6
    REFUSED_STREAM = 0x7
    CANCEL = 0x8
    COMPRESSION_ERROR = 0x9
    CONNECT_ERROR = 0xA
    ENHANCE_YOUR_CALM = 0xB
    INADEQUATE_SECURITY = 0xC
    HTTP_1_1_REQUIRED = 0xD


class ConnectionFault(Exception):
    """Raised when the peer broke a rule in a way that ends the connection (RFC 9113, section 5.4.1).

    It never leaves the package: ``Connection.receive`` turns it into a GOAWAY and a ``Terminated`` event.
    """

    def __init__(self, code: ErrorCode, reason: str) -> None:
        """Take the code for the GOAWAY, and what the peer did."""
        super().__init__(code, reason)
        self.code = code
        self.reason = reason


class StreamFault(Exception):
    """Raised when the peer broke a rule in a way that ends one stream (RFC 9113, section 5.4.2).

    It never leaves the package: ``Connection.receive`` turns it into a RST_STREAM and a ``StreamReset`` event.
    """

    def __init__(self, stream_id: int, code: ErrorCode, reason: str) -> None:
        """Take the stream, the code for the RST_STREAM, and what the peer did."""
        super().__init__(stream_id, code, reason)
        self.stream_id = stream_id
        self.code = code
        self.reason = reason


class Misuse(Exception):
    """Raised when the caller of a ``Connection`` asks for what the protocol forbids; nothing was sent."""
