"""How a server goes: nothing that was begun is lost, nothing new is begun, and nobody holds it up for ever."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from servicekit import BindError, Call, Drain, Endpoint, Exit, Kind, Message, Server, Telemetry, connect
from servicekit.errors import Code, Error
from servicekit.http2 import frames
from servicekit.http2.frames import PREFACE, frame
from servicekit.memory import MemoryNetwork
from servicekit.method import Method
from servicekit.testing import Pair, make_call, pair
from servicekit.testing.pair import Over
from servicekit.testing.v1.echo_pb2 import ChatRequest, ChatResponse, EchoRequest, EchoResponse
from servicekit.testing.v1.echo_pb2_grpc import EchoServiceStub
from servicekit.transport.in_flight import InFlight
from servicekit.wire import Head, Listener, Received, Route, Security, Status
from tests.http2.conversation import REQUEST, data, headers

from .servers import KINDS, OVER, Log, answer_of, answered, ask, health_of, method, passing, service, serving, until

Grpc = grpc.StatusCode
NOW = Drain(delay=0.0, grace=0.0)
THREE_MB = 3 * 1024 * 1024
LARGE = bytes(50_000)
SOCKETS = pytest.mark.parametrize("over", ["socket", "native"])
ECHO_PATH = "/servicekit.testing.v1.EchoService/Echo"
ECHO = tuple({**dict(REQUEST), b":path": ECHO_PATH.encode(), b"content-type": b"application/grpc"}.items())
WIDE = (1 << 30).to_bytes(4, "big")
UNLIMITED = (  # a client whose windows take any reply, so that nothing but its socket holds the server up
    PREFACE
    + frame(frames.SETTINGS, 0, 0, b"\0\4" + WIDE)
    + frame(frames.WINDOW_UPDATE, 0, 0, WIDE)
    + frame(frames.SETTINGS, frames.ACK, 0)
)


class Gate:
    """A servicer that waits until it is told to go on."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.waiting = 0

    async def echo(self, request: EchoRequest, _context: object) -> EchoResponse:
        self.waiting += 1
        await self.open.wait()
        return EchoResponse(text=request.text)


async def nothing(_: object) -> None:
    pass


async def gone(ends: Pair, seconds: float = 0.0) -> Exit:
    """Drain, letting time pass as it must."""
    return await passing(ends, seconds, answered(ends.server.drain()))


@SOCKETS
@pytest.mark.parametrize("how", ["drain", "stop"])
async def test_no_reply_is_lost_that_was_on_its_way(over: Over, how: str) -> None:
    """Forty replies are in flight when the server goes, and forty arrive, of 3 MB each on the native wire.

    A handler that has returned is no proof that its reply is out: a count that is kept there loses some of them.
    """
    # Core closes a socket with its last reply, also one in which frames of the client wait unread. That resets it, and a
    # client which is behind by megabytes, on a machine that is busy to the brim, loses what it has not read by then.
    payload = bytes(THREE_MB) if over == "native" else LARGE
    gate = Gate()

    async def echo(request: EchoRequest, context: object) -> EchoResponse:
        await gate.echo(request, context)
        return EchoResponse(payload=payload)

    # 120 MB may take a busy machine longer than the two seconds that there are for flushing.
    async with pair(service(Echo=echo), over=over, drain=Drain(delay=0.0, grace=20.0, flush=20.0)) as ends:
        asking = [asyncio.ensure_future(ask(ends.channel, patience=20.0)) for _ in range(40)]
        await until(lambda: gate.waiting == 40)
        going = asyncio.ensure_future(ends.server.drain() if how == "drain" else ends.server.stop(20.0))
        gate.open.set()
        answers = await asyncio.gather(*asking)
        assert await going in {Exit.DRAINED, None}
    assert [(answer.code, answer.details) for answer in answers] == [(Grpc.OK, "")] * 40
    assert {answer.messages[0].payload for answer in answers} == {payload}


