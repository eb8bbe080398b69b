"""Exact quantiles of the last answers."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servicekit.policy.quantile import Latencies


def test_nothing_is_said_before_there_are_enough() -> None:
    """A hundred answers by default."""
    latencies = Latencies()
    for number in range(1, 100):
        latencies.add(float(number))
        assert latencies.quantile(0.5) is None
    latencies.add(100.0)
    assert (latencies.quantile(0.5), latencies.quantile(0.95), latencies.quantile(1.0)) == (50.0, 95.0, 100.0)
    assert repr(latencies) == "Latencies(100 of 512, p50=50.0)"


@given(st.lists(st.floats(0, 10), min_size=1), st.floats(0, 1, exclude_min=True), st.integers(1, 20))
def test_it_is_the_quantile_of_the_last(durations: list[float], share: float, size: int) -> None:
    """Nearest rank, of exactly the last ``size``."""
    latencies = Latencies(least=1, size=size)
    for seconds in durations:
        latencies.add(seconds)
    last = sorted(durations[-size:])
    assert latencies.quantile(share) == last[math.ceil(share * len(last)) - 1]


def test_wrong_settings_are_named() -> None:
    """More than there can be would never be there."""
    with pytest.raises(ValueError, match=r"least=10 is not in 1 … size=5"):
        Latencies(least=10, size=5)
