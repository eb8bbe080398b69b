"""How many, and how many of them marked, within the last so many seconds: counts in buckets.

One count per bucket instead of one entry per event, so that it costs the same at any rate; the price is that the
oldest bucket goes all at once. Source: Hystrix and Finagle (``WindowedAdder``) count so.
"""

from __future__ import annotations

from . import checked


class Window:
    """Counts of the last ``seconds``, in ``buckets``: between (buckets - 1)/buckets and all of that time.

    ``now`` is in seconds that only go forward (``Elapsed``). Not for several threads.
    """

    __slots__ = ("_at", "_marked", "_total", "_width", "marked", "total")

    def __init__(self, *, seconds: float, buckets: int) -> None:
        """Raise ValueError or TypeError, naming setting and value, for a window that cannot hold anything."""
        self._width = checked.seconds("seconds", seconds) / checked.count("buckets", buckets)
        self._total = [0] * buckets
        self._marked = [0] * buckets
        self._at = 0
        self.total = 0
        self.marked = 0

    def add(self, now: float, *, marked: bool = False) -> None:
        """Count one that happens at ``now``."""
        self.move(now)
        place = self._at % len(self._total)
        self._total[place] += 1
        self.total += 1
        if marked:
            self._marked[place] += 1
            self.marked += 1

    def move(self, now: float) -> None:
        """Let go of what is too old at ``now``; ``total`` and ``marked`` are then what is left."""
        at = int(now / self._width)
        if at <= self._at:
            return
        size = len(self._total)
        for number in range(max(self._at + 1, at - size + 1), at + 1):
            place = number % size
            self.total -= self._total[place]
            self.marked -= self._marked[place]
            self._total[place] = self._marked[place] = 0
        self._at = at

    def clear(self) -> None:
        """Forget every count."""
        size = len(self._total)
        self._total, self._marked = [0] * size, [0] * size
        self.total = self.marked = 0

    def __repr__(self) -> str:
        """Return both counts as of the last move."""
        return f"Window(total={self.total}, marked={self.marked})"
