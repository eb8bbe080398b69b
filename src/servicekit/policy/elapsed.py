"""Time that only goes forward, whatever the clock does: what every policy counts in."""

from __future__ import annotations


class Elapsed:
    """The seconds that a clock has gone forward since it was first looked at.

    A clock that goes backwards adds nothing and takes nothing away: from there on it counts again. So a policy that is
    shut for five seconds is shut for five seconds, not until the clock is where it was.
    """

    __slots__ = ("_last", "_passed")

    def __init__(self) -> None:
        """Begin at 0.0 with the first look."""
        self._last: float | None = None
        self._passed = 0.0

    def __call__(self, now: float) -> float:
        """Return how far the clock, which shows ``now``, has gone forward; never less than the last time."""
        last, self._last = self._last, now
        if last is not None and now > last:
            self._passed += now - last
        return self._passed

    def __repr__(self) -> str:
        """Return the seconds."""
        return f"Elapsed({self._passed:.3f})"
