"""Failures made on purpose, the same ones every time: how to see what the others make of them."""

from __future__ import annotations

import copy
import random
from dataclasses import dataclass, field

from servicekit.call import Call, Side
from servicekit.clock import Timer
from servicekit.endpoint import Endpoint, Message
from servicekit.errors import By, Code, Error
from servicekit.policy.checked import count, kind, seconds_or_zero, share, whole


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Faults:
    """Delays, aborts and breaks calls, a ``probability`` (1.0) of them, drawn from the sequence of ``seed`` (0).

    Default: nothing; each fault is named. A call that was drawn is held for ``delay`` seconds (a number, or (least,
    most) to draw from) before anything is begun for it; then it fails with ``abort`` (a Code, or an Error of your own),
    or, once ``drop_after`` messages have passed, both ways together, it ends with UNAVAILABLE "connection dropped", as
    when a connection breaks: the messages have passed, and how the call has ended has not. So with ``drop_after=1`` a
    unary call's work is begun, and nobody hears of it. Its caller cannot tell any of this from a real failure, but
    for the message of an ``abort`` that is a Code, "injected fault". Not both of ``abort`` and ``drop_after``; several
    links, with ``only``, are several faults.

    For every kind, on both sides, innermost. Health and reflection pass. Decisions, as ``faults``: "delayed",
    "aborted", "dropped".
    """

    seed: int = 0
    delay: float | tuple[float, float] = 0.0
    abort: Code | Error | None = None
    drop_after: int | None = None
    probability: float = 1.0
    _random: random.Random = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Raise ValueError or TypeError, naming setting and value, for what is no fault."""
        whole("seed", self.seed)
        share("probability", self.probability)
        if isinstance(self.delay, tuple) and len(self.delay) != 2:  # noqa: PLR2004 - least and most
            msg = f"delay={self.delay!r} is neither a number of seconds nor (least, most)"
            raise ValueError(msg)
        least, most = self._range()
        if seconds_or_zero("delay", least) > seconds_or_zero("delay", most):
            msg = f"delay={self.delay!r} is (least, most)"
            raise ValueError(msg)
        if self.abort is not None:
            kind("abort", self.abort, (Code, Error), "Code and no Error")
        if self.abort is Code.OK:
            msg = "abort=Code.OK is no failure"
            raise ValueError(msg)
        if self.drop_after is not None:
            count("drop_after", self.drop_after, least=0)
            if self.abort is not None:
                msg = f"abort={self.abort!r} ends the call before drop_after={self.drop_after!r} could: give one"
                raise ValueError(msg)
        object.__setattr__(self, "_random", random.Random(self.seed))  # noqa: S311 - the same faults every time

    async def __call__(self, request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        """Run the call, or let it fail."""
        # Two draws for each call, whatever comes of them: the sequence must not depend on settings or on luck.
        chance, length = self._random.random(), self._random.random()
        if call.method.auxiliary or chance >= self.probability:
            return await next(request, call)
        least, most = self._range()
        if most:
            call.decide("faults", "delayed")
            with call.waiting("faults"):
                await call.clock.sleep(least + (most - least) * length)
        if self.abort is not None:
            call.decide("faults", "aborted")
            raise _aborted(self.abort, call)
        if self.drop_after is None:
            return await next(request, call)
        return await _dropping(request, call, next, self.drop_after)

    def _range(self) -> tuple[float, float]:
        return self.delay if isinstance(self.delay, tuple) else (self.delay, self.delay)


def _aborted(abort: Code | Error, call: Call) -> Error:
    if isinstance(abort, Error):
        return copy.copy(abort)  # one that is raised again and again gathers tracebacks
    return Error(abort, "injected fault", by=By.PEER if call.side is Side.CLIENT else By.LOCAL)


async def _dropping(request: Message, call: Call, next: Endpoint, after: int) -> Message:  # noqa: A002 - the term
    drop = _Drop(call, after)
    if not after:
        drop.told()
        raise drop.error
    call.on_received(drop.passed)
    call.on_sent(drop.passed)
    try:
        response = await next(request, call)
    finally:
        if drop.timer is not None:
            drop.timer.cancel()
    if drop.left <= 0:  # the status is lost with the connection
        drop.told()
        raise drop.error
    return response


class _Drop:
    """A connection that has so many messages left."""

    __slots__ = ("_call", "_told", "error", "left", "timer")

    def __init__(self, call: Call, after: int) -> None:
        self._call = call
        self._told = False
        self.left = after
        self.error = Error(Code.UNAVAILABLE, "connection dropped")
        self.timer: Timer | None = None

    def passed(self, _message: object, _size: int) -> None:
        self.left -= 1
        if self.left < 0:  # the next one came before the timer
            self.told()
            raise self.error
        if self.left == 0:  # this one still passes
            clock = self._call.clock
            self.timer = clock.call_at(clock.time(), self._break)

    def _break(self) -> None:
        self.told()
        self._call.end(self.error)

    def told(self) -> None:
        if not self._told:
            self._told = True
            self._call.decide("faults", "dropped")
