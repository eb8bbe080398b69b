"""How late the loop is, and which call holds it."""

from __future__ import annotations

import asyncio
import logging
import threading
import time

import pytest

from servicekit.clock import SystemClock
from servicekit.loop_lag import EVERY, LoopLag, _described
from servicekit.testing import make_call

NAME = "servicekit-loop-lag"


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == NAME]


@pytest.fixture(autouse=True)
def _nobody_else_watches() -> None:
    """Threads of tests before, which end when they next look at their loop and find it closed, are not counted here."""
    for thread in threads():
        thread.join()


def test_lags_when_it_was_late_for_all_of_a_second() -> None:
    """Later than 100 ms, at each look for one second."""
    lag = LoopLag()
    lag.look(10.0, 0.15)  # late since 9.85
    assert not lag.lagging
    lag.look(10.8, 0.11)
    assert not lag.lagging
    lag.look(10.86, 0.11)
    assert lag.lagging


def test_one_look_in_time_is_enough() -> None:
    """It begins anew; and it ends at once."""
    lag = LoopLag()
    lag.look(10.0, 0.5)
    lag.look(10.4, 0.1)
    lag.look(10.9, 0.2)
    assert not lag.lagging
    lag.look(11.8, 0.2)
    assert lag.lagging
    lag.look(11.9, 0.05)
    assert not lag.lagging


def test_one_long_hold_lags_at_once() -> None:
    """The loop that comes back after a second and a half was late for all of it."""
    lag = LoopLag()
    lag.look(10.0, 1.5)
    assert lag.lagging


def test_tells_once_and_when_it_is_over(caplog: pytest.LogCaptureFixture) -> None:
    """However long it lasts; nothing is told of what was no lag."""
    lag = LoopLag()
    with caplog.at_level(logging.INFO, "servicekit"):
        lag.look(9.0, 0.5)
        lag.look(9.1, 0.0)
        for step in range(10):
            lag.look(10.0 + step, 1.5)
        lag.look(30.0, 0.0)
        lag.look(30.1, 0.0)
    assert [record.getMessage() for record in caplog.records] == [
        "the event loop is 1500 ms late; it was held by no call for long",
        "the event loop is on time again",
    ]


def hold(seconds: float) -> None:
    time.sleep(seconds)


async def serve(seconds: float) -> None:
    call = make_call(clock=SystemClock())
    hold(seconds)
    assert call.method.path == "/test.Service/Method"


async def test_names_the_call_that_holds_the_loop(caplog: pytest.LogCaptureFixture) -> None:
    """The RPC and the functions, innermost first, while it holds it and not when it is over."""
    lag = LoopLag(over=0.02, during=0.15)
    lag.watch()
    await asyncio.sleep(2 * EVERY)

    def told_meanwhile() -> bool:
        return any("held by /test.Service/Method, in hold (test_loop_lag.py:" in text for text in caplog.messages)

    async def holding() -> bool:
        await serve(0.5)
        return told_meanwhile()

    assert await holding()
    (line,) = [text for text in caplog.messages if "late" in text]
    assert "< serve (test_loop_lag.py:" in line
    lag.stop()


async def test_a_loop_on_time_is_never_told_of(caplog: pytest.LogCaptureFixture) -> None:
    """Nor is one that does nothing."""
    lag = LoopLag(over=5.0)
    lag.watch()
    await asyncio.sleep(3 * EVERY)
    assert not lag.lagging
    assert caplog.messages == []
    lag.stop()


async def test_ends_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """A while after the last ``watch`` there is neither timer nor thread; ``watch`` begins anew."""
    monkeypatch.setattr("servicekit.loop_lag.IDLE", 2 * EVERY)
    lag = LoopLag()
    for _ in range(2):
        lag.watch()
        (thread,) = threads()
        await asyncio.to_thread(thread.join)
        assert lag._handle is None
        assert threads() == []


async def test_stop_ends_it_at_once() -> None:
    """Twice is harmless, and so is before the first ``watch``."""
    lag = LoopLag()
    lag.stop()
    lag.watch()
    lag.watch()
    (thread,) = threads()
    assert thread.daemon
    lag.stop()
    lag.stop()
    await asyncio.to_thread(thread.join)
    assert not lag.lagging


def test_goes_with_its_loop_and_on_to_the_next() -> None:
    """Nobody holds a loop that has ended, and no thread outlives it."""
    lag = LoopLag()

    async def watching() -> None:
        lag.watch()
        assert len(threads()) == 1
        await asyncio.sleep(EVERY)

    for _ in range(2):
        asyncio.run(watching())
        for thread in threads():
            thread.join()
        assert threads() == []
    lag.stop()


def test_a_loop_that_stood_still_is_watched_again() -> None:
    """Between two runs of one loop nobody is late."""
    loop = asyncio.new_event_loop()
    lag = LoopLag()

    async def watching() -> None:
        lag.watch()
        await asyncio.sleep(3 * EVERY)

    try:
        loop.run_until_complete(watching())
        for thread in threads():
            thread.join()
        loop.run_until_complete(watching())
        assert len(threads()) == 1
    finally:
        lag.stop()
        loop.close()
    for thread in threads():
        thread.join()


def test_describes_a_stack_without_a_call() -> None:
    """And never a value in it."""
    frames = []

    def inner(secret: str) -> None:
        import sys  # noqa: PLC0415

        frames.append(sys._getframe())
        assert secret

    inner("hunter2")
    assert _described(frames[0]).startswith("no RPC, in test_describes_a_stack_without_a_call.<locals>.inner (")
    assert "hunter2" not in _described(frames[0])


@pytest.mark.parametrize("wrong", [{"over": 0}, {"during": "1"}])
def test_refuses_what_is_no_time(wrong: dict[str, float]) -> None:
    """Setting and value are named."""
    ((name, value),) = wrong.items()
    with pytest.raises((ValueError, TypeError), match=f"{name}={value!r}"):
        LoopLag(**wrong)


def test_shows_its_state() -> None:
    """The bounds, and whether it lags."""
    lag = LoopLag()
    assert repr(lag) == "LoopLag(over=0.1, during=1.0)"
    lag.look(10.0, 1.5)
    assert repr(lag) == "LoopLag(over=0.1, during=1.0, lagging)"
