"""No work without an end, and none that is already late."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import ClassVar

from servicekit.call import Call, Side
from servicekit.endpoint import Endpoint, Message
from servicekit.errors import Code, Error
from servicekit.policy.checked import flag, seconds_or_none
from servicekit.policy.lru import Lru
from servicekit.policy.quantile import Latencies

_METHODS = 1000
_PROBE = 10
"""Of so many doomed calls in a row one is run: else nobody would see that a method has become faster."""


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

    With ``doomed`` (off by default) a call that will most likely not be in time is refused in the same way: one with
    less time left than half of the method's last answers took. It needs 100 answers; those that ran out of time count as
    long as they lasted. One doomed call in ten is run all the same, to see whether the method has become faster. Not for
    methods that stream responses.

    Decisions, as ``deadline``: "refused_late", "refused_doomed".
    """

    keeps_messages: ClassVar[bool] = True

    default: float | None = 30.0
    cap: float | None = 300.0
    doomed: bool = False
    _answers: Lru[str, _Answers] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Raise ValueError or TypeError, naming setting and value, for what is no time, and for a default above the cap."""
        seconds_or_none("default", self.default)
        seconds_or_none("cap", self.cap)
        flag("doomed", self.doomed)
        if self.default is not None and self.cap is not None and self.default > self.cap:
            msg = f"default={self.default!r} is more than cap={self.cap!r}: raise the cap, or switch it off with None"
            raise ValueError(msg)
        object.__setattr__(self, "_answers", Lru(_Answers, most=_METHODS))

    async def __call__(self, request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        """Limit the call, or refuse it, then run it."""
        if call.method.auxiliary:
            return await next(request, call)
        limit = self._limit(call)
        now = call.clock.time()
        if call.deadline is not None and call.deadline <= now:
            call.decide("deadline", "refused_late")
            raise _refusal("deadline exceeded before the call was begun")
        if limit is not None:
            call.limit(now + limit)
        if not self.doomed or call.method.kind.response_streaming:
            return await next(request, call)
        return await self._timed(request, call, next, now)

    def __repr__(self) -> str:
        """Return the settings, ``doomed`` where it is on."""
        return f"Deadline(default={self.default}, cap={self.cap}{', doomed=True' if self.doomed else ''})"

    async def _timed(self, request: Message, call: Call, next: Endpoint, now: float) -> Message:  # noqa: A002 - the term
        answers = self._answers.get(call.method.path)
        if call.deadline is not None and answers.doom(call.deadline - now):
            call.decide("deadline", "refused_doomed")
            raise _refusal("the time left until the deadline is too short for this method")
        try:
            response = await next(request, call)
        except (asyncio.CancelledError, Error) as error:
            if call.outcome(error) is Code.DEADLINE_EXCEEDED:
                answers.times.add(call.clock.time() - now)
            raise
        answers.times.add(call.clock.time() - now)
        return response

    def _limit(self, call: Call) -> float | None:
        if call.method.kind.response_streaming:
            return None
        if call.deadline is None and self.default is not None:
            return self.default
        return self.cap if call.side is Side.SERVER else None


class _Answers:
    """How long the answers of one method took, and how many calls were refused for it since one was run."""

    __slots__ = ("refused", "times")

    def __init__(self) -> None:
        self.times = Latencies()
        self.refused = 0

    def doom(self, left: float) -> bool:
        """Return whether a call with ``left`` seconds is to be refused."""
        usual = self.times.quantile(0.5)
        if usual is None or left >= usual or self.refused >= _PROBE - 1:
            self.refused = 0
            return False
        self.refused += 1
        return True


def _refusal(message: str) -> Error:
    return Error(Code.DEADLINE_EXCEEDED, message, refused=True, begun=False)
