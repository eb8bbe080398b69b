"""Who leaves, and what of it is seen: dropped calls, cancelled reads, time-outs, closed channels."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest

from servicekit import CallError, Code, Error, only
from servicekit.call import Call
from servicekit.clock import settle
from servicekit.endpoint import Endpoint, Message
from servicekit.method import Kind
from servicekit.testing import pair
from servicekit.testing.pair import Over
from servicekit.testing.v1.echo_pb2 import EchoRequest, ExpandRequest, ExpandResponse

from .clients import (
    ANSWERS,
    Context,
    Held,
    _nothing_is_left,  # noqa: F401 - a fixture for every test here
    all_methods,
    ask,
    begin,
    both,
    echo,
    every_kind,
    finish,
    stub_of,
)

awaited = pytest.mark.parametrize("kind", [Kind.UNARY, Kind.CLIENT_STREAM], ids=["unary", "client_stream"])


@both
@every_kind
async def test_dropping_the_call_object_ends_its_rpc(kind: Kind, over: Over) -> None:
    """Nobody can take the answer any more, so the server's handler is cancelled: no ``cancel()`` was called."""
    held = Held()
    async with pair(echo(**all_methods(held.method)), over=over) as ends:
        call = begin(ends.channel, kind)
        await held.begun.wait()
        del call
        await held.cancelled.wait()
        assert ends.server.in_flight <= 1


@both
async def test_dropping_a_stream_that_was_left(over: Over) -> None:
    """``break`` alone keeps the call; once nobody holds it any more it is cancelled, in the middle of its messages."""
    left = asyncio.Event()

    async def expand(request: Message, context: Context) -> AsyncIterator[ExpandResponse]:
        try:
            while True:
                yield ExpandResponse()
        finally:
            left.set()

    async with pair(echo(Expand=expand), over=over) as ends:
        async for _ in stub_of(ends.channel).Expand(ExpandRequest()):
            break
        await left.wait()


@both
@every_kind
async def test_a_callback_does_not_keep_a_call_alive(kind: Kind, over: Over) -> None:
    """Whoever registers a done callback and lets go of the call has dropped it."""
    held = Held()
    async with pair(echo(**all_methods(held.method)), over=over) as ends:
        call = begin(ends.channel, kind)
        call.add_done_callback(lambda _: None)
        await held.begun.wait()
        del call
        await held.cancelled.wait()


@both
@every_kind
async def test_a_call_that_is_dropped_in_another_thread(kind: Kind, over: Over) -> None:
    """The collector runs where it likes: the RPC is ended on the loop that it belongs to."""
    held = Held()
    async with pair(echo(**all_methods(held.method)), over=over) as ends:
        asyncio.get_running_loop().set_debug(True)  # a loop in debug mode refuses what another thread does to it
        box = [begin(ends.channel, kind)]
        await held.begun.wait()
        await asyncio.to_thread(box.clear)
        await held.cancelled.wait()


@both
async def test_a_task_that_reads_keeps_the_call(over: Over) -> None:
    """The reader is somebody who waits for the answer, although nobody else holds the call."""
    held = Held()

    async def expand(request: Message, context: Context) -> AsyncIterator[ExpandResponse]:
        await held.method(request, context)
        yield ExpandResponse(index=7)

    async with pair(echo(Expand=expand), over=over) as ends:
        reading = asyncio.create_task(stub_of(ends.channel).Expand(ExpandRequest()).read())
        await held.begun.wait()
        held.release.set()
        assert (await reading).index == 7


@both
async def test_a_call_that_nobody_took_is_never_made(over: Over) -> None:
    """Dropped before its first step it does not reach the wire."""
    held = Held()
    async with pair(echo(Echo=held.method), over=over) as ends:
        stub_of(ends.channel).Echo(EchoRequest())
        await settle()
        assert await ask(ends.channel, Kind.SERVER_STREAM) == [0, 1, 2]
    assert held.calls == 0


@both
async def test_a_cancelled_read_loses_nothing(over: Over) -> None:
    """It does not look like the end either: every message comes once and in order, however often a read is cancelled."""
    go = asyncio.Event()

    async def expand(request: Message, context: Context) -> AsyncIterator[ExpandResponse]:
        await go.wait()
        for index in range(20):
            yield ExpandResponse(index=index)

    async with pair(echo(Expand=expand), over=over) as ends:
        call = stub_of(ends.channel).Expand(ExpandRequest())
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001):
                await call.read()
        assert not call.done()
        go.set()
        seen: list[int] = []
        turns = 0
        while True:
            reading = asyncio.create_task(call.read())
            for _ in range(turns % 4):
                await asyncio.sleep(0)
            turns += 1
            reading.cancel()
            try:
                message = await reading
            except asyncio.CancelledError:
                if turns < 200:
                    continue
                message = await call.read()
            if message is grpc.aio.EOF:
                break
            seen.append(message.index)
        assert seen == list(range(20))
        assert await call.code() is grpc.StatusCode.OK


