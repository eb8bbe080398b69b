"""opentelemetry-instrumentation-grpc on our servers and channels: its interceptors as middleware, for every kind of call.

As it comes, that package fails on what it does not expect: a handler that streams without being an async generator
(the health service's ``Watch`` is one), a plain function, a client's ``write()``. It leaves spans open when a caller
goes away, and takes deadlines, cancellations and uncaught errors for success. All of that comes from where it stands. In
the chain a call of any kind is one coroutine that is over when the call is, so here its interceptor for unary calls is
given every call, told how each of them ended, and sees no exception's text. Its filters and hooks hold; health and
reflection are left out.

``on_server`` and ``on_client`` find its interceptors where they were given, or where its instrumentors (by hand, or
under ``opentelemetry-instrument``) would have put them in. For a method that has ``Tracing`` around it theirs steps
back: one span for each call. Nothing of that package is imported here.
"""

from __future__ import annotations

import inspect
import sys
from typing import TYPE_CHECKING, Any

import grpc
from opentelemetry import trace

from servicekit.call import Side
from servicekit.endpoint import Chain, Only, only
from servicekit.errors import Code, Error
from servicekit.grpcio.factories import PATCHER, patched
from servicekit.instruments import is_error
from servicekit.middleware.tracing import Tracing

from .context import Metadatum
from .router import CallDetails
from .status import GRPC_CODES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from servicekit.call import Call
    from servicekit.endpoint import Endpoint, Middleware
    from servicekit.method import Method


def on_server(
    links: Chain, interceptors: Sequence[grpc.aio.ServerInterceptor]
) -> tuple[Chain, Sequence[grpc.aio.ServerInterceptor]]:
    """Return the chain and the interceptors of a server, theirs moved from these into that one."""
    theirs: list[Any] = [interceptor for interceptor in interceptors if _is_theirs(interceptor)]
    others = [interceptor for interceptor in interceptors if not _is_theirs(interceptor)]
    if not theirs and (factory := patched("server")) is not None:
        setting = _settings(factory)
        theirs.append(_made(factory, "aio_server_interceptor")(setting("tracer_provider"), setting("_filter")))
    return (_joined(links, ServerBridge(theirs[0])), others) if theirs else (links, interceptors)


def on_client(
    links: Chain, interceptors: Sequence[grpc.aio.ClientInterceptor]
) -> tuple[Chain, Sequence[grpc.aio.ClientInterceptor]]:
    """Return the chain and the interceptors of a channel, theirs moved from these into that one."""
    theirs: list[Any] = [interceptor for interceptor in interceptors if _is_theirs(interceptor)]
    others = [interceptor for interceptor in interceptors if not _is_theirs(interceptor)]
    factory = patched("insecure_channel") or patched("secure_channel")
    if not theirs and factory is not None:
        setting = _settings(factory)
        theirs = _made(factory, "aio_client_interceptors")(
            setting("tracer_provider"), setting("_filter"), setting("_request_hook"), setting("_response_hook")
        )
    unary = [interceptor for interceptor in theirs if isinstance(interceptor, grpc.aio.UnaryUnaryClientInterceptor)]
    return (_joined(links, ClientBridge(unary[0])), others) if unary else (links, interceptors)


class ServerBridge:
    """One of their server interceptors as a middleware."""

    def __init__(self, interceptor: Any) -> None:
        """Run every call but health's and reflection's inside ``interceptor``."""
        self._interceptor = interceptor

    async def __call__(self, request: Any, call: Call, next: Endpoint, /) -> Any:  # noqa: A002 - the term
        """Run the call inside the span that theirs makes."""
        if call.method.auxiliary:
            return await next(request, call)
        run = _Run(request, call, next)

        async def behave(_request: Any, _context: Any) -> None:
            span = await run.go()
            if span is not None:
                code, text = run.outcome
                span.set_attribute("rpc.grpc.status_code", int(code))
                if is_error(code, Side.SERVER):
                    span.set_status(trace.StatusCode.ERROR, f"{code.name}:{text}")

        async def continuation(_details: Any) -> Any:
            return _handler(behave)

        context = _Context(call)
        try:
            details = CallDetails(call.path, context.invocation_metadata())
            handler = await self._interceptor.intercept_service(continuation, details)
            await handler.unary_unary(request, context)
        except Exception:  # noqa: BLE001 - theirs, or its tracer's: it has nothing to do with the call
            await run.go()
        return run.result()

    def __repr__(self) -> str:
        """Return whose spans these are."""
        return "opentelemetry-instrumentation-grpc"


