"""Work that will most likely not be in time is not begun, where that was asked for."""

from __future__ import annotations

import asyncio

import pytest

from servicekit import CallError
from servicekit.call import Call, Side
from servicekit.clock import MovableClock
from servicekit.endpoint import Message
from servicekit.errors import Code, Error
from servicekit.method import Kind, Method
from servicekit.middleware import Deadline
from servicekit.testing import make_call, pair, run
from servicekit.testing.v1.echo_pb2 import EchoRequest, EchoResponse
from tests.middleware.decisions import Decisions
from tests.transport.clients import Context, echo, stub_of

METHOD = Method(service="test.Service", name="Method", kind=Kind.UNARY)


class Bench:
    """One Deadline, one clock, and calls that take so long."""

    def __init__(self, link: Deadline | None = None) -> None:
        self.clock = MovableClock()
        self.link = Deadline(doomed=True) if link is None else link
        self.ran = 0
        self.decided: list[tuple[str, str]] = []

    async def call(
        self, seconds: float, *, left: float | None = None, method: Method = METHOD, side: Side = Side.SERVER
    ) -> Code:
        async def endpoint(_request: Message, call: Call) -> Message:
            self.ran += 1
            await call.clock.sleep(seconds)

        deadline = None if left is None else self.clock.time() + left
        call = make_call(clock=self.clock, deadline=deadline, method=method, side=side)
        decisions = Decisions(call)
        request: Message = [] if method.kind.request_streaming else "hi"
        running = asyncio.create_task(run(self.link, endpoint, request, call))
        await self.clock.advance(seconds)
        try:
            await running
        except Error as error:
            return error.code
        finally:
            self.decided = decisions.seen
        return Code.OK

    async def answer(self, count: int, seconds: float, *, left: float | None = None, method: Method = METHOD) -> None:
        for _ in range(count):
            await self.call(seconds, left=left, method=method)


@pytest.mark.parametrize("side", list(Side))
async def test_refuses_what_has_less_time_than_half_of_the_answers_took(side: Side) -> None:
    """DEADLINE_EXCEEDED at once, the endpoint is not run; with as much as the median it is."""
    bench = Bench()
    await bench.answer(60, 0.2)
    await bench.answer(60, 0.5)
    ran = bench.ran
    assert await bench.call(0.1, left=0.19, side=side) is Code.DEADLINE_EXCEEDED
    assert bench.decided == [("deadline", "refused_doomed")]
    assert bench.ran == ran
    assert await bench.call(0.1, left=0.21, side=side) is Code.OK


async def test_needs_a_hundred_answers() -> None:
    """Before, nobody knows what is usual."""
    bench = Bench()
    await bench.answer(99, 1.0)
    assert await bench.call(0.0, left=0.5) is Code.OK
    assert await bench.call(0.0, left=0.5) is Code.DEADLINE_EXCEEDED


async def test_is_off_by_default() -> None:
    """Nothing is measured, nothing refused."""
    bench = Bench(Deadline())
    await bench.answer(120, 1.0)
    assert await bench.call(0.1, left=0.5) is Code.OK
    assert len(bench.link._answers) == 0


async def test_methods_are_apart() -> None:
    """What one takes says nothing of another; calls without a deadline are never doomed."""
    bench, other = Bench(), Method(service="test.Service", name="Other", kind=Kind.UNARY)
    await bench.answer(120, 1.0)
    assert await bench.call(0.1, left=0.5, method=other) is Code.OK
    assert await bench.call(0.1, side=Side.CLIENT) is Code.OK


async def test_a_method_is_known_by_its_path() -> None:
    """Each stub has a Method of its own for the same path, and so has a handler that is made anew at each call."""
    bench = Bench()
    for _ in range(120):
        await bench.call(1.0, method=Method(service="test.Service", name="Method", kind=Kind.UNARY))
    assert await bench.call(0.1, left=0.5) is Code.DEADLINE_EXCEEDED
    assert len(bench.link._answers) == 1


async def test_answers_that_ran_out_of_time_count_as_long_as_they_lasted() -> None:
    """A method that is too slow for everybody is found out, though nobody ever gets an answer."""
    bench = Bench()
    await bench.answer(120, 5.0, left=1.0)
    ran = bench.ran
    assert await bench.call(5.0, left=0.9) is Code.DEADLINE_EXCEEDED
    assert bench.ran == ran


async def test_failures_do_not_count() -> None:
    """A method that refuses quickly has not become fast."""
    bench = Bench()

    async def failing(_request: Message, _call: Call) -> Message:
        raise Error(Code.NOT_FOUND)

    await bench.answer(120, 1.0)
    for _ in range(600):
        with pytest.raises(Error):
            await run(bench.link, failing, "hi", make_call(clock=bench.clock, method=METHOD))
    assert await bench.call(0.1, left=0.5) is Code.DEADLINE_EXCEEDED


async def test_a_method_that_has_become_faster_is_found_out() -> None:
    """One doomed call in ten is run; once half of the last 512 answers were fast, none is doomed."""
    bench = Bench()
    await bench.answer(512, 1.0)
    codes = [await bench.call(0.01, left=0.5) for _ in range(20)]
    assert codes == ([Code.DEADLINE_EXCEEDED] * 9 + [Code.OK]) * 2
    for _ in range(2600):
        await bench.call(0.01, left=0.5)
    assert [await bench.call(0.01, left=0.5) for _ in range(20)] == [Code.OK] * 20


@pytest.mark.parametrize("kind", [Kind.SERVER_STREAM, Kind.BIDI_STREAM])
async def test_streams_of_responses_are_never_doomed(kind: Kind) -> None:
    """How long they last says nothing about when they are of use."""
    bench, method = Bench(), Method(service="test.Service", name="Stream", kind=kind)
    await bench.answer(120, 1.0, method=method)
    assert await bench.call(0.1, left=0.5, method=method) is Code.OK


async def test_client_streams_are_measured() -> None:
    """They end with one answer."""
    bench, method = Bench(), Method(service="test.Service", name="Upload", kind=Kind.CLIENT_STREAM)
    await bench.answer(120, 1.0, method=method)
    assert await bench.call(0.1, left=0.5, method=method) is Code.DEADLINE_EXCEEDED


async def test_what_is_late_is_told_too() -> None:
    """The refusal of a call with nothing left has a decision of its own."""
    bench = Bench()
    assert await bench.call(0.0, left=0.0) is Code.DEADLINE_EXCEEDED
    assert bench.decided == [("deadline", "refused_late")]


async def test_on_a_wire() -> None:
    """The caller hears of it long before its deadline."""

    async def slow(request: EchoRequest, context: Context) -> EchoResponse:
        await ends.clock.sleep(1.0)
        return EchoResponse(text=request.text)

    async with pair(echo(Echo=slow), middleware=[Deadline(doomed=True)]) as ends:
        for _ in range(100):
            call = stub_of(ends.channel).Echo(EchoRequest(text="a"))
            await ends.clock.advance(1.0)
            await call
        with pytest.raises(CallError) as caught:
            await stub_of(ends.channel).Echo(EchoRequest(text="a"), timeout=0.9)
        assert caught.value.error.code is Code.DEADLINE_EXCEEDED
        assert caught.value.error.message == "the time left until the deadline is too short for this method"


def test_shows_its_settings() -> None:
    """And not what it has measured."""
    assert repr(Deadline(doomed=True)) == "Deadline(default=30.0, cap=300.0, doomed=True)"
    assert Deadline(doomed=True) == Deadline(doomed=True)
