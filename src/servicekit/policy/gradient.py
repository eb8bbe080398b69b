"""How many calls a server can bear at once, learned from how long they take: Gradient2.

Calls that wait for one another take longer. As long as what the last second took is near what calls take on the long
run, the limit may grow; once they take more than half as long again, it shrinks in proportion.

Source: Netflix, concurrency-limits, ``Gradient2Limit`` and ``WindowedLimit``. As there, the long run is an average of
windows, not of calls: at a thousand calls a second the latter would take overload for normal within a second.
"""

from __future__ import annotations

from .checked import count

WINDOW = 1.0
"""Seconds that a window lasts at least."""

SAMPLES = 10
"""Calls that a window has at least."""

LONG = 600
"""Windows that the long run is averaged over."""

TOLERANCE = 1.5
"""How many times the long run's duration is still taken for normal."""

STEEPEST = 0.5
"""The least that one window multiplies the limit with."""

QUEUE = 4
"""Calls that may wait: what the limit grows by when nothing is slow."""

SMOOTHING = 0.2
"""The share of each new limit in the next one."""

_FORGET = 0.95
_SHORTEST = 1e-6  # seconds; a clock may not have moved at all


class Gradient:
    """The limit: ``initial`` at first, ``least`` to ``most`` for ever."""

    __slots__ = ("_begun", "_busiest", "_count", "_limit", "_long", "_sum", "least", "limit", "most")

    def __init__(self, *, initial: int = 20, least: int = 4, most: int = 200) -> None:
        """Raise ValueError or TypeError, naming setting and value, for bounds that do not hold each other."""
        self.least = count("least", least)
        self.most = count("most", most)
        count("initial", initial)
        if not least <= initial <= most:
            msg = f"initial={initial!r} is not in least={least!r} … most={most!r}"
            raise ValueError(msg)
        self.limit = initial
        self._limit = float(initial)
        self._long: float | None = None
        self._begun: float | None = None
        self._sum = 0.0
        self._count = 0
        self._busiest = 0

    def sample(self, now: float, duration: float, in_flight: int) -> None:
        """Take note of a call that ended at ``now`` after ``duration`` seconds, being one of ``in_flight``."""
        if self._begun is None or now < self._begun:
            self._begun = now
        self._sum += duration
        self._count += 1
        self._busiest = max(self._busiest, in_flight)
        if self._count >= SAMPLES and now - self._begun >= WINDOW:
            self._learn(max(_SHORTEST, self._sum / self._count), self._busiest)
            self._begun, self._sum, self._count, self._busiest = now, 0.0, 0, 0

    def _learn(self, short: float, busiest: int) -> None:
        if self._long is None:
            self._long = short
        long = self._long = self._long + (short - self._long) * 2 / (LONG + 1)
        if long / short > 2:  # noqa: PLR2004 - the source's rule: a long run that was slow is forgotten sooner
            self._long *= _FORGET
        if busiest < self._limit / 2:
            return  # so few calls say nothing about a limit that they never came near
        gradient = max(STEEPEST, min(1.0, TOLERANCE * long / short))
        new = self._limit * gradient + QUEUE
        new = self._limit * (1 - SMOOTHING) + new * SMOOTHING
        self._limit = max(float(self.least), min(float(self.most), new))
        self.limit = int(self._limit)

    def __repr__(self) -> str:
        """Return the limit, its bounds, and what calls take on the long run."""
        long = "nothing yet" if self._long is None else f"{self._long * 1e3:.1f} ms"
        return f"Gradient(limit={self._limit:.1f} in {self.least} … {self.most}, long run {long})"
