"""Gradient2, against its written rule."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from servicekit.policy.gradient import Gradient


def window(gradient: Gradient, now: float, duration: float, in_flight: int, *, count: int = 10) -> float:
    """Fill one window of a second with ``count`` like calls; return when the next one begins."""
    for index in range(count):
        gradient.sample(now + (index + 1) / count, duration, in_flight)
    return now + 1.0


def begun(**settings: int) -> tuple[Gradient, float]:
    """A gradient whose first window begins at 0.0."""
    gradient = Gradient(**settings)
    gradient.sample(0.0, 0.02, 0)
    return gradient, 0.0


def test_begins_at_twenty() -> None:
    """In 4 … 200."""
    gradient = Gradient()
    assert (gradient.limit, gradient.least, gradient.most) == (20, 4, 200)


def test_grows_by_a_fifth_of_four_while_calls_take_what_they_did() -> None:
    """The new one is limit * 1 + 4, smoothed by 0.2."""
    gradient, now = begun()
    for step in range(1, 6):
        now = window(gradient, now, 0.02, 20)
        assert gradient._limit == pytest.approx(20 + 0.8 * step)
    assert gradient.limit == 24


def test_shrinks_when_calls_take_longer_than_half_as_long_again() -> None:
    """The gradient is 1.5 * long / short."""
    gradient, now = begun()
    now = window(gradient, now, 0.02, 20)  # 20.8
    window(gradient, now, 0.04, 20)
    long = 0.02 + 0.02 * 2 / 601
    expected = 0.8 * 20.8 + 0.2 * (20.8 * 1.5 * long / 0.04 + 4)
    assert gradient._limit == pytest.approx(expected)


def test_one_window_takes_no_more_than_half() -> None:
    """The gradient is at least 0.5, however slow."""
    gradient, now = begun()
    now = window(gradient, now, 0.02, 20)
    window(gradient, now, 10.0, 20)
    assert gradient._limit == pytest.approx(0.8 * 20.8 + 0.2 * (20.8 * 0.5 + 4))


def test_half_as_long_again_is_still_normal() -> None:
    """The tolerance is 1.5: up to there it grows."""
    gradient, now = begun()
    now = window(gradient, now, 0.02, 20)
    window(gradient, now, 0.03, 20)
    assert gradient._limit == pytest.approx(21.6)


def test_does_not_grow_below_half_use() -> None:
    """A limit that nobody came near has not proved itself; at half of it, it has."""
    gradient, now = begun()
    now = window(gradient, now, 0.02, 9)
    assert gradient._limit == 20.0
    window(gradient, now, 0.02, 10)
    assert gradient._limit == pytest.approx(20.8)


def test_the_busiest_moment_of_a_window_counts() -> None:
    """One call of ten that saw half of the limit in use is enough."""
    gradient, now = begun()
    for index in range(10):
        gradient.sample(now + (index + 1) / 10, 0.02, 12 if index == 3 else 1)
    assert gradient._limit == pytest.approx(20.8)


def test_a_window_has_ten_calls_and_a_second() -> None:
    """It is not over before both."""
    gradient = Gradient()
    for index in range(100):
        gradient.sample(index * 0.009, 0.02, 20)
    assert gradient._limit == 20.0
    gradient.sample(1.0, 0.02, 20)
    assert gradient._limit == pytest.approx(20.8)
    for index in range(9):
        gradient.sample(2.0 + index, 0.02, 20)
    assert gradient._limit == pytest.approx(20.8)
    gradient.sample(20.0, 0.02, 20)
    assert gradient._limit == pytest.approx(21.6)


def test_the_long_run_is_an_average_over_600_windows() -> None:
    """EMA with a factor of 2/601."""
    gradient, now = begun()
    now = window(gradient, now, 0.02, 20)
    for _ in range(300):
        now = window(gradient, now, 0.03, 20)
    assert gradient._long == pytest.approx(0.03 - 0.01 * (1 - 2 / 601) ** 300)


def test_a_long_run_that_was_slow_is_forgotten_sooner() -> None:
    """Times 0.95 with each window in which long/short is above 2."""
    gradient, now = begun()
    gradient._long = 0.1
    window(gradient, now, 0.02, 20)
    assert gradient._long == pytest.approx((0.1 - 0.08 * 2 / 601) * 0.95)
    gradient._long = 0.04
    window(gradient, 1.0, 0.02, 20)
    assert gradient._long == pytest.approx(0.04 - 0.02 * 2 / 601)


def test_settles_where_the_queue_is_short() -> None:
    """Eight places of 20 ms, asked for without end: calls take limit / 8 * 20 ms, and the limit comes to 16."""
    gradient, now = begun()
    now = window(gradient, now, 0.02, 8)
    for _ in range(20):
        now = window(gradient, now, 0.02 * max(1.0, gradient.limit / 8), gradient.limit)
    assert 15 <= gradient.limit <= 17


def test_recovers_after_overload() -> None:
    """Nothing of it is left once calls are fast again."""
    gradient, now = begun()
    now = window(gradient, now, 0.02, 20)
    for _ in range(60):
        now = window(gradient, now, 5.0, 200)
    assert gradient.limit == 8  # where half of it, and 4, are it again
    for _ in range(40):
        now = window(gradient, now, 0.02, gradient.limit)
    assert gradient.limit >= 20


@given(
    windows=st.lists(st.tuples(st.floats(0.0, 100.0), st.integers(0, 400), st.floats(-2.0, 5.0)), max_size=80),
    initial=st.integers(4, 200),
)
@settings(max_examples=200, deadline=None)
def test_never_leaves_its_bounds(windows: list[tuple[float, int, float]], initial: int) -> None:
    """Whatever the durations and the clock: least … most, a whole number."""
    gradient, now = Gradient(initial=initial), 1000.0
    for duration, in_flight, step in windows:
        now += step
        for _ in range(10):
            gradient.sample(now, duration, in_flight)
        assert 4 <= gradient.limit <= 200
        assert 4.0 <= gradient._limit <= 200.0


def test_a_clock_that_goes_backwards_is_harmless() -> None:
    """The window begins again, and learning goes on."""
    gradient, _ = begun()
    gradient.sample(-1000.0, 0.02, 20)
    window(gradient, -1000.0, 0.02, 20)
    assert gradient._limit == pytest.approx(20.8)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"least": 0}, "least=0"),
        ({"most": 2.5}, r"most=2\.5"),
        ({"initial": 3}, "initial=3"),
        ({"initial": 201}, "initial=201"),
        ({"least": 50}, "initial=20"),
    ],
)
def test_refuses_bounds_that_do_not_hold_each_other(wrong: dict[str, int], named: str) -> None:
    """They are named."""
    with pytest.raises((ValueError, TypeError), match=named):
        Gradient(**wrong)


def test_shows_its_state() -> None:
    """The limit, the bounds, the long run."""
    gradient, now = begun()
    assert repr(gradient) == "Gradient(limit=20.0 in 4 … 200, long run nothing yet)"
    window(gradient, now, 0.02, 20)
    assert repr(gradient) == "Gradient(limit=20.8 in 4 … 200, long run 20.0 ms)"
