"""The server's end in memory."""

from __future__ import annotations

import asyncio
import contextvars
import functools
from collections.abc import Callable

from servicekit.clock import Clock
from servicekit.errors import By, Code
from servicekit.metadata import Pairs
from servicekit.wire import END, Ended, Received, Route, Security, Status

from .addresses import Addresses
from .exchange import Exchange
from .flight import Flight


class MemoryIncoming:
    """One RPC, seen by the server (``wire.Incoming``)."""

    __slots__ = ("_exchange", "data", "head")

    def __init__(self, exchange: Exchange, data: bytes | None) -> None:
        """Serve ``exchange``, of which ``data`` is already read."""
        self._exchange = exchange
        self.head = exchange.head
        self.data = data

    async def receive(self) -> Received:
        """Return the next request message, or END. Raises Ended when the RPC broke, so that it never looks complete."""
        return await self._exchange.request()

    def send_headers(self, metadata: Pairs) -> None:
        """Send the initial metadata."""
        self._exchange.send_headers(metadata)

    async def send(self, data: bytes) -> None:
        """Send one response message; returns when there was room."""
        await self._exchange.answer(data)

    async def finish(self, status: Status, data: bytes | None = None) -> None:
        """End the RPC; the first one counts."""
        self._exchange.finish(status, data)

    def on_end(self, callback: Callable[[], None]) -> None:
        """Run ``callback`` once when the RPC is over."""
        self._exchange.on_end(callback)

    def security(self) -> Security:
        """Return nothing: there is nobody between the two ends."""
        return Security()

    def compress(self, encoding: str | None) -> None:
        """Do nothing: there are no bytes to save."""

    def __repr__(self) -> str:
        """Return the path and the peer."""
        return f"<MemoryIncoming {self.head.path} from {self.head.peer}>"


class MemoryListener:
    """What listens on names of a network (``wire.Listener``), and owns the task that serves each RPC."""

    def __init__(self, addresses: Addresses, clock: Clock) -> None:
        """Listen on nothing yet."""
        self._addresses = addresses
        self._flight = Flight(clock)
        self._bound: list[str] = []
        self._route: Callable[[str], Route] | None = None
        self._stopped = False
        self._context = contextvars.Context()

    def bind(self, address: str, credentials: object = None) -> str:  # noqa: ARG002 - nothing to encrypt
        """Claim ``address`` and return it. Raises BindError when it is taken, RuntimeError after ``stop``."""
        if self._stopped:
            raise RuntimeError(f"cannot listen on {address!r}: the listener was stopped")
        bound = self._addresses.claim(address)
        self._bound.append(bound)
        if self._route is not None:
            self._addresses.open(bound, functools.partial(self._accept, bound))
        return bound

    async def start(self, route: Callable[[str], Route]) -> None:
        """Begin to serve. Raises RuntimeError when that was done before."""
        if self._stopped or self._route is not None:
            raise RuntimeError("a listener is started once")
        self._route = route
        # Who starts the server is the context of what it serves. The client's own must not leak in with its call.
        self._context = contextvars.copy_context()
        for address in self._bound:
            self._addresses.open(address, functools.partial(self._accept, address))

    async def stop(self, grace: float) -> None:
        """Free the names, let RPCs in flight finish for ``grace`` seconds, cancel the rest; return when all is over."""
        self._stopped = True
        for address in self._bound:
            self._addresses.release(address)
        self._bound.clear()
        await self._flight.land(grace, _cut)

    async def failed(self) -> BaseException:
        """Wait for ever: nothing here can break."""
        never: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()
        return await never

    def _accept(self, address: str, exchange: Exchange) -> None:
        exchange.peer = f"memory:{address}"
        task = asyncio.get_running_loop().create_task(
            self._serve(exchange), name=f"serve {exchange.head.path}", context=self._context.copy()
        )
        exchange.served_by(task)
        self._flight.add(exchange)
        task.add_done_callback(functools.partial(self._left, exchange))

    async def _serve(self, exchange: Exchange) -> None:
        assert self._route is not None  # noqa: S101 - nothing is accepted before
        route = self._route(exchange.head.path)
        data = None
        if not route.kind.request_streaming:
            message = await exchange.request()
            if message is END or await exchange.request() is not END:
                # doc/statuscodes.md of gRPC: "Request cardinality violation"
                count = "no" if message is END else "too many"
                exchange.finish(Status(code=Code.UNIMPLEMENTED, message=f"{count} messages for a unary request"))
                return
            data = message
        exchange.begun = True
        await route.serve(MemoryIncoming(exchange, data))

    def _left(self, exchange: Exchange, task: asyncio.Task[None]) -> None:
        # However serve ended: returned, raised, cancelled by the RPC's end, or with a CancelledError out of nowhere.
        exchange.finish(Status(code=Code.INTERNAL, message="internal error"))
        self._flight.discard(exchange)
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, Ended):
            task.get_loop().call_exception_handler(
                {"message": f"serving {exchange.head.path} failed", "exception": error, "task": task}
            )

    def __repr__(self) -> str:
        """Return the names and how many RPCs are in flight."""
        return f"<MemoryListener on {', '.join(self._bound) or 'nothing'}, {len(self._flight)} in flight>"


def _cut(exchange: Exchange) -> None:
    if exchange.over:  # its task was told before, or need not have been: now it is
        exchange.stop_serving()
    else:
        exchange.fail(Code.UNAVAILABLE, "the server is shutting down", By.PEER)
