"""No work without an end, and none that is already late."""

from __future__ import annotations

import math
from dataclasses import dataclass

from servicekit.call import Call, Side
from servicekit.endpoint import Endpoint, Message
from servicekit.errors import Code, Error


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadline:
    """Sees to it that a call has a deadline, and that it has not passed.

    ``default`` (30 s) is the time for a call that came without a deadline; ``cap`` (300 s) is the most that a server
    gives, whatever was asked for. Neither holds for methods that stream responses, which may well stay open for days;
    None switches one off. On a client there is no cap, and the time of a call that has its own or an inherited
    deadline is left alone.

    A call with nothing left, of any kind, is refused with DEADLINE_EXCEEDED before any work is begun for it. The
    server's own methods (health, reflection) pass. When the deadline passes later the call ends with
    DEADLINE_EXCEEDED wherever it is: ``call.limit`` sees to that.
    """

    default: float | None = 30.0
    cap: float | None = 300.0

    def __post_init__(self) -> None:
        """Raise ValueError or TypeError for what is no time, and for a default above the cap."""
        _check("default", self.default)
        _check("cap", self.cap)
        if self.default is not None and self.cap is not None and self.default > self.cap:
            msg = f"default={self.default!r} is more than cap={self.cap!r}: raise the cap, or switch it off with None"
            raise ValueError(msg)

    async def __call__(self, request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        """Limit the call, or refuse it, then run it."""
        if not call.method.auxiliary:
            limit = self._limit(call)
            now = call.clock.time()
            if call.deadline is not None and call.deadline <= now:
                raise Error(Code.DEADLINE_EXCEEDED, "deadline exceeded before the call was begun", begun=False)
            if limit is not None:
                call.limit(now + limit)
        return await next(request, call)

    def _limit(self, call: Call) -> float | None:
        if call.method.kind.response_streaming:
            return None
        if call.deadline is None and self.default is not None:
            return self.default
        return self.cap if call.side is Side.SERVER else None


def _check(name: str, seconds: float | None) -> None:
    if seconds is None:
        return
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        msg = f"{name}={seconds!r} is no number of seconds"
        raise TypeError(msg)
    if not (seconds > 0 and math.isfinite(seconds)):
        msg = f"{name}={seconds!r} is no time to work in: give more than 0 seconds, or None for no such rule"
        raise ValueError(msg)
