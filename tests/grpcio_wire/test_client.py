"""Traps of grpc.aio's client calls that the wire stays out of, each stated by its test."""

from __future__ import annotations

import asyncio
import gc
import socket
import threading
import time
import weakref
from collections.abc import AsyncIterator

import grpc
import pytest

from servicekit.errors import By, Code, Error
from servicekit.grpcio.channel import channel_to
from servicekit.grpcio.client import GrpcioWire
from servicekit.grpcio.kept import Kept
from servicekit.method import Kind
from servicekit.wire import END, Ended, Incoming, Status
from tests.grpcio_wire.ground import CLOCK, OK, bare, echo, elsewhere, head, joined, linger


async def test_a_channel_closed_by_somebody_is_no_cancellation() -> None:
    """grpc.aio raises CancelledError in a caller that nobody cancelled when its channel is closed."""
    started = asyncio.Event()

    async def serve(incoming: Incoming) -> None:
        started.set()
        await linger(incoming)

    async with joined(serve) as (wire, _, _):
        calling = asyncio.create_task(wire.unary(head(), b""))
        await started.wait()
        await wire.channel.close()
        with pytest.raises(Error) as raised:
            await calling
        assert (raised.value.code, raised.value.by, raised.value.begun) == (Code.UNAVAILABLE, By.LOCAL, True)


async def test_a_call_that_fails_is_let_go_of_with_its_error() -> None:
    """No circle is left behind, which only the collector would find: an exception holds its frames."""
    gone: list[weakref.ref[Error]] = []

    async def refuse(incoming: Incoming) -> None:
        await incoming.finish(Status(code=Code.NOT_FOUND))

    async def ask(wire: GrpcioWire) -> None:
        try:
            await wire.unary(head(), b"")
        except Error as error:
            gone.append(weakref.ref(error))

    async with joined(refuse) as (wire, _, _):
        gc.disable()
        try:
            await ask(wire)
            for _ in range(5):
                await asyncio.sleep(0)
            assert [each() for each in gone] == [None]
        finally:
            gc.enable()


async def test_a_caller_that_was_cancelled_once_before_is_told_apart() -> None:
    """``cancelling()`` stays above zero in a task that went on after a cancellation: it is no proof of a new one."""

    async def serve(incoming: Incoming) -> None:
        started.set()
        await linger(incoming)

    started = asyncio.Event()
    async with joined(serve) as (wire, _, _):

        async def work() -> None:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                await wire.unary(head(), b"")

        task = asyncio.create_task(work())
        await asyncio.sleep(0)
        task.cancel()
        await started.wait()
        await wire.channel.close()
        with pytest.raises(Error):
            await task


async def test_a_deadline_that_has_passed_sends_nothing() -> None:
    """Core would send the request all the same and report DEADLINE_EXCEEDED as if it had begun."""
    served: list[Incoming] = []

    async def serve(incoming: Incoming) -> None:
        served.append(incoming)
        await echo(incoming)

    async with joined(serve) as (wire, _, _):
        with pytest.raises(Error) as raised:
            await wire.unary(head(within=-1), b"")
        assert (raised.value.code, raised.value.begun) == (Code.DEADLINE_EXCEEDED, False)
        assert not (await wire.open(head(within=-1), b"").ended()).begun
        await wire.unary(head(), b"")
        assert len(served) == 1


