"""How grpc core is told to serve a Route."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final

import grpc

from servicekit.errors import Code
from servicekit.method import Kind
from servicekit.wire import Incoming, Route, Status

from .incoming import GrpcioIncoming
from .running import Tally, Tasks

if TYPE_CHECKING:
    from collections.abc import Callable

    from servicekit.clock import Clock

_LOGGER = logging.getLogger(__name__)

_PATHS: Final = 1024


def handler_for(
    route: Route,
    details: grpc.HandlerCallDetails,
    clock: Clock,
    serving: Tasks | None = None,
    tally: Tally | None = None,
) -> grpc.RpcMethodHandler[Any, Any]:
    """Return core's handler for ``route`` at the path in ``details``, on whichever server of grpc.aio.

    It has no (de)serialisers and takes everything but the path from the context of each call, so it may be kept for as
    long as that path has that route. ``serving`` holds the serving tasks while they run, and ``tally`` counts the
    RPCs.
    """
    path: str = details.method
    serve, kind, loop = route.serve, route.kind, asyncio.get_running_loop()
    running = Tasks() if serving is None else serving

    counted = Tally() if tally is None else tally

    # Coroutine functions, and no partials: core asks at every call what it was given, and runs all others in threads.
    async def unary(request: bytes, context: Any) -> bytes | None:
        return await GrpcioIncoming(context, request, path, clock, loop, counted).run(serve, running, answers=True)

    async def upload(_: object, context: Any) -> bytes | None:
        return await GrpcioIncoming(context, None, path, clock, loop, counted).run(serve, running, answers=True)

    async def download(request: bytes, context: Any) -> None:
        await GrpcioIncoming(context, request, path, clock, loop, counted).run(serve, running, answers=False)

    async def bidi(_: object, context: Any) -> None:
        await GrpcioIncoming(context, None, path, clock, loop, counted).run(serve, running, answers=False)

    # The stubs know only the sync server's behaviours.
    make: Any = grpc
    if kind.request_streaming and kind.response_streaming:
        return make.stream_stream_rpc_method_handler(bidi)  # type: ignore[no-any-return]
    if kind.request_streaming:
        return make.stream_unary_rpc_method_handler(upload)  # type: ignore[no-any-return]
    if kind.response_streaming:
        return make.unary_stream_rpc_method_handler(download)  # type: ignore[no-any-return]
    return make.unary_unary_rpc_method_handler(unary)  # type: ignore[no-any-return]


class Handlers(grpc.GenericRpcHandler):
    """The one generic handler of a server: grpc.aio waits for one future per *registered* method at every call.

    A path's handler is kept for as long as ``route`` says the same of that path, for the last 1,024 paths.
    """

    def __init__(
        self,
        route: Callable[[str], Route],
        clock: Clock,
        serving: Tasks,
        tally: Tally,
    ) -> None:
        """Ask ``route`` once for each RPC; the others are as in ``handler_for``."""
        self._route = route
        self._clock = clock
        self._serving = serving
        self._tally = tally
        self._kept: OrderedDict[str, tuple[Route, Any]] = OrderedDict()

    def service(self, handler_call_details: Any) -> Any:
        """Return the handler of a path; one that answers INTERNAL when ``route`` fails."""
        path: str = handler_call_details.method
        try:
            route = self._route(path)
        except Exception:
            _LOGGER.exception("no route for %r", path)
            route = _BROKEN
        kept = self._kept.get(path)
        if kept is not None and kept[0] is route:
            self._kept.move_to_end(path)
            return kept[1]
        handler = handler_for(route, handler_call_details, self._clock, self._serving, self._tally)
        self._kept[path] = (route, handler)
        if len(self._kept) > _PATHS:
            self._kept.popitem(last=False)
        return handler


async def _internal(incoming: Incoming) -> None:
    await incoming.finish(Status(code=Code.INTERNAL, message="internal error"))


_BROKEN: Final = Route(kind=Kind.BIDI_STREAM, serve=_internal)
