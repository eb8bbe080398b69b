"""A span for each call, as it is exported."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from opentelemetry import baggage, context, trace
from opentelemetry.propagators.textmap import TextMapPropagator
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased
from opentelemetry.trace import SpanKind, StatusCode

from servicekit.call import Call, Side
from servicekit.clock import MovableClock, settle
from servicekit.endpoint import Endpoint, Message, Middleware, chain, only
from servicekit.errors import By, Code, Error
from servicekit.method import Kind
from servicekit.middleware import (
    AccessLog,
    AttemptTracing,
    Deadline,
    Metrics,
    Recovery,
    RequestId,
    Tracing,
    standard,
    standard_client,
)
from servicekit.middleware.tracing import _server_of
from servicekit.telemetry import Telemetry
from servicekit.testing import make_call, pair, run, scripted, sends, waits
from servicekit.testing.pair import Over, Pair
from tests.transport.clients import (
    ANSWERS,
    NAMES,
    Context,
    Flaky,
    Held,
    Untyped,
    _nothing_is_left,  # noqa: F401 - a fixture for every test here
    all_methods,
    ask,
    begin,
    both,
    echo,
    every_kind,
    streaming_responses,
)

from .probes import Log
from .spans import Spans, attributes, ids, is_child, same_trace

CANARY = "canary-" + "7a11"
TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{SPAN}-01"
SERVER_ERRORS = {
    Code.UNKNOWN,
    Code.DEADLINE_EXCEEDED,
    Code.UNIMPLEMENTED,
    Code.INTERNAL,
    Code.UNAVAILABLE,
    Code.DATA_LOSS,
}
SERVICE = "servicekit.testing.v1.EchoService"


def traced(spans: Spans, over: Over, *more: Untyped, **methods: Callable[..., Any]) -> Untyped:
    """Return a pair with spans on both sides; ``more`` are links of the client, inside its Tracing."""
    tracing = Tracing(spans.telemetry)
    return pair(echo(**methods), over=over, middleware=[tracing, Recovery()], client=[tracing, *more])


async def finished(spans: Spans, count: int = 2) -> None:
    """Return once so many spans were exported: a server's may come after its client has its answer."""
    async with asyncio.timeout(2):
        while len(spans.all) < count:  # noqa: ASYNC110 - an exporter tells nobody
            await asyncio.sleep(0.001)


@both
@every_kind
async def test_one_span_on_each_side(kind: Kind, over: Over) -> None:
    """A good call is a CLIENT span and a SERVER span in it, named for the method, with the conventions' attributes."""
    spans = Spans()
    async with traced(spans, over) as ends:
        assert await ask(ends.channel, kind) == ANSWERS[kind]
        await finished(spans)
    client, server = spans.of(SpanKind.CLIENT), spans.of(SpanKind.SERVER)
    assert len(spans.all) == 2
    assert same_trace(client, server)
    assert is_child(server, client)
    assert client.parent is None
    for span in spans.all:
        assert span.name == f"{SERVICE}/{NAMES[kind]}"
        common = {"rpc.system.name": "grpc", "rpc.method": span.name, "rpc.response.status_code": "OK"}
        assert common.items() <= attributes(span).items()
        assert span.status.status_code is StatusCode.UNSET
        assert not {"error.type", "rpc.system", "rpc.service", "rpc.grpc.status_code"} & attributes(span).keys()
    if over == "socket":
        assert attributes(server)["client.address"] == attributes(server)["network.peer.address"] == "127.0.0.1"
        assert isinstance(attributes(server)["client.port"], int)


