from __future__ import annotations

import random

from servicekit.clock import MovableClock
from servicekit.native.wheel import TICK, Slot, Wheel


class Waiting:
    def __init__(self, deadline: float, clock: MovableClock) -> None:
        self.deadline = deadline
        self.slot: Slot | None = None
        self.expired: list[float] = []
        self._clock = clock

    def expire(self) -> None:
        self.expired.append(self._clock.time())


async def test_everybody_expires_once_and_in_time() -> None:
    """Each deadline, near or far, is kept to within a tick, never before it and only once."""
    clock, source = MovableClock(), random.Random(7)
    wheel = Wheel(clock)
    everybody = [
        Waiting(clock.time() + source.choice([0.02, 3, 90, 5000]) * source.random(), clock) for _ in range(500)
    ]
    for who in everybody:
        wheel.add(who, clock.time())
    await clock.advance(5001)
    for who in everybody:
        (when,) = who.expired
        assert who.deadline <= when <= who.deadline + TICK + 1e-9


async def test_who_has_left_does_not_expire() -> None:
    """A call that ended before its deadline is not touched by it."""
    clock = MovableClock()
    wheel = Wheel(clock)
    who, other = Waiting(clock.time() + 1, clock), Waiting(clock.time() + 1, clock)
    wheel.add(who, clock.time())
    wheel.add(other, clock.time())
    assert who.slot is not None
    who.slot.discard(who)
    await clock.advance(2)
    assert (who.expired, len(other.expired)) == ([], 1)


async def test_many_deadlines_need_few_timers() -> None:
    """A thousand calls with deadlines of an hour are some hundred slots and one timer, which ends with the last."""
    clock, source = MovableClock(), random.Random(7)
    wheel = Wheel(clock)
    for _ in range(1000):
        wheel.add(Waiting(clock.time() + 3600 + source.random() * 60, clock), clock.time())
    assert len(wheel._slots) < 70
    assert clock.pending == 1
    assert len(wheel) == 1000
    await clock.advance(3700)
    assert clock.pending == 0
    assert not wheel._slots


async def test_an_earlier_deadline_moves_the_timer() -> None:
    """One that comes later and is due sooner is not late, nor is one that has passed already."""
    clock = MovableClock()
    wheel = Wheel(clock)
    late, soon, passed = (Waiting(clock.time() + seconds, clock) for seconds in (100, 0.1, -5))
    for who in (late, soon, passed):
        wheel.add(who, clock.time())
    await clock.advance(0.2)
    assert (len(passed.expired), len(soon.expired), len(late.expired)) == (1, 1, 0)
    wheel.stop()
    assert clock.pending == 0
