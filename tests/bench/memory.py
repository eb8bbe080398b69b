"""What a connection and an open call keep in memory: the growth of the server's resident memory, by their number."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING, Final

from servicekit.http2.connection import Connection, Role
from servicekit.http2.limits import CLIENT

from .echo import CHAT
from .stats import estimate
from .worker import Worker

if TYPE_CHECKING:
    from collections.abc import Iterator

FIRST: Final = 100
"""So many come before it is measured: what the first ones bring with them is the server's, and not theirs."""

MORE: Final = 400
KIB: Final = 1024

LIMITS: Final = {"an idle connection": 8, "an open call": 6}
"""What each may keep, in KiB."""

_FIELDS: Final = (
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":path", CHAT.encode()),
    (b":authority", b"localhost"),
    (b"content-type", b"application/grpc"),
    (b"te", b"trailers"),
)


async def grown(server: str, loop: str, core: int | None) -> tuple[float, float]:
    """Return how many bytes a server has more for each idle connection, and for each call that waits for its client."""
    async with Worker(f"{__package__}.servers", server, loop, "any" if core is None else str(core)) as worker:
        port: int = (await worker.ask())["port"]
        with contextlib.ExitStack() as sockets:

            async def resident(count: int, calls: int) -> int:
                for _ in range(count):
                    _connect(port, calls, sockets)
                await asyncio.sleep(0.5)  # there is no event for memory; what is measured is steady by then
                found: int = (await worker.ask())["resident"]
                return found

            before = await resident(FIRST, 0)
            idle = (await resident(MORE, 0) - before) / MORE
            each = 50  # calls over one connection, whose own memory is known by now
            before = await resident(2, each)
            calls = MORE * 4 // each
            growth = await resident(calls, each) - before
    return idle, (growth - idle * calls) / (calls * each)


def _connect(port: int, calls: int, sockets: contextlib.ExitStack) -> None:
    http2 = Connection(role=Role.CLIENT, limits=CLIENT, now=0.0)
    connected = sockets.enter_context(socket.create_connection(("127.0.0.1", port)))
    connected.sendall(b"".join(_taken(http2)))
    http2.receive(connected.recv(64 * KIB), 0.0)
    for _ in range(calls):
        http2.open(_FIELDS)
    connected.sendall(b"".join(_taken(http2)))


def _taken(http2: Connection) -> Iterator[bytes]:
    while octets := http2.take():
        yield octets


async def lines(rounds: int, loop: str, core: int | None) -> tuple[bool, list[str]]:
    """Return whether a limit is broken, as all limits are only with the whole interval, and what to print."""
    found = {server: [await grown(server, loop, core) for _ in range(rounds)] for server in ("bare", "native")}
    broken, printed = False, [f"Memory, what the server's resident memory grows by, {rounds} rounds:"]
    for place, (what, most) in enumerate(LIMITS.items()):
        bare, native = (estimate([pair[place] / KIB for pair in found[server]]) for server in ("bare", "native"))
        word = "BROKEN" if native.low > most else "in doubt" if native.median > most else "holds"
        broken |= native.low > most
        printed.append(
            f"{word:<9} wire='native', {what}: at most {most} KiB: {native.median:.1f} [{native.low:.1f},"
            f" {native.high:.1f}], grpc.aio {bare.median:.1f}"
        )
    return broken, printed
