"""The call object that a stub's caller holds: there at once, and true to how its chain ended."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import weakref
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from servicekit import CallError, Code, Error
from servicekit.call import Call
from servicekit.clock import settle
from servicekit.endpoint import Endpoint, Message, Middleware
from servicekit.method import Kind
from servicekit.middleware.retry import Retry
from servicekit.testing import pair
from servicekit.testing.pair import Over
from servicekit.testing.v1.echo_pb2 import EchoRequest, ExpandRequest, ExpandResponse, SumResponse

from .clients import (
    ANSWERS,
    Context,
    Held,
    Untyped,
    _nothing_is_left,  # noqa: F401 - a fixture for every test here
    all_methods,
    ask,
    begin,
    both,
    echo,
    every_kind,
    finish,
    numbers,
    streaming_requests,
    streaming_responses,
    stub_of,
    texts,
)

CLASSES = {
    Kind.UNARY: grpc.aio.UnaryUnaryCall,
    Kind.CLIENT_STREAM: grpc.aio.StreamUnaryCall,
    Kind.SERVER_STREAM: grpc.aio.UnaryStreamCall,
    Kind.BIDI_STREAM: grpc.aio.StreamStreamCall,
}


class Gate:
    """A middleware that stops every call after it was served, until it is let through."""

    def __init__(self, error: Exception | None = None) -> None:
        self.reached = asyncio.Event()
        self.open = asyncio.Event()
        self.error = error

    async def __call__(self, request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        try:
            return await next(request, call)
        finally:
            self.reached.set()
            await self.open.wait()
            if self.error is not None:
                raise self.error


@both
@every_kind
async def test_it_is_handed_over_at_once(kind: Kind, over: Over) -> None:
    """A call object of grpc.aio's own interface is there before anything has run, and its call under way."""
    async with pair(echo(), over=over) as ends:
        call = begin(ends.channel, kind)
        assert isinstance(call, CLASSES[kind])
        assert not call.done()
        assert not call.cancelled()
        assert "under way" in repr(call)
        assert await finish(call, kind) == ANSWERS[kind]
        assert await call.code() is grpc.StatusCode.OK
        assert call.done()
        assert not call.cancelled()
        assert "OK" in repr(call)


@both
@every_kind
async def test_the_end_comes_from_the_chain(kind: Kind, over: Over) -> None:
    """Messages are there at once; EOF, code, trailing metadata and done callbacks wait until the chain has ended."""
    gate = Gate()
    done: list[object] = []
    async with pair(echo(), over=over, client=[gate]) as ends:
        call = begin(ends.channel, kind)
        call.add_done_callback(done.append)
        rest: list[asyncio.Future[Any]] = []
        if kind.response_streaming:
            for _ in range(3):
                assert await call.read() is not grpc.aio.EOF
            rest.append(asyncio.ensure_future(call.read()))
        else:
            rest.append(asyncio.ensure_future(call))
        rest.extend(asyncio.ensure_future(ask()) for ask in (call.code, call.trailing_metadata, call.details))
        await gate.reached.wait()
        await settle()
        assert [ending.done() for ending in rest] == [False] * 4
        assert (call.done(), done) == (False, [])
        gate.open.set()
        assert (await asyncio.gather(*rest))[1] is grpc.StatusCode.OK
        assert (call.done(), done) == (True, [call])


@both
@every_kind
async def test_the_chain_may_end_it_otherwise_than_the_wire(kind: Kind, over: Over) -> None:
    """What a middleware raises after a good answer is how the call ended."""
    gate = Gate(Error(Code.DATA_LOSS, "does not add up", trailers=(("k", "v"),)))
    gate.open.set()
    async with pair(echo(), over=over, client=[gate]) as ends:
        call = begin(ends.channel, kind)
        with pytest.raises(CallError, match="does not add up"):
            await finish(call, kind)
        assert await call.code() is grpc.StatusCode.DATA_LOSS
        assert await call.details() == "does not add up"
        assert list(await call.trailing_metadata()) == [("k", "v")]
        assert "DATA_LOSS" in await call.debug_error_string()
        assert "DATA_LOSS" in repr(call)


@both
@every_kind
async def test_a_good_call_has_nothing_to_explain(kind: Kind, over: Over) -> None:
    """Details and debug string are empty for OK."""
    async with pair(echo(), over=over) as ends:
        call = begin(ends.channel, kind)
        await finish(call, kind)
        assert (await call.details(), await call.debug_error_string()) == ("", "")


