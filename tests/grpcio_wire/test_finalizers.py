"""What is dropped in the middle of something: by the collector, by another thread, by an exception that goes."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import subprocess
import sys
import threading
import types
from collections.abc import Awaitable, Callable, Generator
from typing import Any

import pytest

from servicekit.finalizer import leave_to
from servicekit.grpcio.client import GrpcioWire
from servicekit.grpcio.kept import Kept
from servicekit.grpcio.stream import GrpcioStream
from servicekit.method import Kind
from servicekit.wire import Ended, Incoming, Stream
from tests.grpcio_wire.ground import head, joined, linger

GROUND = """
import asyncio, grpc, resource
from servicekit.grpcio.stream import GrpcioStream
from servicekit.grpcio.kept import Kept

resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

async def silent(requests, context):
    await context.send_initial_metadata(())
    await asyncio.sleep(60)
    yield b""

def fail(held):
    raise ValueError

async def main():
    server = grpc.aio.server()
    handler = grpc.stream_stream_rpc_method_handler(silent)
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("a", {"B": handler})])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.stream_stream("/a/B")()
        await call.initial_metadata()
        reading = make(call, channel)
        reading.close()
        call.cancel()
    await server.stop(0)
    print("alive")
"""

BARE = """
class Careless:
    def __del__(self):
        try:
            raise KeyError
        except KeyError:
            pass

def make(call, channel):
    reading = call._cython_call.receive_serialized_message()
    try:
        fail(Careless())
    except ValueError:  # which the coroutine keeps, and with it the frame that holds the object
        reading.send(None)
    return reading
"""

OURS = """
def make(call, channel):
    reading = call._cython_call.receive_serialized_message()
    try:
        fail(GrpcioStream(call, channel))
    except ValueError as error:
        stream = error.__traceback__.tb_next.tb_frame.f_locals["held"]
        stream._state.reading = Kept(reading)  # begun here, and so with the exception
        stream._state.reading.advance()
        del stream
    return reading
"""


def ran(make: str) -> subprocess.CompletedProcess[str]:
    code = GROUND + make + "asyncio.run(main())\n"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50, check=False)


def test_a_finalizer_that_handles_an_exception_while_core_closes_a_read() -> None:
    """The trap itself: the process dies, and no code of the finalizer's could be any better.

    A coroutine of Cython's keeps the exception that its caller handles. If it is the last to hold it, then the frames
    of that exception go while it ends; an exception that is handled there leaves None behind, up to CPython 3.12, and
    Cython looks for the traceback of None. Where this test fails, core has come to do without it.
    """
    shown = ran(BARE)
    assert shown.returncode == (-signal.SIGSEGV if sys.version_info < (3, 13) else 0), shown.stderr


def test_a_stream_that_goes_while_core_closes_its_read() -> None:
    shown = ran(OURS)
    assert (shown.returncode, shown.stdout) == (0, "alive\n"), shown.stderr


async def dropped(use: Callable[[Stream], Awaitable[None]]) -> None:
    """Open a stream, and return once ``use`` is over and the server, with no help of the collector, has seen the RPC end."""
    started, ended = asyncio.Event(), asyncio.Event()

    async def serve(incoming: Incoming) -> None:
        incoming.on_end(ended.set)
        incoming.send_headers(())
        started.set()
        await linger(incoming)

    async def opened(wire: GrpcioWire) -> None:
        stream = wire.open(head(), None)
        await started.wait()
        await use(stream)

    async with joined(serve, Kind.BIDI_STREAM) as (wire, _, _):
        gc.disable()
        try:
            await asyncio.create_task(opened(wire))
            async with asyncio.timeout(5):
                await ended.wait()
        finally:
            gc.enable()


async def test_a_read_does_not_keep_the_exception_that_was_handled_where_it_began() -> None:
    """Its frames hold the stream, which would go with the collector only, and its RPC go on until then."""

    async def use(stream: Stream) -> None:
        try:
            int("no number")
        except ValueError:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.05):
                    await stream.receive()
        assert isinstance(stream, GrpcioStream)
        assert stream._state.reading is not None  # it was begun

    await dropped(use)


async def test_an_operation_of_an_interceptor_begins_in_its_task_all_the_same() -> None:
    async def operation() -> asyncio.Task[Any] | None:
        return asyncio.current_task()

    try:
        int("no number")
    except ValueError:
        assert await Kept(operation()) is asyncio.current_task()


async def test_a_stream_that_goes_in_another_thread() -> None:
    """As with the collector there. The loop is idle, and is to hear of it all the same."""

    async def use(stream: Stream) -> None:
        async with asyncio.timeout(5):
            reading = asyncio.create_task(stream.receive())
            await asyncio.sleep(0.01)
            reading.cancel()
            await asyncio.wait([reading])
        last = [stream]
        threading.Timer(0.05, last.clear).start()

    await dropped(use)


@pytest.mark.parametrize("first", ["left", "failed", "left before it began"])
async def test_an_operation_that_nobody_waits_for_any_more_is_not_complained_of(
    first: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A failure that nobody has asked for is logged by asyncio, and the collector may find the future before it finds us."""

    @types.coroutine
    def operation(future: asyncio.Future[None]) -> Generator[Any, Any, None]:  # as core's: none of Python's own
        yield from future

    async def wait(kept: Kept[None]) -> None:
        if first != "left before it began":
            await kept
        try:
            int("no number")
        except ValueError:
            await kept

    future = asyncio.get_running_loop().create_future()
    begun: Any = operation(future)
    kept = Kept(begun)
    waiting = asyncio.create_task(wait(kept))
    await asyncio.sleep(0)
    if first == "failed":
        future.set_exception(ValueError())
    waiting.cancel()
    await asyncio.wait([waiting])
    if first != "failed":
        future.set_exception(ValueError())
    await asyncio.sleep(0)
    del begun, future, kept, waiting
    gc.collect()
    assert not caplog.records


async def test_an_operation_that_is_dropped_while_it_runs() -> None:
    """As by what goes while the collector closes it: it cannot be closed once more."""
    went_on = False

    async def operation() -> None:
        nonlocal went_on
        kept.drop()
        went_on = True

    kept = Kept(operation())
    with pytest.raises(Ended):
        await kept
    assert went_on


async def test_nothing_is_left_to_a_loop_that_is_closed() -> None:
    async def running() -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    leave_to(await asyncio.to_thread(asyncio.run, running()), pytest.fail, "it ran")
