"""A span for each call and, where calls are tried again, for each attempt, in the words of OpenTelemetry."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import ClassVar, Final
from urllib.parse import unquote

from opentelemetry import context, propagate, trace
from opentelemetry.propagators.textmap import Getter, Setter, TextMapPropagator

from servicekit.call import Call, Side
from servicekit.endpoint import Endpoint, Message
from servicekit.errors import Code, Error
from servicekit.instruments import OTHER, is_error, name_of
from servicekit.metadata import Metadata
from servicekit.method import Method
from servicekit.policy.checked import flag, kind
from servicekit.telemetry import Telemetry

_LONGEST_TEXT: Final = 256
_LONGEST_PATH: Final = 128
_MOST_METHODS: Final = 10_000  # whose names are kept: a proxy may see any
_BRIDGED: Final = "opentelemetry.instrumentation.grpc"


@dataclass(frozen=True, slots=True, eq=False)
class Tracing:
    """Makes one span for each call, from its beginning to its end: a stream's ends with the stream.

    Default: on for every method but the server's own (health, reflection); ``auxiliary=True`` is for those too. A
    server's span belongs to the trace that the client's metadata names, a client's to the one that its caller is in,
    and that goes on in what is sent: W3C ``traceparent`` and ``baggage``, or what ``propagator`` says (None: the global
    one, as it is when this is made). The span is the current one for all that is further in, sampled or not; one that
    is not recorded costs its making and the passing on.

    It is called "package.Service/Method" ("grpc" where the server has no such method). It holds
    ``rpc.response.status_code`` as the other side sees it, ``error.type``, the peer's address, and an event "decision"
    for each decision of a link further in. An error, by the conventions, is on a client all but OK, on a server
    UNKNOWN, DEADLINE_EXCEEDED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE and DATA_LOSS; its description is the message that
    crosses the wire. Never what is in a message, nor an exception's text, nor metadata. ``target``, what a client is
    connected to, becomes ``server.address`` and ``server.port``.

    Where opentelemetry-instrumentation-grpc, outside of it, has made a span for the same call, this steps back, and
    says so once in the log. A tracer that raises costs the span, not the call.
    """

    keeps_messages: ClassVar[bool] = True
    observes: ClassVar[bool] = True

    telemetry: Telemetry
    _: KW_ONLY
    auxiliary: bool = False
    target: str = ""
    propagator: TextMapPropagator | None = None
    _tracer: trace.Tracer = field(init=False, repr=False)
    _carrier: _Carrier = field(init=False, repr=False)
    _server: dict[str, str | int] = field(init=False, repr=False)
    _named: dict[str, _Named] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        """Raise TypeError, naming setting and value, for what is none; ValueError when there is nowhere to send spans to."""
        object.__setattr__(self, "_tracer", _tracer_of(self.telemetry, "Tracing"))
        flag("auxiliary", self.auxiliary)
        kind("target", self.target, str, "text")
        object.__setattr__(self, "_carrier", _Carrier(self.propagator))
        object.__setattr__(self, "_server", _server_of(self.target))

    async def __call__(self, request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        """Run the call inside its span."""
        method = call.method
        if (method.auxiliary and not self.auxiliary) or self._has_one(call):
            return await next(request, call)
        named = self._named.get(method.path) or self._name(method)
        if call.side is Side.SERVER:
            parent, kind = self._carrier.extract(call.metadata), trace.SpanKind.SERVER
        else:
            parent, kind = context.get_current(), trace.SpanKind.CLIENT
        try:
            span = self._tracer.start_span(named.name, parent, kind, named.attributes)
            if span.is_recording():
                _describe(span, call)
        except Exception:  # noqa: BLE001 - somebody's sampler or processor: it has nothing to do with the call
            return await next(request, call)
        inside = trace.set_span_in_context(span, parent)
        if kind is trace.SpanKind.CLIENT:
            self._carrier.inject(call.metadata, inside)
        return await _run(span, inside, request, call, next, old_names=self.telemetry.old_names)

    def _name(self, method: Method) -> _Named:
        name = name_of(method)
        attributes: dict[str, str | int] = {"rpc.system.name": "grpc", "rpc.method": name, **self._server}
        if self.telemetry.old_names:
            # There rpc.method was the last word alone. It cannot be both, and the current meaning wins.
            attributes |= {"rpc.system": "grpc", "rpc.service": method.service if method.known else OTHER}
        named = _Named("grpc" if name == OTHER else name, attributes)
        if len(self._named) < _MOST_METHODS:
            self._named[method.path] = named
        return named

    def _has_one(self, call: Call) -> bool:
        span = trace.get_current_span()
        if not span.is_recording() or getattr(span, "name", None) != call.path:
            return False
        kind = trace.SpanKind.SERVER if call.side is Side.SERVER else trace.SpanKind.CLIENT
        scope = getattr(getattr(span, "instrumentation_scope", None), "name", "")
        if getattr(span, "kind", None) is not kind or not scope.startswith(_BRIDGED):
            return False
        self.telemetry.once("Tracing steps back: opentelemetry-instrumentation-grpc makes spans for the same calls")
        return True


@dataclass(frozen=True, slots=True, eq=False)
class AttemptTracing:
    """Makes one span for each attempt at a call, in the span of the call; what a server makes of it belongs to that.

    For a client, inside of whatever tries again. Default: on for every method but health and reflection. The span is
    called "Attempt.package.Service/Method", and holds the attempt's own status and address, and
    ``previous-rpc-attempts`` (gRFC A72, whose ways these are). It is not of kind CLIENT: that is the call, once.
    """

    one_attempt: ClassVar[bool] = True

    telemetry: Telemetry
    _: KW_ONLY
    propagator: TextMapPropagator | None = None
    _tracer: trace.Tracer = field(init=False, repr=False)
    _carrier: _Carrier = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Raise TypeError, naming setting and value, for what is none; ValueError when there is nowhere to send spans to."""
        object.__setattr__(self, "_tracer", _tracer_of(self.telemetry, "AttemptTracing"))
        object.__setattr__(self, "_carrier", _Carrier(self.propagator))

    async def __call__(self, request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        """Run the attempt inside its span."""
        if call.method.auxiliary or call.side is Side.SERVER:
            return await next(request, call)
        parent, name = context.get_current(), name_of(call.method)
        try:
            span = self._tracer.start_span(f"Attempt.{name}", parent, trace.SpanKind.INTERNAL)
            if span.is_recording():
                before = max(0, call.attempt - 1)
                span.set_attributes({"rpc.system.name": "grpc", "rpc.method": name, "previous-rpc-attempts": before})
        except Exception:  # noqa: BLE001 - as above
            return await next(request, call)
        inside = trace.set_span_in_context(span, parent)
        self._carrier.inject(call.metadata, inside)
        return await _run(span, inside, request, call, next, old_names=self.telemetry.old_names)


class _Named:
    """What is the same in all spans of one method."""

    __slots__ = ("attributes", "name")

    def __init__(self, name: str, attributes: Mapping[str, str | int]) -> None:
        self.name = name
        self.attributes = attributes


class _Carrier(Getter[Metadata], Setter[Metadata]):
    """How a propagator reads and writes metadata: text only, keys in lower case, and what may not travel left out."""

    __slots__ = ("_fields", "_propagator")

    def __init__(self, propagator: TextMapPropagator | None) -> None:
        if propagator is None:
            propagator = propagate.get_global_textmap()
        self._propagator = kind("propagator", propagator, TextMapPropagator, "TextMapPropagator of OpenTelemetry")
        self._fields = frozenset(self._propagator.fields)

    def extract(self, metadata: Metadata) -> context.Context:
        """Return the context that the other side was in; an empty one when it says nothing."""
        if self._fields and not any(key in self._fields for key, _ in metadata):
            return context.Context()
        try:
            return self._propagator.extract(metadata, context.Context(), self)
        except Exception:  # noqa: BLE001 - what a stranger sends, read by somebody's propagator
            return context.Context()

    def inject(self, metadata: Metadata, inside: context.Context) -> None:
        """Write into ``metadata`` what the other side is to know."""
        try:
            self._propagator.inject(metadata, inside, self)
        except Exception:  # noqa: BLE001 - somebody's propagator
            return

    def get(self, carrier: Metadata, key: str) -> list[str] | None:
        return [value for value in carrier.get_all(key.lower()) if isinstance(value, str)] or None

    def keys(self, carrier: Metadata) -> list[str]:
        return [key for key, value in carrier if isinstance(value, str)]

    def set(self, carrier: Metadata, key: str, value: str) -> None:
        try:
            carrier.set(key.lower(), value)
        except (TypeError, ValueError):  # no metadata: baggage of somebody's own with a line break in it, or a -bin key
            return


async def _run(  # noqa: PLR0913 - one line of thought for calls and attempts
    span: trace.Span,
    inside: context.Context,
    request: Message,
    call: Call,
    next: Endpoint,  # noqa: A002 - the term
    *,
    old_names: bool,
) -> Message:
    token = context.attach(inside)
    try:
        response = await next(request, call)
    except BaseException as error:
        _finish(span, call, error, old_names=old_names)
        raise
    else:
        _finish(span, call, None, old_names=old_names)
        return response
    finally:
        context.detach(token)


def _describe(span: trace.Span, call: Call) -> None:
    if call.side is Side.SERVER:
        _locate(span, "client", call.peer)
    if not call.method.known:
        # anybody may send anything here: printable ASCII only, and not more of it than helps
        path = call.path.removeprefix("/")[:_LONGEST_PATH]
        span.set_attribute("rpc.method_original", path.encode("unicode_escape").decode())

    def decided(link: str, decision: str) -> None:
        span.add_event("decision", {"servicekit.link": link, "servicekit.decision": decision})

    call.on_decision(decided)


def _finish(span: trace.Span, call: Call, error: BaseException | None, *, old_names: bool) -> None:
    try:
        if span.is_recording():
            code = call.outcome(error)
            span.set_attribute("rpc.response.status_code", code.name)
            if old_names:
                span.set_attribute("rpc.grpc.status_code", int(code))
            if call.side is Side.CLIENT:
                _locate(span, "", call.peer or call.instance or "")
            if is_error(code, call.side):
                _fail(span, call, code, error)
        span.end()
    except Exception:  # noqa: BLE001 - somebody's processor: it has nothing to do with the call
        return


def _fail(span: trace.Span, call: Call, code: Code, error: BaseException | None) -> None:
    if isinstance(error, asyncio.CancelledError):
        error = call.failure
    kind, text = code.name, None
    if isinstance(error, Error):
        text = error.message[:_LONGEST_TEXT]
    elif error is not None and call.side is Side.CLIENT:  # no status came: the caller's own iterator, or a link, raised
        kind = f"{type(error).__module__}.{type(error).__qualname__}".removeprefix("builtins.")
    span.set_attribute("error.type", kind)
    span.set_status(trace.StatusCode.ERROR, text)


def _locate(span: trace.Span, role: str, peer: str) -> None:
    """Say where the other end is, from how a wire spells that: "ipv4:10.0.0.1:4711", "ipv6:%5B::1%5D:4711", "unix:…"."""
    if not peer or peer == "unix:":
        return
    address, port = _split(unquote(peer).removeprefix("ipv4:").removeprefix("ipv6:").removeprefix("unix:"))
    for word in filter(None, ("network.peer", role)):
        span.set_attribute(f"{word}.address", address)
        if port is not None:
            span.set_attribute(f"{word}.port", port)


def _server_of(target: str) -> dict[str, str | int]:
    """Return the attributes that name a target, as the conventions for gRPC have it."""
    if not target:
        return {}
    if target.startswith("unix:"):
        return {"server.address": re.sub("^unix:(//(?=/))?", "", target)}
    plain = re.sub("^dns:(//[^/]*/)?|^ipv[46]:", "", target)
    if "://" in plain or "," in plain:  # a name that only a resolver understands, or several addresses
        return {"server.address": target}
    address, port = _split(plain)
    return {"server.address": address} if port is None else {"server.address": address, "server.port": port}


def _split(address: str) -> tuple[str, int | None]:
    host, mark, port = address.rpartition(":")
    if not mark or not port.isdecimal() or (":" in host and not host.startswith("[")):
        return address.strip("[]"), None
    return host.strip("[]"), int(port)


def _tracer_of(telemetry: Telemetry, link: str) -> trace.Tracer:
    tracer = kind("telemetry", telemetry, Telemetry, "Telemetry").tracer
    if tracer is None:
        msg = f"{link} needs somewhere to send spans to: Telemetry(traces=...), not {telemetry!r}"
        raise ValueError(msg)
    return tracer
