"""How long a method takes: exact quantiles of its last answers.

Sorting is kept up sample by sample (two bisections in a list of 512 numbers, about a microsecond), so that asking is
free, and there is no sketch whose error anybody has to know.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque


class Latencies:
    """The durations of the last ``size`` answers, and nothing to say before there are ``least`` of them."""

    __slots__ = ("_order", "_sorted", "least", "size")

    def __init__(self, *, least: int = 100, size: int = 512) -> None:
        """Raise ValueError, naming the settings, when that many can never be there."""
        if not 1 <= least <= size:
            msg = f"least={least!r} is not in 1 … size={size!r}"
            raise ValueError(msg)
        self.least = least
        self.size = size
        self._order: deque[float] = deque()
        self._sorted: list[float] = []

    def add(self, seconds: float) -> None:
        """Take note of one answer; the oldest goes when there are more than ``size``."""
        if len(self._order) == self.size:
            del self._sorted[bisect_left(self._sorted, self._order.popleft())]
        self._order.append(seconds)
        insort(self._sorted, seconds)

    def quantile(self, share: float) -> float | None:
        """Return the duration that ``share`` of the answers did not exceed (nearest rank), or None for too few.

        ``share`` is in (0, 1].
        """
        count = len(self._sorted)
        if count < self.least:
            return None
        return self._sorted[math.ceil(share * count) - 1]

    def __repr__(self) -> str:
        """Return how many there are, and the median."""
        return f"Latencies({len(self._sorted)} of {self.size}, p50={self.quantile(0.5)})"
