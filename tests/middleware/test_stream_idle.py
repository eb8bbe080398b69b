"""A stream on which nothing moves is ended."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator

import pytest

from servicekit import CallError
from servicekit.call import Call, Side
from servicekit.clock import MovableClock
from servicekit.endpoint import Message
from servicekit.errors import Code, Error
from servicekit.method import Kind
from servicekit.middleware.stream_idle import StreamIdle
from servicekit.testing import make_call, no_leaks, pair, run, scripted, sends, waits
from servicekit.testing.pair import Over
from servicekit.testing.v1.echo_pb2 import ChatRequest, ChatResponse
from tests.middleware.decisions import Decisions
from tests.transport.clients import (
    ANSWERS,
    Context,
    Held,
    Untyped,
    all_methods,
    ask,
    begin,
    both,
    echo,
    finish,
    stub_of,
)

STREAMS = [kind for kind in Kind if kind is not Kind.UNARY]
streams = pytest.mark.parametrize("kind", STREAMS, ids=lambda kind: kind.value)


@streams
@pytest.mark.parametrize("side", list(Side))
async def test_ends_a_stream_on_which_nothing_moves(kind: Kind, side: Side) -> None:
    """DEADLINE_EXCEEDED for the caller, a cancellation for what is at work, and no timer is left."""
    clock = MovableClock()
    call = make_call(kind=kind, clock=clock, side=side)
    decisions = Decisions(call)
    request = [] if kind.request_streaming else "hi"
    running = asyncio.create_task(run(StreamIdle(30.0), scripted(waits()), request, call))
    await clock.advance(29.9)
    assert not running.done()
    await clock.advance(0.2)
    with pytest.raises(Error) as caught:
        await running
    assert (caught.value.code, caught.value.reason) == (Code.DEADLINE_EXCEEDED, "STREAM_IDLE")
    assert decisions.seen == [("stream_idle", "ended")]
    assert clock.pending == 0


async def test_each_message_that_is_sent_is_a_new_beginning() -> None:
    """A stream that says something every 29 seconds lives for ever; one that then falls silent does not."""
    clock, call = MovableClock(), make_call(kind=Kind.SERVER_STREAM, clock=MovableClock())
    clock = call.clock  # type: ignore[assignment]
    outcome = sends(*range(100), every=29.0)

    async def endpoint(request: Message, call: Call) -> Message:
        await scripted(outcome)(request, call)
        await asyncio.Event().wait()

    running = asyncio.create_task(run(StreamIdle(30.0), endpoint, "hi", call))
    await clock.advance(2929.9)
    assert call.recorder.messages == list(range(100))
    assert not running.done()
    await clock.advance(0.2)
    with pytest.raises(Error, match="no message for 30 seconds"):
        await running


async def test_each_message_that_is_received_is_a_new_beginning() -> None:
    """Both directions count, and either is enough."""
    clock = MovableClock()

    async def requests() -> AsyncIterator[int]:
        for number in range(20):
            await clock.sleep(29.0)
            yield number

    call = make_call(kind=Kind.CLIENT_STREAM, clock=clock)
    endpoint = scripted("ok")
    running = asyncio.create_task(run(StreamIdle(30.0), endpoint, requests(), call))
    await clock.advance(600.0)
    assert await running == "ok"
    assert endpoint.requests == [list(range(20))]
    assert clock.pending == 0


@pytest.mark.parametrize("auxiliary", [False, True])
async def test_unary_calls_and_the_servers_own_methods_are_untouched(auxiliary: bool) -> None:  # noqa: FBT001 - both
    """A unary call has a deadline for that, and a health Watch may be silent for days."""
    clock = MovableClock()
    kind = Kind.SERVER_STREAM if auxiliary else Kind.UNARY
    call = make_call(kind=kind, clock=clock, auxiliary=auxiliary)
    running = asyncio.create_task(run(StreamIdle(1.0), scripted(waits(86400.0)), "hi", call))
    await clock.advance(86400.0)
    assert await running is None


@both
@streams
async def test_every_kind_of_stream_on_a_wire(kind: Kind, over: Over) -> None:
    """The servicer is cancelled and the client told; streams on which messages pass are as ever."""
    held = Held()
    async with no_leaks(), pair(echo(**all_methods(held.method)), over=over, middleware=[StreamIdle(0.1)]) as ends:
        call = begin(ends.channel, kind)
        await held.begun.wait()
        if over == "memory":
            await ends.clock.advance(0.2)
        with pytest.raises(CallError) as caught:
            await finish(call, kind)
        assert caught.value.error.code is Code.DEADLINE_EXCEEDED
        await held.cancelled.wait()
    async with pair(echo(), over=over, middleware=[StreamIdle(5.0)]) as ends:
        assert await ask(ends.channel, kind) == ANSWERS[kind]


@streams
async def test_every_kind_of_stream_on_the_client(kind: Kind) -> None:
    """There it ends the call for the caller, and the server sees it go."""
    held = Held()
    async with no_leaks(), pair(echo(**all_methods(held.method)), client=[StreamIdle(10.0)]) as ends:
        call = begin(ends.channel, kind)
        await held.begun.wait()
        await ends.clock.advance(10.1)
        with pytest.raises(CallError, match="no message for 10 seconds"):
            await finish(call, kind)
        await held.cancelled.wait()


async def test_no_message_is_lost_to_it() -> None:
    """A read that waits for long gets what comes: 50 messages, each just in time."""
    got: list[str] = []

    async def chat(requests: AsyncIterator[ChatRequest], context: Context) -> Untyped:
        async for message in requests:
            got.append(message.text)
            yield ChatResponse(text=message.text)

    async with pair(echo(Chat=chat), middleware=[StreamIdle(1.0)], client=[StreamIdle(1.0)]) as ends:
        call = stub_of(ends.channel).Chat()
        for number in range(50):
            await call.write(ChatRequest(text=str(number)))
            reading = asyncio.ensure_future(call.read())
            await ends.clock.advance(0.99)
            assert (await reading).text == str(number)
        await call.done_writing()
    assert got == [str(number) for number in range(50)]


@pytest.mark.parametrize("seconds", [0, -1.0, math.nan, math.inf, True, "30"])
def test_refuses_what_is_no_time(seconds: float) -> None:
    """Setting and value are named."""
    with pytest.raises((ValueError, TypeError), match=f"seconds={seconds!r}"):
        StreamIdle(seconds)
