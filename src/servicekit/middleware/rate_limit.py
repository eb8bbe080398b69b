"""So many calls a second for each who calls, and no more."""

from __future__ import annotations

import asyncio
import logging
import math
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

from servicekit.call import Call
from servicekit.clock import Clock, Timer
from servicekit.endpoint import Endpoint, Message
from servicekit.errors import Code
from servicekit.policy.bucket import Bucket
from servicekit.policy.caller_key import Key, key_of
from servicekit.policy.checked import able, count, flag, rate
from servicekit.policy.lru import Lru
from servicekit.policy.refusal import Refusal

_AGAIN = 1.0
"""Seconds for which a store that failed is not asked again."""

_TOO_MANY = Refusal(Code.RESOURCE_EXHAUSTED, "too many calls", reason="RATE_LIMITED")
_UNCHECKED = Refusal(
    Code.UNAVAILABLE, "the rate limit cannot be checked", reason="RATE_LIMIT_UNAVAILABLE", retry_after=_AGAIN
)

log = logging.getLogger("servicekit")


class Store(Protocol):
    """Where several processes keep one limit together."""

    def check(self, *, per_second: float, burst: int) -> None:
        """Raise ValueError, naming the settings, for a limit that cannot be kept here."""

    async def take(self, key: str, *, per_second: float, burst: int) -> float:
        """Take one of the tokens of ``key`` and return 0.0; else the seconds for which there will be none.

        Raises any exception when the store cannot be asked, and does so soon.
        """


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RateLimit:
    """Lets ``per_second`` calls a second through for each ``key``, and ``burst`` at once.

    Default: refuses what is too much; ``burst`` is one second's worth. The bound is exact: in any window of ``w``
    seconds at most ``per_second * w + burst`` are let through (a token bucket). ``key`` is "peer" (the host; the
    default), "principal", "method", or a function of the call; see ``key_of``. By peer it stands before authentication,
    by principal after it. The ``max_keys`` (10,000) last seen are remembered; one that comes back after that begins
    with a full burst.

    The caller of a refused call gets RESOURCE_EXHAUSTED "too many calls", reason "RATE_LIMITED", with ``retry_after``:
    when there will be a token. With ``wait`` the call waits for its turn instead, first come, first served; it is
    refused at once, in the same way, when its turn would come after its deadline. A call without a deadline waits as
    long as it takes. Who leaves the line takes no token with it.

    With a ``store`` the limit is shared by all processes that use the same one; waiting is then by asking again, in no
    order. While it cannot be asked every call passes (``fail_open``, as Envoy does), or is refused with UNAVAILABLE
    "the rate limit cannot be checked"; the log tells when that begins and ends. It is asked again after a second.

    For every kind, on both sides; a stream counts once. Health and reflection pass. Decisions, as ``rate_limit``:
    "refused", "waited", "failed_open", "failed_closed".
    """

    keeps_messages: ClassVar[bool] = True

    per_second: float
    burst: int | None = None
    key: Key = "peer"
    wait: bool = False
    store: Store | None = None
    max_keys: int = 10_000
    fail_open: bool = True
    _key: Callable[[Call], Hashable] = field(init=False, repr=False)
    _lines: Lru[Hashable, _Line] = field(init=False, repr=False)
    _shared: _Shared | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Raise ValueError or TypeError, naming setting and value, for what is no limit."""
        rate("per_second", self.per_second)
        burst = max(1, math.ceil(self.per_second)) if self.burst is None else count("burst", self.burst)
        count("max_keys", self.max_keys)
        flag("wait", self.wait)
        flag("fail_open", self.fail_open)
        object.__setattr__(self, "burst", burst)
        object.__setattr__(self, "_key", key_of(self.key))
        per_second = self.per_second
        object.__setattr__(
            self, "_lines", Lru(lambda: _Line(Bucket(per_second=per_second, burst=burst)), most=self.max_keys)
        )
        shared = None
        if self.store is not None:
            able("store", self.store, ("check", "take"), "Store", secret=True)  # a URL may hold a password
            self.store.check(per_second=per_second, burst=burst)
            shared = _Shared(self.store, per_second=per_second, burst=burst, max_keys=self.max_keys)
        object.__setattr__(self, "_shared", shared)

    async def __call__(self, request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        """Take a token and run the call, or wait for one, or refuse."""
        if not call.method.auxiliary:
            if self._shared is not None:
                await self._ask(self._shared, call)
            else:
                line = self._lines.get(self._key(call))
                if line.waiting or not line.bucket.take(call.clock.time()):
                    await self._queue(line, call)
        return await next(request, call)

    async def _queue(self, line: _Line, call: Call) -> None:
        self._may_wait(call, line.when(call.clock.time()))
        call.decide("rate_limit", "waited")
        with call.waiting("rate_limit"):
            await line.turn(call.clock)

    async def _ask(self, shared: _Shared, call: Call) -> None:
        clock, key, waited = call.clock, self._key(call), False
        while True:
            now = clock.time()
            if shared.is_down(now):
                return self._unchecked(call)
            try:
                delay = await shared.take(key, now)
            except Exception as error:  # noqa: BLE001 - whatever the store's client raises, it could not be asked
                shared.failed(clock.time(), error)
                return self._unchecked(call)
            if not delay:
                return None
            self._may_wait(call, clock.time() + delay)
            if not waited:
                waited = True
                call.decide("rate_limit", "waited")
            with call.waiting("rate_limit"):
                await clock.sleep(delay)

    def _may_wait(self, call: Call, turn: float) -> None:
        """Raise the refusal of a call that may not wait until ``turn``."""
        if not self.wait or (call.deadline is not None and turn >= call.deadline):
            call.decide("rate_limit", "refused")
            raise _TOO_MANY.error(retry_after=max(0.0, turn - call.clock.time()))

    def _unchecked(self, call: Call) -> None:
        call.decide("rate_limit", "failed_open" if self.fail_open else "failed_closed")
        if not self.fail_open:
            raise _UNCHECKED.error()


class _Line:
    """A bucket, and those who wait for its tokens, in order.

    Nobody is promised a token in advance: one is taken when it is there. So the bound holds also for a loop that was
    stuck while many turns came.
    """

    __slots__ = ("_timer", "bucket", "waiting")

    def __init__(self, bucket: Bucket) -> None:
        self.bucket = bucket
        self.waiting: OrderedDict[asyncio.Future[None], None] = OrderedDict()
        self._timer: Timer | None = None

    def when(self, now: float) -> float:
        """Return when one who comes ``now`` has its turn at the latest."""
        return self.bucket.when(now, ahead=len(self.waiting))

    async def turn(self, clock: Clock) -> None:
        """Return once it is the caller's turn and a token was taken for it."""
        mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waiting[mine] = None
        self._serve(clock)
        try:
            await mine
        except asyncio.CancelledError:
            self.waiting.pop(mine, None)
            if not mine.cancelled():  # it had its turn, and goes without using it
                self.bucket.give_back()
            self._serve(clock)
            raise

    def _serve(self, clock: Clock) -> None:
        """Let go on as many as there are tokens for; see to it that the next one will."""
        while self.waiting and self.bucket.take(clock.time()):
            first, _ = self.waiting.popitem(last=False)
            if first.done():  # cancelled, and has not run since
                self.bucket.give_back()
            else:
                first.set_result(None)
        if self._timer is not None and not self.waiting:
            self._timer.cancel()
            self._timer = None
        elif self._timer is None and self.waiting:
            self._timer = clock.call_at(self.bucket.when(clock.time()), lambda: self._due(clock))

    def _due(self, clock: Clock) -> None:
        self._timer = None
        self._serve(clock)