@both
@every_kind
async def test_cancel(kind: Kind, over: Over) -> None:
    """Who awaits gets CancelledError, the code is CANCELLED, the handler is cancelled; a second time changes nothing."""
    held = Held()
    done: list[object] = []
    async with pair(echo(**all_methods(held.method)), over=over) as ends:
        call = begin(ends.channel, kind)
        call.add_done_callback(done.append)
        await held.begun.wait()
        assert call.cancel()
        assert not call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await finish(call, kind)
        assert await call.code() is grpc.StatusCode.CANCELLED
        assert (call.cancelled(), call.done(), call.cancel(), done) == (True, True, False, [call])
        assert await call.details() == "cancelled by the caller"
        assert list(await call.trailing_metadata()) == []
        await held.cancelled.wait()


@both
@every_kind
async def test_cancel_before_anything_has_run(kind: Kind, over: Over) -> None:
    """The call never reaches the wire, and ends as any cancelled one."""
    held = Held()
    async with pair(echo(**all_methods(held.method)), over=over) as ends:
        call = begin(ends.channel, kind)
        assert call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await finish(call, kind)
        assert await call.code() is grpc.StatusCode.CANCELLED
        assert call.cancelled()
    assert held.calls == 0


@both
@every_kind
async def test_cancel_after_the_end(kind: Kind, over: Over) -> None:
    """It returns False, and the call stays what it was."""
    async with pair(echo(), over=over) as ends:
        call = begin(ends.channel, kind)
        await finish(call, kind)
        assert await call.code() is grpc.StatusCode.OK
        assert not call.cancel()
        assert not call.cancelled()