@both
@every_kind
async def test_done_callbacks(kind: Kind, over: Over) -> None:
    """Each runs once, with the call, when it is over; one that comes later runs at once."""
    seen: list[tuple[str, Any, bool]] = []
    async with pair(echo(), over=over) as ends:
        call = begin(ends.channel, kind)
        call.add_done_callback(lambda over: seen.append(("first", over, over.done())))
        call.add_done_callback(lambda over: seen.append(("second", over, over.done())))
        await finish(call, kind)
        call.add_done_callback(lambda over: seen.append(("late", over, over.done())))
    assert seen == [("first", call, True), ("second", call, True), ("late", call, True)]


@both
@every_kind
async def test_a_done_callback_that_raises(kind: Kind, over: Over) -> None:
    """It is told to the loop's exception handler: the other callbacks run, and the call ends as it would have."""
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    seen: list[Any] = []
    async with pair(echo(), over=over) as ends:
        call = begin(ends.channel, kind)
        call.add_done_callback(lambda _: 1 / 0)
        call.add_done_callback(seen.append)
        assert await finish(call, kind) == ANSWERS[kind]
        assert await call.code() is grpc.StatusCode.OK
    assert seen == [call]
    assert [type(context["exception"]) for context in told] == [ZeroDivisionError]


async def test_time_remaining() -> None:
    """None without a deadline, else the seconds left, never less than 0."""
    held = Held()
    async with pair(echo(Echo=held.method)) as ends:
        endless, short = begin(ends.channel, Kind.UNARY), begin(ends.channel, Kind.UNARY, timeout=10.0)
        assert endless.time_remaining() is None
        assert short.time_remaining() == 10.0
        await ends.clock.advance(4.0)
        assert short.time_remaining() == 6.0
        await ends.clock.advance(10.0)
        assert short.time_remaining() == 0.0
        endless.cancel()


@both
@pytest.mark.parametrize(
    "kind",
    [kind for kind in Kind if kind is not Kind.UNARY],
    ids=[kind.value for kind in Kind if kind is not Kind.UNARY],
)
async def test_initial_metadata_comes_before_the_messages(kind: Kind, over: Over) -> None:
    """On a stream it is there as soon as the server has sent it: a client may wait for it before it goes on."""
    go = asyncio.Event()

    async def greeting(request: Message, context: Context) -> Untyped:
        await context.send_initial_metadata([("hello", "you")])
        if kind.request_streaming:
            async for _ in request:
                pass
        else:
            await go.wait()
        return None if kind.response_streaming else SumResponse()

    async with pair(echo(**all_methods(greeting)), over=over) as ends:
        stub = stub_of(ends.channel)
        methods: dict[Kind, Any] = {
            Kind.CLIENT_STREAM: stub.Sum,
            Kind.BIDI_STREAM: stub.Chat,
            Kind.SERVER_STREAM: lambda: stub.Expand(ExpandRequest()),
        }
        call = methods[kind]()
        assert ("hello", "you") in list(await call.initial_metadata())
        assert not call.done()
        go.set()
        if kind.request_streaming:
            await call.done_writing()
        assert await call.code() is grpc.StatusCode.OK
        assert ("hello", "you") in list(await call.initial_metadata())


@both
@streaming_requests
async def test_waiting_for_the_connection_before_writing(kind: Kind, over: Over) -> None:
    """It does not wait for the server, which may well send nothing before it has read a message."""
    async with pair(echo(), over=over) as ends:
        stub = stub_of(ends.channel)
        call: Any = stub.Sum() if kind is Kind.CLIENT_STREAM else stub.Chat()
        await call.wait_for_connection()
        for message in numbers(1, 2, 3) if kind is Kind.CLIENT_STREAM else texts("a", "b", "c"):
            await call.write(message)
        await call.done_writing()
        assert await finish(call, kind) == ANSWERS[kind]


