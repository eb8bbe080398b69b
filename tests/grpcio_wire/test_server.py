"""Traps of grpc.aio's server that the wire stays out of, each stated by its test."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import socket
from pathlib import Path
from typing import Any

import grpc
import pytest

from servicekit.errors import Code, Error
from servicekit.grpcio.channel import channel_to
from servicekit.grpcio.client import GrpcioWire
from servicekit.grpcio.handlers import handler_for
from servicekit.grpcio.incoming import GrpcioIncoming
from servicekit.grpcio.running import Tally, Tasks
from servicekit.grpcio.server import GrpcioListener
from servicekit.grpcio.sockets import answers
from servicekit.method import Kind
from servicekit.wire import END, BindError, Ended, Incoming, Route, Status
from tests.grpcio_wire.ground import (
    CLOCK,
    OK,
    connected,
    data_frame,
    echo,
    frame,
    head,
    headers,
    joined,
    linger,
)


async def test_an_error_leaves_no_noise(caplog: pytest.LogCaptureFixture) -> None:
    """grpc.aio logs "Abort error unexpectedly suppressed" for a handler that returns after ``abort``."""

    async def serve(incoming: Incoming) -> None:
        await incoming.finish(Status(code=Code.NOT_FOUND, message="no"))

    with caplog.at_level(logging.DEBUG):
        async with joined(serve) as (wire, _, _):
            with pytest.raises(Error):
                await wire.unary(head(), b"")
            stream = wire.open(head(), b"")
            assert await stream.receive() is END
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_a_time_limit_inside_the_servicer_is_no_reset() -> None:
    """A time-out and a reset both cancel the task that they interrupt; only the second one ends the RPC."""

    async def serve(incoming: Incoming) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await incoming.receive()
        await incoming.send(b"still here")
        assert await incoming.receive() == b"late"
        await incoming.finish(OK)

    async with joined(serve, Kind.BIDI_STREAM) as (wire, _, _):
        stream = wire.open(head(), None)
        assert await stream.receive() == b"still here"
        await stream.send(b"late")
        assert await stream.receive() is END
        assert (await stream.ended()).code is Code.OK


async def test_an_upload_that_is_cut_off_never_looks_complete() -> None:
    """grpc.aio's read says EOF for a reset as for a half-close, and cancels the handler only after that."""
    seen: list[object] = []
    left = asyncio.Semaphore(0)

    async def serve(incoming: Incoming) -> None:
        try:
            while (message := await incoming.receive()) is not END:
                await incoming.send(message)
            seen.append(END)
        finally:
            left.release()

    async with joined(serve, Kind.BIDI_STREAM) as (wire, _, _):
        for number in range(100):
            stream = wire.open(head(), None)
            await stream.send(b"1")
            if number % 2:
                assert await stream.receive() == b"1"
            stream.cancel()
            await stream.ended()
            if number % 2:
                await left.acquire()
    assert seen == []


class _Cut:
    """As much of a context of grpc.aio as an RPC needs that is cut off while somebody reads."""

    def __init__(self) -> None:
        self.message: asyncio.Future[object] = asyncio.get_running_loop().create_future()

    def time_remaining(self) -> None:
        return None

    def invocation_metadata(self) -> tuple[()]:
        return ()

    def peer(self) -> str:
        return ""

    def add_done_callback(self, _: object) -> None:
        pass

    async def read(self) -> object:
        return await self.message


async def test_a_task_of_the_servicers_that_still_reads_is_told_of_the_end() -> None:
    """A reset cancels who serves the call, and not what that has begun besides; the news may come in the same turn."""
    children: list[asyncio.Task[object]] = []

    async def serve(incoming: Incoming) -> None:
        children.append(asyncio.create_task(incoming.receive()))
        await linger(incoming)

    context, loop, tasks = _Cut(), asyncio.get_running_loop(), Tasks()
    incoming = GrpcioIncoming(context, None, "/t/M", CLOCK, loop, Tally())
    running = asyncio.create_task(incoming.run(serve, tasks, answers=False))
    for _ in range(3):
        await asyncio.sleep(0)
    running.cancel()
    context.message.set_result(grpc.aio.EOF)
    with pytest.raises(Ended):
        await asyncio.wait_for(children[0], 5)
    await asyncio.wait([running, *tasks])


