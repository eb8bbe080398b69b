"""How grpc core is told to serve a Route."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import grpc

from .incoming import GrpcioIncoming

if TYPE_CHECKING:
    from collections.abc import Callable

    from servicekit.clock import Clock
    from servicekit.wire import Route


def handler_for(
    route: Route,
    details: grpc.HandlerCallDetails,
    clock: Clock,
    serving: set[asyncio.Task[None]] | None = None,
    began: Callable[[GrpcioIncoming], None] | None = None,
) -> grpc.RpcMethodHandler[Any, Any]:
    """Return core's handler for ``route`` at the path in ``details``, on whichever server of grpc.aio.

    It has no (de)serialisers and takes everything but the path from the context of each call, so it may be kept for as
    long as that path has that route. ``serving`` holds the serving tasks while they run,
    and ``began`` is told of each RPC before it is served.
    """
    path: str = details.method
    running: set[asyncio.Task[None]] = set() if serving is None else serving
    serve, kind = route.serve, route.kind

    def incoming(context: Any, data: bytes | None) -> GrpcioIncoming:
        opened = GrpcioIncoming(context, data, path, context.invocation_metadata(), clock)
        if began is not None:
            began(opened)
        return opened

    # Coroutine functions, and no partials: core asks at every call what it was given, and runs all others in threads.
    async def unary(request: bytes, context: Any) -> bytes | None:
        return await incoming(context, request).run(serve, running, answers=True)

    async def upload(_: object, context: Any) -> bytes | None:
        return await incoming(context, None).run(serve, running, answers=True)

    async def download(request: bytes, context: Any) -> None:
        await incoming(context, request).run(serve, running, answers=False)

    async def bidi(_: object, context: Any) -> None:
        await incoming(context, None).run(serve, running, answers=False)

    # The stubs know only the sync server's behaviours.
    make: Any = grpc
    if kind.request_streaming and kind.response_streaming:
        return make.stream_stream_rpc_method_handler(bidi)  # type: ignore[no-any-return]
    if kind.request_streaming:
        return make.stream_unary_rpc_method_handler(upload)  # type: ignore[no-any-return]
    if kind.response_streaming:
        return make.unary_stream_rpc_method_handler(download)  # type: ignore[no-any-return]
    return make.unary_unary_rpc_method_handler(unary)  # type: ignore[no-any-return]
