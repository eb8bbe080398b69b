"""Failures on purpose, the same ones every time."""

from __future__ import annotations

import asyncio
import math

import pytest

from servicekit import CallError
from servicekit.call import Call, Side
from servicekit.clock import MovableClock
from servicekit.endpoint import Message
from servicekit.errors import By, Code, Error
from servicekit.method import Kind
from servicekit.middleware.faults import Faults
from servicekit.testing import make_call, no_leaks, pair, run, scripted, sends
from servicekit.testing.pair import Over
from tests.middleware.decisions import Decisions
from tests.transport.clients import ANSWERS, ask, begin, both, echo, every_kind, finish, streaming_responses

MESSAGES = {Kind.UNARY: 2, Kind.CLIENT_STREAM: 4, Kind.SERVER_STREAM: 4, Kind.BIDI_STREAM: 6}
"""How many messages pass in a whole call of each kind, both ways."""


async def failures(link: Faults, count: int = 100) -> list[bool]:
    """Which of so many calls fail."""
    seen = []
    for _ in range(count):
        try:
            await run(link, scripted("ok"), "hi", make_call())
        except Error:
            seen.append(True)
        else:
            seen.append(False)
    return seen


async def test_does_nothing_unless_told() -> None:
    """Each fault is named."""
    assert not any(await failures(Faults()))


async def test_the_seed_decides_which() -> None:
    """The same seed, the same calls; about as many as the probability says."""
    first = await failures(Faults(seed=7, abort=Code.INTERNAL, probability=0.3))
    assert first == await failures(Faults(seed=7, abort=Code.INTERNAL, probability=0.3))
    assert first != await failures(Faults(seed=8, abort=Code.INTERNAL, probability=0.3))
    assert 20 <= sum(first) <= 40
    assert not any(await failures(Faults(abort=Code.INTERNAL, probability=0.0)))
    assert all(await failures(Faults(abort=Code.INTERNAL)))


async def test_settings_do_not_move_the_sequence() -> None:
    """With another fault the same calls are drawn."""
    first = await failures(Faults(seed=7, abort=Code.INTERNAL, probability=0.3))
    assert first == await failures(Faults(seed=7, drop_after=0, probability=0.3))


async def test_delays() -> None:
    """By a number of seconds, before anything is begun."""
    clock = MovableClock()
    call, endpoint = make_call(clock=clock), scripted("ok")
    decisions = Decisions(call)
    running = asyncio.create_task(run(Faults(delay=2.0), endpoint, "hi", call))
    await clock.advance(1.99)
    assert endpoint.calls == []
    await clock.advance(0.01)
    assert await running == "ok"
    assert decisions.seen == [("faults", "delayed")]


async def test_delays_within_a_range() -> None:
    """Drawn from the seed's sequence too."""

    async def times() -> list[float]:
        clock, link, seen = MovableClock(), Faults(seed=3, delay=(1.0, 2.0)), []
        for _ in range(20):
            before = clock.time()
            running = asyncio.create_task(run(link, scripted("ok"), "hi", make_call(clock=clock)))
            while not running.done():
                await clock.advance(0.01)
            seen.append(round(clock.time() - before, 6))
        return seen

    first = await times()
    assert first == await times()
    assert 1.0 <= min(first) < 1.3
    assert 1.7 < max(first) <= 2.01


async def test_aborts_with_a_code() -> None:
    """As if the other side had answered so: on the client the error came from there."""
    for side in Side:
        call, endpoint = make_call(side=side), scripted("ok")
        decisions = Decisions(call)
        with pytest.raises(Error) as caught:
            await run(Faults(abort=Code.DATA_LOSS), endpoint, "hi", call)
        assert (caught.value.code, caught.value.message) == (Code.DATA_LOSS, "injected fault")
        assert caught.value.by is (By.PEER if side is Side.CLIENT else By.LOCAL)
        assert endpoint.calls == []
        assert decisions.seen == [("faults", "aborted")]


async def test_aborts_with_an_error_of_your_own() -> None:
    """With all that it says, and a new one for each call."""
    mine = Error(Code.UNAVAILABLE, "later", reason="MINE", retry_after=3.0)
    link, seen = Faults(abort=mine), []
    for _ in range(2):
        with pytest.raises(Error) as caught:
            await run(link, scripted("ok"), "hi", make_call())
        seen.append(caught.value)
    assert [(error.code, error.message, error.reason, error.retry_after) for error in seen] == [
        (Code.UNAVAILABLE, "later", "MINE", 3.0)
    ] * 2
    assert seen[0] is not seen[1]
    assert mine.__traceback__ is None