@both
@every_kind
async def test_cancel_lets_a_middleware_clean_up(kind: Kind, over: Over) -> None:
    """The call is over when the chain is: what it awaits on its way out is not cancelled by a second ``cancel``."""
    held, steps = Held(), []

    async def tidy(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        try:
            return await next(request, call)
        finally:
            await asyncio.sleep(0)
            steps.append("tidied")

    async with pair(echo(**all_methods(held.method)), over=over, client=[tidy]) as ends:
        call = begin(ends.channel, kind)
        await held.begun.wait()
        call.cancel()
        await asyncio.sleep(0)
        call.cancel()
        assert await call.code() is grpc.StatusCode.CANCELLED
    assert steps == ["tidied"]


@both
@every_kind
async def test_a_stray_cancellation_is_no_cancellation(kind: Kind, over: Over) -> None:
    """CancelledError leaves only when the caller cancelled: one that a middleware leaks is INTERNAL."""

    async def leaking(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        raise asyncio.CancelledError

    async with pair(echo(), over=over, client=[leaking]) as ends:
        call = begin(ends.channel, kind)
        with pytest.raises(CallError) as caught:
            await finish(call, kind)
        assert caught.value.code() is grpc.StatusCode.INTERNAL
        assert not call.cancelled()


@both
@every_kind
async def test_closing_the_channel(kind: Kind, over: Over) -> None:
    """What is under way fails with CANCELLED, a CallError and no CancelledError: its caller did not cancel."""
    held = Held()
    async with pair(echo(**all_methods(held.method)), over=over) as ends:
        channel = ends.connect()
        call = begin(channel, kind)
        finishing = asyncio.create_task(finish(call, kind))
        await held.begun.wait()
        await channel.close()
        assert call.done()
        with pytest.raises(CallError, match="channel closed") as caught:
            await finishing
        assert caught.value.code() is grpc.StatusCode.CANCELLED
        await held.cancelled.wait()


@both
@every_kind
async def test_a_call_on_a_closed_channel(kind: Kind, over: Over) -> None:
    """It fails at once, as a call that was never sent; closing twice is harmless."""
    async with pair(echo(), over=over) as ends:
        channel = ends.connect()
        await channel.close()
        await channel.close()
        with pytest.raises(CallError) as caught:
            await ask(channel, kind)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert not caught.value.error.begun
        assert channel.get_state() is grpc.ChannelConnectivity.SHUTDOWN


@both
@every_kind
async def test_closing_with_grace(kind: Kind, over: Over) -> None:
    """Calls under way may finish first, and so may their chains, which go on when the wire is done."""

    async def unhurried(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        response = await next(request, call)
        for _ in range(50):
            await asyncio.sleep(0)
        return response

    held = Held()
    async with pair(echo(), over=over, middleware=[held.first]) as ends:
        channel = ends.connect(unhurried)
        finishing = asyncio.create_task(finish(begin(channel, kind), kind))
        await held.begun.wait()
        closing = asyncio.create_task(channel.close(5.0))
        await settle()
        held.release.set()
        assert await finishing == ANSWERS[kind]
        await closing


async def test_closing_with_grace_is_closing() -> None:
    """What has not ended by then is ended, also a call that is between two attempts."""

    async def for_ever(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        await call.clock.sleep(1000.0)

    held = Held()
    async with pair(echo(Echo=held.method)) as ends:
        channel = ends.connect(only("/servicekit.testing.v1.EchoService/Expand", for_ever))
        calls = [begin(channel, Kind.UNARY), begin(channel, Kind.SERVER_STREAM)]
        await held.begun.wait()
        closing = asyncio.create_task(channel.close(5.0))
        await ends.clock.advance(4.9)
        assert not closing.done()
        assert [call.done() for call in calls] == [False, False]
        await ends.clock.advance(0.1)
        await closing
        assert [await call.code() for call in calls] == [grpc.StatusCode.CANCELLED] * 2


@both
@awaited
async def test_a_timeout_around_a_call(kind: Kind, over: Over) -> None:
    """The time-out of asyncio itself cancels the RPC, and is a TimeoutError."""
    held = Held()
    async with pair(echo(**all_methods(held.method)), over=over) as ends:
        call = begin(ends.channel, kind)
        await held.begun.wait()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001):
                await call
        assert await call.code() is grpc.StatusCode.CANCELLED
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(begin(ends.channel, kind), 0.001)
        await held.cancelled.wait()


@both
@awaited
@pytest.mark.parametrize("makes_of_it", ["an answer", "an error"])
async def test_a_timeout_wins_over_what_a_middleware_makes_of_it(makes_of_it: str, kind: Kind, over: Over) -> None:
    """A chain that turns its cancellation into something else does not swallow the one of the task that awaits."""
    held = Held()

    async def stubborn(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        try:
            return await next(request, call)
        except asyncio.CancelledError:
            if makes_of_it == "an error":
                raise Error(Code.ABORTED, "gone") from None
            return None

    async with pair(echo(**all_methods(held.method)), over=over, client=[stubborn]) as ends:
        call = begin(ends.channel, kind)
        await held.begun.wait()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001):
                await call


@both
async def test_a_timeout_around_a_read(over: Over) -> None:
    """It ends the read and not the call, which goes on where it was."""
    held = Held()

    async def expand(request: Message, context: Context) -> AsyncIterator[ExpandResponse]:
        yield ExpandResponse(index=0)
        await held.method(request, context)
        yield ExpandResponse(index=1)

    async with pair(echo(Expand=expand), over=over) as ends:
        call = stub_of(ends.channel).Expand(ExpandRequest())
        assert (await call.read()).index == 0
        for _ in range(3):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.001):
                    await anext(call)
        held.release.set()
        assert (await call.read()).index == 1
        assert await call.read() is grpc.aio.EOF


@both
@every_kind
async def test_a_task_group(kind: Kind, over: Over) -> None:
    """A sibling's failure cancels the call, and is all that the group raises."""
    held = Held()

    async def failing() -> None:
        await held.begun.wait()
        raise ZeroDivisionError

    async with pair(echo(**all_methods(held.method)), over=over) as ends:

        async def together() -> None:
            async with asyncio.TaskGroup() as group:
                group.create_task(ask(ends.channel, kind))
                group.create_task(failing())

        with pytest.raises(ExceptionGroup) as caught:
            await together()
        assert [type(error) for error in caught.value.exceptions] == [ZeroDivisionError]
        await held.cancelled.wait()


@both
@every_kind
async def test_a_failed_call_in_a_task_group(kind: Kind, over: Over) -> None:
    """A call that the server ended with CANCELLED is a failure, which a group does not swallow."""

    async def cancelling(request: Message, context: Context) -> None:
        raise Error(Code.CANCELLED, "changed my mind")

    async with pair(echo(**all_methods(cancelling)), over=over) as ends:

        async def together() -> None:
            async with asyncio.TaskGroup() as group:
                group.create_task(ask(ends.channel, kind))

        with pytest.raises(ExceptionGroup) as caught:
            await together()
        (error,) = caught.value.exceptions
        assert isinstance(error, CallError)
        assert error.details() == "changed my mind"


@both
@every_kind
async def test_waiting_for_the_end_is_not_the_call(kind: Kind, over: Over) -> None:
    """Who stops waiting for code or metadata leaves the call as it is."""
    held = Held()
    async with pair(echo(), over=over, middleware=[held.first]) as ends:
        call = begin(ends.channel, kind)
        await held.begun.wait()
        for wait in (call.code, call.trailing_metadata, call.details, call.initial_metadata):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.001):
                    await wait()
        held.release.set()
        await finish(call, kind)
        assert await call.code() is grpc.StatusCode.OK


@both
@pytest.mark.parametrize("end", ["deadline", "close"])
async def test_the_end_of_a_call_whose_first_answer_has_failed(end: str, over: Over) -> None:
    """A link that looks for another answer after a failure does not outlive the deadline, nor the channel."""
    looking, left = asyncio.Event(), asyncio.Event()

    def refuse(message: object, size: int) -> None:
        raise ValueError(message)

    async def fallback(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        call.on_received(refuse)
        with pytest.raises(ValueError, match="a"):
            await next(request, call)
        looking.set()
        try:
            return await asyncio.Future()
        finally:
            left.set()

    async with pair(echo(), over=over) as ends:
        channel = ends.connect(fallback)
        call = begin(channel, Kind.UNARY, timeout=1.5 if end == "deadline" else None)
        await looking.wait()
        if end == "close":
            await channel.close()
        elif over == "memory":
            await ends.clock.advance(2.0)
        with pytest.raises(CallError, match="channel closed" if end == "close" else "deadline exceeded"):
            await call
        assert left.is_set()
        await channel.close()
