"""So many a second and so many at once, exactly."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from servicekit.policy.bucket import Bucket

RATES = st.one_of(st.integers(1, 2000), st.floats(0.01, 2000.0))
BURSTS = st.integers(1, 20)
STEPS = st.one_of(st.just(0.0), st.floats(0.0, 3.0), st.sampled_from([1e-9, 0.001, 0.1, 1 / 3, 1.0]))


class Reference:
    """A token bucket in fractions: nothing is ever rounded."""

    def __init__(self, per_second: float, burst: int, now: float) -> None:
        self.per_second, self.burst = Fraction(per_second), burst
        self.level, self.last = Fraction(burst), Fraction(now)

    def fill(self, now: float) -> Fraction:
        self.level = min(Fraction(self.burst), self.level + (Fraction(now) - self.last) * self.per_second)
        self.last = Fraction(now)
        return self.level


@pytest.mark.fuzz
@given(per_second=RATES, burst=BURSTS, start=st.floats(1.0, 1e7), steps=st.lists(STEPS, max_size=60))
@settings(max_examples=300, deadline=None)
def test_no_window_holds_more_than_the_bound(per_second: float, burst: int, start: float, steps: list[float]) -> None:
    """Accepted in any window of w seconds: at most rate * w + burst, with nothing rounded."""
    bucket, now, accepted = Bucket(per_second=per_second, burst=burst), start, []
    for step in steps:
        now += step
        while bucket.take(now):
            accepted.append(Fraction(now))
    for first, begin in enumerate(accepted):
        for last in range(first, len(accepted)):
            assert last - first + 1 <= (accepted[last] - begin) * Fraction(per_second) + burst


@given(per_second=RATES, burst=BURSTS, start=st.floats(1.0, 1e7), steps=st.lists(STEPS, max_size=60))
@settings(max_examples=300, deadline=None)
def test_nothing_is_refused_for_which_there_is_a_token(
    per_second: float, burst: int, start: float, steps: list[float]
) -> None:
    """It is a token bucket to the last bit: it takes and refuses when one that counts in fractions does."""
    bucket, reference, now = Bucket(per_second=per_second, burst=burst), Reference(per_second, burst, start), start
    bucket.take(start)
    reference.level -= 1
    for step in steps:
        now += step
        expected = reference.fill(now) >= 1
        assert bucket.take(now) is expected
        reference.level -= expected


@given(per_second=RATES, burst=BURSTS, start=st.floats(1.0, 1e7), taken=st.integers(0, 30), ahead=st.integers(0, 30))
@settings(max_examples=300, deadline=None)
def test_when_is_the_first_moment(per_second: float, burst: int, start: float, taken: int, ahead: int) -> None:
    """At ``when`` there is a token for one who has so many before it, and a float earlier there is none."""
    bucket = Bucket(per_second=per_second, burst=burst)
    for _ in range(taken):
        bucket.take(start)
    reference = Reference(per_second, burst, start)
    reference.level -= min(taken, burst)
    moment = bucket.when(start, ahead=ahead)
    if ahead < burst:  # it never holds more than the burst: who is further back waits for those before to take theirs
        assert reference.level + (Fraction(moment) - Fraction(start)) * Fraction(per_second) >= ahead + 1
    if moment > start:
        before = math.nextafter(moment, 0.0)
        assert reference.level + (Fraction(before) - Fraction(start)) * Fraction(per_second) < ahead + 1


class Buckets(RuleBasedStateMachine):
    """Takes, gives back, goes forward and back in time; each take is held against all windows that it ends."""

    def __init__(self) -> None:
        super().__init__()
        self.bucket = Bucket(per_second=2.5, burst=3)
        self.now, self.forward = 1000.0, Fraction(0)
        self.accepted: list[Fraction] = []

    @rule(seconds=STEPS)
    def wait(self, seconds: float) -> None:
        before, self.now = self.now, self.now + seconds
        self.forward += Fraction(self.now) - Fraction(before)

    @rule(seconds=st.floats(0.0, 900.0))
    def go_backwards(self, seconds: float) -> None:
        """A clock that does brings nothing."""
        self.now = max(1.0, self.now - seconds)
        self.bucket.when(self.now)

    @rule()
    def take(self) -> None:
        if self.bucket.take(self.now):
            self.accepted.append(self.forward)
            for first, begin in enumerate(self.accepted):
                assert len(self.accepted) - first <= (self.forward - begin) * Fraction(2.5) + 3

    @precondition(lambda self: self.accepted and self.accepted[-1] == self.forward)
    @rule()
    def give_back(self) -> None:
        """One that was not used was not accepted."""
        self.bucket.give_back()
        self.accepted.pop()


@pytest.mark.fuzz
def test_whatever_happens_the_bound_holds() -> None:
    """A thousand stories of fifty steps."""
    run_state_machine_as_test(Buckets, settings=settings(max_examples=1000, stateful_step_count=50, deadline=None))


def test_is_full_at_first_and_again_after_a_while() -> None:
    """The burst at once, then one at a time, and never more than the burst is saved up."""
    bucket = Bucket(per_second=10, burst=3)
    assert [bucket.take(5.0) for _ in range(4)] == [True, True, True, False]
    assert bucket.when(5.0) == pytest.approx(5.1)
    assert not bucket.take(5.09)
    assert bucket.take(bucket.when(5.09))
    assert [bucket.take(500.0) for _ in range(4)] == [True, True, True, False]


def test_a_token_that_was_given_back_is_there() -> None:
    """And one that never was is not: the burst is the most."""
    bucket = Bucket(per_second=1, burst=1)
    assert bucket.take(1.0)
    bucket.give_back()
    bucket.give_back()
    assert [bucket.take(1.0), bucket.take(1.0)] == [True, False]


def test_shows_its_state() -> None:
    """The bound, and how many tokens there are."""
    bucket = Bucket(per_second=2, burst=4)
    bucket.take(1.0)
    assert repr(bucket) == "Bucket(per_second=2, burst=4, tokens=3.00)"


@pytest.mark.parametrize("per_second", [0, -1.0, math.nan, math.inf, True, "5"])
def test_refuses_what_is_no_rate(per_second: float) -> None:
    """It is named."""
    with pytest.raises((ValueError, TypeError), match=f"per_second={per_second!r}"):
        Bucket(per_second=per_second, burst=1)


@pytest.mark.parametrize("burst", [0, -1, 1.5, True])
def test_refuses_what_is_no_burst(burst: int) -> None:
    """It is named."""
    with pytest.raises((ValueError, TypeError), match=f"burst={burst!r}"):
        Bucket(per_second=1, burst=burst)