@both
@every_kind
async def test_a_refused_call(kind: Kind, over: Over) -> None:
    """A business failure is an error for the client, none for the server, and has its code on both."""

    async def refuse(_request: Message, context: Context) -> None:
        raise Error(Code.NOT_FOUND, "no such thing", reason="GONE")

    spans = Spans()
    async with traced(spans, over, **all_methods(refuse)) as ends:
        with pytest.raises(Exception, match="no such thing"):
            await ask(ends.channel, kind)
        await finished(spans)
    client, server = spans.of(SpanKind.CLIENT), spans.of(SpanKind.SERVER)
    assert (
        attributes(client)["rpc.response.status_code"] == attributes(server)["rpc.response.status_code"] == "NOT_FOUND"
    )
    assert (client.status.status_code, client.status.description) == (StatusCode.ERROR, "no such thing")
    assert attributes(client)["error.type"] == "NOT_FOUND"
    assert server.status.status_code is StatusCode.UNSET
    assert "error.type" not in attributes(server)


@both
@every_kind
async def test_a_bug_shows_no_text(kind: Kind, over: Over) -> None:
    """An unexpected exception is INTERNAL on both sides, and its text is in no span."""

    async def fail(_request: Message, context: Context) -> None:
        raise ValueError(CANARY)

    spans = Spans()
    async with traced(spans, over, **all_methods(fail)) as ends:
        with pytest.raises(Exception, match="internal error"):
            await ask(ends.channel, kind)
        await finished(spans)
    for span in spans.all:
        assert attributes(span)["rpc.response.status_code"] == attributes(span)["error.type"] == "INTERNAL"
        assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, "internal error")
    assert CANARY not in spans.text


@both
@every_kind
async def test_a_cancelled_call(kind: Kind, over: Over) -> None:
    """A call that its caller leaves ends both spans, CANCELLED: an error for the client, by the letter, none here."""
    spans, held = Spans(), Held()
    async with traced(spans, over, **all_methods(held.method)) as ends:
        call = begin(ends.channel, kind)
        await held.begun.wait()
        call.cancel()
        await finished(spans)
    client, server = spans.of(SpanKind.CLIENT), spans.of(SpanKind.SERVER)
    assert (
        attributes(client)["rpc.response.status_code"] == attributes(server)["rpc.response.status_code"] == "CANCELLED"
    )
    assert (client.status.status_code, server.status.status_code) == (StatusCode.ERROR, StatusCode.UNSET)


@both
@every_kind
async def test_a_deadline(kind: Kind, over: Over) -> None:
    """A call that ran out of time is DEADLINE_EXCEEDED, an error, on both sides.

    Over a socket the server may hear of it first by the client's reset.
    """
    spans, held = Spans(), Held()
    async with traced(spans, over, **all_methods(held.method)) as ends:
        call = begin(ends.channel, kind, timeout=0.5)
        await held.begun.wait()
        if over == "memory":
            await ends.clock.advance(0.5)
        await finished(spans)
        call.cancel()
    for span in spans.all:
        if (
            span.kind is SpanKind.SERVER
            and over != "memory"
            and attributes(span)["rpc.response.status_code"] == "CANCELLED"
        ):
            continue
        assert attributes(span)["rpc.response.status_code"] == attributes(span)["error.type"] == "DEADLINE_EXCEEDED"
        assert span.status.status_code is StatusCode.ERROR


@both
@streaming_responses
async def test_a_streams_span_ends_with_the_stream(kind: Kind, over: Over) -> None:
    """While messages flow there is no finished span; leaving the stream ends it."""
    spans, release = Spans(), asyncio.Event()

    async def flow(_request: Message, context: Context) -> None:
        await context.write(_response(kind))
        await release.wait()
        await context.write(_response(kind))

    async with traced(spans, over, **all_methods(flow)) as ends:
        call = begin(ends.channel, kind)
        await call.read()
        assert not spans.all
        release.set()
        await call.read()
        await call.read()
        await finished(spans)
        assert {attributes(span)["rpc.response.status_code"] for span in spans.all} == {"OK"}
        release.clear()
        call = begin(ends.channel, kind)
        await call.read()
        del call  # nobody reads on
        await finished(spans, 4)
        assert {attributes(span)["rpc.response.status_code"] for span in spans.all[2:]} == {"CANCELLED"}


def _response(kind: Kind) -> Message:
    from servicekit.testing.v1.echo_pb2 import ChatResponse, ExpandResponse  # noqa: PLC0415 - of this one helper

    return ExpandResponse() if kind is Kind.SERVER_STREAM else ChatResponse()