class ClientBridge:
    """Their interceptor of unary calls as a middleware for calls of every kind."""

    def __init__(self, interceptor: Any) -> None:
        """Run every call but health's and reflection's inside ``interceptor``."""
        self._interceptor = interceptor

    async def __call__(self, request: Any, call: Call, next: Endpoint, /) -> Any:  # noqa: A002 - the term
        """Run the call inside the span that theirs makes."""
        if call.method.auxiliary:
            return await next(request, call)
        run = _Run(request, call, next)

        async def continuation(details: Any, _request: Any) -> _Over:
            before = set(call.metadata.pairs())
            for key, value in details.metadata or ():
                if (key, value) not in before:
                    call.metadata.set(key, value)
            await run.go()
            return _Over(*run.outcome)

        metadata = grpc.aio.Metadata(*call.metadata.pairs())
        details = grpc.aio.ClientCallDetails(call.path, call.remaining(), metadata, None, None)
        try:
            await self._interceptor.intercept_unary_unary(continuation, details, request)
        except Exception:  # noqa: BLE001 - theirs, or a hook's: it has nothing to do with the call
            await run.go()
        return run.result()

    def __repr__(self) -> str:
        """Return whose spans these are."""
        return "opentelemetry-instrumentation-grpc"


class _Run:
    """One call, run once, whose end is kept from whoever stands around it."""

    def __init__(self, request: Any, call: Call, next: Endpoint) -> None:  # noqa: A002 - the term
        self._request = request
        self._call = call
        self._next = next
        self._outside = trace.get_current_span()
        self._begun = False
        self._response: Any = None
        self._error: BaseException | None = None

    async def go(self) -> trace.Span | None:
        """Run the call if nobody has; return the span that was made for it and is recorded, or None."""
        if not self._begun:
            self._begun = True
            try:
                self._response = await self._next(self._request, self._call)
            except BaseException as error:  # noqa: BLE001 - raised by result()
                self._error = error
        span = trace.get_current_span()
        return span if span is not self._outside and span.is_recording() else None

    @property
    def outcome(self) -> tuple[Code, str]:
        """How it ended, as the other side sees it, with the text that crosses the wire."""
        error = self._call.failure if self._call.failure is not None else self._error
        return self._call.outcome(self._error), error.message if isinstance(error, Error) else ""

    def result(self) -> Any:
        """Return or raise what the call did."""
        if self._error is not None:
            raise self._error
        return self._response


class _Over:
    """A call that has ended, as far as theirs asks."""

    def __init__(self, code: Code, details: str) -> None:
        self._code = GRPC_CODES[code]
        self._details = details

    async def code(self) -> grpc.StatusCode:
        return self._code

    async def details(self) -> str:
        return self._details

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        callback(self)


class _Context:
    """What theirs asks of a servicer's context."""

    def __init__(self, call: Call) -> None:
        self._call = call

    def invocation_metadata(self) -> tuple[Metadatum, ...]:
        return tuple(Metadatum(key, value) for key, value in self._call.metadata if isinstance(value, str))

    def peer(self) -> str:
        peer = self._call.peer
        return peer if peer.startswith(("ipv4:", "ipv6:")) else "unix:"  # of others theirs cannot read the address


def _joined(links: Chain, bridge: Middleware) -> Chain:
    for tracing in _tracings(links.links):
        tracing.telemetry.once("opentelemetry-instrumentation-grpc steps back where Tracing makes the spans")

    def without_spans(method: Method) -> bool:
        return not any(_tracings(links.links, method))

    return Chain((only(without_spans, bridge), *links.links))


def _tracings(links: Sequence[Middleware], method: Method | None = None) -> Iterator[Tracing]:
    """Yield every Tracing among ``links``; with a ``method``, those that are around it."""
    for link in links:
        inner: Middleware | None = link
        while isinstance(inner, Only):
            inner = inner.middleware if method is None else inner.applied(method)
        if isinstance(inner, Chain):
            yield from _tracings(inner.links, method)
        elif isinstance(inner, Tracing):
            yield inner


def _is_theirs(interceptor: object) -> bool:
    return any(kind.__module__.startswith(PATCHER) for kind in type(interceptor).__mro__)


def _made(factory: Any, name: str) -> Any:
    return getattr(sys.modules[factory.__module__], name)


def _settings(factory: Any) -> Callable[[str], Any]:
    """Return how to look up what an instrumentor was given, which its factory holds in its closure."""
    held = inspect.getclosurevars(factory).nonlocals
    return lambda name: held.get(name, getattr(held.get("self"), name, None))


def _handler(behave: Callable[[Any, Any], Any]) -> Any:
    make: Any = grpc  # the stubs know only the sync server's behaviours
    return make.unary_unary_rpc_method_handler(behave)