@both
@every_kind
async def test_waiting_for_the_connection_of_a_call_that_fails(kind: Kind, over: Over) -> None:
    """A call that was refused before the wire raises there."""

    async def refusing(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        raise Error(Code.UNAVAILABLE, "not today")

    async with pair(echo(), over=over, client=[refusing]) as ends:
        call = begin(ends.channel, kind)
        with pytest.raises(CallError, match="not today"):
            await call.wait_for_connection()


@both
@pytest.mark.parametrize("kind", [Kind.UNARY, Kind.CLIENT_STREAM], ids=["unary", "client_stream"])
async def test_a_response_may_be_awaited_by_many(kind: Kind, over: Over) -> None:
    """At once or one after the other, everybody gets the same response."""
    async with pair(echo(), over=over) as ends:
        call = begin(ends.channel, kind)

        async def waiting() -> Untyped:
            return await call

        first, second = await asyncio.gather(waiting(), waiting())
        assert first is second is await call


@both
async def test_many_calls_at_once(over: Over) -> None:
    """A channel is used by any number of tasks; call objects go where asyncio takes an awaitable."""
    async with pair(echo(), over=over) as ends:
        stub = stub_of(ends.channel)
        answers = await asyncio.gather(*(stub.Echo(EchoRequest(text=str(number))) for number in range(50)))
        assert [answer.text for answer in answers] == [str(number) for number in range(50)]
        assert (await asyncio.wait_for(stub.Echo(EchoRequest(text="x")), 5.0)).text == "x"
        assert sum([len(await ask(ends.channel, kind)) for kind in Kind]) == 8


@both
@streaming_responses
async def test_break_and_resume(kind: Kind, over: Over) -> None:
    """A loop that was left does not end the call: the next loop goes on with the next message."""
    async with pair(echo(), over=over) as ends:
        call = begin(ends.channel, kind)
        seen = []
        async for message in call:
            seen.append(message.index if kind is Kind.SERVER_STREAM else message.text)
            break
        assert not call.done()
        assert [*seen, *await finish(call, kind)] == ANSWERS[kind]


@both
@streaming_responses
async def test_read_and_loops_may_be_mixed(kind: Kind, over: Over) -> None:
    """Both take from the same stream; after its end ``read`` says EOF, and a loop is over at once, every time."""
    async with pair(echo(), over=over) as ends:
        call = begin(ends.channel, kind)
        first = await call.read()
        second = await anext(call)
        third = [message async for message in call]
        items = [first, second, *third]
        assert [item.index if kind is Kind.SERVER_STREAM else item.text for item in items] == ANSWERS[kind]
        assert [await call.read(), await call.read()] == [grpc.aio.EOF, grpc.aio.EOF]
        assert [message async for message in call] == []


@both
async def test_a_failed_stream_says_so_at_every_read(over: Over) -> None:
    """What came before the failure is read first; then every read raises it."""
    taken = asyncio.Event()

    async def expand(request: Message, context: Context) -> AsyncIterator[ExpandResponse]:
        yield ExpandResponse(index=0)
        await taken.wait()
        raise Error(Code.ABORTED, "enough")

    async with pair(echo(Expand=expand), over=over) as ends:
        call = begin(ends.channel, Kind.SERVER_STREAM)
        assert (await call.read()).index == 0
        taken.set()
        for _ in range(2):
            with pytest.raises(CallError, match="enough"):
                await call.read()
        with pytest.raises(CallError, match="enough"):
            await anext(call)


@both
async def test_one_task_reads_at_a_time(over: Over) -> None:
    """A second reader would get the same message, or lose one: it is refused, and the first goes on."""
    async with pair(echo(), over=over) as ends:
        call = stub_of(ends.channel).Expand(ExpandRequest(count=1))
        first = asyncio.create_task(call.read())
        await asyncio.sleep(0)
        with pytest.raises(grpc.aio.UsageError, match="one task"):
            await call.read()
        assert (await first).index == 0
        assert await call.read() is grpc.aio.EOF


@both
@every_kind
@pytest.mark.parametrize("retried", [False, True], ids=["plain", "retried"])
@pytest.mark.parametrize("end", ["answer", "error", "cancel"])
async def test_a_call_that_is_over_is_let_go_of(end: str, retried: bool, kind: Kind, over: Over) -> None:  # noqa: FBT001 - a parameter
    """With its last reference all of it goes: no circle is left behind, which only the collector would find."""
    calls: list[weakref.ref[Call]] = []
    held = Held()

    async def noting(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        calls.append(weakref.ref(call))
        return await next(request, call)

    async def failing(request: Message, context: Context) -> None:
        raise Error(Code.NOT_FOUND, "no such thing")

    methods = {"answer": {}, "error": all_methods(failing), "cancel": all_methods(held.method)}[end]
    links: list[Middleware] = [noting, Retry(), noting] if retried else [noting]
    async with pair(echo(**methods), over=over, client=links) as ends:
        gc.disable()
        try:
            call = begin(ends.channel, kind)
            if end == "cancel":
                await held.begun.wait()
                call.cancel()
            with contextlib.suppress(CallError, asyncio.CancelledError):
                await finish(call, kind)
            del call
            await settle()
            assert [each() for each in calls] == [None] * len(links[::2])
        finally:
            gc.enable()
