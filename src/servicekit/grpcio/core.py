"""One server of grpc core, from its ports to its end, and the end that a request can bring upon it.

A request whose ``:path`` is not UTF-8 ends grpc.aio's main loop (it decodes the path there, outside of any handler).
grpc.aio then cancels every RPC in flight. This takes the place of what grpc.aio does then, so that the RPCs in flight
go on, and somebody can put another server in the place of this one.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
import stat
from typing import TYPE_CHECKING, Any

import grpc

from servicekit.wire import BindError

from .kept import Kept

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .options import Options

_PORT_ZERO = re.compile(r"(?<=:)0+$")


class CoreServer:
    """A ``grpc.aio.Server`` whose main loop is watched."""

    def __init__(
        self, handlers: Sequence[grpc.GenericRpcHandler], options: Options, compression: grpc.Compression | None
    ) -> None:
        """Make a server that has no ports yet."""
        self._server = grpc.aio.server(handlers=handlers, options=options, compression=compression)
        self._loop: asyncio.Task[None] | None = None
        self._started = False

    def bind(self, address: str, credentials: grpc.ServerCredentials | None) -> str:
        """Bind ``address`` and return it with the port that it got. Raises BindError, naming it, when that fails."""
        path = unix_path(address)
        if path is not None and _answered(path):  # core would take the path away from who listens there
            msg = f"cannot listen on {address!r}: somebody else does"
            raise BindError(msg)
        try:
            if credentials is None:
                port = self._server.add_insecure_port(address)
            else:
                port = self._server.add_secure_port(address, credentials)
        except RuntimeError as error:
            msg = f"cannot listen on {address!r}: it is taken, or not an address of this machine"
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
        if len(loops) != 1:
            return False
        self._loop = loops[0]
        core: Any = self._server
        try:
            removed = self._loop.remove_done_callback(core._server._serving_task_crash_handler)  # noqa: SLF001 - see above
        except AttributeError:
            removed = 0

        def ended(task: asyncio.Task[None]) -> None:
            if not task.cancelled() and (error := task.exception()) is not None:
                crashed(error)

        if removed:
            self._loop.add_done_callback(ended)
        return bool(removed)

    async def released(self, address: str) -> None:
        """Raise BindError as long as core, which closes its sockets in a thread, has not let go of ``address``.

        A look that costs nothing: where core itself finds a port taken, it writes lines to stderr.
        """

    async def crash(self) -> BaseException:
        """Return what the main loop ended with; wait for ever while it runs. For servers that are not watched."""
        try:
            await self._server.wait_for_termination()
        except Exception as error:  # noqa: BLE001 - whatever it was
            return error
        return await asyncio.get_running_loop().create_future()  # type: ignore[no-any-return]

    async def stop(self, grace: float | None) -> None:
        """Close the ports at once, let RPCs in flight finish (None: however long), cancel the rest, return at the end.

        A later call with less grace shortens the wait. Not to be cancelled: grpc.aio would lose count.
        """
        if not self._started:  # never started, grpc.aio would keep the ports for good
            self._started = True
            await self._server.start()
        patience = 1e9 if grace is None else grace
        with contextlib.suppress(Exception):  # a crashed main loop's exception: the shutdown was begun all the same
            await self._server.stop(patience)
            return
        await self._server.stop(patience)


def unix_path(address: str) -> str | None:
    """Return the path of a unix socket's address, or None for all others (abstract names among them)."""
    if not address.startswith("unix:"):
        return None
    return address.removeprefix("unix:").removeprefix("//")


def _answered(path: str) -> bool:
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):  # noqa: PTH116 - no need of a Path
            return False
        with socket.socket(socket.AF_UNIX) as probe:
            probe.connect(path)
    except OSError:
        return False
    return True


def _is_main_loop(task: asyncio.Task[Any]) -> bool:
    return getattr(task.get_coro(), "__qualname__", "").endswith("_server_main_loop")
