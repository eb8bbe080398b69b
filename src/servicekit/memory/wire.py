"""The client's end in memory."""

from __future__ import annotations

import asyncio

from servicekit.clock import Clock
from servicekit.errors import By, Code, Error
from servicekit.finalizer import leave_to
from servicekit.metadata import Pairs
from servicekit.wire import END, Head, Received, Reply, Status, error_of

from .addresses import Addresses
from .exchange import Exchange
from .flight import Flight
from .limits import Limits


class MemoryStream:
    """One RPC, seen by the client (``wire.Stream``). Whoever drops it without reading to its end has cancelled it."""

    __slots__ = ("_exchange", "_loop")

    def __init__(self, exchange: Exchange) -> None:
        """Be the only client of ``exchange``."""
        self._exchange = exchange
        self._loop = asyncio.get_running_loop()

    async def send(self, data: bytes) -> None:
        """Send one message; returns when there was room. Raises RuntimeError after ``half_close``."""
        await self._exchange.ask(data)

    async def half_close(self) -> None:
        """Say that no more messages will be sent."""
        self._exchange.half_close()

    async def receive(self) -> Received:
        """Return the next message, or END."""
        return await self._exchange.response()

    async def headers(self) -> Pairs:
        """Return the initial metadata."""
        return await self._exchange.response_headers()

    async def ended(self) -> Status:
        """Return how the RPC ended."""
        return await self._exchange.status()

    @property
    def peer(self) -> str:
        """The server's address, once there is a server."""
        return self._exchange.peer

    def cancel(self) -> None:
        """End the RPC from this side."""
        self._exchange.fail(Code.CANCELLED, "cancelled by the caller", By.CALLER)

    def __del__(self) -> None:
        """Cancel what nobody can read any more."""
        # Nothing that the server holds refers to the stream, so this runs as soon as the client lets go.
        if not self._exchange.settled:
            leave_to(self._loop, self._exchange.fail, Code.CANCELLED, "dropped by the caller", By.CALLER)

    def __repr__(self) -> str:
        """Return the path, the peer and whether it is over."""
        over = "over" if self._exchange.settled else "open"
        return f"<MemoryStream {self._exchange.head.path} to {self.peer or 'nobody yet'}, {over}>"


class MemoryWire:
    """The client's end of one address (``wire.Wire``). It may be made before anybody listens there."""

    def __init__(self, address: str, *, peer: str, addresses: Addresses, clock: Clock, limits: Limits) -> None:
        """Send to ``address``; servers see ``peer``."""
        self._address = address
        self._peer = peer
        self._addresses = addresses
        self._clock = clock
        self._limits = limits
        self._flight = Flight(clock)
        self._closed = False

    async def unary(self, head: Head, data: bytes) -> Reply:
        """Make one unary RPC. Raises Error for any status but OK, and for an OK without exactly one message."""
        stream = self.open(head, data)
        try:
            message = await stream.receive()
            more = message is not END and await stream.receive() is not END
            if more:
                stream.cancel()
            status = await stream.ended()
        finally:
            stream.cancel()
        headers = await stream.headers()
        if more or (message is END and status.code is Code.OK):
            count = "more than one response" if more else "no response"
            raise Error(Code.UNIMPLEMENTED, f"{count} to a unary request", headers=headers, trailers=status.trailers)
        if message is END or status.code is not Code.OK:
            raise error_of(status, headers)
        return Reply(data=message, headers=headers, trailers=status.trailers, peer=stream.peer)

    def open(self, head: Head, data: bytes | None) -> MemoryStream:
        """Begin an RPC and return at once."""
        exchange = Exchange(
            Head(path=head.path, metadata=tuple(head.metadata), peer=self._peer, deadline=head.deadline),
            clock=self._clock,
            limits=self._limits,
            on_settled=self._settled,
        )
        stream = MemoryStream(exchange)
        if self._closed:
            exchange.fail(Code.UNAVAILABLE, f"the wire to {self._address!r} is closed")
        if exchange.settled:
            return stream
        self._flight.add(exchange)
        if data is not None:
            exchange.ask_once(data)
        if not exchange.settled:
            self._addresses.deliver(self._address, exchange, wait=bool(head.wait_for_ready))
        return stream

    async def close(self, grace: float) -> None:
        """Let RPCs in flight finish for ``grace`` seconds, and end the rest."""
        self._closed = True
        await self._flight.land(grace, _cut)

    def _settled(self, exchange: Exchange) -> None:
        self._flight.discard(exchange)
        self._addresses.forget(self._address, exchange)

    def __repr__(self) -> str:
        """Return the address and how many RPCs are in flight."""
        closed = ", closed" if self._closed else ""
        return f"<MemoryWire to {self._address}, {len(self._flight)} in flight{closed}>"


def _cut(exchange: Exchange) -> None:
    exchange.fail(Code.CANCELLED, "the wire was closed")