@both
async def test_an_unknown_method(over: Over) -> None:
    """What a server does not have is called "grpc", with what was asked for beside it, cut short and escaped."""
    spans = Spans()
    path = "/no.Such/Thing" + "x" * 500
    async with pair(echo(), over=over, middleware=[Tracing(spans.telemetry)]) as ends:
        with pytest.raises(Exception, match="not found"):
            await ends.channel.unary_unary(path)(b"")
        await finished(spans, 1)
    assert spans.one.name == "grpc"
    assert attributes(spans.one)["rpc.method"] == "_OTHER"
    assert attributes(spans.one)["rpc.method_original"] == path[1:129]
    assert attributes(spans.one)["rpc.response.status_code"] == "UNIMPLEMENTED"
    assert spans.one.status.status_code is StatusCode.ERROR


@both
async def test_the_trace_and_the_baggage_go_two_hops(over: Over) -> None:
    """What the first client is in, the second server is in: trace, baggage, and each span in the one before."""
    spans = Spans()
    seen: list[Mapping[str, object]] = []
    tracing = Tracing(spans.telemetry)
    async with pair(echo(Echo=_noting(seen)), over=over, middleware=[tracing]) as last:
        onward = last.connect(tracing)

        async def relay(request: Message, context: Context) -> Message:
            await ask(onward, Kind.UNARY)
            return request

        async with pair(echo(Echo=relay), over=over, middleware=[tracing], client=[tracing], **_same(last)) as first:
            token = context.attach(baggage.set_baggage("tenant", "a b/ä"))
            try:
                await ask(first.channel, Kind.UNARY)
            finally:
                context.detach(token)
            await finished(spans, 4)
        await onward.close()
    assert same_trace(*spans.all)
    assert seen == [{"tenant": "a b/ä"}]
    by_depth: dict[int | None, ReadableSpan] = {
        span.parent.span_id if span.parent else None: span for span in spans.all
    }
    depth: list[SpanKind] = []
    above: int | None = None
    while above in by_depth:
        span = by_depth[above]
        depth.append(span.kind)
        above = ids(span).span_id
    assert depth == [SpanKind.CLIENT, SpanKind.SERVER, SpanKind.CLIENT, SpanKind.SERVER]


def _noting(seen: list[Mapping[str, object]]) -> Callable[..., Any]:
    async def note(request: Message, _context: Context) -> Message:
        seen.append(baggage.get_all())
        return request

    return note


def _same(ends: Pair) -> dict[str, Any]:
    return {} if ends.network is None else {"network": ends.network, "clock": ends.movable}


async def test_takes_the_clients_trace() -> None:
    """On a server the span belongs to the trace that ``traceparent`` names; what is malformed is a new one."""
    for given, known in ((PARENT, True), ("00-nonsense", False), ("", False)):
        spans = Spans()
        metadata = [("traceparent", given), ("x", "y")] if given else []
        await run(Tracing(spans.telemetry), scripted("ok"), "hi", make_call(metadata=metadata))
        parent = spans.one.parent
        assert (parent is not None) is known
        if parent is not None:
            assert (f"{parent.trace_id:032x}", f"{parent.span_id:016x}", parent.is_remote) == (TRACE, SPAN, True)


async def test_a_servers_span_is_in_nobody_elses() -> None:
    """A server that was started inside a span does not put its calls into that one."""
    spans = Spans()
    with spans.provider.get_tracer("main").start_as_current_span("start-up"):
        await run(Tracing(spans.telemetry), scripted("ok"), "hi", make_call())
    assert spans.of(SpanKind.SERVER).parent is None


async def test_sends_its_own_in_the_place_of_the_callers() -> None:
    """On a client ``traceparent`` names the span of this call, whatever was there before; bytes are left alone."""
    spans = Spans()
    call = make_call(side=Side.CLIENT, metadata=[("traceparent", PARENT), ("a-bin", b"\x00"), ("a", "b")])
    await run(Tracing(spans.telemetry), scripted("ok"), "hi", call)
    (sent,) = call.metadata.get_all("traceparent")
    own = ids(spans.one)
    assert sent == f"00-{own.trace_id:032x}-{own.span_id:016x}-{own.trace_flags:02x}"
    assert call.metadata.get("a-bin") == b"\x00"
    assert call.metadata.get("a") == "b"