@SOCKETS
async def test_a_client_that_is_late_has_the_time_for_flushing(over: Over) -> None:
    """It reads nothing, and answers no ping, for longer than the default; its connection is there when it does."""
    asked = asyncio.Event()

    async def echo(request: EchoRequest, context: object) -> EchoResponse:
        asked.set()
        return EchoResponse(payload=LARGE)

    async with pair(service(Echo=echo), over=over, drain=Drain(delay=0.0, grace=0.1, flush=10.0)) as ends:
        with socket.socket() as client:
            client.settimeout(0.0)
            loop = asyncio.get_running_loop()
            host, _, port = ends.server.addresses[0].rpartition(":")
            await loop.sock_connect(client, (host, int(port)))
            await loop.sock_sendall(client, UNLIMITED + headers(1, ECHO) + data(1, bytes(5), end=True))
            await asked.wait()
            await until(lambda: ends.server.in_flight == 0)
            going = asyncio.ensure_future(ends.server.drain())
            await asyncio.sleep(2.2)
            read = 0
            while read <= len(LARGE):
                chunk = await asyncio.wait_for(loop.sock_recv(client, 1 << 20), 5.0)
                assert chunk, f"cut off after {read} bytes"
                read += len(chunk)
            assert not going.done()
        assert await going is Exit.DRAINED