async def test_drops_after_so_many_messages() -> None:
    """Those have passed; then the call ends, also when no more would have come."""
    for every, then in ((0.0, None), (1.0, None)):
        clock = MovableClock()
        call = make_call(kind=Kind.SERVER_STREAM, clock=clock)
        decisions = Decisions(call)
        endpoint = scripted(sends(*range(5), every=every, then=then))
        running = asyncio.create_task(run(Faults(drop_after=3), endpoint, "hi", call))
        await clock.advance(10.0)
        with pytest.raises(Error) as caught:
            await running
        assert (caught.value.code, caught.value.message) == (Code.UNAVAILABLE, "connection dropped")
        assert call.recorder.messages == [0, 1]  # the request was the first of three
        assert decisions.seen == [("faults", "dropped")]
        assert clock.pending == 0


async def test_drops_a_stream_that_falls_silent() -> None:
    """It does not wait for a further message."""
    clock = MovableClock()
    call = make_call(kind=Kind.SERVER_STREAM, clock=clock)

    async def endpoint(_request: Message, call: Call) -> Message:
        await call.send("one")
        await asyncio.Event().wait()

    running = asyncio.create_task(run(Faults(drop_after=2), endpoint, "hi", call))
    await clock.advance(0.0)
    with pytest.raises(Error, match="connection dropped"):
        await running
    assert call.recorder.messages == ["one"]


async def test_the_work_of_a_dropped_unary_call_is_done() -> None:
    """And nobody hears of it: the case that retries have to think of."""
    for after in (1, 2):
        endpoint = scripted("ok")
        with pytest.raises(Error, match="connection dropped"):
            await run(Faults(drop_after=after), endpoint, "hi", make_call())
        assert len(endpoint.calls) == 1
    endpoint = scripted("ok")
    with pytest.raises(Error, match="connection dropped"):
        await run(Faults(drop_after=0), endpoint, "hi", make_call())
    assert endpoint.calls == []


async def test_a_call_with_fewer_messages_is_not_dropped() -> None:
    """It was over before."""
    assert await run(Faults(drop_after=3), scripted("ok"), "hi", make_call()) == "ok"


@both
@every_kind
@pytest.mark.parametrize("side", list(Side), ids=lambda side: side.value)
async def test_every_kind_on_a_wire(kind: Kind, side: Side, over: Over) -> None:
    """On both sides: aborted, dropped after each number of messages, or left alone when it has fewer."""

    async def code_with(link: Faults) -> Code:
        links = {"middleware": [link]} if side is Side.SERVER else {"client": [link]}
        async with pair(echo(), over=over, **links) as ends:  # type: ignore[arg-type]
            call = begin(ends.channel, kind)
            if over == "memory":
                await ends.clock.advance(0.1)
            try:
                assert await finish(call, kind) == ANSWERS[kind]
            except CallError as error:
                return error.error.code
            return Code.OK

    async with no_leaks():
        assert await code_with(Faults(abort=Code.DATA_LOSS)) is Code.DATA_LOSS
        for after in range(MESSAGES[kind] + 1):
            assert await code_with(Faults(drop_after=after)) is Code.UNAVAILABLE, after
        assert await code_with(Faults(drop_after=MESSAGES[kind] + 1)) is Code.OK


@streaming_responses
async def test_what_was_sent_before_a_drop_arrives(kind: Kind) -> None:
    """The client has those messages, and then the error."""
    async with pair(echo(), client=[Faults(drop_after=3 if kind is Kind.SERVER_STREAM else 5)]) as ends:
        call = begin(ends.channel, kind)
        got: list[object] = []

        async def take() -> None:
            async for message in call:
                got.append(message)  # noqa: PERF401 - the call fails

        with pytest.raises(CallError):
            await take()
        assert 1 <= len(got) <= 2


async def test_the_servers_own_methods_pass() -> None:
    """Health says what is the case."""
    assert await run(Faults(abort=Code.INTERNAL), scripted("ok"), "hi", make_call(auxiliary=True)) == "ok"


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"probability": 1.5}, r"probability=1\.5"),
        ({"probability": "1"}, "probability='1'"),
        ({"delay": -1.0}, r"delay=-1\.0"),
        ({"delay": math.inf}, "delay=inf"),
        ({"delay": (2.0, 1.0)}, r"delay=\(2\.0, 1\.0\)"),
        ({"abort": "INTERNAL"}, "abort='INTERNAL'"),
        ({"abort": Code.OK}, r"abort=Code\.OK"),
        ({"drop_after": -1}, "drop_after=-1"),
        ({"drop_after": 1, "abort": Code.INTERNAL}, "drop_after=1"),
    ],
)
def test_refuses_what_is_no_fault(wrong: dict[str, object], named: str) -> None:
    """Setting and value are named."""
    with pytest.raises((ValueError, TypeError), match=named):
        Faults(**wrong)  # type: ignore[arg-type]  # that is the point


async def test_asks_for_nothing_on_the_way() -> None:
    """An ordinary call through it is an ordinary call."""
    async with pair(echo(), middleware=[Faults()], client=[Faults()]) as ends:
        for kind in Kind:
            assert await ask(ends.channel, kind) == ANSWERS[kind]