async def test_what_may_not_travel_is_left_out() -> None:
    """A propagator's entry that is no metadata costs that entry only; bytes of a peer are no text to it."""

    class Odd(TextMapPropagator):
        def extract(self, carrier: Untyped, context: Untyped = None, getter: Untyped = None) -> Untyped:
            assert getter.get(carrier, "B3-BIN") is None
            assert getter.get(carrier, "B3") == ["x"]
            assert getter.keys(carrier) == ["b3"]
            return context

        def inject(self, carrier: Untyped, context: Untyped = None, setter: Untyped = None) -> None:
            setter.set(carrier, "X-Odd", "fine")
            setter.set(carrier, "x-line", "a\nb")
            setter.set(carrier, "x-bin", "text")
            setter.set(carrier, "x y", "text")

        @property
        def fields(self) -> set[str]:
            return {"b3"}

    tracing = Tracing(Spans().telemetry, propagator=Odd())
    await run(tracing, scripted("ok"), "hi", make_call(metadata=[("b3", "x"), ("b3-bin", b"y")]))
    call = make_call(side=Side.CLIENT)
    await run(tracing, scripted("ok"), "hi", call)
    assert call.metadata.pairs() == (("x-odd", "fine"),)


async def test_a_propagator_that_raises_costs_the_trace_only() -> None:
    """What somebody's propagator raises is no failure of the call."""

    class Raising(TextMapPropagator):
        def extract(self, carrier: Untyped, context: Untyped = None, getter: Untyped = None) -> Untyped:
            raise RuntimeError

        def inject(self, carrier: Untyped, context: Untyped = None, setter: Untyped = None) -> None:
            raise RuntimeError

        @property
        def fields(self) -> set[str]:
            return set()

    for side in Side:
        spans = Spans()
        tracing = Tracing(spans.telemetry, propagator=Raising())
        assert await run(tracing, scripted("ok"), "hi", make_call(side=side)) == "ok"
        assert spans.one.parent is None


async def test_not_sampled_is_passed_on_and_nothing_else() -> None:
    """A call that is not sampled has no attributes worked out, but its caller's trace goes on, as not sampled."""
    spans = Spans(ParentBased(ALWAYS_OFF))
    seen: list[trace.SpanContext] = []

    async def look(_request: Message, _call: Call) -> str:
        seen.append(trace.get_current_span().get_span_context())
        return "ok"

    served = make_call(metadata=[("traceparent", PARENT[:-1] + "0")])
    await run(Tracing(spans.telemetry), scripted(look), "hi", served)
    assert f"{seen[0].trace_id:032x}" == TRACE
    call = make_call(side=Side.CLIENT)
    await run(Tracing(spans.telemetry), scripted("ok"), "hi", call)
    assert int(str(call.metadata.text("traceparent"))[-2:], 16) & trace.TraceFlags.SAMPLED == 0
    assert spans.all == ()
    assert not served._on_decision
    assert not call._on_decision


@pytest.mark.parametrize("side", list(Side))
@pytest.mark.parametrize("code", [code for code in Code if code is not Code.OK])
async def test_which_codes_are_errors(code: Code, side: Side) -> None:
    """On a client all of them, on a server six; the description is what crosses the wire."""
    spans = Spans()
    with pytest.raises(Error):
        await run(Tracing(spans.telemetry), scripted(Error(code, "why")), "hi", make_call(side=side))
    failed = side is Side.CLIENT or code in SERVER_ERRORS
    assert attributes(spans.one)["rpc.response.status_code"] == code.name
    assert attributes(spans.one).get("error.type") == (code.name if failed else None)
    assert spans.one.status.status_code is (StatusCode.ERROR if failed else StatusCode.UNSET)
    assert spans.one.status.description == ("why" if failed else None)


