"""How long to wait before the next attempt: exponential backoff with full jitter.

Source: "Exponential Backoff And Jitter", AWS Architecture Blog, 2015; gRFC A6 draws the same way.
"""

from __future__ import annotations

from dataclasses import dataclass

from .checked import seconds

_MOST_DOUBLINGS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """Waits ``U(0, min(most, first * 2**i))`` seconds before retry ``i``, the first one being 0.

    Default: 50 ms at first, 1 s at most. Full jitter spreads those who failed together over all of the time; a fixed
    part would only move their meeting.
    """

    first: float = 0.05
    most: float = 1.0

    def __post_init__(self) -> None:
        """Raise TypeError or ValueError, naming setting and value, for what is no time to wait."""
        seconds("first", self.first)
        seconds("most", self.most)
        if self.first > self.most:
            msg = f"first={self.first!r} is more than most={self.most!r}"
            raise ValueError(msg)

    def delay(self, retry: int, chance: float) -> float:
        """Return the seconds to wait before retry number ``retry`` (0 is the first), ``chance`` being in [0, 1)."""
        return chance * min(self.most, self.first * 2.0 ** min(retry, _MOST_DOUBLINGS))
