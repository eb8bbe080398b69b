from __future__ import annotations

import asyncio
import re
import socket
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_channelz.v1 import channelz  # type: ignore[import-untyped]

from servicekit import Server, Telemetry, connect
from servicekit.clock import MovableClock, SystemClock
from servicekit.errors import Code
from servicekit.http2.limits import Limits
from servicekit.method import Kind
from servicekit.native.options import NativeOptions, options_of
from servicekit.native.protocol import ClientLine
from servicekit.native.server import NativeListener
from servicekit.native.shared import Shared
from servicekit.testing import no_leaks
from servicekit.testing.v1.echo_pb2 import EchoRequest, EchoResponse
from servicekit.testing.v1.echo_pb2_grpc import EchoServiceStub
from servicekit.wire import Incoming, Route, Status
from tests.http2.conversation import data, headers
from tests.transport.servers import Context, service

from .ground import OK, PREFACE, echo, frame, listening

FIELDS = (
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":path", b"/a.B/C"),
    (b"te", b"trailers"),
    (b"content-type", b"application/grpc"),
)
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


@pytest.mark.parametrize(
    "option",
    [
        ("grpc.max_receive_message_length", "big"),
        ("grpc.max_receive_message_length", 0),
        ("grpc.max_allowed_incoming_connections", 1.5),
        ("grpc.max_concurrent_streams", True),
        ("grpc.so_reuseport", "no"),
        ("grpc.server_handshake_timeout_ms", 0),
        ("grpc.keepalive_time_ms", -5),
        ("grpc.keepalive_time_ms", "5"),
        ("grpc.keepalive_timeout_ms", -5),
        ("grpc.max_connection_age_grace_ms", -1),
        ("grpc.keepalive_permit_without_calls", "yes"),
    ],
)
def test_an_option_whose_value_is_none_is_named(option: tuple[str, object]) -> None:
    """With that value, under the name that it was given."""
    name, value = option
    with pytest.raises((TypeError, ValueError), match=re.escape(f"{name}={value!r}")):
        options_of([option])


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


async def test_many_errors_at_once_are_no_attack() -> None:
    """A client of grpc core sends a WINDOW_UPDATE with every call: it is not cut off for calls that end without content."""

    async def refuse(incoming: Incoming) -> None:
        await incoming.finish(Status(code=Code.ABORTED))

    async with (
        listening(Route(kind=Kind.UNARY, serve=refuse)) as (listener, address),
        grpc.aio.insecure_channel(address) as channel,
    ):
        call: Any = channel.unary_unary("/a.B/C")
        for _ in range(12):
            answers: list[Any] = await asyncio.gather(*(call(b"") for _ in range(100)), return_exceptions=True)
            assert {answer.code() for answer in answers} == {grpc.StatusCode.ABORTED}
        assert listener.cut_off == 0


class Connection(asyncio.Transport):
    """What a connection is read from and written to; it counts both."""

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 1)})
        self.reading = True
        self.written = b""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def abort(self) -> None:
        pass


class Slow(MovableClock):
    """A clock on which every look at it takes ``pace`` seconds."""

    pace = 0.0

    def time(self) -> float:
        self._now += self.pace
        return self._now


async def test_an_attack_does_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """Of all the connections that are cut off in a second one is written down, and the next line tells how many were not."""
    clock = MovableClock()
    shared = Shared(NativeOptions(), clock, None)
    for number in range(5):
        shared.accuse(f"ipv4:127.0.0.1:{number}", "too many resets")
    await clock.advance(1.0)
    shared.accuse("ipv4:127.0.0.1:9", "no preface in time")
    assert shared.cut_off == 6
    assert [record.getMessage() for record in caplog.records] == [
        "the connection of ipv4:127.0.0.1:0 is cut off: too many resets",
        "the connection of ipv4:127.0.0.1:9 is cut off: no preface in time; 4 more since the last of these lines",
    ]