async def test_what_never_had_a_status_has_its_type() -> None:
    """On a client an exception of the caller's own iterator is the error's type, without its text."""
    spans = Spans()
    with pytest.raises(ZeroDivisionError):
        await run(Tracing(spans.telemetry), scripted(ZeroDivisionError(CANARY)), "hi", make_call(side=Side.CLIENT))
    assert attributes(spans.one)["error.type"] == "ZeroDivisionError"
    assert spans.one.status.description is None
    assert CANARY not in spans.text


async def test_a_deadline_in_a_link() -> None:
    """A call that is ended from within, by a timer, has the failure that its client gets."""
    spans, clock = Spans(), MovableClock()
    links: list[Middleware] = [Tracing(spans.telemetry), Deadline(default=1.0)]
    running = asyncio.create_task(run(links, scripted(waits()), "hi", make_call(clock=clock)))
    await clock.advance(1.0)
    with pytest.raises(Error):
        await running
    assert attributes(spans.one)["error.type"] == "DEADLINE_EXCEEDED"
    assert spans.one.status.description == "deadline exceeded"


async def test_a_call_that_nobody_waits_for_any_more() -> None:
    """A cancelled call ends its span, and stays cancelled."""
    spans = Spans()
    running = asyncio.create_task(run(Tracing(spans.telemetry), scripted(waits()), "hi", make_call()))
    await settle()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert attributes(spans.one)["rpc.response.status_code"] == "CANCELLED"


