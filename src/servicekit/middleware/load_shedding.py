"""Too much to do: the excess is turned away while that is still cheap, and the rest is served in time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

from servicekit.call import Call
from servicekit.clock import SystemClock
from servicekit.endpoint import Endpoint, Message
from servicekit.errors import Code, Error
from servicekit.loop_lag import LoopLag
from servicekit.method import Kind
from servicekit.policy.checked import function, seconds, seconds_or_none, seconds_or_zero
from servicekit.policy.criticality import SHARES, STATE, criticality_of
from servicekit.policy.gradient import Gradient
from servicekit.policy.refusal import Refusal

_MOST_CRITICAL = "critical_plus"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LoadShedding:
    """Refuses calls when more are being served than the server can bear, or when its event loop is late.

    Default: the limit on unary calls that run at a time is learned (Gradient2, see ``policy.gradient``): ``initial``
    (20) at first, ``least`` (4) to ``most`` (200), growing while calls take no longer than they do on the long run. And
    the loop is watched: later than ``lag`` (100 ms) for ``lag_time`` (1 s), and calls are refused until it is on time
    again; None switches this off, and on a clock that a test moves there is no such thing as lag. What is learned from
    are unary calls that ended well or ran out of time. A stream takes no place, for it may be open for days; it is not
    begun while there is none.

    ``trusted(call)`` says whose metadata ``x-criticality`` is believed, by address or client certificate; nobody's by
    default, for this link stands before authentication. "critical" is what every call is that says nothing; of the limit
    "sheddable" calls have half, "sheddable_plus" three quarters, "critical_plus" a quarter on top, and these alone are
    served while the loop is late. What was believed is in ``call.state["criticality"]``.

    The caller of a refused call gets UNAVAILABLE "overloaded", reason "OVERLOADED", with ``retry_after`` (1 s). Work
    was not begun for it.

    For every kind, on the server. Health and reflection pass. Decisions, as ``load_shedding``: "refused_limit",
    "refused_lag".
    """

    keeps_messages: ClassVar[bool] = True

    initial: int = 20
    least: int = 4
    most: int = 200
    lag: float | None = 0.1
    lag_time: float = 1.0
    trusted: Callable[[Call], bool] | None = None
    retry_after: float = 1.0
    _state: _State = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Raise ValueError or TypeError, naming setting and value, for bounds that do not hold each other."""
        seconds_or_zero("retry_after", self.retry_after)
        seconds("lag_time", self.lag_time)
        seconds_or_none("lag", self.lag)
        if self.trusted is not None:
            function("trusted", self.trusted, "function of the call")
        gradient = Gradient(initial=self.initial, least=self.least, most=self.most)
        loop_lag = None if self.lag is None else LoopLag(over=self.lag, during=self.lag_time)
        refusal = Refusal(Code.UNAVAILABLE, "overloaded", reason="OVERLOADED", retry_after=self.retry_after)
        object.__setattr__(self, "_state", _State(gradient, loop_lag, refusal))

    @property
    def limit(self) -> int:
        """How many calls may run at a time as of now."""
        return self._state.gradient.limit

    @property
    def running(self) -> int:
        """How many unary calls run now."""
        return self._state.running

    @property
    def loop_lag(self) -> LoopLag | None:
        """What watches the loop."""
        return self._state.loop_lag

    async def __call__(self, request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        """Run the call, or refuse it."""
        if call.method.auxiliary:
            return await next(request, call)
        state = self._state
        self._admit(state, call)
        if call.method.kind is not Kind.UNARY:
            return await next(request, call)
        state.running += 1
        try:
            response = await next(request, call)
        except (asyncio.CancelledError, Error) as error:
            if call.outcome(error) is Code.DEADLINE_EXCEEDED:
                state.sample(call)
            raise
        else:
            state.sample(call)
            return response
        finally:
            state.running -= 1

    def _admit(self, state: _State, call: Call) -> None:
        """Raise the refusal of a call that there is no room for."""
        share, critical = 1.0, False
        if self.trusted is not None:
            word = criticality_of(call)
            if word is not None and self.trusted(call):
                call.state[STATE] = word
                share, critical = SHARES[word], word == _MOST_CRITICAL
        loop_lag = state.loop_lag
        if loop_lag is not None:
            if isinstance(call.clock, SystemClock):
                loop_lag.watch()
            if loop_lag.lagging and not critical:
                call.decide("load_shedding", "refused_lag")
                raise state.refusal.error()
        if state.running >= share * state.gradient.limit:
            call.decide("load_shedding", "refused_limit")
            raise state.refusal.error()


class _State:
    """What the calls of one server share."""

    __slots__ = ("gradient", "loop_lag", "refusal", "running")

    def __init__(self, gradient: Gradient, loop_lag: LoopLag | None, refusal: Refusal) -> None:
        self.gradient = gradient
        self.loop_lag = loop_lag
        self.refusal = refusal
        self.running = 0

    def sample(self, call: Call) -> None:
        """Learn from a call that is about to end."""
        now = call.clock.time()
        self.gradient.sample(now, now - call.started, self.running)
