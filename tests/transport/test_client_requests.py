"""What the caller sends: iterators of every sort, ``write()``, and what happens when either side stops early."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import pytest

from servicekit import CallError, Code, Error
from servicekit.call import Call
from servicekit.clock import settle
from servicekit.endpoint import Endpoint, Message
from servicekit.memory import MemoryNetwork
from servicekit.method import Kind
from servicekit.testing import pair
from servicekit.testing.pair import Over
from servicekit.testing.v1.echo_pb2 import ChatResponse, EchoRequest, SumRequest, SumResponse
from servicekit.transport.channel import Channel
from servicekit.wire import Incoming, Route, Status

from .clients import (
    ANSWERS,
    Context,
    Held,
    Untyped,
    _nothing_is_left,  # noqa: F401 - a fixture for every test here
    all_methods,
    begin,
    both,
    echo,
    finish,
    later,
    numbers,
    streaming_requests,
    stub_of,
    texts,
)


class MineError(Exception):
    """What the caller's own iterator raises."""


def one(kind: Kind) -> Untyped:
    return numbers(1)[0] if kind is Kind.CLIENT_STREAM else texts("a")[0]


def some(kind: Kind) -> list[Any]:
    return list(numbers(1, 2, 3) if kind is Kind.CLIENT_STREAM else texts("a", "b", "c"))


def method(channel: grpc.aio.Channel, kind: Kind) -> Untyped:
    stub = stub_of(channel)
    return stub.Sum if kind is Kind.CLIENT_STREAM else stub.Chat


@both
@streaming_requests
@pytest.mark.parametrize("style", ["list", "tuple", "generator", "iterator", "async generator"])
async def test_any_iterable_will_do(style: str, kind: Kind, over: Over) -> None:
    """Async or not, lazy or not."""
    messages = some(kind)
    given: Any = {
        "list": messages,
        "tuple": tuple(messages),
        "generator": (message for message in messages),
        "iterator": iter(messages),
        "async generator": later(messages),
    }[style]
    async with pair(echo(), over=over) as ends:
        assert await finish(method(ends.channel, kind)(given), kind) == ANSWERS[kind]


@both
@streaming_requests
async def test_no_messages_at_all(kind: Kind, over: Over) -> None:
    """An empty stream is a stream, with or without ``write()``."""
    async with pair(echo(), over=over) as ends:
        written = method(ends.channel, kind)()
        await written.done_writing()
        expected: list[object] = [0] if kind is Kind.CLIENT_STREAM else []
        assert await finish(written, kind) == expected
        assert await finish(method(ends.channel, kind)([]), kind) == expected


@both
@streaming_requests
@pytest.mark.parametrize("style", ["sync", "async"])
async def test_what_the_iterator_raises_ends_the_call(style: str, kind: Kind, over: Over) -> None:
    """The caller gets that very exception, and the server's handler is cancelled: half a stream is no stream."""
    held, error = Held(), MineError("mine")

    def broken() -> Iterator[Any]:
        yield one(kind)
        raise error

    async def slowly_broken() -> AsyncIterator[Any]:
        yield one(kind)
        await held.begun.wait()
        raise error

    async with pair(echo(**all_methods(held.method)), over=over) as ends:
        call = method(ends.channel, kind)(broken() if style == "sync" else slowly_broken())
        with pytest.raises(MineError) as caught:
            await finish(call, kind)
        assert caught.value is error
        assert await call.code() is grpc.StatusCode.UNKNOWN
        assert await call.details() == "MineError"
        if style == "async":
            await held.cancelled.wait()


@both
@streaming_requests
async def test_what_is_no_iterable_is_the_callers_mistake(kind: Kind, over: Over) -> None:
    """A TypeError that names it, and no call that waits for ever."""
    async with pair(echo(), over=over) as ends:
        with pytest.raises(TypeError, match="int"):
            await finish(method(ends.channel, kind)(5), kind)