class _Shared:
    """What this process knows of a limit that is kept elsewhere."""

    __slots__ = ("_burst", "_down_until", "_empty", "_per_second", "_store")

    def __init__(self, store: Store, *, per_second: float, burst: int, max_keys: int) -> None:
        self._store = store
        self._per_second = per_second
        self._burst = burst
        self._down_until: float | None = None
        # Until when a key is known to have no tokens: refusing must not cost a round trip.
        self._empty: Lru[Hashable, list[float]] = Lru(lambda: [-math.inf], most=max_keys)

    def is_down(self, now: float) -> bool:
        """Return whether the store is left alone for now: it has failed."""
        return self._down_until is not None and now < self._down_until

    async def take(self, key: Hashable, now: float) -> float:
        """Return what the store does, or what it is known to return."""
        empty = self._empty.get(key)
        if now < empty[0]:
            return empty[0] - now
        delay = await self._store.take(str(key), per_second=self._per_second, burst=self._burst)
        if self._down_until is not None:
            self._down_until = None
            log.info("the store of a rate limit answers again")
        if delay:
            empty[0] = now + delay
        return delay

    def failed(self, now: float, error: Exception) -> None:
        """Take note that the store could not be asked."""
        if self._down_until is None:
            log.warning("the store of a rate limit cannot be asked: %r", error)
        self._down_until = now + _AGAIN
