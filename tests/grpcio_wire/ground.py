"""Both ends of the wire on a free port, and a client that writes its frames by hand."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Future
from typing import Any

import grpc

from servicekit.clock import SystemClock
from servicekit.grpcio.channel import channel_to
from servicekit.grpcio.client import GrpcioWire
from servicekit.grpcio.server import GrpcioListener
from servicekit.method import Kind
from servicekit.wire import Head, Incoming, Route, Serve, Status

CLOCK = SystemClock()
OK = Status()
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


@contextlib.asynccontextmanager
async def joined(
    serve: Serve, kind: Kind = Kind.UNARY, *, address: str = "127.0.0.1:0"
) -> AsyncIterator[tuple[GrpcioWire, GrpcioListener, str]]:
    """Serve every path with ``serve``; yield a wire to it, the listener and its address."""
    listener = GrpcioListener(CLOCK)
    bound = listener.bind(address)
    route = Route(kind=kind, serve=serve)
    await listener.start(lambda _: route)
    wire = GrpcioWire(channel_to(bound, None), CLOCK)
    try:
        yield wire, listener, bound
    finally:
        await wire.close(0)
        await listener.stop(0)


@contextlib.asynccontextmanager
async def elsewhere(serve: Serve, kind: Kind) -> AsyncIterator[str]:
    """Serve every path with ``serve`` on a loop in another thread, which goes on while this one stands; yield the address."""
    address: Future[str] = Future()
    over = threading.Event()

    async def main() -> None:
        listener = GrpcioListener(CLOCK)
        bound = listener.bind("127.0.0.1:0")
        route = Route(kind=kind, serve=serve)
        await listener.start(lambda _: route)
        address.set_result(bound)
        await asyncio.to_thread(over.wait)
        await listener.stop(0)

    serving = asyncio.create_task(asyncio.to_thread(asyncio.run, main()))
    try:
        yield await asyncio.wrap_future(address)
    finally:
        over.set()
        await serving


@contextlib.asynccontextmanager
async def bare(behaviour: Callable[..., Awaitable[bytes]]) -> AsyncIterator[str]:
    """Serve a unary method on grpc.aio as it is; yield the address."""

    class Handlers(grpc.GenericRpcHandler):
        def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any]:
            make: Any = grpc.unary_unary_rpc_method_handler
            return make(behaviour)  # type: ignore[no-any-return]

    server = grpc.aio.server(handlers=[Handlers()], options=[("grpc.so_reuseport", 0)])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


async def echo(incoming: Incoming) -> None:
    await incoming.finish(OK, incoming.data)


async def linger(_: Incoming) -> None:
    await asyncio.Event().wait()


def head(*, within: float | None = None) -> Head:
    return Head(path="/test.Service/Method", deadline=None if within is None else CLOCK.time() + within)


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """RFC 9113, section 4.1."""
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def headers(path: bytes) -> bytes:
    """A HEADERS frame for stream 1, every field a literal without indexing (RFC 7541, section 6.2.2)."""
    fields = (
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", path),
        (b":authority", b"test"),
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
        (b"grpc-accept-encoding", b"identity,gzip"),
    )
    block = b"".join(b"\0" + bytes([len(key)]) + key + bytes([len(value)]) + value for key, value in fields)
    return frame(1, 0x4, 1, block)


@contextlib.asynccontextmanager
async def connected(address: str, *frames: bytes) -> AsyncIterator[asyncio.StreamReader]:
    """Connect by hand, send the preface, SETTINGS and ``frames``; yield what is answered."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(PREFACE + frame(4, 0, 0, b"") + b"".join(frames))
        await writer.drain()
        yield reader
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def data_frame(reader: asyncio.StreamReader) -> bytes:
    """Return the payload of the first DATA frame."""
    while True:
        start = await reader.readexactly(9)
        payload = await reader.readexactly(int.from_bytes(start[:3], "big"))
        if start[3] == 0:
            return payload