async def test_never_sent_is_said_only_where_it_is_sure() -> None:
    """Core's own status and a peer's look the same on grpc.aio: a proxy may well answer with core's text."""
    text = "failed to connect to all addresses; last error: Connection refused"

    async def behaviour(_: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        await context.abort(grpc.StatusCode.UNAVAILABLE, text)
        return b""

    async with bare(behaviour) as address:
        wire = GrpcioWire(grpc.aio.insecure_channel(address), CLOCK)
        with pytest.raises(Error) as raised:
            await wire.unary(head(), b"")
        assert (raised.value.message, raised.value.begun, raised.value.by) == (text, True, By.PEER)
        await wire.close(0)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        wire = GrpcioWire(grpc.aio.insecure_channel(f"127.0.0.1:{taken.getsockname()[1]}"), CLOCK)
        with pytest.raises(Error) as raised:
            await wire.unary(head(), b"")
        assert raised.value.message.startswith("failed to connect to all addresses")
        assert (raised.value.begun, raised.value.by) == (False, By.LOCAL)
        await wire.close(0)


@pytest.mark.parametrize("kind", [Kind.SERVER_STREAM, Kind.BIDI_STREAM])
async def test_headers_are_not_lost_when_the_whole_answer_is_there_at_once(kind: Kind) -> None:
    """grpc.aio throws headers away that come to it after the status, as on a loop that was busy until both were there."""
    sent = threading.Semaphore(0)

    async def serve(incoming: Incoming) -> None:
        incoming.on_end(sent.release)
        incoming.send_headers((("hello", "you"),))
        await incoming.send(b"all")
        await incoming.finish(OK)

    async with elsewhere(serve, kind) as address:
        wire = GrpcioWire(channel_to(address, None), CLOCK)
        for _ in range(20):
            stream = wire.open(head(), None if kind.request_streaming else b"")
            reading = asyncio.create_task(stream.receive())
            for _ in range(6):
                await asyncio.sleep(0)
            sent.acquire()  # the loop is busy
            time.sleep(0.005)  # noqa: ASYNC251 - and a little longer: the answer travels
            assert await reading == b"all"
            assert await stream.receive() is END
            assert (await stream.ended()).code is Code.OK
            assert ("hello", "you") in await stream.headers()
        await wire.close(0)


async def test_a_write_that_fails_hides_neither_messages_nor_status() -> None:
    """After a failed ``write`` grpc.aio says INTERNAL "Internal error from Core", and reads nothing any more."""
    ended = asyncio.Event()

    async def serve(incoming: Incoming) -> None:
        incoming.on_end(ended.set)
        for number in range(3):
            await incoming.send(b"%d" % number)
        await incoming.finish(Status(trailers=(("t", "1"),)))

    async with joined(serve, Kind.BIDI_STREAM) as (wire, _, _):
        stream = wire.open(head(), None)
        await ended.wait()

        async def send() -> None:
            while True:
                await stream.send(b"x" * 1000)

        with pytest.raises(Ended):
            await send()
        assert [await stream.receive() for _ in range(4)] == [b"0", b"1", b"2", END]
        status = await stream.ended()
        assert (status.code, status.trailers) == (Code.OK, (("t", "1"),))


async def test_a_send_before_the_connection_does_not_outlive_the_rpc() -> None:
    """grpc.aio's ``write`` waits for an event that is never set when the call is cancelled before it is connected."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        wire = GrpcioWire(grpc.aio.insecure_channel(f"127.0.0.1:{silent.getsockname()[1]}"), CLOCK)
        stream = wire.open(head(), None)
        sending = asyncio.create_task(stream.send(b"x"))
        for _ in range(5):
            await asyncio.sleep(0)
        stream.cancel()
        async with asyncio.timeout(5):
            with pytest.raises(Ended):
                await sending
        await wire.close(0)


@pytest.mark.parametrize("data", [b"request", None])
async def test_a_stream_that_is_dropped_is_cancelled_at_once(data: bytes | None) -> None:
    """A dropped call object of grpc.aio lives on, in a cycle and in its own tasks: here no collector is needed."""
    started, cancelled = asyncio.Event(), asyncio.Event()

    async def serve(incoming: Incoming) -> None:
        started.set()
        try:
            await linger(incoming)
        finally:
            cancelled.set()

    async with joined(serve, Kind.SERVER_STREAM if data else Kind.BIDI_STREAM) as (wire, _, _):
        gc.disable()
        try:
            stream = wire.open(head(), data)
            reading = asyncio.create_task(stream.receive())
            waiting = asyncio.create_task(stream.ended())
            await started.wait()
            reading.cancel()
            await asyncio.wait([reading])
            del stream, reading
            async with asyncio.timeout(5):
                await cancelled.wait()
                assert (await waiting).code is Code.CANCELLED  # who waits for the end does not keep it alive
        finally:
            gc.enable()


async def test_ended_waits_for_a_message_whose_reader_gave_up() -> None:
    """Core counts a message as taken when it was read, also where the reader was cancelled before it came."""
    go, sent = asyncio.Event(), asyncio.Event()

    async def serve(incoming: Incoming) -> None:
        incoming.on_end(sent.set)
        await go.wait()
        await incoming.send(b"late")
        await incoming.finish(OK)

    async with joined(serve, Kind.SERVER_STREAM) as (wire, _, _):
        stream = wire.open(head(), b"")
        reading = asyncio.create_task(stream.receive())
        for _ in range(3):
            await asyncio.sleep(0)
        reading.cancel()
        await asyncio.wait([reading])
        ended = asyncio.create_task(stream.ended())
        go.set()
        await sent.wait()
        await asyncio.wait([ended], timeout=0.05)
        assert not ended.done()
        assert await stream.receive() == b"late"
        assert (await ended).code is Code.OK


async def test_headers_of_an_empty_stream_are_not_lost() -> None:
    """grpc.aio takes a stream's headers for () when its status comes first: those two race where no message comes.

    The wire asks for the headers first. Where the status is there too before the loop has had a turn, they are lost all
    the same, now and then: a loop that has other work must not fail this.
    """

    async def serve(incoming: Incoming) -> None:
        incoming.send_headers((("k", "v"),))
        await incoming.finish(OK)

    async with joined(serve, Kind.SERVER_STREAM) as (wire, _, _):
        lost = 0
        for _ in range(200):
            stream = wire.open(head(), b"")
            assert await stream.receive() is END
            lost += ("k", "v") not in await stream.headers()
        assert lost <= 20


async def test_a_closed_channel_refuses_instead_of_raising_usage_errors() -> None:
    """On a closed channel grpc.aio raises UsageError, which is no status."""
    async with joined(echo) as (wire, _, _):
        await wire.close(0)
        with pytest.raises(Error) as raised:
            await wire.unary(head(), b"")
        assert (raised.value.code, raised.value.begun) == (Code.UNAVAILABLE, False)
        stream = wire.open(head(), None)
        with pytest.raises(Ended):
            await stream.send(b"")
        assert not (await stream.ended()).begun


class _Through(grpc.aio.StreamStreamClientInterceptor):
    async def intercept_stream_stream(self, continuation, client_call_details, request_iterator):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN202
        await asyncio.sleep(0)
        return await continuation(client_call_details, request_iterator)


class _Wrapping(grpc.aio.UnaryStreamClientInterceptor):
    async def intercept_unary_stream(self, continuation, client_call_details, request):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN202
        call = await continuation(client_call_details, request)

        async def messages() -> AsyncIterator[bytes]:
            async for message in call:
                await asyncio.sleep(0)
                yield message

        return messages()


async def test_a_channel_may_have_interceptors() -> None:
    """A call with interceptors around it has no core object, and its reads run other people's code."""

    async def serve(incoming: Incoming) -> None:
        while (message := await incoming.receive()) is not END:
            await incoming.send(message)
        await incoming.finish(Status(code=Code.ABORTED, message="said so", trailers=(("t", "1"),)))

    async def download(incoming: Incoming) -> None:
        for _ in range(3):
            await incoming.send(b"m")
        await incoming.finish(OK)

    async with joined(serve, Kind.BIDI_STREAM) as (_, _, address):
        wire = GrpcioWire(channel_to(address, None, interceptors=[_Through()]), CLOCK)
        stream = wire.open(head(), None)
        await stream.send(b"1")
        reading = asyncio.create_task(stream.receive())
        await asyncio.sleep(0)
        reading.cancel()
        await asyncio.wait([reading])
        assert await stream.receive() == b"1"
        await stream.half_close()
        assert await stream.receive() is END
        status = await stream.ended()
        assert (status.code, status.message, status.trailers) == (Code.ABORTED, "said so", (("t", "1"),))
        with pytest.raises(RuntimeError):
            await stream.send(b"2")
        stream = wire.open(head(), None)
        stream.cancel()
        assert (await stream.ended()).by is By.CALLER
        await wire.close(0)
    async with joined(download, Kind.SERVER_STREAM) as (_, _, address):
        wire = GrpcioWire(channel_to(address, None, interceptors=[_Wrapping()]), CLOCK)
        stream = wire.open(head(), b"")
        assert [await stream.receive() for _ in range(4)] == [b"m", b"m", b"m", END]
        assert (await stream.ended()).code is Code.OK
        await wire.close(0)


async def test_a_cancelled_wait_leaves_the_operation_alone() -> None:
    """Cancelling a task cancels the future it waits for; what is Kept goes on, for any number of waiters."""
    loop = asyncio.get_running_loop()
    steps = [loop.create_future(), loop.create_future()]

    async def operation() -> str:
        return str(await steps[0]) + str(await steps[1])

    kept = Kept(operation())

    async def wait() -> str:
        return await kept

    first, second = asyncio.create_task(wait()), asyncio.create_task(wait())
    await asyncio.sleep(0)
    first.cancel()
    first.cancel()
    await asyncio.wait([first])
    assert first.cancelled()
    steps[0].set_result("a")
    third = asyncio.create_task(wait())
    await asyncio.sleep(0)
    steps[1].set_result("b")
    third.cancel()  # in the same turn as its result
    await asyncio.wait([second, third])
    assert third.cancelled()
    assert (second.result(), await kept) == ("ab", "ab")


async def test_what_is_kept_raises_for_every_waiter_and_may_be_dropped() -> None:
    """An operation that failed has failed for all; one that nobody waits for any more makes no noise."""
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def operation() -> None:
        await future

    kept = Kept(operation())
    assert not kept.advance()
    future.set_exception(ValueError("x"))
    for _ in range(2):
        with pytest.raises(ValueError, match="x"):
            await kept
    another = Kept(operation())
    another.drop()
    another.drop()


async def test_what_is_dropped_says_so_to_who_waits() -> None:
    """A child task of a servicer may still wait for a message when the call is over."""
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def operation() -> None:
        await future

    kept = Kept(operation())

    async def wait() -> None:
        await kept

    waiting = asyncio.create_task(wait())
    await asyncio.sleep(0)
    kept.drop()
    with pytest.raises(Ended):
        await waiting


async def test_an_operation_may_be_dropped_while_it_is_closed() -> None:
    """The collector closes a coroutine of core's, and what that lets go of drops it once more: that is no error."""

    async def operation() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            kept.drop()

    coroutine = operation()
    kept = Kept(coroutine)
    kept.advance()
    coroutine.close()
    with pytest.raises(Ended):
        await kept
