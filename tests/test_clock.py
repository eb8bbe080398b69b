from __future__ import annotations

import asyncio
import random
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from servicekit.clock import Clock, MovableClock, SystemClock, settle

DELAYS = st.floats(min_value=0, max_value=100, allow_nan=False).map(lambda delay: round(delay, 1))


async def test_it_stands_still_until_moved() -> None:
    """A movable clock passes no time by itself, and exactly what it is told."""
    clock = MovableClock(50.0)
    assert clock.time() == 50.0
    await settle()
    assert clock.time() == 50.0
    await clock.advance(1.5)
    assert clock.time() == 51.5


async def test_time_does_not_run_backwards() -> None:
    """A negative advance is refused, naming the value."""
    with pytest.raises(ValueError, match="-1"):
        await MovableClock().advance(-1)


@pytest.mark.parametrize("seconds", ["1", None, True, float("nan"), float("inf"), 10**400])
async def test_time_is_a_number(seconds: Any) -> None:  # noqa: ANN401 - that is the test
    """What is none would stop the clock for ever, and the timers on it."""
    clock = MovableClock()
    with pytest.raises((TypeError, ValueError), match=f"seconds={seconds!r}"):
        await clock.advance(seconds)
    assert clock.time() == 1000.0


async def test_a_sleeper_wakes_on_time() -> None:
    """A sleep ends when its time has come, not before."""
    clock = MovableClock()
    sleeping = asyncio.create_task(clock.sleep(10))
    await clock.advance(9.999)
    assert not sleeping.done()
    assert clock.pending == 1
    await clock.advance(0.001)
    assert sleeping.done()
    assert clock.pending == 0


async def test_a_sleep_of_nothing_gives_way_once() -> None:
    """A sleep of zero or less needs no time, but gives the loop its turn."""
    clock = MovableClock()
    ran: list[int] = []
    asyncio.get_running_loop().call_soon(ran.append, 1)
    await clock.sleep(0)
    assert ran == [1]
    await clock.sleep(-1)
    assert clock.pending == 0


async def test_a_cancelled_sleep_leaves_no_timer() -> None:
    """A sleeper that is cancelled takes its timer with it, also when both happen at once."""
    clock = MovableClock()
    sleeping = asyncio.create_task(clock.sleep(1))
    await settle()
    sleeping.cancel()
    await clock.advance(1)
    assert sleeping.cancelled()
    assert clock.pending == 0


async def test_a_cancelled_timer_does_not_run() -> None:
    """Cancelling a timer, once or twice, keeps its callback from running; after it ran it is harmless."""
    clock = MovableClock()
    ran: list[str] = []
    first, second = clock.call_at(1001, lambda: ran.append("first")), clock.call_at(1001, lambda: ran.append("second"))
    first.cancel()
    first.cancel()
    await clock.advance(2)
    second.cancel()
    assert ran == ["second"]


async def test_a_timer_that_is_due_runs_at_the_next_advance() -> None:
    """A callback for the past or for now runs as soon as the clock is moved, if only by nothing."""
    clock = MovableClock()
    ran: list[float] = []
    clock.call_at(10.0, lambda: ran.append(clock.time()))
    assert ran == []
    await clock.advance(0)
    assert ran == [1000.0]


async def test_consequences_run_where_they_belong() -> None:
    """What a timer sets off, with timers of its own, happens before later timers of the same advance."""
    clock = MovableClock()
    seen: list[tuple[str, float]] = []

    async def chain_of(name: str, *delays: float) -> None:
        for delay in delays:
            await clock.sleep(delay)
            seen.append((name, clock.time() - 1000))

    async with asyncio.TaskGroup() as group:
        group.create_task(chain_of("a", 1, 1, 1))
        group.create_task(chain_of("b", 1.5, 2))
        await clock.advance(10)
    assert seen == [("a", 1), ("b", 1.5), ("a", 2), ("a", 3), ("b", 3.5)]


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(DELAYS, st.lists(DELAYS, max_size=3)), max_size=12), st.lists(DELAYS, max_size=5))
def test_timers_run_in_order_of_time(timers: list[tuple[float, list[float]]], steps: list[float]) -> None:
    """However a clock is moved, timers run once, at their time, in order; of equal times, the first set first."""
    planned: list[tuple[float, int]] = []
    ran: list[tuple[float, int]] = []

    async def main() -> None:
        clock = MovableClock(0.0)

        def plan(when: float, followers: list[float]) -> None:
            entry = (when, len(planned))
            planned.append(entry)

            def run() -> None:
                assert clock.time() == when
                ran.append(entry)
                for delay in followers:
                    plan(when + delay, [])

            clock.call_at(when, run)

        for delay, followers in timers:
            plan(delay, followers)
        for step in steps:
            await clock.advance(step)
            assert all(when <= clock.time() for when, _ in ran)
            assert clock.pending == len(planned) - len(ran)
        await clock.advance(1000)
        assert clock.pending == 0

    asyncio.run(main())
    assert ran == sorted(planned)


def test_its_randomness_is_repeatable() -> None:
    """The same seed gives the same sequence in [0, 1), another seed another; the process's own seed plays no part."""
    random.seed(1)
    first = [MovableClock(seed=7).random() for _ in range(2)]
    clock = MovableClock(seed=7)
    sequence = [clock.random() for _ in range(100)]
    assert first == [sequence[0]] * 2
    assert sequence != [MovableClock(seed=8).random() for _ in range(100)]
    assert all(0 <= number < 1 for number in sequence)


async def test_its_repr_shows_where_it_stands() -> None:
    """The whole state: time, and timers to come."""
    clock = MovableClock(5.0)
    clock.call_at(6.0, lambda: None)
    assert repr(clock) == "MovableClock(time=5.0, pending=1)"
    assert repr(SystemClock()) == "SystemClock()"


async def test_the_system_clock_is_the_systems() -> None:
    """Real time, real timers, and randomness that no random.seed puts in step."""
    clock: Clock = SystemClock()
    before = time.monotonic()
    assert before <= clock.time() <= time.monotonic()
    fired = asyncio.Event()
    clock.call_at(clock.time() - 1, fired.set)
    await fired.wait()
    cancelled = clock.call_at(clock.time() + 3600, fired.clear)
    cancelled.cancel()
    start = clock.time()
    await clock.sleep(0.01)
    assert clock.time() - start >= 0.009
    random.seed(1)
    first = SystemClock().random()
    random.seed(1)
    assert SystemClock().random() != first
    assert 0 <= first < 1


async def test_settle_returns_when_nothing_can_go_on() -> None:
    """A chain of steps that needs no time has run to its end; one that waits for input does not hold it up."""
    steps = 0

    async def walk() -> None:
        nonlocal steps
        for _ in range(200):
            await asyncio.sleep(0)
            steps += 1

    waiting = asyncio.create_task(asyncio.Event().wait())
    walking = asyncio.create_task(walk())
    await settle()
    assert steps == 200
    assert walking.done()
    assert not waiting.done()
    waiting.cancel()


async def test_settle_says_so_when_the_loop_never_rests() -> None:
    """What polls instead of waiting would let time pass too early: settle names it instead of going on."""
    loop = asyncio.get_running_loop()
    resting = False

    def spin() -> None:
        if not resting:
            loop.call_soon(spin)

    spin()
    with pytest.raises(RuntimeError, match="does not come to rest"):
        await settle()
    resting = True
