"""A client that is turned away often asks less often: overload is cheapest where it is made."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from servicekit.call import Call
from servicekit.endpoint import Endpoint, Message
from servicekit.errors import By, Code, Error
from servicekit.policy.checked import seconds_or_zero
from servicekit.policy.evidence import observed
from servicekit.policy.refusal import Refusal
from servicekit.policy.throttle import Throttle
from servicekit.verdict import Verdict, verdict

_THROTTLED = Refusal(Code.UNAVAILABLE, "throttled", reason="THROTTLED")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AdaptiveThrottle:
    """Refuses calls by itself, with a chance that grows with how many of them the other side does not take.

    Default: of the last ``window`` (120 s), ``p = max(0, (requests - k * accepts) / (requests + 1))`` with ``k`` 2, as
    "Site Reliability Engineering" has it; nothing is refused as long as half of the calls are taken. Taken is what the
    other side answered, be it NOT_FOUND; not taken is what broke, and what was turned away, with or without saying when
    to come back. A call that its caller cancelled, or that a link further in refused, counts for nothing.

    The caller of a refused call gets UNAVAILABLE "throttled", reason "THROTTLED", with ``retry_after`` (1 s); it never
    reaches the wire. One AdaptiveThrottle belongs to one target. For every kind, on the client, outside the balancer;
    it counts attempts, so inside of Retry. Decision, as ``adaptive_throttle``: "refused".
    """

    k: float = 2.0
    window: float = 120.0
    retry_after: float = 1.0
    _throttle: Throttle = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Raise ValueError or TypeError, naming setting and value, for what is no factor and no time."""
        seconds_or_zero("retry_after", self.retry_after)
        object.__setattr__(self, "_throttle", Throttle(k=self.k, window=self.window))

    async def __call__(self, request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        """Run the call and take note of how it went, or refuse it."""
        clock, throttle = call.clock, self._throttle
        chance = throttle.chance(clock.time())
        if chance and clock.random() < chance:
            throttle.count(clock.time(), accepted=False)
            call.decide("adaptive_throttle", "refused")
            raise _THROTTLED.error(retry_after=self.retry_after)

        def tell(error: BaseException | None) -> None:
            accepted = _accepted(error)
            if accepted is not None:
                throttle.count(clock.time(), accepted=accepted)

        return await observed(request, call, next, tell)


def _accepted(error: BaseException | None) -> bool | None:
    judged = verdict(error)
    if judged is not Verdict.IGNORED:
        return judged is Verdict.SUCCESS
    if isinstance(error, asyncio.CancelledError) or not isinstance(error, Error):
        return None
    # What it turned away on purpose says nothing of an instance's health, but all of what it can bear.
    return None if error.refused or error.by is By.CALLER or error.retry_after is None else False
