"""Full jitter: U(0, min(1 s, 50 ms * 2**i))."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servicekit.policy.backoff import Backoff


def test_the_written_rule() -> None:
    """The upper end doubles from 50 ms to 1 s, and chance takes its share of it."""
    backoff = Backoff()
    assert [backoff.delay(retry, 1.0) for retry in range(7)] == [0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0]
    assert backoff.delay(3, 0.25) == 0.1
    assert backoff.delay(3, 0.0) == 0.0


@given(st.integers(0, 10**6), st.floats(0, 1, exclude_max=True))
def test_no_wait_is_longer_than_the_most(retry: int, chance: float) -> None:
    """However often it was tried."""
    assert 0.0 <= Backoff().delay(retry, chance) < 1.0


@pytest.mark.parametrize(
    ("settings", "kind", "names"),
    [
        ({"first": 0.0}, ValueError, r"first=0\.0"),
        ({"most": float("inf")}, ValueError, "most=inf"),
        ({"first": 2.0}, ValueError, r"first=2\.0 is more than most=1\.0"),
        ({"first": "1"}, TypeError, "first='1'"),
        ({"most": True}, TypeError, "most=True"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], kind: type[Exception], names: str) -> None:
    """A wrong value fails where it is written."""
    with pytest.raises(kind, match=names):
        Backoff(**settings)
