"""A token bucket: so many a second on average, so many at once, and never one more.

The bound is exact: whatever the times, in a window of ``w`` seconds at most ``per_second * w + burst`` are let
through. Sums of floats would drift over it, so the bucket counts in whole numbers: time in ticks of 2**-64 s, which
any float of a quarter of a millisecond or more is a multiple of, and tokens in the fraction that one tick brings.

Source: "Leaky Bucket as a meter", ITU-T I.371 annex A.
"""

from __future__ import annotations

import math

from .checked import count, rate

_TICKS = 2.0**64
_WHOLE_TICKS = 2**64


class Bucket:
    """Tokens that come in at ``per_second`` and are kept up to ``burst``; full at first.

    A clock that goes backwards brings nothing, and takes nothing away.
    """

    __slots__ = ("_full", "_gain", "_last", "_level", "_token", "burst", "per_second")

    def __init__(self, *, per_second: float, burst: int) -> None:
        """Raise ValueError or TypeError, naming setting and value, for a rate or a burst of nothing."""
        self.per_second = rate("per_second", per_second)
        self.burst = count("burst", burst)
        self._gain, whole = per_second.as_integer_ratio()
        self._token = whole << 64
        self._full = self._level = burst * self._token
        self._last: int | None = None

    def take(self, now: float) -> bool:
        """Take one token and return True; False, and nothing is taken, when there is none at ``now``."""
        self._fill(now)
        if self._level < self._token:
            return False
        self._level -= self._token
        return True

    def give_back(self) -> None:
        """Put back a token that was not used."""
        self._level = min(self._full, self._level + self._token)

    def when(self, now: float, *, ahead: int = 0) -> float:
        """Return the first moment, ``now`` or later, at which one who has ``ahead`` others before it finds a token.

        At that moment ``take`` returns True, if nobody else has taken any.
        """
        last = self._fill(now)
        missing = (ahead + 1) * self._token - self._level
        if missing <= 0:
            return now
        tick = last - -missing // self._gain  # rounded up
        moment = tick / _WHOLE_TICKS
        # The nearest float may be a hair before that tick, and taking then would fail.
        return moment if int(moment * _TICKS) >= tick else math.nextafter(moment, math.inf)

    def _fill(self, now: float) -> int:
        tick = int(now * _TICKS)  # a power of two: the product is exact
        last, self._last = self._last, tick
        if last is not None and tick > last and self._level < self._full:
            self._level = min(self._full, self._level + (tick - last) * self._gain)
        return tick

    def __repr__(self) -> str:
        """Return the bound, and the tokens that were there at the last look."""
        return f"Bucket(per_second={self.per_second}, burst={self.burst}, tokens={self._level / self._token:.2f})"
