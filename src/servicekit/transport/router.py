"""From a path to a route: what is registered, what other people's interceptors make of it, and what nobody knows."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import grpc

from servicekit.endpoint import shown
from servicekit.errors import Code, Error
from servicekit.explain import block, blocks
from servicekit.method import Kind

from .codec import Codec
from .methods import UNKNOWN, describe
from .requests import each
from .serving import Handler
from .shapes import Behaviour, behaviour
from .shared import Serving

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from concurrent.futures import Executor

    from servicekit.endpoint import Middleware
    from servicekit.wire import Route

    from .context import Context


MOST_ROUTES = 10_000


class CallDetails(grpc.HandlerCallDetails):
    """What an interceptor is told about a call: ``method`` (its path) and ``invocation_metadata``."""

    def __init__(self, method: str, invocation_metadata: Any) -> None:
        """Hold both."""
        self.method = method
        self.invocation_metadata = invocation_metadata


class Router:
    """All methods of one server. ``route(path)`` is asked by the wire for every RPC."""

    def __init__(
        self,
        shared: Serving,
        *,
        interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
        threads: Executor | None = None,
    ) -> None:
        """Serve with the chain of ``shared``; ``interceptors`` run inside it, on every call."""
        for interceptor in interceptors:
            if not isinstance(interceptor, grpc.aio.ServerInterceptor):
                msg = f"interceptors are grpc.aio.ServerInterceptor objects, not {interceptor!r}"
                raise TypeError(msg)
        self._shared = shared
        self._interceptors = tuple(interceptors)
        self._threads = threads
        self._registered: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
        self._generic: list[grpc.GenericRpcHandler] = []
        self._routes: dict[str, tuple[grpc.RpcMethodHandler[Any, Any], Route]] = {}
        self._unknown = unknown_handler(shared)

    @property
    def services(self) -> list[str]:
        """The full names of the services registered, sorted."""
        named = {path.split("/")[1] for path in self._registered}
        return sorted(named | {generic.service_name() for generic in self._generic if hasattr(generic, "service_name")})

    def explain(self) -> list[str]:
        """Return what stands around each method, as ``explain.blocks`` has it, and around what is none."""
        links = self._shared.links
        asked = [f"{shown(type(interceptor))}, which is asked at every call" for interceptor in self._interceptors]
        methods = [describe(path, kind_of(handler)) for path, handler in self._registered.items()]
        found = blocks(links, methods, [*asked, "the servicer"])
        named = {method.service for method in methods}
        for generic in self._generic:
            # generated code adds its methods in both ways, and the first one counts
            if not hasattr(generic, "service_name") or generic.service_name() not in named:
                found.append(f"{shown(type(generic))} is asked at every call for what is not above")
        found.append(block(["Any other path"], links.of(UNKNOWN), ["UNIMPLEMENTED"]))
        return found

    def strays(self) -> list[tuple[str, Middleware]]:
        """Return the paths that links are for and no method has, with the links; none where anything may be a method."""
        methods = [describe(path, kind_of(handler)) for path, handler in self._registered.items()]
        if any(not hasattr(generic, "service_name") for generic in self._generic):
            return []
        known = {path for method in methods for path in (method.path, f"/{method.service}/*")}
        return [(path, link) for path, link in self._shared.links.paths() if path not in known]

    def register(self, service: str, handlers: Mapping[str, grpc.RpcMethodHandler[Any, Any]]) -> None:
        """Serve the methods of ``service``: what generated code knows of them."""
        for name, handler in handlers.items():
            path = f"/{service}/{name}"
            _check(path, handler)
            self._registered[path] = handler
            self._routes[path] = (handler, self._routed(path, handler))

    def add_generic(self, handlers: Iterable[grpc.GenericRpcHandler]) -> None:
        """Serve what generic handlers know; they are asked, on every call, about paths that nobody registered."""
        self._generic.extend(handlers)

    def route(self, path: str) -> Route:
        """Return how ``path`` is served. What nobody knows runs a chain too, and ends with UNIMPLEMENTED."""
        entry = self._routes.get(path)
        if entry is not None and path in self._registered:
            return entry[1]
        handler = self._ask_generic(path)
        if handler is None:
            return self._unknown.route
        if entry is None or entry[0] is not handler:
            if len(self._routes) >= MOST_ROUTES:  # a generic handler that takes any path must not fill the memory
                return self._routed(path, handler)
            entry = self._routes[path] = (handler, self._routed(path, handler))
        return entry[1]

    def _ask_generic(self, path: str) -> grpc.RpcMethodHandler[Any, Any] | None:
        details = CallDetails(path, ())
        for generic in self._generic:
            handler = generic.service(details)
            if handler is not None:
                return handler
        return None

    def _routed(self, path: str, handler: grpc.RpcMethodHandler[Any, Any]) -> Route:
        return handler_of(
            path,
            handler,
            self._shared,
            self._threads,
            intercepted(self._interceptors, self._threads) if self._interceptors else None,
        ).route


def kind_of(handler: grpc.RpcMethodHandler[Any, Any]) -> Kind:
    """Return the kind of RPC that a grpc handler serves."""
    return Kind.of(
        request_streaming=bool(handler.request_streaming),
        response_streaming=bool(handler.response_streaming),
    )


def function_of(handler: grpc.RpcMethodHandler[Any, Any]) -> Callable[..., Any]:
    """Return the servicer's method that a grpc handler holds."""
    function = {
        Kind.UNARY: handler.unary_unary,
        Kind.SERVER_STREAM: handler.unary_stream,
        Kind.CLIENT_STREAM: handler.stream_unary,
        Kind.BIDI_STREAM: handler.stream_stream,
    }[kind_of(handler)]
    if function is None:
        msg = f"the handler has no function for its kind: {handler!r}"
        raise TypeError(msg)
    return function


