"""How many extra attempts a client may add to what it asks of a target anyway.

Without such a bound every layer's retries multiply just when the target can bear them least. Source: Finagle's
``RetryBudget``; "Addressing Cascading Failures", Site Reliability Engineering, ch. 22.
"""

from __future__ import annotations

from . import checked
from .elapsed import Elapsed
from .window import Window

_BUCKETS = 10


class Budget:
    """Lets through extra attempts up to ``share`` of the calls plus ``per_second``, both over ``seconds``.

    Default: 20 % of the calls and 10 a second, over 10 s: at most ``0.2 * calls + 100`` retries in the ten seconds
    before any of them. A budget belongs to one target: give the same one to whatever tries that target again.
    """

    __slots__ = ("_calls", "_elapsed", "_extra", "per_second", "seconds", "share")

    def __init__(self, *, share: float = 0.2, per_second: float = 10.0, seconds: float = 10.0) -> None:
        """Raise ValueError or TypeError, naming setting and value, for what is no share, rate or time."""
        self.share = checked.share("share", share)
        self.per_second = checked.rate_or_zero("per_second", per_second)
        self.seconds = checked.seconds("seconds", seconds)
        self._elapsed = Elapsed()
        # Buckets count a little more or less time than was asked for. Calls are counted over at most `seconds` and
        # extra attempts over at least that, so that the bound holds exactly and not on the whole.
        width = seconds / _BUCKETS
        self._calls = Window(seconds=seconds, buckets=_BUCKETS)
        self._extra = Window(seconds=seconds + width, buckets=_BUCKETS + 1)

    def call(self, now: float) -> None:
        """Count a call, whatever becomes of it: what further attempts are a share of."""
        self._calls.add(self._elapsed(now))

    def spend(self, now: float) -> bool:
        """Return whether one more attempt may be made at ``now``; if so it is counted."""
        passed = self._elapsed(now)
        self._calls.move(passed)
        self._extra.move(passed)
        if self._extra.total + 1 > self.share * self._calls.total + self.per_second * self.seconds:
            return False
        self._extra.add(passed)
        return True

    def __repr__(self) -> str:
        """Return the bound and what was counted last."""
        bound = f"share={self.share}, per_second={self.per_second}, seconds={self.seconds}"
        return f"Budget({bound}, calls={self._calls.total}, extra={self._extra.total})"
