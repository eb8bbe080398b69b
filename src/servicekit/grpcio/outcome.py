"""What core says of how an RPC ended, in the words of the seam."""

from __future__ import annotations

import grpc

from servicekit.errors import By, Code
from servicekit.wire import Status

CODES: dict[grpc.StatusCode, Code] = {code: Code(code.value[0]) for code in grpc.StatusCode}
STATUS_CODES: dict[Code, grpc.StatusCode] = {ours: theirs for theirs, ours in CODES.items()}

PASSED = Status(code=Code.DEADLINE_EXCEEDED, message="deadline exceeded", begun=False, by=By.LOCAL)
"""A deadline that had passed before anything was sent."""

CLOSED = Status(code=Code.UNAVAILABLE, message="the channel is closed", begun=False, by=By.LOCAL)
"""What is refused by a channel that was closed before."""

CUT_OFF = Status(code=Code.UNAVAILABLE, message="the channel was closed", by=By.LOCAL)
"""An RPC that was under way when its channel was closed."""

CANCELLED = Status(code=Code.CANCELLED, message="cancelled", by=By.CALLER)
"""An RPC that its caller cancelled."""

BROKEN = "an interceptor raised "
"""What the message of an RPC begins with that ended by an exception of somebody's interceptor."""

# Core gives no sign of whether a status came over the wire: debug_error_string repeats the details. These are the
# texts of its own decisions, and ours. A peer may send the same ones, so nothing that matters rests on a text alone.
_UNREACHED = ("failed to connect to all addresses", "errors resolving ", "DNS resolution failed", "empty address list")
_OWN = ("Stream removed (", "CLIENT: ", "Deadline Exceeded", BROKEN)
_RESET = "Stream removed (RST_STREAM"


def never_sent(code: Code, message: str, channel: grpc.aio.Channel) -> bool:
    """Return whether an RPC that failed was surely never sent: no connection could be made.

    Says no when in doubt. The text alone could be a peer's, who failed to connect to *its* backend; but a channel that
    just carried a peer's answer is not in TRANSIENT_FAILURE, where it stays from the first failed connect to the next
    good one (gRFC A62).
    """
    return (
        code is Code.UNAVAILABLE
        and message.startswith(_UNREACHED)
        and channel.get_state() is grpc.ChannelConnectivity.TRANSIENT_FAILURE
    )


def ended_by(code: Code, message: str) -> By:
    """Return who ended an RPC whose failure came from core, as far as its text can tell."""
    local = code is not Code.OK and message.startswith(_OWN) and not message.startswith(_RESET)
    return By.LOCAL if local else By.PEER