async def test_decisions_are_events() -> None:
    """What a link further in decides is an event, with the link's and the decision's word."""
    spans = Spans()

    async def limit(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        call.decide("rate_limit", "refused")
        raise Error(Code.RESOURCE_EXHAUSTED, "too many")

    with pytest.raises(Error):
        await run([Tracing(spans.telemetry), limit], scripted("ok"), "hi", make_call())
    (event,) = spans.one.events
    assert event.name == "decision"
    assert event.attributes == {"servicekit.link": "rate_limit", "servicekit.decision": "refused"}


async def test_the_span_is_current_inside_and_gone_outside() -> None:
    """Further in it is the current span; afterwards the caller's is current again."""
    spans, seen = Spans(), []

    async def look(_request: Message, _call: Call) -> str:
        seen.append(trace.get_current_span())
        return "ok"

    with spans.provider.get_tracer("caller").start_as_current_span("work") as outside:
        call = make_call(side=Side.CLIENT)
        await Tracing(spans.telemetry)("hi", call, look)
        assert trace.get_current_span() is outside
    client = spans.of(SpanKind.CLIENT)
    assert seen[0].get_span_context() == client.get_span_context()
    assert client.parent == outside.get_span_context()


@both
async def test_health_is_left_out(over: Over) -> None:
    """The server's own methods have no span, but when asked for."""
    from grpc_health.v1 import health_pb2, health_pb2_grpc  # noqa: PLC0415 - 30 ms that one test needs

    for auxiliary in (False, True):
        spans = Spans()
        tracing = Tracing(spans.telemetry, auxiliary=auxiliary)
        async with pair(echo(), over=over, middleware=[tracing], client=[tracing]) as ends:
            stub: Untyped = health_pb2_grpc.HealthStub(ends.channel)
            await stub.Check(health_pb2.HealthCheckRequest())
            await finished(spans, 2 * auxiliary)
        assert len(spans.all) == 2 * auxiliary


@both
@every_kind
async def test_attempts_are_spans_inside_the_calls(kind: Kind, over: Over) -> None:
    """Each attempt at a call has its span, in that of the call; the server's is in the attempt's."""

    async def again(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        if kind.request_streaming:
            request.keep(1000)
        try:
            return await next(request, call.fork())
        except Error:
            return await next(request, call.fork())

    spans, flaky = Spans(), Flaky()
    links: Untyped = [again, AttemptTracing(spans.telemetry)]
    tracing = Tracing(spans.telemetry)
    async with pair(flaky.register, over=over, middleware=[tracing], client=[tracing, *links]) as ends:
        await ask(ends.channel, kind)
        await finished(spans, 5)
    client = spans.of(SpanKind.CLIENT)
    attempts = sorted((s for s in spans.all if s.kind is SpanKind.INTERNAL), key=lambda span: span.start_time or 0)
    servers = sorted((s for s in spans.all if s.kind is SpanKind.SERVER), key=lambda span: span.start_time or 0)
    assert same_trace(*spans.all)
    assert [span.name for span in attempts] == [f"Attempt.{SERVICE}/{NAMES[kind]}"] * 2
    assert [attributes(span)["rpc.response.status_code"] for span in attempts] == ["UNAVAILABLE", "OK"]
    assert [attributes(span)["previous-rpc-attempts"] for span in attempts] == [0, 1]
    assert [span.status.status_code for span in attempts] == [StatusCode.ERROR, StatusCode.UNSET]
    assert attributes(client)["rpc.response.status_code"] == "OK"
    assert all(is_child(attempt, client) for attempt in attempts)
    assert all(is_child(server, attempt) for server, attempt in zip(servers, attempts, strict=True))


async def test_attempts_of_a_server_and_of_health_have_none() -> None:
    """AttemptTracing is for a client's calls of services."""
    spans = Spans()
    link = AttemptTracing(spans.telemetry)
    for call in (make_call(), make_call(side=Side.CLIENT, auxiliary=True)):
        assert await run(link, scripted("ok"), "hi", call) == "ok"
    assert spans.all == ()


class Broken(SpanProcessor):
    """A processor that fails at the beginning or at the end of a span."""

    def __init__(self, *, begin: bool) -> None:
        self.begin = begin

    def on_start(self, span: Span, parent_context: context.Context | None = None) -> None:
        if self.begin:
            raise RuntimeError(CANARY)

    def on_end(self, span: Untyped) -> None:
        if not self.begin:
            raise RuntimeError(CANARY)


@pytest.mark.parametrize("begin", [True, False])
async def test_a_tracer_that_raises_costs_the_span_only(begin: bool) -> None:  # noqa: FBT001 - a parameter of a test
    """Somebody's processor has nothing to do with the call."""
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(Broken(begin=begin))
    telemetry = Telemetry(log=None, traces=provider)
    for link in (Tracing(telemetry), AttemptTracing(telemetry)):
        for side in Side:
            assert await run(link, scripted("ok"), "hi", make_call(side=side)) == "ok"


async def test_the_old_names_beside_the_current_ones() -> None:
    """With ``old_names`` the attributes of the conventions before are there too."""
    spans = Spans(old_names=True)
    with pytest.raises(Error):
        await run(Tracing(spans.telemetry), scripted(Error(Code.ABORTED)), "hi", make_call())
    old = {"rpc.system": "grpc", "rpc.service": "test.Service", "rpc.grpc.status_code": 10}
    current = {"rpc.system.name": "grpc", "rpc.method": "test.Service/Method", "rpc.response.status_code": "ABORTED"}
    assert (old | current).items() <= attributes(spans.one).items()


@pytest.mark.parametrize(
    ("value", "old"), [("rpc/dup", True), ("http, rpc/dup", True), ("rpc", False), ("grpc/dup", False), ("", False)]
)
def test_the_environment_may_ask_for_the_old_names(value: str, old: bool, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: FBT001 - a parameter of a test
    """OTEL_SEMCONV_STABILITY_OPT_IN is read once, when the telemetry is made; a setting wins over it."""
    monkeypatch.setenv("OTEL_SEMCONV_STABILITY_OPT_IN", value)
    assert Telemetry(log=None).old_names is old
    assert Telemetry(log=None, old_names=not old).old_names is not old


@pytest.mark.parametrize(
    ("target", "named"),
    [
        ("grpc.io:50051", ("grpc.io", 50051)),
        ("grpc.io", ("grpc.io", None)),
        ("dns://1.2.3.4/grpc.io:50051", ("grpc.io", 50051)),
        ("dns:///grpc.io", ("grpc.io", None)),
        ("dns:grpc.io:1", ("grpc.io", 1)),
        ("unix:///run/a.sock", ("/run/a.sock", None)),
        ("unix:relative.sock", ("relative.sock", None)),
        ("ipv4:198.51.100.123:50051", ("198.51.100.123", 50051)),
        ("ipv4:198.51.100.123:1,198.51.100.124:1", ("ipv4:198.51.100.123:1,198.51.100.124:1", None)),
        ("ipv6:[2607:f8b0:400e:c00::ef]:443", ("2607:f8b0:400e:c00::ef", 443)),
        ("[::1]:443", ("::1", 443)),
        ("::1", ("::1", None)),
        ("zk://zookeeper:2181/my-server", ("zk://zookeeper:2181/my-server", None)),
        ("xds:///a", ("xds:///a", None)),
    ],
)
def test_a_target_as_an_address(target: str, named: tuple[str, int | None]) -> None:
    """``server.address`` and ``server.port`` come from the target, as the conventions for gRPC have it."""
    found = _server_of(target)
    assert (found["server.address"], found.get("server.port")) == named


async def test_the_target_is_in_the_clients_spans() -> None:
    """A client that knows its target says so."""
    spans = Spans()
    await run(Tracing(spans.telemetry, target="a.b:1"), scripted("ok"), "hi", make_call(side=Side.CLIENT))
    assert {"server.address": "a.b", "server.port": 1}.items() <= attributes(spans.one).items()


@pytest.mark.parametrize(
    ("peer", "address", "port"),
    [
        ("ipv4:10.0.0.1:4711", "10.0.0.1", 4711),
        ("ipv6:%5B::1%5D:4711", "::1", 4711),
        ("ipv6:[fe80::1]:4711", "fe80::1", 4711),
        ("unix:/run/a.sock", "/run/a.sock", None),
        ("unix:", None, None),
        ("", None, None),
    ],
)
async def test_a_peer_as_an_address(peer: str, address: str | None, port: int | None) -> None:
    """Where the client is, in every spelling of a wire."""
    spans = Spans()
    await run(Tracing(spans.telemetry), scripted("ok"), "hi", make_call(peer=peer))
    for word in ("client", "network.peer"):
        assert attributes(spans.one).get(f"{word}.address") == address
        assert attributes(spans.one).get(f"{word}.port") == port


@pytest.mark.parametrize("side", list(Side))
@pytest.mark.parametrize("kind", list(Kind))
async def test_no_secrets(kind: Kind, side: Side) -> None:
    """Messages, metadata, details and the texts of exceptions are in no span."""
    error = Error(Code.ABORTED, "why", headers=(("h", CANARY),), trailers=(("t", CANARY),))
    error.__cause__ = ValueError(CANARY)
    for outcome in (None, error, ValueError(CANARY)):
        spans = Spans()
        call = make_call(kind=kind, side=side, metadata=[("authorization", CANARY), ("x-bin", CANARY.encode())])
        request = [CANARY] if kind.request_streaming else CANARY
        answer = sends(CANARY, then=outcome) if kind.response_streaming else outcome or CANARY
        links: list[Middleware] = [Tracing(spans.telemetry), AttemptTracing(spans.telemetry)]
        await asyncio.gather(run(links, scripted(answer), request, call), return_exceptions=True)
        assert spans.all
        assert CANARY not in spans.text


class Theirs:
    """A span as opentelemetry-instrumentation-grpc makes it, around a call."""

    def __init__(self, spans: Spans, kind: SpanKind, name: str) -> None:
        tracer = spans.provider.get_tracer("opentelemetry.instrumentation.grpc")
        self.span = tracer.start_as_current_span(name, kind=kind)


@pytest.mark.parametrize(("side", "kind"), [(Side.SERVER, SpanKind.SERVER), (Side.CLIENT, SpanKind.CLIENT)])
async def test_steps_back_where_there_is_one(side: Side, kind: SpanKind) -> None:
    """Inside of a span that somebody has made for this very call there is no other, and the log says so once."""
    spans, log = Spans(), Log()
    telemetry = Telemetry(log="json", stream=log.stream, traces=spans.provider)
    tracing = Tracing(telemetry)
    for _ in range(2):
        with Theirs(spans, kind, "/test.Service/Method").span:
            await run(tracing, scripted("ok"), "hi", make_call(side=side))
    assert len(spans.all) == 2
    assert "steps back" in str(log.line["event"])
    for name, other in (("/test.Service/Other", kind), ("/test.Service/Method", SpanKind.INTERNAL)):
        spans.exporter.clear()
        with Theirs(spans, other, name).span:
            await run(tracing, scripted("ok"), "hi", make_call(side=side))
        assert len(spans.all) == 2


async def test_the_server_cancelled_it() -> None:
    """A CANCELLED that came over the wire is an error of the client's."""
    spans = Spans()
    with pytest.raises(Error):
        await run(
            Tracing(spans.telemetry),
            scripted(Error(Code.CANCELLED, "stopping", by=By.PEER)),
            "hi",
            make_call(side=Side.CLIENT),
        )
    assert spans.one.status.description == "stopping"


async def test_a_stub_made_for_every_call_keeps_nothing() -> None:
    """What is kept is kept by name: a new Method for the same path costs no memory."""
    tracing = Tracing(Spans(ALWAYS_OFF).telemetry)
    for _ in range(20):
        await run(tracing, scripted("ok"), "hi", make_call(side=Side.CLIENT))
    assert len(tracing._named) == 1


async def test_only_some_methods() -> None:
    """Inside ``only`` other methods have no span."""
    spans = Spans()
    for match in ("/test.Service/Other", "/test.Service/Method"):
        await run(only(match, Tracing(spans.telemetry)), scripted("ok"), "hi", make_call())
    assert len(spans.all) == 1


@pytest.mark.parametrize("link", [Tracing, AttemptTracing])
def test_refuses_a_telemetry_without_traces(link: Callable[[Telemetry], object]) -> None:
    """A link that would do nothing is refused where it is made."""
    with pytest.raises(ValueError, match=f"{link.__name__} needs .*traces"):
        link(Telemetry(log=None))


def test_repr() -> None:
    """The settings can be read in a chain's repr."""
    text = repr(chain(Tracing(Spans().telemetry, target="a:1")))
    assert text == (
        "chain(Tracing(telemetry=Telemetry(log=None, level='info', traces=Tracer), auxiliary=False, target='a:1', "
        "propagator=None))"
    )


def test_the_observers_stand_outermost_and_in_order() -> None:
    """With all three to write to, the standard chains have them right after the request's name."""
    telemetry = Telemetry(log="json", traces=Spans().provider, metrics="prometheus")
    expected = [RequestId, Tracing, AccessLog, Metrics]
    for links in (standard(telemetry), standard_client(telemetry, target="a:1")):
        assert [type(link) for link in links[:4]] == expected
    assert Tracing not in [type(link) for link in standard(Telemetry())]


def test_refuses_traces_that_are_none() -> None:
    """What makes no spans is refused where it is given, by name; "auto" is the global provider."""
    wrong: Untyped = "otlp"
    with pytest.raises(TypeError, match="traces='otlp'"):
        Telemetry(traces=wrong)
    tracer = Spans().provider.get_tracer("mine")
    assert Telemetry(traces=tracer).tracer is tracer
    assert isinstance(Telemetry(traces="auto").tracer, trace.Tracer)


async def test_without_an_sdk_the_trace_goes_on() -> None:
    """On OpenTelemetry's API alone there are no spans, and what came in still goes out."""
    tracing = Tracing(Telemetry(log=None, traces=trace.NoOpTracerProvider()))
    sent = make_call(side=Side.CLIENT)

    async def onward(_request: Message, _call: Call) -> Message:
        return await tracing("hi", sent, scripted("ok"))

    await run(tracing, scripted(onward), "hi", make_call(metadata=[("traceparent", PARENT)]))
    assert sent.metadata.get_all("traceparent") == [PARENT]
