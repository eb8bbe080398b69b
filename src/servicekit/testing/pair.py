"""A real server and a real channel in one ``async with``, over memory or over a socket.

Over memory both ends and every link share a clock that stands still until the test moves it, so hours of deadlines and
back-off take no time and always go the same way::

    async with pair(lambda server: add_EchoServiceServicer_to_server(Echo(), server)) as ends:
        reply = await EchoServiceStub(ends.channel).Echo(EchoRequest(text="hello"))
        await ends.clock.advance(30.0)

Over "socket" it is grpcio on a free port of the loopback interface, in real time; over "native" the server is the
native one, called by a grpcio client.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from servicekit.client import connect
from servicekit.clock import MovableClock
from servicekit.memory import MemoryNetwork
from servicekit.process.drain import Drain
from servicekit.server import Server
from servicekit.telemetry import Telemetry

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from servicekit.endpoint import Middleware
    from servicekit.transport.channel import Channel

ALONE = (("grpc.use_local_subchannel_pool", 1),)
"""Core shares connections, and what it knows of them, among all channels of a process. A port that the system gives out
again would be believed to refuse its clients, for as long as a channel to the server that had it before is there."""

Over: TypeAlias = Literal["memory", "socket", "native"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A server that serves, and a channel to it."""

    server: Server
    channel: Channel
    over: Over
    network: MemoryNetwork | None
    movable: MovableClock | None

    @property
    def clock(self) -> MovableClock:
        """The clock of both ends. Raises RuntimeError over a socket, whose time nobody can move."""
        if self.movable is None:
            msg = "over a socket time is real: only over memory can a test move it"
            raise RuntimeError(msg)
        return self.movable

    def connect(self, *middleware: Middleware, **settings: Any) -> Channel:  # noqa: ANN401 - what connect() takes
        """Return one more channel to the same server; the caller closes it."""
        address = self.server.addresses[0]
        if self.network is not None:
            settings.update(wire=self.network.wire(address), clock=self.movable)
        else:
            settings["options"] = [*ALONE, *settings.get("options", ())]
        return connect(address, middleware=middleware, **settings)


@contextlib.asynccontextmanager
async def pair(
    *register: Callable[[Server], object],
    over: Over = "memory",
    middleware: Sequence[Middleware] = (),
    client: Sequence[Middleware] = (),
    clock: MovableClock | None = None,
    network: MemoryNetwork | None = None,
    **server: Any,  # noqa: ANN401 - what Server takes
) -> AsyncIterator[Pair]:
    """Serve what each of ``register`` adds to the server, until the block ends; calls under way are then ended.

    ``middleware`` stands around every method, ``client`` around every call of the channel; both are empty unless
    given. Other settings go to ``Server`` as they are. Several pairs that call each other share ``network``, and with
    it the clock. Raises ValueError for an ``over`` that is neither, and for a
    network on another clock.
    """
    if over not in {"memory", "socket", "native"}:
        msg = f"over={over!r} is none of 'memory', 'socket', 'native'"
        raise ValueError(msg)
    movable = None
    settings: dict[str, Any] = {"telemetry": Telemetry(log=None), "drain": Drain(delay=0.0, grace=0.0), **server}
    address = "127.0.0.1:0"
    if over == "memory":
        if clock is None and network is not None and isinstance(network.clock, MovableClock):
            clock = network.clock
        movable = clock if clock is not None else MovableClock()
        network = network if network is not None else MemoryNetwork(movable)
        if network.clock is not movable:
            msg = f"network runs on {network.clock!r}, not on {movable!r}: over memory both ends share a movable clock"
            raise ValueError(msg)
        settings.update(wire=network.listener(), clock=movable)
        address = "server:0"
    elif over == "native":
        settings.setdefault("wire", "native")
    serving = Server(address, middleware=middleware, **settings)
    for add in register:
        add(serving)
    await serving.start()
    ends: Pair | None = None
    try:
        wire: dict[str, Any] = {"options": ALONE}
        if network is not None:
            wire = {"wire": network.wire(serving.addresses[0]), "clock": movable}
        channel = connect(serving.addresses[0], middleware=client, **wire)
        ends = Pair(server=serving, channel=channel, over=over, network=network, movable=movable)
        yield ends
    finally:
        if ends is not None:
            await ends.channel.close()
        await _stopped(serving, movable)


async def _stopped(server: Server, clock: MovableClock | None) -> None:
    stopping = asyncio.ensure_future(server.stop(0.0))
    while clock is not None and not stopping.done():
        await clock.advance(1.0)  # what is left of the server waits for time that nobody else would let pass
    await stopping
