"""A client that is turned away often asks less often. The formula itself is tested in tests/policy."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest

from servicekit.call import Side
from servicekit.clock import MovableClock
from servicekit.endpoint import Message
from servicekit.errors import By, Code, Error
from servicekit.method import Kind
from servicekit.middleware.adaptive_throttle import AdaptiveThrottle
from servicekit.testing import make_call, pair, run, scripted, sends, waits
from tests.transport.clients import Flaky, ask, every_kind

DOWN = Error(Code.UNAVAILABLE, "down", by=By.PEER)
SHED = Error(Code.RESOURCE_EXHAUSTED, "shed", by=By.PEER, retry_after=1.0)


class Dice(MovableClock):
    """A clock whose chance is what the test says."""

    chance = 0.999

    def random(self) -> float:
        return self.chance


@dataclass
class Stage:
    """One link, one clock, and as many calls as a test makes."""

    link: AdaptiveThrottle = field(default_factory=AdaptiveThrottle)
    kind: Kind = Kind.UNARY
    clock: Dice = field(default_factory=Dice)
    decisions: list[tuple[str, str]] = field(default_factory=list)

    async def play(self, *outcomes: Message) -> list[Message]:
        """Make a call for each outcome; return what came of them, refused calls as "refused"."""
        came: list[Message] = []
        for outcome in outcomes:
            call = make_call(kind=self.kind, side=Side.CLIENT, clock=self.clock)
            call.on_decision(lambda *each: self.decisions.append(each))
            request = ["a"] if self.kind.request_streaming else "hi"
            try:
                came.append(await run(self.link, scripted(outcome), request, call))
            except Error as error:
                came.append("refused" if error.refused else error.code.name)
        return came


@every_kind
async def test_it_refuses_with_the_chance_of_the_formula(kind: Kind) -> None:
    """Four of ten taken: (10 - 2 * 4) / 11, for every kind; a refusal counts as one more that was not taken."""
    here = Stage(kind=kind)
    await here.play(*[sends("x") if kind.response_streaming else "ok"] * 4, *[DOWN] * 6)
    here.clock.chance = 2 / 11
    assert await here.play(DOWN) == ["UNAVAILABLE"]
    here.clock.chance = 3 / 12 - 0.001
    assert await here.play(DOWN, DOWN) == ["refused", "refused"]
    here.clock.chance = 5 / 14
    assert await here.play(DOWN) == ["UNAVAILABLE"]
    assert here.decisions == [("adaptive_throttle", "refused")] * 2


async def test_nothing_is_refused_while_half_is_taken() -> None:
    """Whatever the dice say."""
    here = Stage()
    here.clock.chance = 0.0
    assert await here.play(*["ok", DOWN] * 50) == ["ok", "UNAVAILABLE"] * 50


async def test_a_refusal_says_what_it_is_and_when_to_come_back() -> None:
    """UNAVAILABLE "throttled", never begun."""
    here = Stage()
    await here.play(*[DOWN] * 9)
    here.clock.chance = 0.0
    call = make_call(side=Side.CLIENT, clock=here.clock)
    with pytest.raises(Error) as caught:
        await run(here.link, scripted(), "hi", call)
    error = caught.value
    assert (error.code, error.message, error.reason) == (Code.UNAVAILABLE, "throttled", "THROTTLED")
    assert (error.begun, error.refused, error.by, error.retry_after) == (False, True, By.LOCAL, 1.0)


@pytest.mark.parametrize(
    ("outcome", "came"),
    [
        (SHED, "refused"),
        (DOWN, "refused"),
        (Error(Code.INTERNAL, by=By.PEER), "refused"),
        (Error(Code.NOT_FOUND, by=By.PEER), "ok"),
        (Error(Code.UNAVAILABLE, refused=True), "ok"),
        (Error(Code.CANCELLED, by=By.CALLER), "ok"),
        (Error(Code.DEADLINE_EXCEEDED, begun=False), "ok"),
    ],
    ids=str,
)
async def test_what_is_not_taken(outcome: Error, came: str) -> None:
    """What broke and what was turned away on purpose; an answer is taken, and what never got there counts for nothing."""
    here = Stage()
    await here.play(*[outcome] * 20)
    here.clock.chance = 0.0
    assert await here.play("ok") == [came]


async def test_a_call_that_its_caller_cancels_counts_for_nothing() -> None:
    """And neither does one that is still under way: a hundred at once at the beginning are not throttled."""
    here = Stage()
    here.clock.chance = 0.0
    calls = [make_call(side=Side.CLIENT, clock=here.clock) for _ in range(100)]
    running = [asyncio.ensure_future(run(here.link, scripted(waits()), "hi", call)) for call in calls]
    await here.clock.advance(0.0)
    assert await here.play("ok") == ["ok"]
    for each in running:
        each.cancel()
    await asyncio.wait(running)
    assert await here.play("ok") == ["ok"]


async def test_it_forgets_after_two_minutes() -> None:
    """Then everything passes again."""
    here = Stage()
    await here.play(*[DOWN] * 20)
    await here.clock.advance(120.0)
    here.clock.chance = 0.0
    assert await here.play("ok") == ["ok"]


@pytest.mark.parametrize(
    ("settings", "names"),
    [({"k": 0.9}, r"k=0\.9"), ({"window": 0.0}, r"window=0\.0"), ({"retry_after": -1.0}, r"retry_after=-1\.0")],
)
def test_wrong_settings_are_named(settings: dict[str, Any], names: str) -> None:
    """A wrong value fails where it is written."""
    with pytest.raises(ValueError, match=names):
        AdaptiveThrottle(**settings)


@every_kind
async def test_on_a_wire_a_server_that_is_down_is_asked_less_and_less(kind: Kind) -> None:
    """Of two hundred calls most never leave; when it is back, so are the calls."""
    flaky, clock = Flaky(times=10_000, after=1 if kind.request_streaming else 0), MovableClock()
    async with pair(flaky.register, client=[AdaptiveThrottle()], clock=clock) as ends:
        for _ in range(200):
            with pytest.raises(grpc.aio.AioRpcError):
                await ask(ends.channel, kind)
        assert len(flaky.attempts) < 20
        flaky.times = 0
        await clock.advance(120.0)
        for _ in range(20):
            await ask(ends.channel, kind)
