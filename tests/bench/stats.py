"""What may be said of a few noisy rounds: the median of paired ratios, and the interval that holds it."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Estimate:
    """A median, and the interval that holds the true one with at least 95 % confidence."""

    median: float
    low: float
    high: float


def estimate(values: Sequence[float]) -> Estimate:
    """Return the median of ``values`` with its interval. Raises ValueError when there are none."""
    low, high = interval(values)
    return Estimate(statistics.median(values), low, high)


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return an interval that holds the median of what ``values`` are drawn from with at least 95 % confidence.

    From order statistics: how many of n draws lie below the median is binomial (n, 1/2), whatever the distribution
    looks like. Nothing is resampled, so the same rounds always give the same answer. Fewer than six values say
    nothing with that confidence: the interval is endless then.
    """
    ordered = sorted(values)
    count = len(ordered)
    below = 0.0  # the chance that at most ``rank`` values lie on one side of the median
    for rank in range(count):
        below += math.comb(count, rank) / 2**count
        if below > (1 - CONFIDENCE) / 2:
            return (-math.inf, math.inf) if rank == 0 else (ordered[rank - 1], ordered[count - rank])
    msg = "an interval of no values"
    raise ValueError(msg)


def ratios(values: Sequence[float], base: Sequence[float]) -> list[float]:
    """Return ``values`` by ``base``, round by round: what slows the machine for a while slows both."""
    return [value / against for value, against in zip(values, base, strict=True)]


def spread(values: Sequence[float]) -> float:
    """Return how far a round is from the median, in parts of it: half of the rounds are nearer."""
    middle = statistics.median(values)
    return statistics.median(abs(value - middle) for value in values) / middle


def quantile(ordered: Sequence[float], part: float) -> float:
    """Return the value below which ``part`` of ``ordered``, which is sorted, lies."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))]
