from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_channelz.v1 import channelz  # type: ignore[import-untyped]

from servicekit import Server, Telemetry, connect
from servicekit.call import Kind
from servicekit.clock import SystemClock
from servicekit.errors import Code
from servicekit.native.options import NativeOptions, options_of
from servicekit.native.server import NativeListener
from servicekit.testing import no_leaks
from servicekit.testing.v1.echo_pb2 import EchoRequest, EchoResponse
from servicekit.testing.v1.echo_pb2_grpc import EchoServiceStub
from servicekit.wire import Incoming, Route
from tests.transport.servers import Context, service

from .ground import OK, client_of, echo, framed, listening

ECHO = Route(kind=Kind.UNARY, serve=echo)


@pytest.fixture(autouse=True)
async def _nothing_is_left() -> AsyncIterator[None]:
    async with no_leaks():
        yield


async def answer(request: EchoRequest, _context: Context) -> EchoResponse:
    return EchoResponse(text=request.text)


async def test_several_addresses_at_once(tmp_path: Path) -> None:
    """TCP, a Unix socket and a socket that was handed in, all of one server."""
    with socket.create_server(("127.0.0.1", 0)) as given:
        server = Server(
            ["127.0.0.1:0", f"unix:{tmp_path}/a", f"fd:{given.fileno()}"],
            middleware=[],
            telemetry=Telemetry(log=None),
            wire="native",
        )
        service(Echo=answer)(server)
        async with server:
            tcp, unix, _ = server.addresses
            for address in (tcp, unix, f"127.0.0.1:{given.getsockname()[1]}"):
                async with connect(address, middleware=[]) as channel:
                    reply = await EchoServiceStub(channel).Echo(EchoRequest(text="hello"), timeout=5)
                    assert reply.text == "hello"


async def test_what_grpcio_compresses_is_understood_and_answered_in_kind() -> None:
    """``Server(compression=…)`` compresses unary responses too, for a client of grpcio that compresses itself."""
    server = Server(
        "127.0.0.1:0",
        middleware=[],
        telemetry=Telemetry(log=None),
        wire="native",
        compression=grpc.Compression.Gzip,
    )
    service(Echo=answer)(server)
    async with server, connect(server.addresses[0], middleware=[], compression=grpc.Compression.Deflate) as channel:
        reply = await EchoServiceStub(channel).Echo(EchoRequest(text="a" * 10_000), timeout=5)
        assert reply.text == "a" * 10_000


async def test_channelz_is_one_clear_error() -> None:
    """It tells of grpc core's own sockets: a server that has none says so when it is asked for."""
    server = Server("127.0.0.1:0", telemetry=Telemetry(log=None), wire="native")
    with pytest.raises(ValueError, match=r"Channelz.*wire='native'"):
        channelz.add_channelz_servicer(server)


def test_options_of_grpc_core_mean_the_same() -> None:
    """What a server sets for core holds here too; what means nothing here is named."""
    options = options_of(
        [
            ("grpc.max_receive_message_length", -1),
            ("grpc.max_send_message_length", 5),
            ("grpc.so_reuseport", 1),
            ("grpc.max_concurrent_streams", 7),
            ("grpc.max_connection_idle_ms", 2500),
            ("grpc.max_connection_age_ms", 2**31 - 1),
            ("grpc.keepalive_permit_without_calls", 1),
        ]
    )
    assert (options.received, options.sent, options.reuse_port) == (2**31 - 1, 5, True)
    assert (options.http2.max_concurrent_streams, options.http2.idle_timeout, options.http2.max_age) == (7, 2.5, None)
    with pytest.raises(ValueError, match=r"grpc\.enable_channelz"):
        options_of([("grpc.enable_channelz", 1)])


async def test_a_listener_begins_once() -> None:
    """Starting twice, or binding after that, is a mistake of the caller's; a stopped one gives its port back."""
    listener = NativeListener(SystemClock())
    address = listener.bind("127.0.0.1:0")
    await listener.start(lambda _: ECHO)
    with pytest.raises(RuntimeError, match="once"):
        await listener.start(lambda _: ECHO)
    with pytest.raises(RuntimeError, match="before"):
        listener.bind("127.0.0.1:0")
    await listener.stop(0)
    await listener.stop(0)
    again = NativeListener(SystemClock())
    assert again.bind(address) == address
    await again.stop(0)


async def test_a_drain_loses_no_call() -> None:
    """While the server goes, clients that keep calling see each call served, or refused before it had begun."""
    outcomes: list[Code] = []
    refused: list[grpc.StatusCode] = []
    began: list[int] = []

    async def serve(incoming: Incoming) -> None:
        began.append(1)
        await asyncio.sleep(0.001)
        await incoming.finish(OK, incoming.data)

    async def call_on(address: str) -> None:
        async with grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            call: Any = channel.unary_unary("/a.B/C")
            while True:
                try:
                    await call(bytes(1000))
                except grpc.aio.AioRpcError as error:
                    refused.append(error.code())
                    return
                outcomes.append(Code.OK)

    async with listening(Route(kind=Kind.UNARY, serve=serve)) as (listener, address):
        callers = [asyncio.create_task(call_on(address)) for _ in range(20)]
        while len(outcomes) < 200:  # noqa: ASYNC110 - of what comes in, not of an event
            await asyncio.sleep(0.001)
        await listener.stop(5)
        await asyncio.wait(callers)
    assert set(refused) == {grpc.StatusCode.UNAVAILABLE}  # nobody listens any more
    assert len(outcomes) == len(began)


async def test_a_client_that_gives_much_to_do_has_to_wait_for_its_turn() -> None:
    """Tiny messages in tiny frames, as many as fit: a neighbour's calls are answered in between."""
    got: list[int] = []

    async def swallow(incoming: Incoming) -> None:
        while await incoming.receive() != b"last":
            got.append(1)
        await incoming.finish(OK, b"")

    routes = {"/a.B/C": ECHO, "/a.B/Upload": Route(kind=Kind.CLIENT_STREAM, serve=swallow)}
    async with (
        listening(routes, options=NativeOptions(turn=0.0005)) as (_, address),
        client_of(address) as busy,
        client_of(address) as neighbour,
    ):
        stream = busy.begin({":path": "/a.B/Upload"})
        for _ in range(8000):
            busy.h2.send_data(stream, framed(b""))
        busy.flush()
        between: list[int] = []
        while len(got) < 8000:
            assert (await neighbour.call(framed(b"x"))).code is Code.OK
            between.append(len(got))
        busy.send(stream, framed(b"last"), end=True)
        assert (await busy.answer(stream)).code is Code.OK
    assert len(set(between)) > 3
