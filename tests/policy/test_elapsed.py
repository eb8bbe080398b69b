"""Time that only goes forward."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from servicekit.policy.elapsed import Elapsed


def test_it_begins_at_the_first_look() -> None:
    """Where a clock stands at first means nothing."""
    elapsed = Elapsed()
    assert elapsed(5000.0) == 0.0
    assert elapsed(5002.5) == 2.5


def test_a_clock_that_goes_back_takes_nothing_and_gives_nothing() -> None:
    """From where it went back to, it counts again at once."""
    elapsed = Elapsed()
    elapsed(5000.0)
    elapsed(5003.0)
    assert elapsed(1000.0) == 3.0
    assert elapsed(1001.0) == 4.0
    assert repr(elapsed) == "Elapsed(4.000)"


@given(st.lists(st.floats(-1e6, 1e6)))
def test_it_never_goes_back(times: list[float]) -> None:
    """Whatever a clock shows, what has passed has passed."""
    elapsed = Elapsed()
    passed = [elapsed(time) for time in times]
    assert passed == sorted(passed)
