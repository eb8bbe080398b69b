"""The states of a stream and what each frame does in each of them, in one table (RFC 9113, section 5.1).

Nobody pushes here (ENABLE_PUSH is 0, and a server of ours never does), so the two reserved states do not occur. Two
more stand in for what the RFC says about a closed stream in prose: RESET, where this side closed it by RST_STREAM and
the peer may not know yet; SKIPPED, where the peer passed it over by opening a higher one (section 5.1.1).
"""

from __future__ import annotations

from typing import Final

IDLE: Final = 0
OPEN: Final = 1
HALF_LOCAL: Final = 2
"""half-closed (local): this side has sent END_STREAM."""
HALF_REMOTE: Final = 3
"""half-closed (remote): the peer has sent END_STREAM."""
CLOSED: Final = 4
RESET: Final = 5
SKIPPED: Final = 6

STATES: Final = ("idle", "open", "half-closed (local)", "half-closed (remote)", "closed", "reset", "skipped")

# What is no state is a verdict.
IGNORE: Final = -1
"""Process minimally, then discard: decode fields, count content to the connection's window."""
STREAM_ERROR: Final = -2
"""A stream error STREAM_CLOSED."""
CLOSED_ERROR: Final = -3
"""A connection error STREAM_CLOSED."""
PROTOCOL: Final = -4
"""A connection error PROTOCOL_ERROR."""
MISUSE: Final = -5
"""This side's own mistake: nothing is sent."""

# A row has one column for each state, in the order of STATES.
RECEIVED_HEADERS: Final = (OPEN, OPEN, HALF_LOCAL, STREAM_ERROR, CLOSED_ERROR, IGNORE, PROTOCOL)
RECEIVED_HEADERS_END: Final = (HALF_REMOTE, HALF_REMOTE, CLOSED, STREAM_ERROR, CLOSED_ERROR, IGNORE, PROTOCOL)
RECEIVED_DATA: Final = (PROTOCOL, OPEN, HALF_LOCAL, STREAM_ERROR, STREAM_ERROR, IGNORE, STREAM_ERROR)
RECEIVED_DATA_END: Final = (PROTOCOL, HALF_REMOTE, CLOSED, STREAM_ERROR, STREAM_ERROR, IGNORE, STREAM_ERROR)
RECEIVED_RESET: Final = (PROTOCOL, CLOSED, CLOSED, CLOSED, IGNORE, IGNORE, IGNORE)
RECEIVED_WINDOW: Final = (PROTOCOL, OPEN, HALF_LOCAL, HALF_REMOTE, IGNORE, IGNORE, IGNORE)
SENT_HEADERS: Final = (OPEN, OPEN, MISUSE, HALF_REMOTE, MISUSE, MISUSE, MISUSE)
SENT_DATA: Final = (MISUSE, OPEN, MISUSE, HALF_REMOTE, MISUSE, MISUSE, MISUSE)
SENT_END: Final = (HALF_LOCAL, HALF_LOCAL, MISUSE, CLOSED, MISUSE, MISUSE, MISUSE)
SENT_RESET: Final = (MISUSE, RESET, RESET, RESET, MISUSE, MISUSE, MISUSE)

NEXT: Final = {
    "received HEADERS": RECEIVED_HEADERS,
    "received HEADERS, END_STREAM": RECEIVED_HEADERS_END,
    "received DATA": RECEIVED_DATA,
    "received DATA, END_STREAM": RECEIVED_DATA_END,
    "received RST_STREAM": RECEIVED_RESET,
    "received WINDOW_UPDATE": RECEIVED_WINDOW,
    "sent HEADERS": SENT_HEADERS,
    "sent DATA": SENT_DATA,
    "sent END_STREAM": SENT_END,
    "sent RST_STREAM": SENT_RESET,
}
"""The table: for each frame, the state that follows each state, or a verdict. PRIORITY changes nothing anywhere."""