async def test_a_client_that_gives_much_to_do_is_read_in_small_pieces() -> None:
    """After a long turn the others have theirs, and less is read at once; while it is little to do, more and more is."""
    clock = Slow()
    shared = Shared(NativeOptions(http2=Limits(max_frame_size=64 * 1024)), clock, None)
    line, transport = ClientLine(shared), Connection()
    line.connection_made(transport)
    sizes: list[int] = []

    async def read(pace: float) -> None:
        clock.pace = pace
        buffer = line.get_buffer(-1)
        sizes.append(len(buffer))
        buffer[:] = frame(11, 0, 0, bytes(len(buffer) - 9))  # of a type that nobody knows, so it is ignored
        line.buffer_updated(len(buffer))
        assert transport.reading is (pace == 0.0)
        clock.pace = 0.0
        await asyncio.sleep(0)
        assert transport.reading

    line.get_buffer(-1)[:33] = PREFACE + frame(4, 0, 0, b"")
    line.buffer_updated(33)
    for _ in range(4):
        await read(0.0)
    for _ in range(6):
        await read(0.05)
    assert sizes[:5] == [8 * 1024, 16 * 1024, 32 * 1024, 64 * 1024, 64 * 1024]
    assert sizes[5:] == sorted(sizes[5:], reverse=True)
    assert sizes[-1] == 2 * 1024
    line.connection_lost(None)
    shared.wheel.stop()


async def test_who_does_not_read_is_not_read_from() -> None:
    """While the transport wants no more, nothing is taken in either; both go on together."""
    shared = Shared(NativeOptions(), SystemClock(), None)
    line, transport = ClientLine(shared), Connection()
    line.connection_made(transport)
    await asyncio.sleep(0)
    line.pause_writing()
    assert not transport.reading
    written = transport.written
    line.get_buffer(-1)[:50] = PREFACE + frame(4, 0, 0, b"") + frame(6, 0, 0, b"12345678")
    line.buffer_updated(50)  # what was read before it was told
    await asyncio.sleep(0)
    assert transport.written == written
    line.resume_writing()
    assert transport.reading
    assert b"12345678" in transport.written[len(written) :]
    line.connection_lost(None)
    shared.wheel.stop()


async def test_who_reads_nothing_is_closed_all_the_same() -> None:
    """What is left to write for a client that was cut off keeps its connection for a second, and not for ever."""
    clock = MovableClock()

    async def endless(incoming: Incoming) -> None:
        while True:
            await incoming.send(bytes(60_000))

    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.settimeout(0.0)
        async with listening(Route(kind=Kind.SERVER_STREAM, serve=endless), clock=clock) as (listener, address):
            host, _, port = address.rpartition(":")
            loop = asyncio.get_running_loop()
            await loop.sock_connect(sock, (host, int(port)))
            wide = frame(4, 0, 0, b"\0\4" + (1 << 30).to_bytes(4, "big")) + frame(8, 0, 0, (1 << 30).to_bytes(4, "big"))
            await loop.sock_sendall(
                sock, PREFACE + wide + frame(4, 1, 0, b"") + headers(1, FIELDS) + data(1, bytes(5), end=True)
            )
            async with asyncio.timeout(10):
                while not any(isinstance(one, ClientLine) and one._paused for one in listener._shared.members):  # noqa: ASYNC110 - nothing tells
                    await asyncio.sleep(0.005)
                await clock.advance(20.5)
                assert listener.cut_off == 1
                await clock.advance(1.5)
                while listener.connections:  # noqa: ASYNC110 - as above
                    await asyncio.sleep(0.005)


async def test_a_connection_that_is_reset_while_it_is_closed(caplog: pytest.LogCaptureFixture) -> None:
    """A socket whose peer has reset it cannot be closed by halves, and the loop hears of that later: nothing fails."""
    async with listening(ECHO) as (listener, address):
        host, _, port = address.rpartition(":")
        with socket.create_connection((host, int(port))) as client:
            client.sendall(PREFACE + frame(4, 0, 0, b""))
            while listener.connections == 0:  # noqa: ASYNC110 - nothing tells
                await asyncio.sleep(0.001)
            (line,) = [one for one in listener._shared.members if isinstance(one, ClientLine)]
            line.close()
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        while listener.connections:  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.001)
    assert caplog.text == ""
