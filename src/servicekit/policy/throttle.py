"""With what chance a client should not even ask.

Source: "Handling Overload", Site Reliability Engineering, ch. 21, "Client-Side Throttling".
"""

from __future__ import annotations

from . import checked
from .elapsed import Elapsed
from .window import Window

_BUCKETS = 10


class Throttle:
    """``p = max(0, (requests - k * accepts) / (requests + 1))`` of the last ``window`` seconds.

    ``requests`` counts all that were asked for, those that were throttled too, ``accepts`` those that the other side
    took. So at most some ``k`` requests are sent for each one that is taken, and a few always, to see when it is over.
    """

    __slots__ = ("_counts", "_elapsed", "k", "window")

    def __init__(self, *, k: float, window: float) -> None:
        """Raise ValueError or TypeError, naming setting and value, for a factor below 1 or no window."""
        self.k = checked.rate("k", k)
        if k < 1:
            msg = f"k={k!r}: below 1 what works would be throttled too"
            raise ValueError(msg)
        self.window = checked.seconds("window", window)
        self._elapsed = Elapsed()
        self._counts = Window(seconds=window, buckets=_BUCKETS)  # all requests, the accepted ones marked

    def chance(self, now: float) -> float:
        """Return the probability with which a request is to be refused at ``now``."""
        self._counts.move(self._elapsed(now))
        requests, accepts = self._counts.total, self._counts.marked
        return max(0.0, (requests - self.k * accepts) / (requests + 1))

    def count(self, now: float, *, accepted: bool) -> None:
        """Count a request that was taken, or one that was not, be it here or at the other side."""
        self._counts.add(self._elapsed(now), marked=accepted)

    def __repr__(self) -> str:
        """Return the settings and the counts."""
        counts = f"requests={self._counts.total}, accepts={self._counts.marked}"
        return f"Throttle(k={self.k}, window={self.window}, {counts})"