@both
@streaming_requests
@pytest.mark.parametrize("end", ["answer", "error"])
async def test_the_server_ends_while_the_client_still_sends(end: str, kind: Kind, over: Over) -> None:
    """The answer is taken as it is, and the caller's generator is closed in its own good order."""
    closed = asyncio.Event()

    async def endless() -> AsyncIterator[Any]:
        try:
            while True:
                yield one(kind)
                await asyncio.sleep(0)
        finally:
            closed.set()

    async def early(requests: AsyncIterator[Any], context: Context) -> Untyped:
        await anext(requests)
        if end == "error":
            raise Error(Code.OUT_OF_RANGE, "enough")
        if kind is Kind.CLIENT_STREAM:
            return SumResponse(total=1)
        await context.write(ChatResponse(text="enough"))
        return None

    async with pair(echo(Sum=early, Chat=early), over=over) as ends:
        call = method(ends.channel, kind)(endless())
        if end == "error":
            with pytest.raises(CallError, match="enough"):
                await finish(call, kind)
        else:
            assert await finish(call, kind) == ([1] if kind is Kind.CLIENT_STREAM else ["enough"])
        assert await call.code() is (grpc.StatusCode.OUT_OF_RANGE if end == "error" else grpc.StatusCode.OK)
        await closed.wait()


@both
@streaming_requests
async def test_a_cancelled_call_closes_the_callers_generator(kind: Kind, over: Over) -> None:
    """Its ``finally`` has run when the call is over."""
    held, closed = Held(), []

    async def waiting() -> AsyncIterator[Any]:
        try:
            yield one(kind)
            await asyncio.Event().wait()
        finally:
            closed.append(True)

    async with pair(echo(**all_methods(held.method)), over=over) as ends:
        call = method(ends.channel, kind)(waiting())
        await held.begun.wait()
        await settle()
        call.cancel()
        assert await call.code() is grpc.StatusCode.CANCELLED
        assert closed == [True]


async def first_only(requests: AsyncIterator[Any], context: Context) -> Untyped:
    """Answer before the client has sent all of it."""
    await anext(requests)
    return SumResponse(total=1)


