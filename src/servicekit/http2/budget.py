"""How much a peer may ask for that costs it nothing and this side something: an allowance that time fills again."""

from __future__ import annotations


class Budget:
    """A token bucket: ``burst`` at once, ``rate`` per second after that. Time is passed in, in seconds."""

    __slots__ = ("_at", "_burst", "_rate", "_tokens")

    def __init__(self, burst: float, rate: float, now: float) -> None:
        """Begin full."""
        self._burst = burst
        self._rate = rate
        self._tokens = burst
        self._at = now

    def spend(self, now: float) -> bool:
        """Take one token; False when there is none."""
        if now > self._at:
            self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
            self._at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True
