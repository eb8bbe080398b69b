"""The server's end of the seam over servers of grpc core, one after another where need be."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from typing import TYPE_CHECKING, Any, Final

from servicekit.wire import BindError

from .core import CoreServer
from .options import SERVER, Options, merged
from .running import Tasks
from .sockets import share, unix_path

if TYPE_CHECKING:
    from collections.abc import Callable

    import grpc

    from servicekit.clock import Clock
    from servicekit.wire import Route

_LOGGER = logging.getLogger(__name__)

_RETRY: Final = 0.001  # between two looks at whether an address is free
_PATIENCE: Final = 1.0  # for it to become free, before that counts as the end


class GrpcioListener:
    """A Listener over grpc core.

    When a request kills core's server (``core`` tells how), another one takes its place on the same ports within
    milliseconds: it listens before the old one stops, so no connection is refused, and the RPCs in flight go on.
    ``restarts`` counts that, and ``on_restart`` is told why.
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
        largest = dict(merged(SERVER, options)).get("grpc.max_send_message_length", -1)
        self.largest = largest if isinstance(largest, int) and largest >= 0 else sys.maxsize
        """Bytes of the largest message that core sends."""
        self._options = merged(SERVER, options)
        self._compression = compression
        self._on_restart = on_restart
        self._clock = clock
        self._route: Callable[[str], Route] | None = None
        self._serving = Tasks()
        self._bound: list[tuple[str, Any]] = []
        self._core: CoreServer | None = None
        self._retired: set[CoreServer] = set()
        self._tasks: set[asyncio.Task[Any]] = set()  # they stop, replace and watch servers
        self._replacing: asyncio.Task[None] | None = None
        self._stopping = False
        self._failure: BaseException | None = None
        self._failed = asyncio.Event()

    def bind(self, address: str, credentials: object = None) -> str:
        """Listen on ``address``; port 0 is any that is free. Returns the address with its port. Raises BindError."""
        if self._core is None:
            self._core = self._make(self._options)
        given: Any = credentials
        bound = self._core.bind(address, given)
        self._bound.append((bound, given))
        return bound

    async def start(self, route: Callable[[str], Route]) -> None:
        """Begin to serve what ``route`` says."""
        self._route = route
        if self._core is None:
            self._core = self._make(self._options)
        await self._begin(self._core)

    async def stop(self, grace: float) -> None:
        """Accept nothing new, let RPCs in flight finish for ``grace`` seconds, cancel the rest; return when all is over.

        All is over when every serving task has ended, which grpc.aio's own ``stop`` does not wait for.
        """
        self._stopping = True
        patience = self._clock.time() + grace
        if self._replacing is not None:
            await asyncio.wait([self._replacing])  # it notices within milliseconds, and may not be left half-done
        cores = [*self._retired] if self._core is None else [*self._retired, self._core]
        await asyncio.gather(*(core.stop(grace) for core in cores))
        if self._serving:  # RPCs that are over, but not for who served them
            await asyncio.wait(self._serving, timeout=max(0.0, patience - self._clock.time()))
        for task in self._serving:
            self._serving.cancel(task)
        while self._serving:
            await asyncio.wait(self._serving)
        for owned in self._tasks:
            owned.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def failed(self) -> BaseException:
        """Return why nobody can take the place of a server that died; wait for ever while all is well."""
        await self._failed.wait()
        assert self._failure is not None  # noqa: S101 - set just before the event
        return self._failure

    def _make(self, options: Options) -> CoreServer:
        return CoreServer(self._routed, self._clock, self._serving, options, self._compression)

    def _routed(self, path: str) -> Route:
        assert self._route is not None  # noqa: S101 - nothing is answered before start
        return self._route(path)

    async def _begin(self, core: CoreServer) -> None:
        if not await core.start(lambda error: self._crashed(core, error)):
            _LOGGER.warning("this grpcio hides its main loop: a request with a malformed :path would end the server")
            self._own(asyncio.create_task(self._watch(core)))

    async def _watch(self, core: CoreServer) -> None:
        self._fail(await core.crash())

    def _crashed(self, core: CoreServer, error: BaseException) -> None:
        if core is self._core and not self._stopping:
            self._replacing = asyncio.create_task(self._replace(core, error))
            self._own(self._replacing)

    async def _replace(self, old: CoreServer, error: BaseException) -> None:
        self.restarts += 1
        try:
            replaced = await self._replaced(old, error)
        except Exception as failure:  # noqa: BLE001 - too many open files, perhaps: what accepts and does not answer ends
            self._fail(failure)
            return
        if not replaced:
            return
        _LOGGER.warning("a request ended grpc core's server (%r); another one took its place", error)
        if self._on_restart is not None:
            self._on_restart(error)

    async def _replaced(self, old: CoreServer, error: BaseException) -> bool:
        """Let another server take the place of ``old``; return False where none does, having said so."""
        addresses = [address for address, _ in self._bound]
        exclusive = not dict(self._options).get("grpc.so_reuseport")
        shared = exclusive and share(addresses, allowed=True)
        options = merged(self._options, (("grpc.so_reuseport", 1),)) if shared else self._options
        self._core = fresh = self._make(options)
        waiting = self._take_over(fresh, self._bound)
        self._retired.add(old)
        self._own(asyncio.create_task(self._retire(old)))
        patience = self._clock.time() + _PATIENCE
        while waiting and not self._stopping and self._clock.time() < patience:
            await asyncio.sleep(_RETRY)  # what the old one had alone
            waiting = self._take_over(fresh, waiting)
        if shared:
            share(addresses, allowed=False)
        if waiting:
            if not self._stopping:
                self._fail(BindError(f"cannot listen on {waiting[0][0]!r} again after {error!r}"))
            return False
        await self._begin(fresh)
        return True

    def _take_over(self, fresh: CoreServer, wanted: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
        """Bind what can be bound now, and return the rest."""
        waiting = []
        for address, credentials in wanted:
            path = unix_path(address)
            try:
                if path is not None and os.path.exists(path):  # noqa: PTH110 - the old server will remove whatever is there
                    raise BindError(address)  # noqa: TRY301 - as if core had said so
                fresh.bind(address, credentials)
            except BindError:
                waiting.append((address, credentials))
        return waiting

    async def _retire(self, core: CoreServer) -> None:
        await core.stop(None)
        self._retired.discard(core)

    def _fail(self, error: BaseException) -> None:
        _LOGGER.critical("grpc core's server is gone and cannot be replaced: %r", error)
        self._failure = error
        self._failed.set()

    def _own(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
