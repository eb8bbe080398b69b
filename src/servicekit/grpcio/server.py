"""The server's end of the seam over servers of grpc core."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final

import grpc

from servicekit.call import Kind
from servicekit.errors import Code
from servicekit.wire import BindError, Incoming, Route, Status

from .core import CoreServer
from .handlers import handler_for
from .options import SERVER, Options, merged

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from servicekit.clock import Clock

    from .incoming import GrpcioIncoming

_LOGGER = logging.getLogger(__name__)

_PATHS: Final = 1024
_RETRY: Final = 0.001  # between two looks at whether the old server's port is free
_PATIENCE: Final = 1.0  # for it to become free, before that counts as the end


class GrpcioListener:
    """A Listener over grpc core.

    One generic handler serves all paths: grpc.aio waits for one future per registered method at every call. When a
    request kills core's server (``core`` tells how), another one takes its place on the same ports within
    milliseconds, while the RPCs in flight go on; ``restarts`` counts that and ``on_restart`` is told why.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        options: Options = (),
        compression: grpc.Compression | None = None,
        on_restart: Callable[[BaseException], None] | None = None,
    ) -> None:
        """Bind nothing yet. ``options`` are added to ``options.SERVER``, and win by name."""
        self.restarts = 0
        self._options = merged(SERVER, options)
        self._compression = compression
        self._on_restart = on_restart
        self._clock = clock
        self._serving: set[asyncio.Task[None]] = set()
        self._handlers = _Handlers(clock, self._serving, self._began)
        self._bound: list[tuple[str, Any]] = []
        self._core: CoreServer | None = None
        self._retired: set[CoreServer] = set()
        self._tasks: set[asyncio.Task[Any]] = set()  # they stop, replace and watch servers
        self._replacing: asyncio.Task[None] | None = None
        self._stopping = False
        self._in_flight = 0
        self._changed: asyncio.Future[None] | None = None  # resolved when nothing is in flight, or at a failure
        self._failure: BaseException | None = None

    def bind(self, address: str, credentials: object = None) -> str:
        """Listen on ``address``; port 0 is any that is free. Returns the address with its port. Raises BindError."""
        if self._core is None:
            self._core = self._make()
        given: Any = credentials
        bound = self._core.bind(address, given)
        self._bound.append((bound, given))
        return bound

    async def start(self, route: Callable[[str], Route]) -> None:
        """Begin to serve what ``route`` says."""
        self._handlers.route = route
        if self._core is None:
            self._core = self._make()
        await self._begin(self._core)

    async def stop(self, grace: float) -> None:
        """Accept nothing new, let RPCs in flight finish for ``grace`` seconds, cancel the rest; return when all is over.

        All is over when every handler has returned, which grpc.aio's own ``stop`` does not wait for.
        """
        self._stopping = True
        patience = self._clock.time() + grace
        if self._replacing is not None:
            await asyncio.wait([self._replacing])  # it notices within milliseconds, and may not be left half-done
        cores = [*self._retired] if self._core is None else [*self._retired, self._core]
        if cores:
            # In tasks of their own: grpc.aio's stop may not be cancelled, and this one may.
            await asyncio.wait([self._spawn(core.stop(grace)) for core in cores])
        if self._serving:  # RPCs that are over, but not for who served them
            await asyncio.wait(self._serving, timeout=max(0.0, patience - self._clock.time()))
        for task in self._serving:
            if not task.cancelling():  # once: what cleans up after the first time is not to be disturbed
                task.cancel()
        while self._serving:
            await asyncio.wait(self._serving)
        while self._in_flight:
            await self._change()
        for spawned in self._tasks:
            spawned.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def failed(self) -> BaseException:
        """Return why nobody can take the place of a server that died; wait for ever while all is well."""
        while self._failure is None:
            await self._change()
        return self._failure

    def _make(self) -> CoreServer:
        return CoreServer([self._handlers], self._options, self._compression)

    async def _begin(self, core: CoreServer) -> None:
        if not await core.start(lambda error: self._crashed(core, error)):
            _LOGGER.warning("this grpcio hides its serving task: a malformed :path would end the server")
            self._spawn(self._watch(core))

    async def _watch(self, core: CoreServer) -> None:
        self._fail(await core.crash())

    def _crashed(self, core: CoreServer, error: BaseException) -> None:
        if self._stopping or core is not self._core:
            return
        self._replacing = self._spawn(self._replace(core, error))

    async def _replace(self, old: CoreServer, error: BaseException) -> None:
        self.restarts += 1
        self._retired.add(old)
        self._core = None
        self._spawn(self._retire(old))
        fresh = self._make()
        patience = self._clock.time() + _PATIENCE
        for address, credentials in self._bound:
            while not self._stopping:
                try:
                    await old.released(address)
                    fresh.bind(address, credentials)
                    break
                except BindError as taken:
                    if self._clock.time() > patience:
                        taken.__cause__ = error
                        self._retired.add(fresh)
                        self._fail(taken)
                        return
                    await asyncio.sleep(_RETRY)
        self._core = fresh
        if self._stopping:
            return
        await self._begin(fresh)
        _LOGGER.warning("a request ended grpc core's server (%r); another one took its place", error)
        if self._on_restart is not None:
            self._on_restart(error)

    async def _retire(self, core: CoreServer) -> None:
        await core.stop(None)
        self._retired.discard(core)

    def _fail(self, error: BaseException) -> None:
        _LOGGER.critical("grpc core's server is gone and cannot be replaced: %r", error)
        self._failure = error
        self._announce()

    def _began(self, incoming: GrpcioIncoming) -> None:
        self._in_flight += 1
        incoming.on_end(self._finished)

    def _finished(self) -> None:
        self._in_flight -= 1
        if not self._in_flight and self._changed is not None:
            self._announce()

    def _announce(self) -> None:
        changed, self._changed = self._changed, None
        if changed is not None and not changed.done():
            changed.set_result(None)

    async def _change(self) -> None:
        if self._changed is None:
            self._changed = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._changed)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


class _Handlers(grpc.GenericRpcHandler):  # type: ignore[misc]  # the stubs leave its type parameters open
    """The one generic handler: a path's handler is kept for as long as ``route`` says the same of that path."""

    def __init__(
        self, clock: Clock, serving: set[asyncio.Task[None]], began: Callable[[GrpcioIncoming], None]
    ) -> None:
        self.route: Callable[[str], Route] = _unrouted
        self._clock = clock
        self._serving = serving
        self._began = began
        self._kept: OrderedDict[str, tuple[Route, Any]] = OrderedDict()

    def service(self, handler_call_details: Any) -> Any:
        path: str = handler_call_details.method
        try:
            route = self.route(path)
        except Exception:
            _LOGGER.exception("no route for %r", path)
            route = _BROKEN
        kept = self._kept.get(path)
        if kept is not None and kept[0] is route:
            self._kept.move_to_end(path)
            return kept[1]
        handler = handler_for(route, handler_call_details, self._clock, self._serving, self._began)
        self._kept[path] = (route, handler)
        if len(self._kept) > _PATHS:
            self._kept.popitem(last=False)
        return handler


async def _internal(incoming: Incoming) -> None:
    await incoming.finish(Status(code=Code.INTERNAL, message="internal error"))


_BROKEN: Final = Route(kind=Kind.BIDI_STREAM, serve=_internal)


def _unrouted(path: str) -> Route:
    msg = f"{path} was asked for before start()"
    raise RuntimeError(msg)