@both
@pytest.mark.parametrize("way", ["closes", "raises", "goes on"])
async def test_what_a_link_puts_around_the_requests_is_closed(way: str, over: Over) -> None:
    """Before ``next`` returns, as a server does it; what it makes of that is not how the call ends."""
    closed: list[bool] = []

    async def around(request: Untyped) -> AsyncIterator[Any]:
        try:
            async for message in request:
                yield message
        finally:
            closed.append(True)
            if way == "raises":
                raise MineError
            if way == "goes on":
                yield one(Kind.CLIENT_STREAM)

    async def wrapping(request: Untyped, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        wrapped = around(request)
        response = await next(wrapped, call)
        assert closed == [True]
        return response

    async def endless() -> AsyncIterator[Any]:
        while True:
            yield one(Kind.CLIENT_STREAM)

    async with pair(echo(Sum=first_only), over=over, client=[wrapping]) as ends:
        assert (await stub_of(ends.channel).Sum(endless())).total == 1
    assert closed == [True]


@both
async def test_the_callers_own_generator_is_not_closed(over: Over) -> None:
    """Whoever holds it may go on with what was not sent, as with grpc.aio: to be cancelled in a wait is what ends it."""

    async def endless() -> AsyncIterator[Any]:
        while True:
            yield one(Kind.CLIENT_STREAM)

    mine = endless()
    async with pair(echo(Sum=first_only), over=over) as ends:
        assert (await stub_of(ends.channel).Sum(mine)).total == 1
    assert await anext(mine) == one(Kind.CLIENT_STREAM)


@both
@streaming_requests
async def test_writing(kind: Kind, over: Over) -> None:
    """Every message arrives once and in order, and ``done_writing`` ends the stream, however often it is said."""
    async with pair(echo(), over=over) as ends:
        call = method(ends.channel, kind)()
        for message in some(kind):
            await call.write(message)
        await call.done_writing()
        await call.done_writing()
        with pytest.raises(asyncio.InvalidStateError, match="done_writing"):
            await call.write(one(kind))
        assert await finish(call, kind) == ANSWERS[kind]
        await call.done_writing()


@both
async def test_writing_and_reading_in_turn(over: Over) -> None:
    """A conversation: each answer is read before the next message is written."""
    async with pair(echo(), over=over) as ends:
        call = stub_of(ends.channel).Chat()
        for word in ("a", "b", "c"):
            await call.write(texts(word)[0])
            assert (await call.read()).text == word
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF


@both
@streaming_requests
async def test_writes_at_once_keep_their_order(kind: Kind, over: Over) -> None:
    """Several tasks may write: nobody waits for ever, and each message goes in the order of its write."""
    seen: list[int] = []

    async def collect(requests: AsyncIterator[Any], context: Context) -> Untyped:
        async for message in requests:
            seen.append(len(message.SerializeToString()))  # noqa: PERF401 - one by one, as they come
        return SumResponse() if kind is Kind.CLIENT_STREAM else None

    async with pair(echo(Sum=collect, Chat=collect), over=over) as ends:
        call = method(ends.channel, kind)()
        messages = [
            SumRequest(payload=b"x" * size) if kind is Kind.CLIENT_STREAM else texts("x" * size)[0]
            for size in range(1, 11)
        ]
        await asyncio.gather(*(call.write(message) for message in messages))
        await call.done_writing()
        await finish(call, kind)
    assert seen == [len(message.SerializeToString()) for message in messages]


@both
@streaming_requests
async def test_a_write_after_the_end(kind: Kind, over: Over) -> None:
    """It raises why the call failed, or InvalidStateError after a good one; ``done_writing`` is harmless."""

    async def failing(requests: Message, context: Context) -> None:
        raise Error(Code.PERMISSION_DENIED, "not you")

    async def short(requests: Message, context: Context) -> Untyped:
        return SumResponse() if kind is Kind.CLIENT_STREAM else None

    async with pair(echo(**all_methods(failing)), over=over) as ends:
        call = method(ends.channel, kind)()
        assert await call.code() is grpc.StatusCode.PERMISSION_DENIED
        with pytest.raises(CallError, match="not you"):
            await call.write(one(kind))
        await call.done_writing()
    async with pair(echo(**all_methods(short)), over=over) as ends:
        call = method(ends.channel, kind)()
        assert await call.code() is grpc.StatusCode.OK
        with pytest.raises(asyncio.InvalidStateError, match="over"):
            await call.write(one(kind))
        await call.done_writing()


@both
@streaming_requests
async def test_a_call_that_ends_releases_its_writers(kind: Kind, over: Over) -> None:
    """Who waits for a server that does not read is told when the call fails."""
    held, writes = Held(), []

    async def refusing(requests: Message, context: Context) -> None:
        held.begun.set()
        await held.release.wait()
        raise Error(Code.RESOURCE_EXHAUSTED, "full")

    async with pair(echo(**all_methods(refusing)), over=over) as ends:
        call = method(ends.channel, kind)()
        big = SumRequest(payload=bytes(1 << 20)) if kind is Kind.CLIENT_STREAM else texts("x" * (1 << 20))[0]
        writes = [asyncio.create_task(call.write(big)) for _ in range(24)]  # more than any window takes
        await held.begun.wait()
        held.release.set()
        results = await asyncio.gather(*writes, return_exceptions=True)
        assert "full" in str(results[-1])
        assert await call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def written(call: Untyped, *, most: int = 1_000) -> None:
    """Write until the call refuses it."""
    for _ in range(most):
        await call.write(texts("x")[0])
    pytest.fail(f"{most} messages were taken after the server had ended")


@both
@pytest.mark.parametrize("error", [None, Error(Code.RESOURCE_EXHAUSTED, "enough")], ids=["answer", "error"])
@pytest.mark.parametrize("unread", [1, 2])
async def test_writing_to_a_server_that_has_ended(unread: int, error: Error | None, over: Over) -> None:
    """Who writes all before it reads is not left waiting for itself: a write is refused, and the answer can be read."""

    async def short(requests: AsyncIterator[Message], context: Context) -> None:
        for _ in range(unread):
            await context.write(ChatResponse(text="one"))
        await anext(requests)
        if error is not None:
            raise error

    async with pair(echo(Chat=short), over=over) as ends:
        call = stub_of(ends.channel).Chat()
        with pytest.raises(asyncio.InvalidStateError, match="answer is to be read"):
            await written(call)
        assert not call.done()
        with pytest.raises(asyncio.InvalidStateError, match="answer is to be read"):
            await call.write(texts("x")[0])
        assert [(await call.read()).text for _ in range(unread)] == ["one"] * unread
        if error is None:
            assert await call.read() is grpc.aio.EOF
        else:
            with pytest.raises(CallError, match="enough"):
                await call.read()
        assert await call.code() is (grpc.StatusCode.OK if error is None else grpc.StatusCode.RESOURCE_EXHAUSTED)
        await call.done_writing()


@both
async def test_a_server_that_has_ended_and_said_nothing(over: Over) -> None:
    """Where there is nothing to read, a write that is refused raises why the call failed."""

    async def failing(requests: AsyncIterator[Message], context: Context) -> None:
        await anext(requests)
        raise Error(Code.RESOURCE_EXHAUSTED, "enough")

    async with pair(echo(Chat=failing), over=over) as ends:
        with pytest.raises(CallError, match="enough"):
            await written(stub_of(ends.channel).Chat())


@both
async def test_a_writer_beside_a_reader_that_stops(over: Over) -> None:
    """A read that is under way when the server ends gets its message; the writer is released all the same."""
    release = asyncio.Event()

    async def short(requests: Message, context: Context) -> None:
        await release.wait()
        for word in ("one", "two"):
            await context.write(ChatResponse(text=word))

    async with pair(echo(Chat=short), over=over) as ends:
        call = stub_of(ends.channel).Chat()
        reading = asyncio.ensure_future(call.read())
        await settle()
        release.set()
        with pytest.raises(asyncio.InvalidStateError, match="answer is to be read"):
            await written(call)
        assert (await reading).text == "one"
        assert [answer.text async for answer in call] == ["two"]


@both
async def test_writers_of_a_call_that_ends_with_an_answer_unread(over: Over) -> None:
    """Those who wait for a server that does not read are released when it ends, though its answer was not read."""
    held = Held()

    async def refusing(requests: Message, context: Context) -> None:
        await context.write(ChatResponse(text="one"))
        await held.method(requests, context)

    async with pair(echo(Chat=refusing), over=over) as ends:
        call = stub_of(ends.channel).Chat()
        writes = [asyncio.create_task(call.write(texts("x" * (1 << 20))[0])) for _ in range(5)]
        await held.begun.wait()
        held.release.set()
        results = await asyncio.gather(*writes, return_exceptions=True)
        assert {type(result) for result in results} <= {
            type(None),
            asyncio.InvalidStateError,
        }  # core may have room for all
        with pytest.raises(asyncio.InvalidStateError):
            await written(call)
        assert await finish(call, Kind.BIDI_STREAM) == ["one"]


@both
async def test_a_servicer_that_answers_before_it_has_read_all(over: Over) -> None:
    """What it has not read is forgotten, and costs its connection nothing: any number of such calls leave room for others."""

    async def short(requests: AsyncIterator[SumRequest], context: Context) -> SumResponse:
        await anext(requests)
        await asyncio.sleep(0.005)
        return SumResponse(total=1)

    async def many() -> AsyncIterator[SumRequest]:
        for _ in range(39):
            yield SumRequest(number=1, payload=bytes(990))

    async with pair(echo(Sum=short), over=over) as ends:
        for _ in range(40):
            assert (await stub_of(ends.channel).Sum(many(), timeout=10)).total == 1
        payload = bytes(50_000)
        assert (await stub_of(ends.channel).Echo(EchoRequest(payload=payload), timeout=10)).payload == payload


@both
async def test_a_call_cut_off_after_its_server_has_ended(over: Over) -> None:
    """A message that nobody reads does not hold up the end that the caller brings about."""

    async def short(requests: AsyncIterator[Message], context: Context) -> None:
        await context.write(ChatResponse(text="one"))
        await anext(requests)

    async with pair(echo(Chat=short), over=over) as ends:
        call = stub_of(ends.channel).Chat()
        with pytest.raises(asyncio.InvalidStateError):
            await written(call)
        call.cancel()
        assert await call.code() is grpc.StatusCode.CANCELLED
        with pytest.raises(asyncio.CancelledError):
            await call.read()


async def test_a_write_that_is_cancelled_is_not_sent() -> None:
    """Unless it is on its way already. The call stays usable."""
    held, seen = Held(), []

    async def slow(requests: AsyncIterator[SumRequest], context: Context) -> SumResponse:
        await held.method(requests, context)
        async for message in requests:
            seen.append(message.number)  # noqa: PERF401 - one by one, as they come
        return SumResponse()

    async with pair(echo(Sum=slow)) as ends:
        call = stub_of(ends.channel).Sum()
        number = 0
        while True:  # until the window is full
            writing = asyncio.create_task(call.write(SumRequest(number=number)))
            await settle()
            if not writing.done():
                break
            number += 1
        given_up = asyncio.create_task(call.write(SumRequest(number=-1)))
        await settle()
        given_up.cancel()
        with pytest.raises(asyncio.CancelledError):
            await given_up
        held.release.set()
        await writing
        await call.write(SumRequest(number=number + 1))
        await call.done_writing()
        await call
    assert seen == list(range(number + 2))


@both
@streaming_requests
async def test_writing_to_a_call_that_has_an_iterator(kind: Kind, over: Over) -> None:
    """Two sources for one stream is a misuse: UsageError, as in grpc.aio."""
    async with pair(echo(), over=over) as ends:
        call = begin(ends.channel, kind)
        with pytest.raises(grpc.aio.UsageError, match="write"):
            await call.write(one(kind))
        with pytest.raises(grpc.aio.UsageError, match="write"):
            await call.done_writing()
        assert await finish(call, kind) == ANSWERS[kind]


@both
@streaming_requests
async def test_writing_after_cancel(kind: Kind, over: Over) -> None:
    """A call that its caller cancelled takes no more messages."""
    held = Held()
    async with pair(echo(**all_methods(held.method)), over=over) as ends:
        call = method(ends.channel, kind)()
        await held.begun.wait()
        call.cancel()
        await call.code()
        with pytest.raises(asyncio.CancelledError):
            await call.write(one(kind))


@pytest.mark.parametrize("messages", [0, 2])
async def test_a_client_stream_has_exactly_one_response(messages: int) -> None:
    """OK with none or two is a broken server, and never a response of None."""
    network = MemoryNetwork()
    listener = network.listener()
    address = listener.bind("broken")

    async def serve(incoming: Incoming) -> None:
        for _ in range(messages):
            await incoming.send(b"")
        await incoming.finish(Status())

    await listener.start(lambda _: Route(kind=Kind.CLIENT_STREAM, serve=serve))
    async with Channel(network.wire(address)) as channel:
        with pytest.raises(CallError, match="response") as caught:
            await stub_of(channel).Sum(numbers(1))
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    await listener.stop(0.0)


@both
async def test_two_tasks_of_a_servicer_read_at_once(over: Over) -> None:
    """Each message goes to one of them, also from a stream that a middleware has put in the place of the client's."""

    async def replacing(requests: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        return await next(passed_on(requests), call)

    async def passed_on(requests: Message) -> AsyncIterator[Message]:
        async for message in requests:
            await asyncio.sleep(0)
            yield message

    async def halves(requests: AsyncIterator[SumRequest], context: Context) -> SumResponse:
        async def total() -> int:
            return sum([message.number async for message in requests])

        return SumResponse(total=sum(await asyncio.gather(total(), total())))

    async with pair(echo(Sum=halves), over=over, middleware=[replacing]) as ends:
        assert (await stub_of(ends.channel).Sum(numbers(*range(10)))).total == sum(range(10))
