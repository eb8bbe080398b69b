"""The servers under test, one process each: ``python -m tests.bench.servers NAME LOOP CORE``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import grpc

from servicekit import Server, Telemetry, standard
from servicekit.testing.v1.echo_pb2_grpc import add_EchoServiceServicer_to_server

from .echo import EchoServicer, add_many
from .worker import answer, run

if TYPE_CHECKING:
    from collections.abc import Callable

    from servicekit import Call, Endpoint, Message, Middleware


def bare() -> grpc.aio.Server:
    """Return grpc.aio with generated code and nothing else."""
    return _echo(grpc.aio.server())


def stock() -> grpc.aio.Server:
    """Return grpc.aio with the stock interceptors."""
    from .stock import stock_interceptors  # noqa: PLC0415 - the other servers shall not carry what this one imports

    return _echo(grpc.aio.server(interceptors=stock_interceptors()))


def kit(links: int) -> grpc.aio.Server:
    """Return a server of ours with ``links`` pass-through middleware."""
    return _echo(_server([_PassThrough() for _ in range(links)]))


def native() -> grpc.aio.Server:
    """Return a server of ours without middleware over the native wire."""
    return _echo(Server("127.0.0.1:0", middleware=[], telemetry=Telemetry(log=None), wire="native"))


def kit_standard() -> grpc.aio.Server:
    """Return a server of ours with what it stands with by default, logging to /dev/null."""
    stream = Path("/dev/null").open("wb")  # noqa: SIM115 - open as long as the process runs
    return _echo(_server(standard(Telemetry(log="json", stream=stream))))


def bare_many(count: int) -> grpc.aio.Server:
    """Return grpc.aio with a service of ``count`` methods."""
    server = grpc.aio.server()
    add_many(count, server)
    return server


def kit_many(count: int) -> grpc.aio.Server:
    """Return a server of ours with a service of ``count`` methods."""
    server = _server([])
    add_many(count, server)
    return server


SERVERS: Final[dict[str, Callable[[], grpc.aio.Server]]] = {
    "bare": bare,
    "stock": stock,
    "kit-0": lambda: kit(0),
    "native": native,
    "kit-1": lambda: kit(1),
    "kit-10": lambda: kit(10),
    "kit-standard": kit_standard,
    "bare-4": lambda: bare_many(4),
    "bare-200": lambda: bare_many(200),
    "kit-4": lambda: kit_many(4),
    "kit-200": lambda: kit_many(200),
}
"""How each server is made, by name."""


class _PassThrough:
    """The least that a middleware can do."""

    async def __call__(self, request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        return await next(request, call)


def _server(middleware: list[Middleware]) -> Server:
    return Server("127.0.0.1:0", middleware=middleware, telemetry=Telemetry(log=None))


def _echo(server: grpc.aio.Server) -> grpc.aio.Server:
    add_EchoServiceServicer_to_server(EchoServicer(), server)
    return server


async def serve(name: str) -> None:
    """Serve until nobody asks any more; every answer tells the port."""
    server = SERVERS[name]()
    if isinstance(server, Server):
        await server.start()
        port = int(server.addresses[0].rpartition(":")[2])
    else:
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()

    async def tell(_: dict[str, Any]) -> dict[str, Any]:
        return {"port": port}

    await answer(tell)
    await server.stop(0)


if __name__ == "__main__":
    run(serve(sys.argv[1]), loop=sys.argv[2], core=int(sys.argv[3]) if sys.argv[3] != "any" else None)
