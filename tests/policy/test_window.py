"""Counts of the last so many seconds."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servicekit.policy.window import Window


def test_a_bucket_goes_when_its_time_is_over() -> None:
    """Of ten seconds in ten buckets, what happened in second 0 is counted until second 10 begins."""
    window = Window(seconds=10.0, buckets=10)
    window.add(0.5, marked=True)
    window.add(3.0)
    window.move(9.99)
    assert (window.total, window.marked) == (2, 1)
    window.move(10.0)
    assert (window.total, window.marked) == (1, 0)
    window.move(13.0)
    assert (window.total, window.marked) == (0, 0)


def test_a_long_silence_empties_it() -> None:
    """However long it was."""
    window = Window(seconds=10.0, buckets=10)
    for second in range(10):
        window.add(float(second), marked=True)
    window.move(1e9)
    assert (window.total, window.marked) == (0, 0)


def test_it_can_be_cleared() -> None:
    """And counts on."""
    window = Window(seconds=10.0, buckets=10)
    window.add(5.0, marked=True)
    window.clear()
    window.add(5.0)
    assert (window.total, window.marked) == (1, 0)


@given(st.lists(st.tuples(st.floats(0, 30), st.booleans())), st.integers(1, 12))
def test_it_counts_what_a_list_would(events: list[tuple[float, bool]], buckets: int) -> None:
    """All of the last ``buckets`` buckets, and nothing older, at any rhythm."""
    window, seconds, now, seen = Window(seconds=10.0, buckets=buckets), 10.0, 0.0, list[tuple[int, bool]]()
    width = seconds / buckets
    for pause, marked in events:
        now += pause
        window.add(now, marked=marked)
        at = int(now / width)
        seen.append((at, marked))
        recent = [each for bucket, each in seen if bucket > at - buckets]
        assert (window.total, window.marked) == (len(recent), sum(recent))


@pytest.mark.parametrize(
    ("settings", "names"),
    [({"seconds": 0.0, "buckets": 1}, r"seconds=0\.0"), ({"seconds": 1.0, "buckets": 0}, "buckets=0")],
)
def test_wrong_settings_are_named(settings: dict[str, Any], names: str) -> None:
    """A wrong value fails where it is written."""
    with pytest.raises(ValueError, match=names):
        Window(**settings)
