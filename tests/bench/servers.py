"""The servers under test, one process each: ``python -m tests.bench.servers NAME LOOP CORE``."""

from __future__ import annotations

import asyncio
import importlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import grpc

from servicekit import Server, Telemetry, standard
from servicekit.middleware import LoadShedding, RateLimit
from servicekit.native.tls import Certificates, TlsCredentials
from servicekit.testing.v1.echo_pb2_grpc import add_EchoServiceServicer_to_server
from tests.security.certificates import Authority

from .echo import EchoServicer, add_many
from .peers import grpc_go, pygrpc_native
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


def native(credentials: TlsCredentials | None = None) -> grpc.aio.Server:
    """Return a server of ours without middleware over the native wire."""
    return _echo(_server([], wire="native", credentials=credentials))


def native_tls() -> grpc.aio.Server:
    """Return the same with TLS."""
    signed = Authority().sign()
    return native(TlsCredentials(certificates=Certificates(key=signed.key, chain=signed.certificate)))


def pygrpc() -> grpc.aio.Server:
    """Return pygrpc-native's server with generated code and nothing else."""
    sys.path.append(str(pygrpc_native().path))
    aio: Any = importlib.import_module("pygrpc_native.aio")
    server: grpc.aio.Server = aio.server()
    return _echo(server)


def kit_standard(*, wire: str = "grpcio", limited: bool = False) -> grpc.aio.Server:
    """Return a server of ours with what it stands with by default, logging to /dev/null; ``limited`` also by peer."""
    stream = Path("/dev/null").open("wb")  # noqa: SIM115 - open as long as the process runs
    links = standard(Telemetry(log="json", stream=stream))
    if limited:
        shedding = next(at for at, link in enumerate(links) if isinstance(link, LoadShedding))
        links.insert(shedding + 1, RateLimit(per_second=1e6))
        # Its estimate of what the server can do is not what is measured here: nothing is to be refused.
        links[shedding] = LoadShedding(initial=10_000, least=10_000, most=10_000, lag=60.0)
    return _echo(_server(links, wire=wire))


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
    "native-tls": native_tls,
    "native-full": lambda: kit_standard(wire="native", limited=True),
    "kit-full": lambda: kit_standard(limited=True),
    "bare-tls": bare,
    "pygrpc-native": pygrpc,
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


def _server(middleware: list[Middleware], *, wire: str = "grpcio", credentials: TlsCredentials | None = None) -> Server:
    return Server(
        "127.0.0.1:0", middleware=middleware, telemetry=Telemetry(log=None), wire=wire, credentials=credentials
    )


def _echo(server: grpc.aio.Server) -> grpc.aio.Server:
    add_EchoServiceServicer_to_server(EchoServicer(), server)
    return server


async def serve(name: str) -> None:
    """Serve until nobody asks any more; every answer tells the port, and how much memory is in use."""
    server = SERVERS[name]()
    if isinstance(server, Server):
        await server.start()
        port = int(server.addresses[0].rpartition(":")[2])
    else:
        if name == "bare-tls":
            signed = Authority().sign()
            credentials = grpc.ssl_server_credentials([(signed.key, signed.certificate)])
            port = server.add_secure_port("127.0.0.1:0", credentials)
        else:
            port = server.add_insecure_port("127.0.0.1:0")
        await server.start()

    async def tell(_: dict[str, Any]) -> dict[str, Any]:
        return {"port": port, "resident": _resident()}

    await answer(tell)
    await server.stop(0)


async def serve_go() -> None:
    """Let grpc-go serve in a process of its own, whose CPU is told in place of this one's."""
    program = grpc_go().path
    assert program is not None
    process = await asyncio.create_subprocess_exec(
        program, "serve", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    port = int(await process.stdout.readline())

    async def tell(_: dict[str, Any]) -> dict[str, Any]:
        return {"port": port, "cpu": _used_by(process.pid)}

    await answer(tell)
    process.stdin.close()
    await process.wait()


def _used_by(process: int) -> float:
    """Return the seconds of CPU that another process has used, to 10 ms."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # proc(5): the 14th and 15th of all


def _resident() -> int:
    """Return the bytes of memory that this process has resident; 0 where the system does not tell in this way."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.exists() else 0


if __name__ == "__main__":
    run(
        serve_go() if sys.argv[1] == "grpc-go" else serve(sys.argv[1]),
        loop=sys.argv[2],
        core=int(sys.argv[3]) if sys.argv[3] != "any" else None,
    )
