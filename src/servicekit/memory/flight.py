"""The RPCs that one end still has at work, and the wait for the last of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from servicekit.clock import Clock

from .exchange import Exchange


class Flight:
    """A set of RPCs, in the order of their coming so that ending them is always the same."""

    def __init__(self, clock: Clock) -> None:
        """Begin empty."""
        self._clock = clock
        self._exchanges: dict[Exchange, None] = {}
        self._empty = asyncio.Event()
        self._empty.set()

    def add(self, exchange: Exchange) -> None:
        """Count one in."""
        self._exchanges[exchange] = None
        self._empty.clear()

    def discard(self, exchange: Exchange) -> None:
        """Count one out; harmless when it is out already."""
        self._exchanges.pop(exchange, None)
        if not self._exchanges:
            self._empty.set()

    async def land(self, grace: float, end: Callable[[Exchange], None]) -> None:
        """Return when none is left: what is still there after ``grace`` seconds is given to ``end``.

        May run more than once at a time; the shortest grace counts.
        """
        if grace <= 0:
            self._end(end)
            await self._empty.wait()
            return
        timer = self._clock.call_at(self._clock.time() + grace, lambda: self._end(end))
        try:
            await self._empty.wait()
        finally:
            timer.cancel()

    def _end(self, end: Callable[[Exchange], None]) -> None:
        for exchange in list(self._exchanges):
            end(exchange)

    def __len__(self) -> int:
        """Return how many are at work."""
        return len(self._exchanges)
