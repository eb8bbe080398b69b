"""So many calls at a time."""

from __future__ import annotations

import asyncio
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from servicekit import CallError
from servicekit.call import Call, Side
from servicekit.clock import MovableClock
from servicekit.endpoint import Message
from servicekit.errors import Code, Error
from servicekit.method import Kind
from servicekit.middleware.bulkhead import Bulkhead
from servicekit.testing import RecordedCall, make_call, pair, run, scripted, waits
from servicekit.testing.pair import Over
from tests.middleware.decisions import Decisions
from tests.transport.clients import ANSWERS, Held, all_methods, ask, begin, both, echo, every_kind


def start(link: Bulkhead, call: RecordedCall, seconds: float | None = 1.0) -> asyncio.Task[Message]:
    """Begin a call that takes so many seconds."""
    return asyncio.create_task(run(link, scripted(waits(seconds, "ok")), "hi", call))


async def refused(link: Bulkhead, call: RecordedCall) -> Error:
    endpoint = scripted("ok")
    with pytest.raises(Error) as caught:
        await run(link, endpoint, "hi", call)
    assert endpoint.calls == []
    return caught.value


@pytest.mark.parametrize("side", list(Side))
async def test_so_many_at_a_time_and_no_more(side: Side) -> None:
    """The next one passes as soon as one of them has ended, however it did."""
    clock, link = MovableClock(), Bulkhead(concurrency=2)
    tasks = [start(link, make_call(clock=clock, side=side)) for _ in range(2)]
    await clock.advance(0.5)
    assert (await refused(link, make_call(clock=clock, side=side))).code is Code.RESOURCE_EXHAUSTED
    tasks[0].cancel()
    await asyncio.wait(tasks[:1])
    tasks.append(start(link, make_call(clock=clock, side=side)))
    await clock.advance(1.0)
    assert [await task for task in tasks[1:]] == ["ok", "ok"]
    with pytest.raises(ZeroDivisionError):
        await link("hi", make_call(clock=clock, side=side), scripted(ZeroDivisionError))
    assert link._rooms == {}


async def test_what_the_refused_caller_gets() -> None:
    """RESOURCE_EXHAUSTED and when to come back; it is our own refusal, and no work was begun."""
    clock, link = MovableClock(), Bulkhead(concurrency=1, retry_after=2.5)
    held = start(link, make_call(clock=clock))
    await clock.advance(0.0)
    call = make_call(clock=clock)
    decisions = Decisions(call)
    error = await refused(link, call)
    assert (error.code, error.reason, error.retry_after) == (Code.RESOURCE_EXHAUSTED, "BULKHEAD_FULL", 2.5)
    assert error.refused
    assert not error.begun
    assert decisions.seen == [("bulkhead", "refused")]
    await clock.advance(1.0)
    await held


async def test_each_key_has_its_own() -> None:
    """By method unless told otherwise; keys that nobody uses are forgotten."""
    clock = MovableClock()
    link = Bulkhead(concurrency=1, key="peer")
    held = [start(link, make_call(clock=clock, peer=peer)) for peer in ("ipv4:10.0.0.1:1", "ipv4:10.0.0.2:1")]
    await clock.advance(0.0)
    assert set(link._rooms) == {"ipv4:10.0.0.1", "ipv4:10.0.0.2"}
    await refused(link, make_call(clock=clock, peer="ipv4:10.0.0.1:2"))
    await clock.advance(1.0)
    await asyncio.gather(*held)
    assert link._rooms == {}


async def test_waits_in_order() -> None:
    """With ``wait``, first come, first served."""
    clock, link, order = MovableClock(), Bulkhead(concurrency=1, wait=10.0), []

    async def one(name: int) -> None:
        call = make_call(clock=clock)
        decisions = Decisions(call)
        await run(link, scripted(waits(1.0)), "hi", call)
        order.append((name, clock.time() - 1000.0))
        assert decisions.seen == ([("bulkhead", "waited")] if name else [])

    tasks = [asyncio.create_task(one(name)) for name in range(4)]
    await clock.advance(4.0)
    await asyncio.gather(*tasks)
    assert order == [(0, 1.0), (1, 2.0), (2, 3.0), (3, 4.0)]
    assert clock.pending == 0


async def test_does_not_wait_for_longer_than_was_said() -> None:
    """Then it is refused; the others keep their places."""
    clock, link = MovableClock(), Bulkhead(concurrency=1, wait=0.5)
    held = start(link, make_call(clock=clock), 0.7)
    await clock.advance(0.0)
    call = make_call(clock=clock)
    decisions = Decisions(call)
    waiting = asyncio.create_task(refused(link, call))
    await clock.advance(0.3)
    later = start(link, make_call(clock=clock))
    await clock.advance(0.19)
    assert not waiting.done()
    await clock.advance(0.02)
    assert (await waiting).retry_after == 1.0
    assert len(link._rooms["/test.Service/Method"]._waiting) == 1
    assert decisions.seen == [("bulkhead", "waited"), ("bulkhead", "refused")]
    await clock.advance(2.0)
    assert await later == "ok"
    await held


async def test_never_waits_past_the_deadline() -> None:
    """Nor does one wait at all that has no time left."""
    clock, link = MovableClock(), Bulkhead(concurrency=1, wait=5.0)
    held = start(link, make_call(clock=clock))
    await clock.advance(0.0)
    waiting = asyncio.create_task(link("hi", make_call(clock=clock, deadline=clock.time() + 0.25), scripted("ok")))
    await clock.advance(0.25)
    with pytest.raises(Error, match="too many calls at a time"):
        await waiting
    with pytest.raises(Error, match="too many calls at a time"):
        await link("hi", make_call(clock=clock, deadline=clock.time()), scripted("ok"))
    await clock.advance(1.0)
    await held


