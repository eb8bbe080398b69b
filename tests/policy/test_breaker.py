"""The circuit breaker's rule, step by step and in any order."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from servicekit.policy.breaker import Breaker, Permit, Rules, State
from servicekit.verdict import Verdict

OK, BROKEN, NEITHER = Verdict.SUCCESS, Verdict.FAILURE, Verdict.IGNORED
MIDDLE = 0.5  # the chance at which jitter changes nothing


def made(breaker: Breaker, now: float, verdict: Verdict, chance: float = MIDDLE) -> State | None:
    """Make a call that ends at once; return what it leads to."""
    permit = breaker.admit(now)
    assert permit is not None
    return breaker.report(permit, verdict, now, chance)


def opened(now: float = 0.0) -> Breaker:
    """A breaker that has just opened, for the first time."""
    breaker = Breaker(Rules())
    for _ in range(20):
        made(breaker, now, BROKEN)
    assert breaker.state is State.OPEN
    return breaker


def test_it_opens_at_half_of_twenty() -> None:
    """Nineteen failures are too few to judge; of twenty calls ten are enough."""
    breaker = Breaker(Rules())
    for _ in range(19):
        assert made(breaker, 0.0, BROKEN) is None
    assert made(breaker, 0.0, BROKEN) is State.OPEN
    breaker = Breaker(Rules())
    for verdict in [OK] * 10 + [BROKEN] * 9:
        assert made(breaker, 0.0, verdict) is None
    assert made(breaker, 0.0, BROKEN) is State.OPEN


def test_less_than_half_is_not_enough() -> None:
    """Forty-nine of a hundred, the failures last."""
    breaker = Breaker(Rules())
    for verdict in [OK] * 51 + [BROKEN] * 49:
        assert made(breaker, 0.0, verdict) is None
    assert breaker.state is State.CLOSED


def test_failures_older_than_ten_seconds_do_not_count() -> None:
    """They go with their bucket."""
    breaker = Breaker(Rules())
    for _ in range(19):
        made(breaker, 0.0, BROKEN)
    assert made(breaker, 10.0, BROKEN) is None


def test_what_is_ignored_counts_for_nothing() -> None:
    """Neither as a failure nor as a call."""
    breaker = Breaker(Rules())
    for verdict in [BROKEN] * 19 + [NEITHER] * 100:
        assert made(breaker, 0.0, verdict) is None


def test_nothing_passes_while_it_is_open() -> None:
    """For five seconds; a refusal says how many are left."""
    breaker = opened()
    for now in (0.0, 2.5, 4.999):
        assert breaker.admit(now) is None
        assert breaker.retry_after(now) == 5.0 - now
    assert breaker.admit(5.0) is not None
    assert breaker.state is State.HALF_OPEN
    assert repr(breaker) == "Breaker(half_open, Window(total=0, marked=0), 1 probes, 0 successes)"


def test_it_stays_open_twice_as_long_each_time_up_to_a_minute() -> None:
    """5, 10, 20, 40, 60, 60; closed again it begins anew."""
    breaker, now, waits = opened(), 0.0, []
    for _ in range(6):
        waits.append(breaker.retry_after(now))
        now += waits[-1]
        assert made(breaker, now, BROKEN) is State.OPEN
    assert waits == [5.0, 10.0, 20.0, 40.0, 60.0, 60.0]
    now += 60.0
    assert [made(breaker, now, OK) for _ in range(3)] == [None, None, State.CLOSED]
    for _ in range(20):
        made(breaker, now, BROKEN)
    assert breaker.retry_after(now) == 5.0


@pytest.mark.parametrize(("chance", "seconds"), [(0.0, 4.0), (0.25, 4.5), (0.5, 5.0), (0.75, 5.5)])
def test_the_time_is_jittered(chance: float, seconds: float) -> None:
    """By up to a fifth either way, so that not every client is back at once."""
    breaker = Breaker(Rules())
    for _ in range(20):
        made(breaker, 0.0, BROKEN, chance)
    assert breaker.retry_after(0.0) == pytest.approx(seconds)


def test_three_probes_at_a_time() -> None:
    """The fourth is refused until one of them has come back, with whatever result but failure."""
    breaker = opened()
    probes = [breaker.admit(5.0) for _ in range(4)]
    assert probes[3] is None
    assert breaker.retry_after(5.0) > 0
    assert probes[0] is not None
    assert breaker.report(probes[0], NEITHER, 5.0, MIDDLE) is None
    assert breaker.admit(5.0) is not None
    assert breaker.admit(5.0) is None


def test_a_lost_probe_frees_its_place() -> None:
    """After ten seconds without a word; what it says later counts all the same."""
    breaker = opened()
    lost = [breaker.admit(5.0) for _ in range(3)]
    assert breaker.admit(14.9) is None
    assert breaker.admit(15.0) is not None
    for probe, leads_to in zip(lost, (None, None, State.CLOSED), strict=True):
        assert probe is not None
        assert breaker.report(probe, OK, 16.0, MIDDLE) is leads_to


def test_one_failed_probe_opens_it_again() -> None:
    """Whatever the others say after that: they belong to the past."""
    breaker = opened()
    probes = [probe for probe in (breaker.admit(5.0) for _ in range(3)) if probe is not None]
    assert breaker.report(probes[0], OK, 5.0, MIDDLE) is None
    assert breaker.report(probes[1], BROKEN, 5.0, MIDDLE) is State.OPEN
    assert breaker.report(probes[2], OK, 5.0, MIDDLE) is None
    assert breaker.admit(14.9) is None


def test_results_from_before_it_opened_do_not_move_it() -> None:
    """Neither to closed nor, later, to open again."""
    breaker = Breaker(Rules())
    old = [permit for permit in (breaker.admit(0.0) for _ in range(10)) if permit is not None]
    for _ in range(20):
        made(breaker, 0.0, BROKEN)
    assert breaker.admit(5.0) is not None
    for permit, verdict in zip(old, [OK, BROKEN] * 5, strict=True):
        assert breaker.report(permit, verdict, 5.0, MIDDLE) is None
    assert breaker.state is State.HALF_OPEN


def test_a_clock_that_goes_back_is_harmless() -> None:
    """An open circuit is open for five seconds of time, not until the clock is where it was."""
    breaker = opened(now=5000.0)
    assert breaker.admit(1000.0) is None
    assert breaker.retry_after(1000.0) == 5.0
    assert breaker.admit(1004.9) is None
    assert breaker.admit(1005.0) is not None


@pytest.mark.parametrize(
    ("settings", "kind", "names"),
    [
        ({"window": 0}, ValueError, "window=0"),
        ({"first": "5"}, TypeError, "first='5'"),
        ({"probes": 0}, ValueError, "probes=0"),
        ({"calls": 1.5}, TypeError, r"calls=1\.5"),
        ({"failures": 0.0}, ValueError, r"failures=0\.0"),
        ({"failures": 1.1}, ValueError, r"failures=1\.1"),
        ({"first": 61.0}, ValueError, r"first=61\.0 is more than most=60\.0"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], kind: type[Exception], names: str) -> None:
    """A wrong value fails where it is written."""
    with pytest.raises(kind, match=names):
        Rules(**settings)


class BreakerMachine(RuleBasedStateMachine):
    """Calls that begin and end in any order, at any time, with any result, or never."""

    RULES = Rules(
        window=10.0, buckets=10, calls=4, failures=0.5, first=5.0, most=20.0, probes=2, successes=3, lost=10.0
    )

    def __init__(self) -> None:
        super().__init__()
        self.breaker = Breaker(self.RULES)
        self.clock = 1000.0
        self.now = 0.0  # what has gone forward
        self.breaker.retry_after(self.clock)  # the first look
        self.out: list[tuple[Permit, int, float]] = []  # under way: in which state's turn, and since when
        self.turn = 0  # transitions so far
        self.opened_until = 0.0
        self.openings = 0
        self.successes = 0
        self.judged: list[tuple[float, Verdict]] = []  # since the last transition

    def turned(self) -> None:
        self.turn += 1
        self.judged.clear()
        self.successes = 0

    def probes(self) -> list[tuple[Permit, int, float]]:
        return [each for each in self.out if each[1] == self.turn and self.now - each[2] < self.RULES.lost]

    @rule(seconds=st.sampled_from([0.0, 0.25, 1.0, 4.0, 6.0, 10.0, 24.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock += seconds
        self.now += seconds
        self.breaker.retry_after(self.clock)

    @rule(seconds=st.sampled_from([0.5, 60.0, 1e6]))
    def clock_goes_back(self, seconds: float) -> None:
        self.clock -= seconds
        self.breaker.retry_after(self.clock)

    @rule()
    def a_call_begins(self) -> None:
        before = self.breaker.state
        permit = self.breaker.admit(self.clock)
        if before is State.CLOSED:
            assert permit is not None
        elif before is State.OPEN:
            # Nothing reaches the wire while it is open, and something does as soon as it is not.
            assert (permit is not None) == (self.now >= self.opened_until)
            if permit is not None:
                assert self.breaker.state is State.HALF_OPEN
                self.turned()
        else:
            # At most k probes, and a place is free as soon as a probe has ended, was cancelled, or is lost.
            assert (permit is not None) == (len(self.probes()) < self.RULES.probes)
        if permit is not None:
            self.out.append((permit, self.turn, self.now))

    @precondition(lambda self: bool(self.out))
    @rule(which=st.integers(0, 9), verdict=st.sampled_from([OK, BROKEN, NEITHER]), chance=st.sampled_from([0.0, 0.5]))
    def a_call_ends(self, which: int, verdict: Verdict, chance: float) -> None:
        permit, turn, _ = self.out.pop(which % len(self.out))
        self.ends(permit, turn, verdict, chance)

    @precondition(lambda self: self.breaker.state is State.CLOSED)
    @rule(pattern=st.sampled_from([(BROKEN,) * 4, (OK, BROKEN), (OK, BROKEN, BROKEN, OK)]))
    def calls_come_and_go(self, pattern: tuple[Verdict, ...]) -> None:
        for verdict in pattern:
            if self.breaker.state is State.CLOSED:
                self.a_call_begins()
                permit, turn, _ = self.out.pop()
                self.ends(permit, turn, verdict, MIDDLE)

    def ends(self, permit: Permit, turn: int, verdict: Verdict, chance: float) -> None:
        before, shown = self.breaker.state, repr(self.breaker)
        leads_to = self.breaker.report(permit, verdict, self.clock, chance)
        expected: State | None = None
        if turn != self.turn:
            assert repr(self.breaker) == shown  # results from before a transition do not move the new state
        elif before is State.HALF_OPEN:
            self.successes += verdict is OK
            expected = State.OPEN if verdict is BROKEN else State.CLOSED if self.successes == 3 else None
        elif before is State.CLOSED and verdict is not NEITHER:
            self.judged.append((self.now, verdict))
            recent = [each for time, each in self.judged if int(time) > int(self.now) - 10]
            failures = sum(each is BROKEN for each in recent)
            expected = State.OPEN if len(recent) >= 4 and failures * 2 >= len(recent) else None
        assert leads_to is expected
        assert self.breaker.state is (expected or before)
        if expected is State.OPEN:
            self.opened_until = self.now + min(20.0, 5.0 * 2.0**self.openings) * (0.8 + 0.4 * chance)
            self.openings += 1
        elif expected is State.CLOSED:
            self.openings = 0
        if expected is not None:
            self.turned()

    @invariant()
    def a_refusal_says_when_to_come_back(self) -> None:
        left = self.breaker.retry_after(self.clock)
        assert 0.0 <= left <= 24.0
        if self.breaker.state is State.OPEN:
            assert left == pytest.approx(max(0.0, self.opened_until - self.now))

    def teardown(self) -> None:
        """Successes always lead to closed, whatever was before and whoever never came back."""
        self.time_passes(24.0)
        for _ in range(self.RULES.successes):
            self.a_call_begins()
            permit, turn, _ = self.out.pop()
            self.ends(permit, turn, OK, MIDDLE)
        assert self.breaker.state is State.CLOSED


TestBreakerMachine = pytest.mark.fuzz(BreakerMachine.TestCase)
TestBreakerMachine.settings = settings(max_examples=1000, stateful_step_count=50, deadline=None)
