"""p = max(0, (requests - k * accepts) / (requests + 1))."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servicekit.policy.throttle import Throttle


@given(st.lists(st.booleans(), max_size=200), st.floats(1, 10))
def test_the_written_rule(accepted: list[bool], k: float) -> None:
    """At any history within the window."""
    throttle = Throttle(k=k, window=120.0)
    for each in accepted:
        throttle.count(1000.0, accepted=each)
    requests, accepts = len(accepted), sum(accepted)
    assert throttle.chance(1000.0) == max(0.0, (requests - k * accepts) / (requests + 1))


def test_what_is_older_than_the_window_is_forgotten() -> None:
    """Two minutes after the last refusal everything passes again, also when the clock went back meanwhile."""
    throttle = Throttle(k=2.0, window=120.0)
    for _ in range(9):
        throttle.count(1000.0, accepted=False)
    assert throttle.chance(1060.0) == 0.9
    assert repr(throttle) == "Throttle(k=2.0, window=120.0, requests=9, accepts=0)"
    assert throttle.chance(500.0) == 0.9
    assert throttle.chance(560.0) == 0.0


@pytest.mark.parametrize(
    ("settings", "names"), [({"k": 0.5, "window": 1.0}, r"k=0\.5"), ({"k": 2.0, "window": 0.0}, r"window=0\.0")]
)
def test_wrong_settings_are_named(settings: dict[str, Any], names: str) -> None:
    """A wrong value fails where it is written."""
    with pytest.raises(ValueError, match=names):
        Throttle(**settings)
