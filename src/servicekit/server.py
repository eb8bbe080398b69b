"""The server: a chain around every method, over a wire, with health, reflection, signals and a clean end."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any, Self

from .checked import check, check_credentials, in_a_loop
from .clock import SystemClock
from .endpoint import chain, shown
from .errors import Code, Error
from .explain import explained
from .mapping import ErrorMapping
from .middleware import Recovery, standard
from .process import signals
from .process.drain import Drain, Exit
from .process.grace import Grace
from .telemetry import Telemetry
from .transport import otel
from .transport.health import Health
from .transport.host import Host
from .transport.methods import AUXILIARY
from .transport.router import Router
from .transport.shared import Serving
from .wires import listener_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Coroutine, Mapping, Sequence
    from concurrent.futures import Executor
    from types import TracebackType

    import grpc

    from .clock import Clock
    from .endpoint import Middleware
    from .mapping import Rule
    from .native.tls import TlsCredentials
    from .wire import Listener


FORCED = 1.0
"""Seconds that servicers have to end once everything was cancelled: none of them holds up the end of a drain."""

COME_BACK = 0.1
"""Seconds after which a client of a call that was abandoned may ask again: another instance, or what takes this one's place."""


class Server(Host):
    """A gRPC server. Give it to the generated ``add_…Servicer_to_server``, then ``await server.run()``.

    ``address`` is "host:port", "unix:path" or several of them; port 0 takes a free one (see ``addresses``).
    ``middleware``, outermost first, is the whole chain of every method; None means ``standard(telemetry)``. ``errors``
    says which exceptions of the business mean which code, to a ``Recovery`` of the chain without rules of its own too.
    ``credentials`` are those of the wire: grpcio's server credentials, or ``TlsCredentials`` for the native one.
    ``interceptors`` are grpc.aio ones: they run inside the chain, on every call. ``options`` and ``compression`` are
    grpcio's, ``threads`` is where plain functions run. ``wire`` is "grpcio" or "native" (HTTP/2 of our own, at a
    fraction of the cost), or a Listener to serve over.

    Nothing is bound before ``start``, ``run`` or ``async with``. Must be made where an event loop runs.
    """

    def __init__(  # noqa: PLR0913 - keywords with defaults, each of them asked for by somebody who runs grpc.aio now
        self,
        address: str | Sequence[str] = (),
        *,
        middleware: Sequence[Middleware] | None = None,
        errors: Mapping[type[Exception], Rule] | None = None,
        telemetry: Telemetry | None = None,
        drain: Drain | None = None,
        credentials: grpc.ServerCredentials | TlsCredentials | None = None,
        interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
        options: Sequence[tuple[str, Any]] = (),
        compression: grpc.Compression | None = None,
        threads: Executor | None = None,
        health: bool = True,
        reflection: bool = True,
        wire: str | Listener = "grpcio",
        clock: Clock | None = None,
    ) -> None:
        """Compose the server. Raises TypeError or ValueError for a setting that cannot work, naming it."""
        check(
            address=address,
            middleware=middleware,
            telemetry=telemetry,
            drain=drain,
            server_credentials=credentials,
            interceptors=interceptors,
            options=options,
            compression=compression,
            threads=threads,
            health=health,
            reflection=reflection,
            listener=wire,
            clock=clock,
        )
        in_a_loop("Server(…)")
        check_credentials(wire, credentials)
        telemetry = telemetry if telemetry is not None else Telemetry()
        self._log = telemetry.logger
        self._clock = clock if clock is not None else SystemClock()
        self._times = drain if drain is not None else Drain()
        mapping = ErrorMapping(errors)
        links = chain(*(standard(telemetry) if middleware is None else middleware))
        if errors:
            links = chain(*(Recovery(mapping) if _without_rules(link) else link for link in links.links))
        links, interceptors = otel.on_server(links, interceptors)
        listener = listener_of(wire, options=options, compression=compression, clock=self._clock, log=self._log)
        largest = getattr(listener, "largest", sys.maxsize)
        self._serving = Serving(links=links, errors=mapping, clock=self._clock, largest=largest)
        super().__init__(Router(self._serving, interceptors=interceptors, threads=threads), listener)
        self._credentials = credentials
        self._wire = wire if isinstance(wire, str) else type(wire).__name__
        self._wanted = [address] if isinstance(address, str) else list(address)
        self._reflection = reflection
        self._started = False
        self._draining: asyncio.Task[Exit] | None = None
        self._grace: Grace | None = None
        self._over = asyncio.Event()
        self._left_servicers = False  # it has gone without some that do not end
        self.draining = self._serving.draining
        """Set when the server begins to go; ``current_call().draining`` for a servicer that streams for long."""
        self.health = Health(self) if health else None
        """The health service, to say of one service that it cannot serve; None when there is none."""

    @property
    def in_flight(self) -> int:
        """How many calls are under way; those about the server itself (health, reflection) are not counted."""
        return len(self._serving.in_flight)

    def explain(self) -> str:
        """Return the links around each method with their settings, outermost first, and what holds without a link.

        For people to read: methods with the same links share a block. Services that are added later are not in it;
        reflection is added by ``start``.
        """
        times = self._times
        notes = [
            "a call is in flight until the wire says that it has ended",
            f"what is no Error when it leaves the chain becomes one, by {self._serving.errors!r}",
            "calls made while serving inherit what is left of the deadline, less a reserve",
            "health and reflection (the server's own) are in no limit on load or time",
            f"at its end: {times.delay} s more of serving, {times.grace} s for calls to finish, {times.flush} s to flush",
        ]
        return explained(f"Server on {', '.join(self.addresses or self._wanted)}", self._router.explain(), notes)

    async def start(self) -> None:
        """Bind and serve. Raises BindError, naming the address, when it is taken.

        Raises RuntimeError the second time, and when the server was stopped before.
        """
        if self._started or self._draining is not None:
            msg = "a server starts once"
            raise RuntimeError(msg)
        self._started = True
        try:
            await self._begin()
        except BaseException:
            await self._listener.stop(0.0)  # what was bound before it failed is free again
            raise

    async def _begin(self) -> None:
        services = self._router.services
        if self._reflection:
            from .transport import reflection  # noqa: PLC0415 - 100 ms of import that a mere client never needs

            reflection.enable(services, self)
        for address in self._wanted:
            self.listen(address, self._credentials)
        if not self.addresses:
            msg = "the server has no address to listen on"
            raise ValueError(msg)
        await self._listener.start(self._router.route)
        if self.health is not None:
            await self.health.serving(services)
        for path, link in self._router.strays():
            self._log.warning(
                "a link stands around no method: none of this server's has its path", path=path, link=shown(link)
            )
        own = [service for service in services if service not in AUXILIARY]
        self._log.info("serving", wire=self._wire, addresses=list(self.addresses), services=own)

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT, then drain and return.

        Raises SystemExit: 1 when the server could not start or go on, 3 when calls had to be abandoned. A second
        signal n ends the process at once with 128 + n. Where servicers are left that do not end, also those of calls
        whose clients had gone before, it ends within 5 s, with the same code: 0 where no call was abandoned. Whatever
        else ends this, a cancellation for one, drains the server too.
        """
        await signals.run(self, self._log, self._held_up)

    def _held_up(self) -> bool:
        return self._left_servicers or bool(self._serving.in_flight.in_threads)

    async def drain(self) -> Exit:
        """Go: say so in health, serve on for a moment, accept nothing new, let calls finish, end what is left.

        Idempotent: every caller gets the same answer. A caller that is cancelled does not stop it.
        """
        if self._draining is None:
            self._draining = self._begin_to_go(self._times.delay, self._times.grace)
        return await asyncio.shield(self._draining)

    async def stop(self, grace: float | None) -> None:
        """Go without a delay, as grpc.aio's ``stop`` does; calls under way have ``grace`` seconds.

        A server that goes already does so sooner, where this is less than what it has left. One that never started
        lets go of the ports that it has bound.
        """
        if self._draining is None:
            self._draining = self._begin_to_go(0.0, grace or 0.0)
        if self._grace is not None:
            self._grace.shorten(grace or 0.0)
        await asyncio.shield(self._draining)

    def _begin_to_go(self, delay: float, grace: float) -> asyncio.Task[Exit]:
        self._grace = Grace(self._clock, delay=delay, grace=grace)
        return asyncio.ensure_future(self._go(self._grace))

    async def _go(self, grace: Grace) -> Exit:
        flush, in_flight = self._times.flush, self._serving.in_flight
        self.draining.set()
        if self.health is not None:
            await self.health.draining()
        await grace.delay()
        going = Error(Code.UNAVAILABLE, "the server is shutting down", retry_after=COME_BACK)
        in_flight.end_auxiliary(going)
        stopping = asyncio.ensure_future(self._listener.stop(grace.left + flush))
        abandoned, over = 0, False
        while True:
            if not await _before(grace.over(), self._idle()):
                over, abandoned = True, len(in_flight)
                in_flight.end(going)
            flushed = await self._within(flush, asyncio.shield(stopping))
            if flushed or over or not self._busy():
                break  # else a client that did not know yet has called meanwhile: its call has the grace as well
        if not flushed and not await self._within(FORCED, self._listener.stop(0.0)):
            self._log.warning("going without servicers that do not end when they are cancelled")
            self._left_servicers = True
            stopping.cancel()
        await asyncio.wait([stopping])
        if in_flight.in_threads:
            self._log.warning("going without plain functions that still run", threads=len(in_flight.in_threads))
        grace.close()
        self._over.set()
        self._log.info("stopped", abandoned=abandoned)
        return Exit.ABANDONED if abandoned else Exit.DRAINED

    def _busy(self) -> bool:
        return bool(self._serving.in_flight) or bool(getattr(self._listener, "busy", False))

    async def _idle(self) -> None:
        """Return once no call is under way, nor on its way in, as far as the wire tells."""
        while self._busy():
            await self._serving.in_flight.idle()
            if hasattr(self._listener, "busy"):
                await self._listener.idle()  # type: ignore[attr-defined]  # who has one has both

    async def _within(self, seconds: float, work: Awaitable[object]) -> bool:
        """Return whether ``work`` was done within ``seconds`` of the server's clock; it is cancelled if not."""
        return await _before(self._clock.sleep(seconds), work)

    async def wait_for_termination(self, timeout: float | None = None) -> bool:
        """Return False once the server has stopped, or True when ``timeout`` seconds have passed before."""
        if timeout is None:
            await self._over.wait()
            return False
        return not await self._within(timeout, self._over.wait())

    async def failed(self) -> BaseException:
        """Return why the server can no longer serve, when that happens; wait for ever while it can."""
        return await self._listener.failed()

    async def __aenter__(self) -> Self:
        """Start."""
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop; calls under way have the grace of ``drain`` to finish, without its delay."""
        await self.stop(self._times.grace)

    def __repr__(self) -> str:
        """Return where it listens and what stands around its methods."""
        return f"<Server on {', '.join(self.addresses or self._wanted)} through {self._serving.links!r}>"


def _without_rules(link: Middleware) -> bool:
    return type(link) is Recovery and not link.errors.rules  # a subclass may do otherwise


async def _before(end: Coroutine[Any, Any, None], work: Awaitable[object]) -> bool:
    """Return whether ``work`` was done before ``end``; what is not is cancelled."""
    task, passing = asyncio.ensure_future(work), asyncio.ensure_future(end)
    try:
        await asyncio.wait([task, passing], return_when=asyncio.FIRST_COMPLETED)
        return task.done()
    finally:
        passing.cancel()
        task.cancel()
