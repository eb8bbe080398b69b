"""Time, sleep and randomness as one thing, passed in everywhere, so that a test can move it."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random
import sys
import time
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable


class Timer(Protocol):
    """What ``call_at`` returns: a callback that has not run yet."""

    def cancel(self) -> None:
        """Make sure the callback does not run; harmless when it already has."""


class Clock(Protocol):
    """The passing of time as a part sees it. All figures are seconds; ``time()`` has no fixed origin."""

    def time(self) -> float:
        """Return the monotonic time."""

    async def sleep(self, delay: float) -> None:
        """Return after ``delay`` seconds."""

    def call_at(self, when: float, callback: Callable[[], object]) -> Timer:
        """Run ``callback`` on the running loop once ``time()`` has reached ``when``."""

    def random(self) -> float:
        """Return a float in [0, 1)."""


class SystemClock:
    """The real clock: ``time.monotonic``, the running loop's timers, the process's randomness."""

    def __init__(self) -> None:
        """Take its own random source, so that nobody's ``random.seed`` makes every client back off in step."""
        self._random = random.Random()  # noqa: S311 - jitter, not secrets

    time = staticmethod(time.monotonic)

    async def sleep(self, delay: float) -> None:
        """Return after ``delay`` seconds."""
        await asyncio.sleep(delay)

    def call_at(self, when: float, callback: Callable[[], object]) -> Timer:
        """Run ``callback`` on the running loop once ``time()`` has reached ``when``."""
        return asyncio.get_running_loop().call_later(max(0.0, when - self.time()), callback)

    def random(self) -> float:
        """Return a float in [0, 1)."""
        return self._random.random()

    def __repr__(self) -> str:
        """Return the name: there is no state worth showing."""
        return "SystemClock()"


class _MovableTimer:
    __slots__ = ("callback",)

    def __init__(self, callback: Callable[[], object]) -> None:
        self.callback: Callable[[], object] | None = callback

    def cancel(self) -> None:
        self.callback = None


class MovableClock:
    """A clock that stands still until ``advance`` moves it: hours of back-off in a millisecond, always the same.

    Its timers run in order of their time, and between two of them everything that can run does run, so a timer set
    by the consequences of an earlier one fires where it belongs. ``random()`` is seeded.
    """

    def __init__(self, start: float = 1000.0, *, seed: int = 0) -> None:
        """Begin at ``start`` seconds, with the random sequence of ``seed``. Raises TypeError or ValueError for no time."""
        _check_time("start", start)
        if isinstance(seed, bool) or not isinstance(seed, int):
            msg = f"seed={seed!r} is no whole number"
            raise TypeError(msg)
        self._now = start
        self._timers: list[tuple[float, int, _MovableTimer]] = []
        self._order = itertools.count()
        self._random = random.Random(seed)  # noqa: S311 - a test's sequence must be the same every time

    def time(self) -> float:
        """Return the time that the clock was moved to."""
        return self._now

    async def sleep(self, delay: float) -> None:
        """Return once the clock was moved ``delay`` seconds on."""
        if delay <= 0:
            await asyncio.sleep(0)
            return
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def wake() -> None:
            if not woken.done():
                woken.set_result(None)

        timer = self.call_at(self._now + delay, wake)
        try:
            await woken
        finally:
            timer.cancel()

    def call_at(self, when: float, callback: Callable[[], object]) -> Timer:
        """Run ``callback`` when the clock reaches ``when``; one that is already due runs at the next ``advance``."""
        timer = _MovableTimer(callback)
        heapq.heappush(self._timers, (when, next(self._order), timer))
        return timer

    def random(self) -> float:
        """Return the next float in [0, 1) of the seeded sequence."""
        return self._random.random()

    async def advance(self, seconds: float) -> None:
        """Move on by ``seconds``, running every timer that falls due and all that follows from it, in order.

        Raises TypeError or ValueError for what is no time, or less than 0.
        """
        _check_time("seconds", seconds)
        if seconds < 0:
            msg = f"time does not run backwards: advance({seconds!r})"
            raise ValueError(msg)
        end = self._now + seconds
        await settle()
        while self._timers and self._timers[0][0] <= end:
            when, _, timer = heapq.heappop(self._timers)
            if timer.callback is None:
                continue
            self._now = max(self._now, when)
            timer.callback()
            await settle()
        self._now = end
        await settle()

    @property
    def pending(self) -> int:
        """How many timers are still to run: what a leak check asks."""
        return sum(timer.callback is not None for _, _, timer in self._timers)

    def __repr__(self) -> str:
        """Return where the clock stands and how many timers wait."""
        return f"MovableClock(time={self._now}, pending={self.pending})"


def _check_time(name: str, value: float) -> None:
    # What all others are checked with stands above this floor.
    if isinstance(value, bool) or not isinstance(value, int | float):
        msg = f"{name}={value!r} is no number of seconds"
        raise TypeError(msg)
    if not abs(value) <= sys.float_info.max:
        msg = f"{name}={value!r} is no finite number of seconds"
        raise ValueError(msg)


async def settle() -> None:
    """Return once nothing on the running loop can go on without time passing or input coming in.

    asyncio does not say so in public; its own loop keeps what is ready in ``_ready``. On another loop this gives way
    a fixed number of times. Raises RuntimeError when the loop does not come to rest: somebody polls.
    """
    ready = getattr(asyncio.get_running_loop(), "_ready", None)
    for _ in range(50 if ready is None else 100_000):
        await asyncio.sleep(0)
        if ready is not None and not ready:
            return
    if ready is not None:
        msg = "the loop does not come to rest: a task runs on without waiting for anything"
        raise RuntimeError(msg)
