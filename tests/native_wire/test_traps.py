"""What ends, holds up or misleads grpc.aio and is absent from the native wire: asked through a whole ``Server``."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeAlias

import grpc
import pytest
from h2.connection import H2Connection

from servicekit import BindError, Drain, Kind, Server, Telemetry
from servicekit.errors import Code
from servicekit.testing import no_leaks
from servicekit.wire import Incoming, Route, Status

from .ground import ORDINARY, PATIENCE, Client, client_of, framed, listening

Untyped: TypeAlias = Any
"""What grpc leaves untyped."""

CALL = {":path": "/a.B/C"}


@pytest.fixture(autouse=True)
async def _nothing_is_left() -> AsyncIterator[None]:
    async with no_leaks():
        yield


def serving(method: Callable[..., Any], address: str = "127.0.0.1:0", **settings: Untyped) -> Server:
    """Return a server of one unary method, to be started."""
    server = Server(address, wire="native", middleware=[], telemetry=Telemetry(log=None), **settings)
    handlers: Untyped = {"C": grpc.unary_unary_rpc_method_handler(method)}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("a.B", handlers)])
    return server


@contextlib.asynccontextmanager
async def served(method: Callable[..., Any], **settings: Untyped) -> AsyncIterator[tuple[Server, Client]]:
    """Serve one unary method, and yield the server and a client of it."""
    async with serving(method, **settings) as server, client_of(server.addresses[0]) as client:
        yield server, client


async def echo(request: bytes, _context: object) -> bytes:
    return request


async def _code_of(call: Untyped) -> object:
    return await call.code()


@pytest.mark.parametrize(
    "path", ["/a.B/\udcff", "/\udcff\udcfe/C", "/\u00e4\u65e5.B/C", "", "*", "/", "//", "/a.B/C/D", "a.B/C"]
)
async def test_a_path_that_is_no_text_is_answered(path: str) -> None:
    """One request whose path is not UTF-8 ends a grpc.aio server. Here it is one call that fails, on its own stream."""
    async with served(echo) as (server, client):
        stream = client.begin(CALL)
        raw = path.encode(errors="surrogateescape")
        odd = client.h2.get_next_available_stream_id()
        fields = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", raw), (b":authority", b"test")]
        client.expect(odd)
        client.h2.send_headers(odd, [*fields, (b"te", b"trailers"), (b"content-type", b"application/grpc")])
        client.send(odd, framed(b"x"), end=True)
        answer = await client.answer(odd)
        assert answer.reset is not None or answer.code is Code.UNIMPLEMENTED
        client.send(stream, framed(b"well"), end=True)  # on the same connection
        assert (await client.answer(stream)).data == framed(b"well")
        async with client_of(server.addresses[0]) as other:
            assert (await other.call(framed(b"well"), CALL)).code is Code.OK


async def test_a_port_that_is_taken_is_refused() -> None:
    """grpc.aio shares it unless it is told not to, and each of two servers gets a part of the calls."""
    async with served(echo) as (server, _):
        with pytest.raises(BindError, match=server.addresses[0]):
            await serving(echo, server.addresses[0]).start()


async def test_a_port_is_shared_by_choice() -> None:
    """Where both say so."""
    shared = {"options": [("grpc.so_reuseport", 1)]}
    async with served(echo, **shared) as (server, _), serving(echo, server.addresses[0], **shared) as other:
        assert other.addresses == server.addresses


async def test_a_stop_waits_for_the_servicers() -> None:
    """grpc.aio's returns before those that it has cancelled have cleaned up."""
    begun, cleaned = asyncio.Event(), False

    async def held(_request: bytes, _context: object) -> bytes:
        nonlocal cleaned
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            for _ in range(20):
                await asyncio.sleep(0)
            cleaned = True
        return b""

    async with (
        serving(held, drain=Drain(delay=0.0, grace=0.0)) as server,
        grpc.aio.insecure_channel(server.addresses[0]) as channel,
    ):
        call: Untyped = channel.unary_unary(CALL[":path"])
        calling = asyncio.ensure_future(_code_of(call(b"")))
        await begun.wait()
        await server.stop(0)
        assert cleaned
        assert await calling is grpc.StatusCode.UNAVAILABLE


async def test_what_is_on_its_way_is_not_lost_when_a_connection_ends() -> None:
    """A client that still reads, and talks while it does, gets all of a response although the server has gone.

    A socket that was closed answers what comes with a reset, and forgets what it has not sent.
    """
    size = 60_000  # within the windows that a connection begins with
    loop = asyncio.get_running_loop()

    async def large(incoming: Incoming) -> None:
        await incoming.finish(Status(), bytes(size))

    with socket.socket() as sock:
        sock.setblocking(False)  # noqa: FBT003 - its own name
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        async with listening(Route(kind=Kind.UNARY, serve=large)) as (listener, address):
            host, _, port = address.rpartition(":")
            await loop.sock_connect(sock, (host, int(port)))
            h2 = H2Connection()
            h2.initiate_connection()
            h2.send_headers(1, [*ORDINARY.items()])
            h2.send_data(1, framed(b""), end_stream=True)
            await loop.sock_sendall(sock, h2.data_to_send())
            await loop.sock_recv(sock, 1)  # it has been answered
            going = asyncio.ensure_future(listener.stop(0))
            for _ in range(20):
                await asyncio.sleep(0)
            received = 1
            with contextlib.suppress(ConnectionError):
                while True:
                    h2.ping(bytes(8))
                    await loop.sock_sendall(sock, h2.data_to_send())
                    data = await loop.sock_recv(sock, 4096)
                    if not data:
                        break
                    received += len(data)
            sock.close()
            await going
    assert received > size


async def test_a_request_that_never_comes_ends_at_its_deadline() -> None:
    """Nobody has begun to serve it, and still the client is answered and nothing is left of it."""
    async with served(echo) as (_, client):
        stream = client.begin({**CALL, "grpc-timeout": "50m"})
        assert (await client.answer(stream)).code is Code.DEADLINE_EXCEEDED


async def test_a_unary_response_is_compressed_when_asked_for() -> None:
    """grpc.aio ignores a servicer's ``set_compression`` where there is one response."""

    async def zipped(request: bytes, context: Untyped) -> bytes:
        context.set_compression(grpc.Compression.Gzip)
        return request

    async with served(zipped) as (_, client):
        answer = await client.call(framed(bytes(1000)), {**CALL, "grpc-accept-encoding": "identity,gzip"})
        assert (answer.field("grpc-encoding"), answer.data[0]) == ("gzip", 1)
        assert len(answer.data) < 100


async def test_a_client_that_pings_between_calls_is_no_attacker() -> None:
    """A keepalive now and then is not "too many pings", without calls either."""
    async with served(echo) as (_, client):
        for _ in range(2):
            client.h2.ping(bytes(8))
            client.flush()
        assert (await client.call(framed(b"well"), CALL)).code is Code.OK


@pytest.mark.parametrize("methods", [1, 1000])
async def test_any_number_of_methods_is_served(methods: int) -> None:
    """The wire is not told of methods: it asks for a route, whatever their number."""
    server = serving(echo)
    handlers: Untyped = {f"M{index}": grpc.unary_unary_rpc_method_handler(echo) for index in range(methods)}
    server.add_registered_method_handlers("many.Methods", handlers)
    async with server, client_of(server.addresses[0]) as client, asyncio.timeout(PATIENCE):
        answer = await client.call(framed(b"x"), {":path": f"/many.Methods/M{methods - 1}"})
        assert answer.data == framed(b"x")