async def test_a_status_message_of_broken_text_is_answered() -> None:
    """A lone surrogate fails in grpc.aio after it has marked the status as sent: the client waits for ever."""

    async def serve(incoming: Incoming) -> None:
        await incoming.finish(Status(code=Code.ABORTED, message="a\udc80b"))

    async with joined(serve) as (wire, _, _):
        with pytest.raises(Error) as raised:
            await wire.unary(head(within=5.0), b"")
        assert (raised.value.code, raised.value.message) == (Code.ABORTED, "a?b")


async def test_ok_is_sent_at_finish_whatever_serve_does_then() -> None:
    """A handler of grpc.aio answers OK only by returning."""
    finished, release = asyncio.Event(), asyncio.Event()

    async def serve(incoming: Incoming) -> None:
        await incoming.finish(OK, b"answer")
        finished.set()
        await release.wait()

    async with joined(serve) as (wire, _, _):
        assert (await wire.unary(head(within=5.0), b"")).data == b"answer"
        assert finished.is_set()
        release.set()


async def test_a_unary_response_is_compressed_when_asked_for() -> None:
    """grpc.aio ignores ``set_compression`` for unary responses. The first byte of a gRPC message is its flag."""

    async def serve(incoming: Incoming) -> None:
        incoming.compress("gzip" if incoming.data == b"small" else None)
        await incoming.finish(OK, bytes(10_000))

    async with joined(serve) as (_, _, address):
        for request, flag in ((b"small", 1), (b"plain", 0)):
            message = b"\0" + len(request).to_bytes(4, "big") + request
            async with connected(address, headers(b"/t/M"), frame(0, 1, 1, message)) as reader:
                payload = await data_frame(reader)
                assert payload[0] == flag
                assert (len(payload) < 1000) == bool(flag)


async def test_a_taken_port_is_refused_in_both_orders() -> None:
    """Core shares ports by default: a second server takes half of the calls without an error."""
    async with joined(echo) as (_, _, address):
        with pytest.raises(BindError, match=address):
            GrpcioListener(CLOCK).bind(address)
        with pytest.raises(RuntimeError):
            grpc.aio.server().add_insecure_port(address)


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "localhost", "[::1]", "127.0.0.1:99999", "127.0.0.1:http", "127.0.0.1:"]
)
async def test_an_address_without_a_port_is_refused(address: str) -> None:
    """Core takes port 99999 for 34463, and 443 where there is none."""
    with pytest.raises(BindError, match=re.escape(repr(address)) + ".*port"):
        GrpcioListener(CLOCK).bind(address)


@pytest.mark.parametrize(
    ("address", "why"),
    [
        (":0", "no host"),
        (" 127.0.0.1:0", "no host"),
        ("127.0.0.1:0 ", "no port"),
        ("::1:0", "in brackets"),
        ("ipv6:::1:0", "in brackets"),
        ("unix:", "no name"),
        ("unix://", "no name"),
        ("unix-abstract:", "no name"),
    ],
)
async def test_what_is_no_address_is_refused_with_the_reason(address: str, why: str) -> None:
    """Core says of most that they may be taken, and listens nowhere on the others."""
    with pytest.raises(BindError, match=re.escape(repr(address)) + ".*" + why):
        GrpcioListener(CLOCK).bind(address)


async def test_a_taken_unix_socket_is_refused(tmp_path: Path) -> None:
    """Core unlinks the path it is to bind, whoever listens there."""
    address = f"unix:{tmp_path}/s"
    async with joined(echo, address=address) as (wire, _, _):
        with pytest.raises(BindError, match="somebody else"):
            GrpcioListener(CLOCK).bind(address)
        assert (await wire.unary(head(), b"x")).data == b"x"


async def test_a_unix_socket_is_taken_also_while_its_owner_hangs(tmp_path: Path) -> None:
    """Its queue is full and nobody takes from it: whoever asks by connecting to it must not wait."""
    path = str(tmp_path / "socket")
    with contextlib.ExitStack() as sockets:
        owner = sockets.enter_context(socket.socket(socket.AF_UNIX))
        owner.bind(path)
        owner.listen(0)
        sockets.enter_context(socket.socket(socket.AF_UNIX)).connect(path)
        asking = asyncio.ensure_future(asyncio.to_thread(answers, path))
        done, _ = await asyncio.wait([asking], timeout=5)
        sockets.close()  # which also ends a wait
    assert done, "it waited"
    assert await asking