async def test_the_servers_own_methods_pass() -> None:
    """Health and reflection take no place."""
    clock, link = MovableClock(), Bulkhead(concurrency=1)
    tasks = [start(link, make_call(clock=clock, auxiliary=True)) for _ in range(3)]
    await clock.advance(1.0)
    assert await asyncio.gather(*tasks) == ["ok"] * 3


async def test_no_place_is_lost_wherever_a_call_is_cancelled() -> None:
    """Three calls share one place; each is cancelled at each turn of the loop, and at each moment of the clock."""
    for victims in itertools.chain(itertools.combinations(range(3), 1), itertools.combinations(range(3), 2)):
        for turns, moment in itertools.product(range(8), (0.0, 0.99, 1.0, 1.5, 2.0)):
            clock, link = MovableClock(), Bulkhead(concurrency=1, wait=1.5)
            tasks = [start(link, make_call(clock=clock)) for _ in range(3)]
            await clock.advance(moment)
            for _ in range(turns):  # advance comes to rest: the next turns follow from what is cancelled first
                tasks[victims[0]].cancel()
                await asyncio.sleep(0)
            for victim in victims:
                tasks[victim].cancel()
            await clock.advance(10.0)
            await asyncio.wait(tasks)
            assert link._rooms == {}, (victims, turns, moment)
            assert clock.pending == 0
            again = start(link, make_call(clock=clock))
            await clock.advance(1.0)
            assert await again == "ok"


STEP = st.one_of(
    st.tuples(st.just("begin"), st.floats(0.0, 2.0)),
    st.tuples(st.just("turn"), st.integers(0, 3)),
    st.tuples(st.just("wait"), st.floats(0.0, 1.0)),
    st.tuples(st.just("cancel"), st.integers(0, 20)),
)


@given(steps=st.lists(STEP, max_size=40), concurrency=st.integers(1, 3), wait=st.sampled_from([0.0, 0.3, 5.0]))
@settings(max_examples=200, deadline=None)
def test_no_place_is_lost_and_none_is_there_twice(
    steps: list[tuple[str, float]], concurrency: int, wait: float
) -> None:
    """Whoever comes, waits, is cancelled in whatever order: never more than so many at a time, and all free at the end."""
    running = most = 0

    async def scenario() -> None:
        clock, link, tasks = MovableClock(), Bulkhead(concurrency=concurrency, wait=wait), []

        async def endpoint(request: float, call: Call) -> Message:
            nonlocal running, most
            running += 1
            most = max(most, running)
            try:
                await call.clock.sleep(request)
            finally:
                running -= 1

        for word, value in steps:
            if word == "begin":
                tasks.append(asyncio.create_task(run(link, endpoint, value, make_call(clock=clock))))
            elif word == "turn":
                for _ in range(int(value)):
                    await asyncio.sleep(0)
            elif word == "wait":
                await clock.advance(value)
            elif tasks:
                tasks[int(value) % len(tasks)].cancel()
        await clock.advance(100.0)
        await asyncio.gather(*tasks, return_exceptions=True)
        assert link._rooms == {}
        assert clock.pending == 0

    asyncio.run(scenario())
    assert running == 0
    assert most <= concurrency


@both
@every_kind
async def test_every_kind_on_a_wire(kind: Kind, over: Over) -> None:
    """A stream holds its place for as long as it is open; the refusal arrives with its pushback."""
    held = Held()
    async with pair(echo(**all_methods(held.method)), over=over, middleware=[Bulkhead(concurrency=1)]) as ends:
        first = begin(ends.channel, kind)
        await held.begun.wait()
        with pytest.raises(CallError) as caught:
            await ask(ends.channel, kind)
        assert caught.value.error.code is Code.RESOURCE_EXHAUSTED
        assert caught.value.error.retry_after == 1.0
        first.cancel()
        await held.cancelled.wait()


@every_kind
async def test_every_kind_on_the_client(kind: Kind) -> None:
    """There what is too much never reaches the wire."""
    held = Held()
    async with pair(echo(**all_methods(held.method)), client=[Bulkhead(concurrency=1)]) as ends:
        first = begin(ends.channel, kind)
        await held.begun.wait()
        with pytest.raises(CallError) as caught:
            await ask(ends.channel, kind)
        assert caught.value.error.refused
        assert held.calls == 1
        first.cancel()
        await held.cancelled.wait()
    async with pair(echo(), client=[Bulkhead(concurrency=1)]) as ends:
        for _ in range(2):
            assert await ask(ends.channel, kind) == ANSWERS[kind]


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"concurrency": 0}, "concurrency=0"),
        ({"concurrency": 2.5}, r"concurrency=2\.5"),
        ({"concurrency": 1, "wait": -1}, "wait=-1"),
        ({"concurrency": 1, "wait": "1"}, "wait='1'"),
        ({"concurrency": 1, "retry_after": -1}, "retry_after=-1"),
        ({"concurrency": 1, "key": "host"}, "key='host'"),
    ],
)
def test_refuses_what_is_no_bound(wrong: dict[str, int], named: str) -> None:
    """Setting and value are named."""
    with pytest.raises((ValueError, TypeError), match=named):
        Bulkhead(**wrong)  # type: ignore[arg-type]  # that is the point


def test_shows_its_settings() -> None:
    """And nothing else."""
    assert repr(Bulkhead(concurrency=3)) == "Bulkhead(concurrency=3, key='method', wait=0.0, retry_after=1.0)"