def _check(path: str, handler: grpc.RpcMethodHandler[Any, Any]) -> None:
    """Raise TypeError for a servicer's method that wants more than a request and a context: its object, mostly."""
    function = function_of(handler)
    try:
        signature = inspect.signature(function, follow_wrapped=False)  # a decorator may give what it is around more
    except (TypeError, ValueError):  # it does not tell
        return
    try:
        signature.bind(None, None)
    except TypeError:
        msg = f"{path}: {shown(function)}{signature} does not take (request, context): is the servicer a class, no object?"
        raise TypeError(msg) from None


def handler_of(
    path: str,
    handler: grpc.RpcMethodHandler[Any, Any],
    shared: Serving,
    threads: Executor | None,
    inside: Callable[[str, grpc.RpcMethodHandler[Any, Any]], Behaviour] | None = None,
) -> Handler:
    """Return what serves ``path`` the way ``handler`` says, with the chain of ``shared`` around it."""
    kind = kind_of(handler)
    codec = Codec(handler.response_serializer, handler.request_deserializer)
    served = inside(path, handler) if inside else behaviour(function_of(handler), kind, threads)
    return Handler(describe(path, kind), served, codec, shared)


def intercepted(
    interceptors: Sequence[grpc.aio.ServerInterceptor], threads: Executor | None
) -> Callable[[str, grpc.RpcMethodHandler[Any, Any]], Behaviour]:
    """Return how a behaviour is made that lets ``interceptors`` decide, on every call, which handler runs.

    They are asked each time: one that lets a call through must not open the method to the next caller.
    """

    def inside(path: str, registered: grpc.RpcMethodHandler[Any, Any]) -> Behaviour:
        kind = kind_of(registered)
        cached: tuple[Any, Any] = (None, None)

        async def ask(index: int, details: grpc.HandlerCallDetails) -> Any:
            if index == len(interceptors):
                return registered

            async def continuation(given: grpc.HandlerCallDetails) -> Any:
                return await ask(index + 1, given)

            return await interceptors[index].intercept_service(continuation, details)

        async def run(request: Any, context: Context) -> Any:
            nonlocal cached
            handler = await ask(0, CallDetails(path, context.invocation_metadata()))
            if handler is None:
                raise Error(Code.UNIMPLEMENTED, "method not found")
            if cached[0] is not handler:
                cached = (handler, _fitted(handler, kind, threads))
            return await cached[1](request, context)

        return run

    return inside


def _fitted(handler: grpc.RpcMethodHandler[Any, Any], kind: Kind, threads: Executor | None) -> Behaviour:
    """Return the behaviour of an interceptor's ``handler`` on a method of ``kind``.

    It may be of another kind: many refuse calls of every kind with one handler for unary ones. One that wants a single
    request gets None for a stream's, which nobody could wait for; its response is the only message of a stream.
    """
    own = kind_of(handler)
    served = behaviour(function_of(handler), own, threads)
    if own is kind:
        return served
    if own.response_streaming and not kind.response_streaming:
        msg = f"an interceptor gave a handler that streams responses for a method that has one: {handler!r}"
        raise TypeError(msg)

    async def fit(request: Any, context: Context) -> Any:
        if own.request_streaming is not kind.request_streaming:
            request = each([request]) if own.request_streaming else None
        response = await served(request, context)
        if kind.response_streaming and response is not None:
            await context.write(response)
            return None
        return response

    return fit


def unknown_handler(shared: Serving) -> Handler:
    """Return what serves every path that nobody knows: one chain and one label for all of them."""
    return Handler(UNKNOWN, _unknown, Codec(None, None), shared)


def failing_handler(error: Exception, shared: Serving) -> Handler:
    """Return what runs the chain around nothing but ``error``, where the handler of a path could not be had."""

    async def fail(_request: Any, _context: Context) -> Any:
        raise error.with_traceback(None)  # at every call: it would gather those of all of them

    return Handler(UNKNOWN, fail, Codec(None, None), shared)


async def _unknown(_request: Any, _context: Context) -> Any:
    raise Error(Code.UNIMPLEMENTED, "method not found")
