"""The ground that the wire's conformance cases stand on: two ends of a wire, joined for one case and closed after it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Protocol, TypeAlias, TypeVar

from servicekit.clock import Clock
from servicekit.errors import Code, Error
from servicekit.method import Kind
from servicekit.wire import END, Head, Incoming, Listener, Route, Serve, Status, Stream, Wire

T = TypeVar("T")

Routes: TypeAlias = Route | Mapping[str, Route] | Callable[[str], Route]
"""One route for every path, a route for some, or the function that a listener asks."""

OK = Status()
PATH = "/test.Service/Method"


class WireFactory(Protocol):
    """What the author of a wire supplies: how to make its ends, and how time passes for it."""

    @property
    def clock(self) -> Clock:
        """The clock that the wire was given."""

    @property
    def address(self) -> str:
        """What a listener binds to get a free address of its own."""

    def listener(self) -> Listener:
        """Return a new listener, bound to nothing."""

    def wire(self, address: str) -> Wire:
        """Return a new client's end for what ``Listener.bind`` returned; nobody need be there yet."""

    async def pass_time(self, seconds: float) -> None:
        """Let ``seconds`` pass on the clock (move it, or really wait), and all happen that follows from it."""


class Pair:
    """A server and its clients over the wire under test. ``close`` ends all that was made here."""

    def __init__(self, factory: WireFactory) -> None:
        """Make nothing yet."""
        self.factory = factory
        self.clock = factory.clock
        self.listeners: list[Listener] = []
        self.wires: list[Wire] = []
        self.address = ""

    def listener(self) -> Listener:
        """Return a new listener, bound to nothing."""
        listener = self.factory.listener()
        self.listeners.append(listener)
        return listener

    async def serve(self, routes: Routes, address: str | None = None) -> Listener:
        """Start a listener, on an address of its own by default, which is ``self.address`` then."""
        listener = self.listener()
        self.address = listener.bind(self.factory.address if address is None else address)
        await listener.start(_routing(routes))
        return listener

    def wire(self, address: str | None = None) -> Wire:
        """Return a client's end for ``address``, the last listener's by default."""
        wire = self.factory.wire(self.address if address is None else address)
        self.wires.append(wire)
        return wire

    async def connect(self, routes: Routes) -> Wire:
        """Serve, and return a client's end of it."""
        await self.serve(routes)
        return self.wire()

    async def nobody(self) -> str:
        """Return an address where nobody listens (any more)."""
        listener = await self.serve({})
        await listener.stop(0)
        return self.address

    async def pass_time(self, seconds: float) -> None:
        """Let ``seconds`` pass for the wire, and all happen that follows from it."""
        await self.factory.pass_time(seconds)

    async def during(self, seconds: float, work: Coroutine[object, object, T]) -> T:
        """Let ``seconds`` pass while ``work`` runs; return its result, which may come later."""
        task = asyncio.create_task(work)
        try:
            await self.pass_time(seconds)
            return await task
        finally:
            await quit_task(task)

    async def quiet(self, progress: Callable[[], object]) -> None:
        """Return once ``progress()`` has stood still for a while: what is going on waits for something."""
        seen, now = object(), progress()
        while seen != now:
            await self.pass_time(0.1)
            seen, now = now, progress()

    def within(self, seconds: float) -> float:
        """Return the deadline that is ``seconds`` from now."""
        return self.clock.time() + seconds

    async def close(self) -> None:
        """End everything at once."""
        for wire in self.wires:
            await wire.close(0)
        for listener in self.listeners:
            await listener.stop(0)


Case: TypeAlias = Callable[[Pair], Coroutine[object, object, None]]


class Watched:
    """A ``Serve`` that lets a case see what becomes of it, one RPC at a time."""

    def __init__(self, work: Serve) -> None:
        """Do as ``work`` does."""
        self._work = work
        self.incoming: Incoming | None = None
        self.calls = 0
        self.ends = 0
        self.started = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.left = asyncio.Event()
        self.ended = asyncio.Event()

    async def __call__(self, incoming: Incoming) -> None:
        """Serve one RPC."""
        self.calls += 1
        self.incoming = incoming
        incoming.on_end(self._end)
        self.started.set()
        try:
            await self._work(incoming)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        finally:
            self.left.set()

    def _end(self) -> None:
        self.ends += 1
        self.ended.set()


async def echo(incoming: Incoming) -> None:
    """Answer each message with itself, for every kind: a unary one at ``finish``, the others as they come."""
    if incoming.data is not None:
        await incoming.finish(OK, incoming.data)
        return
    while (message := await incoming.receive()) is not END:
        await incoming.send(message)
    await incoming.finish(OK)


async def linger(_: Incoming) -> None:
    """Never answer."""
    await asyncio.Event().wait()


def unary(serve: Serve) -> Route:
    """Return the route of a unary method."""
    return Route(kind=Kind.UNARY, serve=serve)


def upload(serve: Serve) -> Route:
    """Return the route of a client-streaming method."""
    return Route(kind=Kind.CLIENT_STREAM, serve=serve)


def download(serve: Serve) -> Route:
    """Return the route of a server-streaming method."""
    return Route(kind=Kind.SERVER_STREAM, serve=serve)


def bidi(serve: Serve) -> Route:
    """Return the route of a method with streams both ways."""
    return Route(kind=Kind.BIDI_STREAM, serve=serve)


def head(path: str = PATH, *, deadline: float | None = None, wait_for_ready: bool | None = None) -> Head:
    """Return the head of an RPC."""
    return Head(path=path, deadline=deadline, wait_for_ready=wait_for_ready)


async def drain(stream: Stream) -> list[bytes]:
    """Return all messages up to END."""
    messages: list[bytes] = []
    while (message := await stream.receive()) is not END:
        messages.append(message)
    return messages


async def refused(work: Coroutine[object, object, object]) -> Error:
    """Return the Error that ``work`` raises."""
    try:
        result = await work
    except Error as error:
        return error
    raise AssertionError(f"expected an Error, not {result!r}")


async def quit_task(task: asyncio.Task[T]) -> None:
    """Cancel ``task`` and return when it is over, however it went."""
    task.cancel()
    await asyncio.wait([task])


async def settled(task: asyncio.Task[T]) -> bool:
    """Cancel ``task``, wait for its end, and return whether the cancellation is what ended it."""
    await quit_task(task)
    return task.cancelled()


def _routing(routes: Routes) -> Callable[[str], Route]:
    if isinstance(routes, Route):
        return lambda _: routes
    if isinstance(routes, Mapping):
        return lambda path: routes.get(path, _UNKNOWN)
    return routes


async def _unknown(incoming: Incoming) -> None:
    await incoming.finish(Status(code=Code.UNIMPLEMENTED, message="unknown method"))


_UNKNOWN = unary(_unknown)
