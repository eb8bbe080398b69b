"""Calls that would fail anyway are not made: whoever is broken gets time, and the caller an answer at once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import ClassVar, TypeAlias

from servicekit.call import Call
from servicekit.endpoint import Endpoint, Message
from servicekit.errors import Code, Error
from servicekit.policy.breaker import Breaker, Rules, State
from servicekit.policy.checked import count, function
from servicekit.policy.evidence import observed
from servicekit.policy.lru import Lru
from servicekit.policy.refusal import Refusal
from servicekit.verdict import verdict

Fallback: TypeAlias = Callable[[Message, Call, Error], Awaitable[Message]]

_OPEN = Refusal(Code.UNAVAILABLE, "circuit open", reason="CIRCUIT_OPEN")
_DECISIONS = {State.OPEN: "opened", State.HALF_OPEN: "probing", State.CLOSED: "closed"}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CircuitBreaker(Rules):
    """Stops calling what has failed too often, and finds out with a few probes when it works again.

    Default: for each instance (the target, where no balancer picks one) and method, it opens when of at least
    ``calls`` (20) in ``window`` (10 s, in ``buckets``: 10) the share ``failures`` (0.5) or more have failed, by
    ``verdict``. It stays open for ``first`` (5 s), doubling with each failed probe up to ``most`` (60 s), all ± 20 %.
    Then it lets ``probes`` (3) through at a time, closes after ``successes`` (3) of them, and opens again with the
    first failure; a probe that says nothing for ``lost`` (10 s) frees its place. A stream counts as a success with its
    first message, and as a failure once more if it breaks later.

    A refused call never reaches the wire and counts for nothing. Its caller gets UNAVAILABLE "circuit open", reason
    "CIRCUIT_OPEN", with ``retry_after``: the rest of the open time. With ``fallback``, an
    ``async (request, call, error) -> response`` as an endpoint has it, the caller gets what that returns (or sends)
    instead. ``max_keys`` (10,000) circuits are kept; the one that was asked for longest ago is forgotten.

    For every kind, on both sides. Decisions, as ``circuit_breaker``: "opened", "probing" (half-open from here on),
    "closed", "refused", "fallback".
    """

    one_attempt: ClassVar[bool] = True

    fallback: Fallback | None = None
    max_keys: int = 10_000
    _breakers: Lru[tuple[str, str], Breaker] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Raise ValueError or TypeError, naming setting and value, for a rule that cannot be kept."""
        Rules.__post_init__(self)
        if self.fallback is not None:
            function("fallback", self.fallback, "coroutine function of (request, call, error)")
        count("max_keys", self.max_keys)
        object.__setattr__(self, "_breakers", Lru(lambda: Breaker(self), most=self.max_keys))

    @property
    def answers_by_itself(self) -> bool:
        """Whether it gives a value in the place of the call's, so that only those who may have it must reach it."""
        return self.fallback is not None

    async def __call__(self, request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        """Run the call and take note of how it went, or refuse it."""
        clock = call.clock
        breaker = self._breakers.get((call.instance or "", call.method.path))
        was = breaker.state
        permit = breaker.admit(clock.time())
        if breaker.state is not was:
            call.decide("circuit_breaker", _DECISIONS[breaker.state])
        if permit is None:
            return await self._refuse(request, call, breaker.retry_after(clock.time()))

        def tell(error: BaseException | None) -> None:
            turned = breaker.report(permit, verdict(error), clock.time(), clock.random())
            if turned is not None:
                call.decide("circuit_breaker", _DECISIONS[turned])

        return await observed(request, call, next, tell)

    async def _refuse(self, request: Message, call: Call, retry_after: float) -> Message:
        error = _OPEN.error(retry_after=retry_after)
        call.decide("circuit_breaker", "refused" if self.fallback is None else "fallback")
        if self.fallback is None:
            raise error
        return await self.fallback(request, call, error)
