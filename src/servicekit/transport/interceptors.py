"""Both directions as ordinary interceptors, for a bare ``grpc.aio.server`` and a bare ``grpc.aio`` channel.

Five lines on what somebody already runs::

    server = grpc.aio.server(interceptors=[server_interceptor(standard(Telemetry()))])
    channel = grpc.aio.insecure_channel(target, interceptors=client_interceptors(standard_client(Telemetry())))
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc

from servicekit.clock import SystemClock
from servicekit.endpoint import chain
from servicekit.grpcio.handlers import handler_for
from servicekit.mapping import ErrorMapping
from servicekit.method import Kind
from servicekit.policy.checked import listed

from .attempt import Sender
from .callables import Caller, requests_of
from .calls import BidiStreamCall, ClientStreamCall, ServerStreamCall, UnaryCall
from .codec import Codec
from .continuation import ContinuationWire
from .exchange import Options
from .methods import describe
from .router import MOST_ROUTES, failing_handler, handler_of, unknown_handler
from .shared import Serving

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence
    from concurrent.futures import Executor

    from servicekit.clock import Clock
    from servicekit.endpoint import Middleware
    from servicekit.mapping import Rule

    from .exchange import Exchange


def server_interceptor(
    middleware: Sequence[Middleware],
    *,
    errors: Mapping[type[Exception], Rule] | None = None,
    threads: Executor | None = None,
    clock: Clock | None = None,
) -> grpc.aio.ServerInterceptor:
    """Return an interceptor that puts ``middleware`` around every method of a ``grpc.aio.server``.

    Other interceptors, outside and inside of it, keep deciding on every call. Interceptors outside of it see handlers
    that take and return bytes: the codecs run inside the chain. Put it first where others go through the responses of a
    stream with ``async for``: its handlers of streams are coroutines that write, and such a one outside fails.

    Raises TypeError or ValueError for a chain that cannot be made. Where that can only be seen for one method, because
    a predicate chooses, its calls get INTERNAL, and the log says why.
    """
    shared = Serving(
        links=chain(*listed("middleware", middleware, "sequence of middleware")),
        errors=ErrorMapping(errors),
        clock=clock or SystemClock(),
    )
    return _ServerInterceptor(shared, threads)


class _ServerInterceptor(grpc.aio.ServerInterceptor):
    def __init__(self, shared: Serving, threads: Executor | None) -> None:
        self._shared = shared
        self._threads = threads
        self._unknown = unknown_handler(shared)
        # What was composed for a path, for as long as the interceptors inside yield the same handler for it.
        self._composed: dict[str, tuple[grpc.RpcMethodHandler[Any, Any], grpc.RpcMethodHandler[Any, Any]]] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any]:
        # Asked on every call: whoever stands inside may let this call through and refuse the next one.
        path = handler_call_details.method
        try:
            handler = await continuation(handler_call_details)
        except Exception as error:  # noqa: BLE001 - grpc.aio would tell the client its text
            failing = failing_handler(error, self._shared)
            return handler_for(failing.route, handler_call_details, self._shared.clock)
        if handler is None:
            return handler_for(self._unknown.route, handler_call_details, self._shared.clock)
        known = self._composed.get(path)
        if known is None or known[0] is not handler:
            try:
                served = handler_of(path, handler, self._shared, self._threads)
            except (TypeError, ValueError) as error:  # a chain whose order is wrong for this method: it has no way in
                served = failing_handler(error, self._shared)
            known = handler, handler_for(served.route, handler_call_details, self._shared.clock)
            if path in self._composed or len(self._composed) < MOST_ROUTES:
                self._composed[path] = known
        return known[1]


def client_interceptors(middleware: Sequence[Middleware], *, clock: Clock | None = None) -> list[Any]:
    """Return the interceptors that put ``middleware`` around every call of a ``grpc.aio`` channel.

    There are four, one for each kind: grpc.aio takes an object with several of the four interfaces for the first one
    only. What stands inside of them is one more ``grpc.aio`` interceptor, or the channel itself. A cancelled read ends the
    RPC, as on every channel with interceptors. Raises TypeError or ValueError for a chain that cannot be made; where that
    can only be seen for one method, its calls raise it.
    """
    shared = _Shared(middleware, clock or SystemClock())
    return [_UnaryUnary(shared), _UnaryStream(shared), _StreamUnary(shared), _StreamStream(shared)]


class _Shared:
    def __init__(self, middleware: Sequence[Middleware], clock: Clock) -> None:
        self._links = chain(*listed("middleware", middleware, "sequence of middleware"))
        self._clock = clock
        self._methods: dict[tuple[str, Kind], Any] = {}
        self._under_way: set[Exchange] = set()

    def begin(self, kind: Kind, continuation: Any, details: grpc.aio.ClientCallDetails, request: Any) -> Exchange:
        """Begin a call whose wire is what stands inside of the interceptor."""
        path = details.method.decode() if isinstance(details.method, bytes) else details.method
        method = self._methods.get((path, kind))
        if method is None:
            method = self._methods[path, kind] = describe(path, kind)
        # The continuation belongs to this one call, so the chain is composed for it: some microseconds, on a wire
        # whose own interceptors cost a task each.
        sender = Sender(ContinuationWire(continuation, details, self._clock), Codec(None, None), self._clock)
        caller = Caller(method, self._links.around(sender, method), self._clock, self._under_way)
        return caller.begin(request, timeout=details.timeout, metadata=details.metadata, options=Options())


class _UnaryUnary(grpc.aio.UnaryUnaryClientInterceptor):
    def __init__(self, shared: _Shared) -> None:
        self._shared = shared

    async def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return UnaryCall(self._shared.begin(Kind.UNARY, continuation, client_call_details, request))


class _UnaryStream(grpc.aio.UnaryStreamClientInterceptor):
    def __init__(self, shared: _Shared) -> None:
        self._shared = shared

    async def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        call = ServerStreamCall(self._shared.begin(Kind.SERVER_STREAM, continuation, client_call_details, request))
        return _read_by_grpc(call)


class _StreamUnary(grpc.aio.StreamUnaryClientInterceptor):
    def __init__(self, shared: _Shared) -> None:
        self._shared = shared

    async def intercept_stream_unary(self, continuation: Any, client_call_details: Any, request_iterator: Any) -> Any:
        requests, writes = requests_of(request_iterator)
        return ClientStreamCall(
            self._shared.begin(Kind.CLIENT_STREAM, continuation, client_call_details, requests), writes
        )


class _StreamStream(grpc.aio.StreamStreamClientInterceptor):
    def __init__(self, shared: _Shared) -> None:
        self._shared = shared

    async def intercept_stream_stream(self, continuation: Any, client_call_details: Any, request_iterator: Any) -> Any:
        requests, writes = requests_of(request_iterator)
        return _read_by_grpc(
            BidiStreamCall(self._shared.begin(Kind.BIDI_STREAM, continuation, client_call_details, requests), writes)
        )


def _read_by_grpc(call: ServerStreamCall | BidiStreamCall) -> ServerStreamCall | BidiStreamCall:
    # The caller's reads come through an async generator of grpc.aio's, which a cancelled one ends: nobody can read on,
    # and the RPC, which grpc.aio holds too, would be served for ever. Its own calls end themselves there as well.
    call.ends_with_a_cancelled_read = True
    return call