async def test_a_listener_that_never_started_gives_its_port_back() -> None:
    """``stop`` of a grpc.aio server that was not started does nothing: its port stays taken until the process ends."""
    listener = GrpcioListener(CLOCK)
    address = listener.bind("127.0.0.1:0")
    await listener.stop(0)
    again = GrpcioListener(CLOCK)
    assert again.bind(address) == address
    await again.stop(0)


async def test_stops_may_overlap() -> None:
    """Two calls of grpc.aio's ``stop`` at once crash the process when one times out while the other ends."""
    for _ in range(20):
        async with joined(linger) as (wire, listener, _):
            calling = asyncio.create_task(wire.unary(head(), b""))
            await asyncio.gather(*(listener.stop(grace) for grace in (0.02, 0, 0.01, 0, 0.01)))
            with pytest.raises(Error):
                await calling


async def test_stop_waits_for_the_handlers() -> None:
    """grpc.aio's ``stop`` returns before handlers that it cancelled have cleaned up."""
    started = asyncio.Event()
    cleaned: list[bool] = []

    async def serve(incoming: Incoming) -> None:
        started.set()
        try:
            await linger(incoming)
        finally:
            await asyncio.sleep(0.05)
            cleaned.append(True)

    async with joined(serve) as (wire, listener, _):
        calling = asyncio.create_task(wire.unary(head(), b""))
        await started.wait()
        await listener.stop(0)
        assert cleaned == [True]
        with pytest.raises(Error):
            await calling


async def test_stop_ends_who_goes_on_after_the_end() -> None:
    """Up to Python 3.12 a TaskGroup that failed leaves its task looking cancelled, though nobody has cancelled it."""

    async def fail() -> None:
        raise LookupError

    async def serve(incoming: Incoming) -> None:
        await incoming.finish(Status(), b"")
        with contextlib.suppress(ExceptionGroup):
            async with asyncio.TaskGroup() as group:
                group.create_task(fail())  # while the group waits at the end of its block
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(incoming)

    ended: list[Incoming] = []
    async with joined(serve) as (wire, listener, _):
        await wire.unary(head(), b"")
        await asyncio.wait_for(listener.stop(0), 5)
        assert len(ended) == 1


async def test_a_route_that_fails_is_answered_without_its_text(caplog: pytest.LogCaptureFixture) -> None:
    """What a generic handler raises goes to the client as UNKNOWN, with its text."""

    def route(path: str) -> Route:
        raise ValueError("secret")

    listener = GrpcioListener(CLOCK)
    address = listener.bind("127.0.0.1:0")
    await listener.start(route)
    wire = GrpcioWire(channel_to(address, None), CLOCK)
    with pytest.raises(Error) as raised:
        await wire.unary(head(), b"")
    assert (raised.value.code, raised.value.message) == (Code.INTERNAL, "internal error")
    assert "secret" in caplog.text
    await wire.close(0)
    await listener.stop(0)


async def test_a_bare_server_can_serve_a_route() -> None:
    """The handlers need no listener of ours, and one serves every call of its path."""
    seen: list[Incoming] = []

    async def serve(incoming: Incoming) -> None:
        seen.append(incoming)
        await incoming.finish(OK, b"bare")

    route = Route(kind=Kind.UNARY, serve=serve)

    class Handlers(grpc.GenericRpcHandler):
        kept: grpc.RpcMethodHandler[Any, Any] | None = None

        def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any]:
            self.kept = self.kept or handler_for(route, handler_call_details, CLOCK)
            return self.kept

    server = grpc.aio.server(handlers=[Handlers()])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    wire = GrpcioWire(channel_to(f"127.0.0.1:{port}", None), CLOCK)
    for number in range(2):
        asked = head(within=5.0)
        asked.metadata = (("number", str(number)),)
        assert (await wire.unary(asked, b"")).data == b"bare"
    assert [dict(incoming.head.metadata)["number"] for incoming in seen] == ["0", "1"]
    assert seen[0].head.peer.startswith("ipv4:127.0.0.1:")
    assert seen[0].security().identities is None  # over: core's call is freed, and is not asked
    await wire.close(0)
    await server.stop(0)


async def test_the_peers_identity_is_there_while_the_call_is() -> None:
    """Core's auth context belongs to its call."""
    seen: list[object] = []

    async def serve(incoming: Incoming) -> None:
        seen.append(incoming.security())
        await incoming.finish(OK, b"")
        with pytest.raises(Ended):
            await incoming.send(b"late")

    async with joined(serve) as (wire, _, _):
        await wire.unary(head(), b"")
    assert len(seen) == 1
