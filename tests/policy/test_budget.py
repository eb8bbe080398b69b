"""At most a share of the calls, and so many a second, in the ten seconds before any further attempt."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from servicekit.policy.budget import Budget


def spend_all(budget: Budget, now: float) -> int:
    """How many further attempts may be made at ``now``."""
    spent = 0
    while budget.spend(now):
        spent += 1
    return spent


def test_the_written_rule() -> None:
    """20 % of the calls and 10 a second, over 10 s."""
    budget = Budget()
    assert spend_all(budget, 1000.0) == 100
    for _ in range(50):
        budget.call(1000.0)
    assert spend_all(budget, 1000.0) == 10
    assert repr(budget) == "Budget(share=0.2, per_second=10.0, seconds=10.0, calls=50, extra=110)"
    assert spend_all(budget, 1009.0) == 0
    assert spend_all(budget, 1011.0) == 100


def test_hedging_has_a_share_and_nothing_else() -> None:
    """One in twenty, and none for the first nineteen."""
    budget = Budget(share=0.05, per_second=0.0)
    for _ in range(19):
        budget.call(1000.0)
    assert spend_all(budget, 1000.0) == 0
    budget.call(1000.0)
    assert spend_all(budget, 1000.0) == 1


def test_a_clock_that_goes_back_neither_fills_nor_blocks_it() -> None:
    """What was spent stays spent for as long as it takes, and no longer."""
    budget = Budget()
    assert spend_all(budget, 1000.0) == 100
    assert spend_all(budget, 10.0) == 0
    assert spend_all(budget, 21.0) == 100


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"share": -0.1}, r"share=-0\.1"),
        ({"per_second": float("nan")}, "per_second=nan"),
        ({"seconds": 0}, "seconds=0"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], names: str) -> None:
    """A wrong value fails where it is written."""
    with pytest.raises(ValueError, match=names):
        Budget(**settings)


class BudgetMachine(RuleBasedStateMachine):
    """Calls, attempts and time in any order, against lists of when they happened."""

    def __init__(self) -> None:
        super().__init__()
        self.budget = Budget(share=0.2, per_second=0.3, seconds=10.0)
        self.clock = 1000.0
        self.now = 0.0  # what has gone forward
        self.calls: list[float] = []
        self.extra: list[float] = []

    @rule(seconds=st.sampled_from([0.0, 0.001, 0.5, 1.0, 3.0, 9.0, 9.75, 10.0, 1000.0]))
    def time_passes(self, seconds: float) -> None:
        self.budget.call(self.clock)  # it is looked at on both ends, or it could not know which way the clock went
        self.calls.append(self.now)
        self.clock += seconds
        self.now += seconds

    @rule(seconds=st.floats(0.0, 100.0))
    def clock_goes_back(self, seconds: float) -> None:
        self.budget.call(self.clock)
        self.calls.append(self.now)
        self.clock -= seconds

    @rule(count=st.sampled_from([1, 5, 20]))
    def calls_are_made(self, count: int) -> None:
        for _ in range(count):
            self.budget.call(self.clock)
            self.calls.append(self.now)

    @rule(count=st.sampled_from([1, 2, 30]))
    def attempts_are_asked_for(self, count: int) -> None:
        for _ in range(count):
            if self.budget.spend(self.clock):
                self.extra.append(self.now)
                bound = 0.2 * self.within(self.calls, 10.0) + 3.0
                assert self.within(self.extra, 10.0) <= bound + 1e-9
            else:  # never refused out of hand: a bucket more or less is all that it may be wrong by
                bound = 0.2 * self.within(self.calls, 9.0) + 3.0
                assert self.within(self.extra, 11.0) + 1 > bound - 1e-9

    def within(self, times: list[float], seconds: float) -> int:
        return sum(time > self.now - seconds for time in times)

    @invariant()
    def all_of_it_is_bounded(self) -> None:
        # Over any stretch of time: the share of all calls, and the rate, with one window's worth at the beginning.
        assert len(self.extra) <= 0.2 * len(self.calls) + 0.3 * (self.now + 10.0) + 1e-9 + 3.0


TestBudgetMachine = pytest.mark.fuzz(BudgetMachine.TestCase)
TestBudgetMachine.settings = settings(max_examples=1000, stateful_step_count=50, deadline=None)
