"""The time that a server takes to go, which whoever is in more of a hurry may shorten while it passes."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from servicekit.clock import Clock, Timer


class Grace:
    """First a delay, in which the server still serves, then the time that calls have to finish."""

    def __init__(self, clock: Clock, *, delay: float, grace: float) -> None:
        """Begin now, with ``delay`` and ``grace`` in seconds."""
        self._clock = clock
        self._delayed, self._over = asyncio.Event(), asyncio.Event()
        begin = clock.time() + delay
        self._end = begin + grace
        self._timers = [self._at(begin, self._delayed), self._at(self._end, self._over)]

    async def delay(self) -> None:
        """Return once the delay is over."""
        await self._delayed.wait()

    @property
    def left(self) -> float:
        """Seconds until the grace is over, as things are now."""
        return max(0.0, self._end - self._clock.time())

    async def over(self) -> None:
        """Return once the grace is over."""
        await self._over.wait()

    def shorten(self, grace: float) -> None:
        """Have no delay any more, and end in ``grace`` seconds where the end is not sooner."""
        self._delayed.set()
        end = self._clock.time() + grace
        if end < self._end:
            self._end = end
            self._timers.append(self._at(end, self._over))

    def close(self) -> None:
        """Let go of the clock: nobody waits any more, and there is nothing left to shorten."""
        self._end = -math.inf
        for timer in self._timers:
            timer.cancel()

    def _at(self, when: float, event: asyncio.Event) -> Timer:
        if when <= self._clock.time():
            event.set()
        return self._clock.call_at(when, event.set)
