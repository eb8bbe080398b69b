"""One server of grpc core, from its ports to its end, and the end that a request can bring upon it.

A request whose ``:path`` is not UTF-8 ends grpc.aio's main loop (it decodes the path there, outside of any handler).
grpc.aio then cancels every RPC in flight. This takes the place of what grpc.aio does then, so that the RPCs in flight
go on, and somebody can put another server in the place of this one.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from typing import TYPE_CHECKING, Any, Final

import grpc

from servicekit.wire import BindError

from .factories import own
from .handlers import Handlers
from .kept import Kept
from .running import Tally
from .sockets import answers, unix_path, wrong_address

if TYPE_CHECKING:
    from collections.abc import Callable

    from servicekit.clock import Clock
    from servicekit.wire import Route

    from .options import Options
    from .running import Tasks

_PORT_ZERO: Final = re.compile(r"(?<=:)0+$")
_LINGER: Final = 20.0  # for the connections of a server that has as long as it needs, when its last RPC has ended
_LOOK: Final = 0.1  # between two looks at a main loop that cannot be watched
_FOR_EVER: Final = 1e9


class CoreServer:
    """A ``grpc.aio.Server`` that counts its RPCs and whose main loop is watched."""

    def __init__(
        self,
        route: Callable[[str], Route],
        clock: Clock,
        serving: Tasks,
        options: Options,
        compression: grpc.Compression | None,
    ) -> None:
        """Make a server that has no ports yet; ``serving`` holds its serving tasks while they run."""
        self._in_flight = Tally()
        handlers = [Handlers(route, clock, serving, self._in_flight)]
        self._server: grpc.aio.Server = own("server")(handlers=handlers, options=options, compression=compression)
        self._started = False
        self._stopping: asyncio.Task[None] | None = None
        self._cutting: asyncio.Task[None] | None = None

    def bind(self, address: str, credentials: grpc.ServerCredentials | None) -> str:
        """Bind ``address`` and return it with the port that it got. Raises BindError, naming it, when that fails."""
        if (wrong := wrong_address(address)) is not None:  # core would bind another, or say that it is taken
            msg = f"cannot listen on {address!r}: {wrong}"
            raise BindError(msg)
        path = unix_path(address)
        if path is not None and answers(path):  # core would take the path away from who listens there
            msg = f"cannot listen on {address!r}: somebody else does"
            raise BindError(msg)
        try:
            if credentials is None:
                port = self._server.add_insecure_port(address)
            else:
                port = self._server.add_secure_port(address, credentials)
        except RuntimeError as error:
            why = "it is taken, or not an address of this machine"
            if credentials is not None:  # core does not say which
                why = f"{why}, or its certificates cannot be used"
            msg = f"cannot listen on {address!r}: {why}"
            raise BindError(msg) from error
        return _PORT_ZERO.sub(str(port), address) if path is None else address

    async def start(self, crashed: Callable[[BaseException], None]) -> bool:
        """Begin to serve, and return whether the main loop is watched: then ``crashed`` is told when it ends by itself.

        Without that, a crash can still be seen by ``crash()``, but the RPCs in flight are cancelled.
        """
        self._started = True
        before = asyncio.all_tasks()
        starting: Kept[None] = Kept(self._server.start())
        starting.advance()  # makes the main loop's task, and nobody else runs in between
        loops = [task for task in asyncio.all_tasks() - before if _is_main_loop(task)]
        await starting
        core: Any = self._server
        handler: Any = getattr(getattr(core, "_server", None), "_serving_task_crash_handler", None)
        if len(loops) != 1 or not loops[0].remove_done_callback(handler):
            return False

        def ended(task: asyncio.Task[None]) -> None:
            if not task.cancelled() and (error := task.exception()) is not None:
                crashed(error)

        loops[0].add_done_callback(ended)
        return True

    async def crash(self) -> BaseException:
        """Return what the main loop ended with; wait for ever while it runs. For servers that are not watched."""
        try:
            # With a limit: where grpc.aio tells of a crash at all, it does so when the limit has passed.
            while await self._server.wait_for_termination(_LOOK):
                pass
        except Exception as error:  # noqa: BLE001 - whatever it was
            return error
        return await asyncio.get_running_loop().create_future()  # type: ignore[no-any-return]

    async def stop(self, grace: float | None) -> None:
        """Close the ports at once, let RPCs in flight finish (None: however long), cancel the rest, return at the end.

        The end is when every connection is closed, which peers that do not answer put off until ``grace`` is over, or
        for 20 s after the last RPC where it is None. A later call with less grace shortens the wait; cancelling one
        changes nothing for the others.
        """
        if self._stopping is None:
            self._stopping = asyncio.create_task(self._stop())
        stopping, now = self._stopping, asyncio.get_running_loop().time
        end = _FOR_EVER if grace is None else now() + grace
        await asyncio.sleep(0)
        while not stopping.done() and now() < end:
            left = end - now()
            if self._in_flight.count:
                if self._in_flight.idle is None:
                    self._in_flight.idle = asyncio.get_running_loop().create_future()
                idle = self._in_flight.idle
                await asyncio.wait([stopping, idle], timeout=left, return_when=asyncio.FIRST_COMPLETED)
            else:
                await asyncio.wait([stopping], timeout=min(_LINGER, left))
                if not self._in_flight.count:
                    break
        if not stopping.done():
            if self._cutting is None:
                self._cutting = asyncio.create_task(self._server.stop(None))
            await asyncio.wait([stopping, self._cutting])

    # Two calls of grpc.aio's stop at once crash the process when a time-out in one meets the end in the other: it hands
    # core a server that was freed. So there is one call that never times out, and at most one that does not wait; and
    # neither is ever cancelled, for that would cancel what the other waits for.

    async def _stop(self) -> None:
        if not self._started:  # never started, grpc.aio would keep the ports for good
            self._started = True
            await self._server.start()
        with contextlib.suppress(Exception):  # a crashed main loop's exception: the shutdown was begun all the same
            await self._server.stop(_FOR_EVER)
            return
        await self._server.stop(_FOR_EVER)


def _is_main_loop(task: asyncio.Task[Any]) -> bool:
    return getattr(task.get_coro(), "__qualname__", "").endswith("_server_main_loop")
