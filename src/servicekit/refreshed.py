"""A value from elsewhere that is held for a while: keys, policies, tokens.

It is fetched by one task at a time, however many calls wait for it; again once it is old, while the old one still
serves; and not at all for a moment after each fetch, whoever asks. When it has expired and cannot be had, nobody gets it.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from .clock import Clock
from .current import detached

T = TypeVar("T")


class Unreachable(Exception):
    """Raised when the value cannot be had. ``retry_after`` are the seconds until it is tried again.

    ``why`` is what the last fetch raised, for those who know that its text holds no secrets.
    """

    def __init__(self, retry_after: float, why: Exception | None) -> None:
        """Say nothing of ``why``: this may be shown."""
        super().__init__("the value could not be fetched")
        self.retry_after = retry_after
        self.why = why


@dataclass(frozen=True, slots=True, kw_only=True)
class Ages:
    """How old a value may be, in seconds: fetched again from ``refresh`` on, not used from ``expire`` on."""

    refresh: float
    expire: float

    def __post_init__(self) -> None:
        """Raise ValueError for ages that contradict each other."""
        if not 0 < self.refresh <= self.expire:
            msg = (
                f"refresh={self.refresh!r}, expire={self.expire!r}: a value is refreshed after 0 and before it expires"
            )
            raise ValueError(msg)


@dataclass(frozen=True, slots=True)
class _Held(Generic[T]):
    value: T
    refresh_at: float
    expire_at: float


class Refreshed(Generic[T]):
    """One value, fetched when it is needed. All methods are for one event loop, and for any number of tasks on it.

    A fetch runs in a task of its own, for the calls that wait for it come and go, and belongs to none of them. It is
    ended after ``timeout`` seconds; there is one task at most, and none without a call that has asked for it.
    """

    __slots__ = ("_ages", "_failure", "_fetch", "_forgotten", "_held", "_interval", "_next", "_task", "_timeout")

    def __init__(
        self,
        fetch: Callable[[], Awaitable[T]],
        *,
        ages: Callable[[T], Ages],
        interval: float,
        timeout: float,
    ) -> None:
        """Fetch with ``fetch``, never again within ``interval`` seconds; ``ages`` tells how long a value is good for."""
        self._fetch = fetch
        self._ages = ages
        self._interval = interval
        self._timeout = timeout
        self._held: _Held[T] | None = None
        self._failure: Exception | None = None
        self._next = -math.inf
        self._forgotten = 0
        self._task: asyncio.Task[None] | None = None

    async def get(self, clock: Clock) -> T:
        """Return the value, waiting for it only when there is none that may be used. Raises Unreachable."""
        held, now = self._held, clock.time()
        if held is not None and now < held.refresh_at:
            return held.value
        fetching = self._begin(clock)
        if held is not None and now < held.expire_at:
            return held.value  # good enough while a newer one is on its way
        return await self._outcome(fetching, clock)

    async def newer(self, clock: Clock) -> T:
        """Return the value as it is after one more fetch, or as it is when one was made just now. Raises Unreachable."""
        fetching = self._begin(clock)
        if fetching is None and self._failure is None and self._held is not None:
            return self._held.value
        return await self._outcome(fetching, clock)

    def discard(self, value: T, clock: Clock) -> None:
        """Do not use ``value`` any more, if it is the one that is held and another one could be fetched by now."""
        if self._held is not None and self._held.value is value and clock.time() >= self._next:
            self._held = None

    def forget(self) -> None:
        """Have the next one who asks wait for a fetch, whenever the last one was."""
        self._held = None
        self._next = -math.inf
        self._forgotten += 1

    def _begin(self, clock: Clock) -> asyncio.Task[None] | None:
        """Return the task that fetches, a new one if it is time for one; None when it is too soon."""
        if self._task is not None and not self._task.done():
            return self._task
        if clock.time() < self._next:
            return None
        with detached():  # it is for everybody: not to end with the deadline of the call that came first
            self._task = asyncio.get_running_loop().create_task(self._run(clock))
        return self._task

    async def _run(self, clock: Clock) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a coroutine that runs has one
        timer = clock.call_at(clock.time() + self._timeout, task.cancel)
        failure: Exception | None = TimeoutError(f"not fetched within {self._timeout} s")
        try:
            while True:
                asked = self._forgotten
                value = await self._fetch()
                if asked == self._forgotten:  # else it was begun before somebody asked for a new one
                    break
            ages, now = self._ages(value), clock.time()
            self._held = _Held(value, now + ages.refresh, now + ages.expire)
            failure = None
        except Exception as error:  # noqa: BLE001 - raised to those who wait, not in this task
            failure = error
        finally:
            timer.cancel()
            self._failure = failure
            self._next = clock.time() + self._interval

    async def _outcome(self, fetching: asyncio.Task[None] | None, clock: Clock) -> T:
        if fetching is not None:
            await asyncio.wait([fetching])  # a wait that is cancelled leaves the fetch to the others
            if self._failure is None and self._held is not None:
                return self._held.value
        raise Unreachable(max(0.0, self._next - clock.time()), self._failure)