@OVER
@KINDS
async def test_a_call_counts_until_its_wire_says_that_it_is_over(over: Over, kind: Kind) -> None:
    """Not until its handler has returned, nor until the chain around it has."""
    counted: list[int] = []
    ends: Pair

    async def link(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        try:
            return await next(request, call)
        finally:
            counted.append(ends.server.in_flight)

    async with pair(serving(kind, method(kind, nothing)), over=over, middleware=[link]) as ends:
        assert ends.server.in_flight == 0
        assert (await ask(ends.channel, kind)).code is Grpc.OK
        await until(lambda: ends.server.in_flight == 0)
    assert counted == [1]


@OVER
@KINDS
async def test_a_call_that_was_cancelled_counts_no_longer(over: Over, kind: Kind) -> None:
    """However a call ends, it is not waited for afterwards."""
    begun = asyncio.Event()

    async def work(_: object) -> None:
        begun.set()
        await asyncio.Event().wait()

    async with pair(serving(kind, method(kind, work)), over=over) as ends:
        # Over a socket with time to get there first, on a machine that has other things to do.
        answer = asyncio.ensure_future(ask(ends.channel, kind, timeout=0.05 if ends.over == "memory" else 0.5))
        await begun.wait()
        assert ends.server.in_flight == 1
        if ends.over == "memory":
            await ends.clock.advance(0.1)
        await answer
        await until(lambda: ends.server.in_flight == 0)


async def status_of(ends: Pair, name: str = "") -> object:
    response = await health_of(ends.channel).Check(HealthCheckRequest(service=name))
    return response.status


async def test_a_server_says_so_before_it_goes() -> None:
    """First health says NOT_SERVING, of every service, while calls are still taken; then none is taken any more."""

    async def echo(_request: object, _context: object) -> EchoResponse:
        return EchoResponse()

    async with pair(service(Echo=echo), drain=Drain(delay=5.0, grace=20.0)) as ends:
        assert await status_of(ends) == HealthCheckResponse.SERVING
        assert not ends.server.draining.is_set()
        going = asyncio.ensure_future(ends.server.drain())
        await ends.clock.advance(0.0)
        assert ends.server.draining.is_set()
        for name in ("", "servicekit.testing.v1.EchoService"):
            assert await status_of(ends, name) == HealthCheckResponse.NOT_SERVING
        await ends.clock.advance(4.9)
        assert (await ask(ends.channel)).code is Grpc.OK
        assert not going.done()
        await ends.clock.advance(0.1)
        assert (await ask(ends.channel)).code is Grpc.UNAVAILABLE
        assert await going is Exit.DRAINED


@SOCKETS
async def test_a_server_on_a_socket_goes_in_the_same_order(over: Over) -> None:
    """Serving while it says that it will not be, and then not there."""

    async def echo(_request: object, _context: object) -> EchoResponse:
        return EchoResponse()

    async with pair(service(Echo=echo), over=over, drain=Drain(delay=0.2, grace=1.0)) as ends:
        watch = health_of(ends.channel).Watch(HealthCheckRequest())
        assert (await answered(watch.read())).status == HealthCheckResponse.SERVING
        going = asyncio.ensure_future(ends.server.drain())
        assert (await answered(watch.read())).status == HealthCheckResponse.NOT_SERVING
        assert (await ask(ends.channel)).code is Grpc.OK
        assert await answered(going) is Exit.DRAINED
        assert (await ask(ends.channel)).code is Grpc.UNAVAILABLE


@OVER
async def test_a_watch_does_not_hold_the_drain_up(over: Over) -> None:
    """Health's ``Watch`` never ends by itself: it is told, it is ended, and it is not waited for."""
    async with pair(service(), over=over, drain=Drain(delay=0.1, grace=20.0)) as ends:
        watch = health_of(ends.channel).Watch(HealthCheckRequest())
        assert (await answered(watch.read())).status == HealthCheckResponse.SERVING
        assert ends.server.in_flight == 0
        assert await gone(ends, 0.1) is Exit.DRAINED
        rest = await answered(answer_of(watch, Kind.SERVER_STREAM))
    assert rest.code is Grpc.UNAVAILABLE
    assert [message.status for message in rest.messages] == [HealthCheckResponse.NOT_SERVING]


@OVER
@KINDS
async def test_a_call_under_way_may_finish(over: Over, kind: Kind) -> None:
    """Within the grace it ends as if nothing had been, and the server has drained."""
    gate = Gate()

    async def work(context: object) -> None:
        await gate.echo(EchoRequest(), context)

    async with pair(serving(kind, method(kind, work)), over=over, drain=Drain(delay=0.0, grace=10.0)) as ends:
        asking = asyncio.ensure_future(ask(ends.channel, kind))
        await until(lambda: gate.waiting)
        going = asyncio.ensure_future(ends.server.drain())
        await until(ends.server.draining.is_set)
        if ends.over == "memory":
            await ends.clock.advance(9.0)
        assert not going.done()
        gate.open.set()
        assert (await asking).code is Grpc.OK
        assert await answered(going) is Exit.DRAINED


@OVER
@KINDS
async def test_a_call_that_does_not_finish_is_told_and_abandoned(
    over: Over, kind: Kind, caplog: pytest.LogCaptureFixture
) -> None:
    """When the grace is over it ends with UNAVAILABLE, is counted in the log, and shows in the exit code."""
    log = Log(caplog)
    begun = asyncio.Event()

    async def work(_: object) -> None:
        begun.set()
        await asyncio.Event().wait()

    settings: dict[str, Any] = {"drain": Drain(delay=0.0, grace=0.05), "telemetry": log.telemetry}
    async with pair(serving(kind, method(kind, work)), over=over, **settings) as ends:
        asking = asyncio.ensure_future(ask(ends.channel, kind))
        await begun.wait()
        assert await gone(ends, 0.05) is Exit.ABANDONED
        answer = await asking
    assert (answer.code, answer.details) == (Grpc.UNAVAILABLE, "the server is shutting down")
    stopped = [json.loads(line) for line in log.stream.getvalue().splitlines() if '"stopped"' in line]
    assert [line["abandoned"] for line in stopped] == [1]


@OVER
async def test_a_servicer_that_will_not_end_does_not_hold_the_drain_up(over: Over) -> None:
    """It swallows every cancellation: its client is answered, and the server goes without it."""
    begun = asyncio.Event()
    release = asyncio.Event()
    ended = asyncio.Event()

    async def echo(_request: object, _context: object) -> EchoResponse:
        begun.set()
        while not release.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await release.wait()
        ended.set()
        return EchoResponse()

    drain = Drain(delay=0.0, grace=0.05, flush=0.3)
    async with pair(service(Echo=echo), over=over, drain=drain) as ends:
        asking = asyncio.ensure_future(ask(ends.channel))
        await begun.wait()
        try:
            assert await gone(ends, 5.0) is Exit.ABANDONED
            assert (await asking).code is Grpc.UNAVAILABLE
        finally:
            release.set()
            await ended.wait()


@OVER
async def test_draining_twice_is_draining_once(over: Over) -> None:
    """Every caller gets the same answer, during and after it; ``stop`` and ``async with`` join in."""
    gate = Gate()
    async with pair(service(Echo=gate.echo), over=over, drain=Drain(delay=0.0, grace=0.05)) as ends:
        asking = asyncio.ensure_future(ask(ends.channel))
        await until(lambda: gate.waiting)
        first, second = (asyncio.ensure_future(ends.server.drain()) for _ in range(2))
        third = asyncio.ensure_future(ends.server.stop(0.0))
        if ends.over == "memory":
            await ends.clock.advance(0.05)
        assert await answered(asyncio.wait_for(first, 1.0)) is Exit.ABANDONED
        assert await second is Exit.ABANDONED
        await third
        assert await ends.server.drain() is Exit.ABANDONED
        assert (await asking).code is Grpc.UNAVAILABLE
        assert not await ends.server.wait_for_termination()


@OVER
@pytest.mark.parametrize("delay", [0.0, 1000.0])
async def test_who_is_in_more_of_a_hurry_shortens_a_drain(over: Over, delay: float) -> None:
    """``stop`` with less grace than is left ends the calls then, as grpc.aio's does; one with more changes nothing."""
    gate = Gate()
    async with pair(service(Echo=gate.echo), over=over, drain=Drain(delay=delay, grace=1000.0)) as ends:
        asking = asyncio.ensure_future(ask(ends.channel))
        await until(lambda: gate.waiting)
        going = asyncio.ensure_future(ends.server.drain())
        await until(ends.server.draining.is_set)
        stopping = [asyncio.ensure_future(ends.server.stop(grace)) for grace in (0.1, 2000.0)]
        assert await passing(ends, 0.1, answered(asyncio.wait_for(going, 2.0))) is Exit.ABANDONED
        await asyncio.gather(*stopping)
        assert (await asking).code is Grpc.UNAVAILABLE


@OVER
async def test_whoever_gives_up_waiting_does_not_stop_the_drain(over: Over) -> None:
    """A caller of ``drain`` that is cancelled leaves; the server goes on going."""
    gate = Gate()
    async with pair(service(Echo=gate.echo), over=over, drain=Drain(delay=0.0, grace=10.0)) as ends:
        asking = asyncio.ensure_future(ask(ends.channel))
        await until(lambda: gate.waiting)
        going = asyncio.ensure_future(ends.server.drain())
        await until(ends.server.draining.is_set)
        going.cancel()
        await asyncio.wait([going])
        assert going.cancelled()
        gate.open.set()
        assert (await asking).code is Grpc.OK
        assert await gone(ends) is Exit.DRAINED


@OVER
async def test_what_streams_for_long_may_look_at_the_drain(over: Over) -> None:
    """``server.draining`` is how a stream without an end hears that it should come to one."""
    server: list[Server] = []

    async def chat(request: Message, _context: object) -> AsyncIterator[ChatResponse]:
        yield ChatResponse(text="here")
        await server[0].draining.wait()
        yield ChatResponse(text="bye")

    async with pair(server.append, service(Chat=chat), over=over, drain=Drain(delay=0.0, grace=10.0)) as ends:
        call = EchoServiceStub(ends.channel).Chat()
        await call.write(ChatRequest())
        assert await answered(call.read()) == ChatResponse(text="here")
        assert await gone(ends) is Exit.DRAINED
        rest = await answered(answer_of(call, Kind.BIDI_STREAM))
    assert (rest.code, rest.messages) == (Grpc.OK, [ChatResponse(text="bye")])


async def test_a_server_starts_once() -> None:
    """A second start, also after the end, raises."""
    async with pair(service()) as ends:
        with pytest.raises(RuntimeError, match="starts once"):
            await ends.server.start()
    with pytest.raises(RuntimeError, match="starts once"):
        await ends.server.start()


def plain_server(*addresses: str, wire: str | Listener = "grpcio") -> Server:
    return Server(list(addresses), telemetry=Telemetry(log=None), drain=NOW, wire=wire)


async def test_a_port_that_is_taken_is_an_error_that_names_it() -> None:
    """Two servers on one port: by default grpc lets them share it, and each gets half of the traffic."""
    async with plain_server("127.0.0.1:0") as first:
        (address,) = first.addresses
        second = plain_server(address)
        with pytest.raises(BindError, match=address):
            await second.start()
        await second.stop(0)
    async with plain_server(address) as third:
        assert third.addresses == (address,)


async def test_a_name_that_is_taken_is_an_error_that_names_it() -> None:
    """The same in memory."""
    network = MemoryNetwork()
    async with plain_server("memory:here", wire=network.listener()):
        with pytest.raises(BindError, match="memory:here"):
            await plain_server("memory:here", wire=network.listener()).start()


async def test_an_address_of_another_machine_is_an_error_that_names_it() -> None:
    """What cannot be bound shows at the start."""
    server = plain_server("192.0.2.1:0")
    with pytest.raises(BindError, match=r"192\.0\.2\.1:0"):
        await server.start()
    await server.stop(0)


async def test_a_start_that_failed_half_way_leaves_nothing_behind() -> None:
    """When the second address is taken, the first one is free again: after ``async with`` and after ``stop``."""
    async with plain_server("127.0.0.1:0") as taken, plain_server("127.0.0.1:0") as spare:
        (free,) = spare.addresses
        await spare.stop(0)
        with pytest.raises(BindError):
            async with plain_server(free, taken.addresses[0]):
                pass
        async with plain_server(free) as again:
            assert again.addresses == (free,)


async def test_a_server_without_an_address_says_so() -> None:
    """There is no default port to be surprised by."""
    server = plain_server()
    with pytest.raises(ValueError, match="no address"):
        await server.start()
    await server.stop(0)


async def test_a_server_that_never_started_can_be_stopped() -> None:
    """Whatever failed before, the way out is the same."""
    await plain_server("127.0.0.1:0").stop(0)
    assert await plain_server("127.0.0.1:0").drain() is Exit.DRAINED


@pytest.mark.parametrize("wire", ["grpcio", "native"])
async def test_a_port_of_a_server_that_never_started_is_free_again(wire: str) -> None:
    """``add_insecure_port`` binds at once, so ``stop`` lets go; that was the server's one life."""
    server = plain_server(wire=wire)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await answered(server.stop(0))
    async with plain_server(address, wire=wire) as again:
        assert again.addresses == (address,)
    with pytest.raises(RuntimeError, match="starts once"):
        await server.start()


async def test_a_server_on_several_addresses_serves_on_all() -> None:
    """And lets go of all."""
    network = MemoryNetwork()
    server = plain_server("memory:a", "memory:b", wire=network.listener())

    async def echo(_request: object, _context: object) -> EchoResponse:
        return EchoResponse()

    service(Echo=echo)(server)
    async with server:
        for address in server.addresses:
            async with connect(address, middleware=[], wire=network.wire(address)) as channel:
                assert (await ask(channel)).code is Grpc.OK
    async with plain_server("memory:a", "memory:b", wire=network.listener()):
        pass


@pytest.mark.parametrize("times", [{"delay": -1.0}, {"grace": float("nan")}, {"flush": "2"}, {"delay": float("inf")}])
def test_times_that_cannot_pass_are_refused(times: dict[str, Any]) -> None:
    """A wrong setting fails where it is written, naming the value."""
    name, value = next(iter(times.items()))
    with pytest.raises((TypeError, ValueError), match=f"{name}={value!r}"):
        Drain(**times)


async def test_a_watch_that_begins_meanwhile_is_ended_too() -> None:
    """A client that does not know yet may still ask for one, and would be waited for until the grace is over."""
    in_flight = InFlight()
    watch, check = (
        make_call(method=Method(service="grpc.health.v1.Health", name=name, kind=kind, auxiliary=True))
        for name, kind in (("Watch", Kind.SERVER_STREAM), ("Check", Kind.UNARY))
    )
    in_flight.end_auxiliary(going := Error(Code.UNAVAILABLE, "going"))
    for call in (watch, check):
        in_flight.counting(call.method)(call)
    assert (watch.failure, check.failure) == (going, None)


class Wire:
    """A listener whose RPCs are ended by hand: it was given all there is to send, and has not sent it."""

    def __init__(self) -> None:
        self.route: Callable[[str], Route]

    def bind(self, address: str, credentials: object = None) -> str:
        assert credentials is None
        return address

    async def start(self, route: Callable[[str], Route]) -> None:
        self.route = route

    async def stop(self, grace: float) -> None:
        pass

    async def failed(self) -> BaseException:
        return await asyncio.Future()


class OnItsWay:
    """An RPC of that wire."""

    def __init__(self, path: str) -> None:
        self.head = Head(path=path)
        self.data: bytes | None = b""
        self.code: Code | None = None
        self.ended: Callable[[], None]

    async def receive(self) -> Received:
        raise NotImplementedError

    def send_headers(self, metadata: object) -> None:
        pass

    async def send(self, data: bytes) -> None:
        raise NotImplementedError

    async def finish(self, status: Status, data: bytes | None = None) -> None:
        assert data is not None
        self.code = status.code

    def on_end(self, callback: Callable[[], None]) -> None:
        self.ended = callback

    def security(self) -> Security:
        return Security()

    def compress(self, encoding: str | None) -> None:
        pass


async def test_a_response_that_is_on_its_way_counts() -> None:
    """Chain and servicer are done, and the wire has yet to send what they answered: a drain must not cut it off."""
    wire = Wire()

    async def echo(_request: object, _context: object) -> EchoResponse:
        return EchoResponse()

    server = Server("a:1", middleware=[], telemetry=Telemetry(log=None), wire=wire)
    service(Echo=echo)(server)
    async with server:
        call = OnItsWay(ECHO_PATH)
        await wire.route(call.head.path).serve(call)
        assert (call.code, server.in_flight) == (Code.OK, 1)
        call.ended()
        assert server.in_flight == 0
