"""opentelemetry-instrumentation-grpc, the real package, on our servers and channels."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.instrumentation.grpc import (
    GrpcAioInstrumentorClient,
    GrpcAioInstrumentorServer,
    aio_client_interceptors,
    aio_server_interceptor,
    filters,
)
from opentelemetry.trace import SpanKind, StatusCode

from servicekit.call import Side
from servicekit.endpoint import Middleware, chain, only
from servicekit.errors import Code, Error
from servicekit.method import Kind
from servicekit.middleware import AccessLog, Metrics, Recovery, Tracing
from servicekit.telemetry import Telemetry
from servicekit.testing import pair
from servicekit.testing.pair import Over, Pair
from servicekit.testing.v1.echo_pb2 import ChatResponse, EchoResponse, ExpandResponse, SumResponse
from tests.middleware.probes import Log
from tests.middleware.spans import Spans, attributes, is_child, same_trace
from tests.middleware.test_metrics import Page

from .clients import (
    ANSWERS,
    NAMES,
    Context,
    Held,
    Untyped,
    _nothing_is_left,  # noqa: F401 - a fixture for every test here
    all_methods,
    ask,
    begin,
    both,
    echo,
    every_kind,
    numbers,
    streaming_responses,
    stub_of,
)

# without types of their own
server_interceptor: Any = aio_server_interceptor
client_interceptors: Any = aio_client_interceptors

CANARY = "canary-" + "07e1"
SERVICE = "servicekit.testing.v1.EchoService"

how = pytest.mark.parametrize("how", ["given", "instrumented"])


@contextlib.asynccontextmanager
async def bridged(  # noqa: PLR0913 - what a test is about, by name
    spans: Spans,
    how: str,
    over: Over,
    register: Callable[..., None],
    *,
    middleware: Sequence[Middleware] = (),
    client: Sequence[Middleware] = (),
    **settings: Untyped,
) -> AsyncIterator[Pair]:
    """Give a server and a channel with their interceptors on both, made with ``settings``, however they came there."""
    server: dict[str, Any] = {}
    channel: dict[str, Any] = {}
    with contextlib.ExitStack() as stack:
        if how == "given":
            server["interceptors"] = [server_interceptor(tracer_provider=spans.provider, **settings)]
            channel["interceptors"] = client_interceptors(tracer_provider=spans.provider, **settings)
        else:
            for kind in (GrpcAioInstrumentorServer, GrpcAioInstrumentorClient):
                instrumentor: Any = kind(**settings)
                instrumentor.instrument(tracer_provider=spans.provider)
                stack.callback(instrumentor.uninstrument)
        async with (
            pair(register, over=over, middleware=middleware, **server) as ends,
            ends.connect(*client, **channel) as own,
        ):
            yield dataclasses.replace(ends, channel=own)


async def finished(spans: Spans, count: int) -> None:
    """Return once so many spans were exported."""
    async with asyncio.timeout(2):
        while len(spans.all) < count:  # noqa: ASYNC110 - an exporter tells nobody
            await asyncio.sleep(0.001)


@how
@both
@every_kind
async def test_one_span_on_each_side(kind: Kind, over: Over, how: str) -> None:
    """A good call of any kind is one of their CLIENT spans and one of their SERVER spans in it."""
    spans = Spans()
    async with bridged(spans, how, over, echo()) as ends:
        assert await ask(ends.channel, kind) == ANSWERS[kind]
        await finished(spans, 2)
    client, server = spans.of(SpanKind.CLIENT), spans.of(SpanKind.SERVER)
    assert len(spans.all) == 2
    assert same_trace(client, server)
    assert is_child(server, client)
    for span in spans.all:
        assert span.name == f"/{SERVICE}/{NAMES[kind]}"
        assert attributes(span)["rpc.system"] == "grpc"
        assert attributes(span)["rpc.grpc.status_code"] == 0
        assert span.instrumentation_scope is not None
        assert span.instrumentation_scope.name.startswith("opentelemetry.instrumentation.grpc")


def plain_expand(request: Untyped, _context: Context) -> Iterator[ExpandResponse]:
    for index in range(request.count):
        yield ExpandResponse(index=index)


def plain_chat(requests: Untyped, _context: Context) -> Iterator[ChatResponse]:
    for message in requests:
        yield ChatResponse(text=message.text)


def plain_sum(requests: Untyped, _context: Context) -> SumResponse:
    return SumResponse(total=sum(message.number for message in requests))


async def writing_expand(request: Untyped, context: Context) -> None:
    for index in range(request.count):
        await context.write(ExpandResponse(index=index))


async def reading_chat(_requests: Untyped, context: Context) -> None:
    while hasattr(message := await context.read(), "text"):
        await context.write(ChatResponse(text=message.text))


async def reading_sum(_requests: Untyped, context: Context) -> SumResponse:
    total = 0
    while hasattr(message := await context.read(), "number"):
        total += message.number
    return SumResponse(total=total)


PLAIN: dict[str, Any] = {
    "Echo": lambda request, _context: EchoResponse(text=request.text),
    "Expand": plain_expand,
    "Sum": plain_sum,
    "Chat": plain_chat,
}
WRITING: dict[str, Any] = {"Expand": writing_expand, "Sum": reading_sum, "Chat": reading_chat}


@how
@both
@every_kind
@pytest.mark.parametrize("shape", [PLAIN, WRITING], ids=["plain", "writing"])
async def test_every_shape_of_handler(kind: Kind, over: Over, how: str, shape: dict[str, Any]) -> None:
    """Plain functions, plain generators, and coroutines that read and write, are served inside their span."""
    spans = Spans()
    async with bridged(spans, how, over, echo(**shape)) as ends:
        assert await ask(ends.channel, kind) == ANSWERS[kind]
        await finished(spans, 2)
    assert len(spans.all) == 2


@how
@both
async def test_health_watch_works_and_has_no_span(over: Over, how: str) -> None:
    """The health service's Watch, which breaks theirs, answers, and is not traced."""
    from grpc_health.v1 import health_pb2, health_pb2_grpc  # noqa: PLC0415 - 30 ms that one test needs

    spans = Spans()
    async with bridged(spans, how, over, echo()) as ends:
        stub: Untyped = health_pb2_grpc.HealthStub(ends.channel)
        watching = stub.Watch(health_pb2.HealthCheckRequest())
        assert (await watching.read()).status == health_pb2.HealthCheckResponse.SERVING
        watching.cancel()
    assert not spans.all


@how
@both
@every_kind
async def test_a_failed_call(kind: Kind, over: Over, how: str) -> None:
    """Their spans have the code that the client got, and no text that was not meant for it."""
    for raised, code, error in (
        (Error(Code.UNAVAILABLE, "gone"), 14, StatusCode.ERROR),
        (Error(Code.NOT_FOUND, "gone"), 5, StatusCode.UNSET),
        (ValueError(CANARY), 13, StatusCode.ERROR),
    ):

        async def fail(_request: Untyped, context: Context, raised: Exception = raised) -> None:
            raise raised

        spans = Spans()
        async with bridged(spans, how, over, echo(**all_methods(fail)), middleware=[Recovery()]) as ends:
            with pytest.raises(Exception, match=r"gone|internal error"):
                await ask(ends.channel, kind)
            await finished(spans, 2)
        assert [attributes(span)["rpc.grpc.status_code"] for span in spans.all] == [code, code]
        assert spans.of(SpanKind.SERVER).status.status_code is error
        assert spans.of(SpanKind.CLIENT).status.status_code is StatusCode.ERROR
        assert CANARY not in spans.text


@how
@both
@every_kind
@pytest.mark.parametrize(("timeout", "code"), [(None, 1), (0.2, 4)], ids=["cancelled", "late"])
async def test_a_call_that_was_left_or_late(kind: Kind, over: Over, how: str, timeout: float | None, code: int) -> None:
    """Their spans end, on both sides, and say how."""
    spans, held = Spans(), Held()
    async with bridged(spans, how, over, echo(**all_methods(held.method))) as ends:
        call = begin(ends.channel, kind, timeout=timeout)
        await held.begun.wait()
        if timeout is None:
            call.cancel()
        elif ends.movable is not None:
            await ends.clock.advance(timeout)
        await finished(spans, 2)
        call.cancel()
    assert [attributes(span)["rpc.grpc.status_code"] for span in spans.all] == [code, code]


@how
@both
@streaming_responses
async def test_a_stream_that_nobody_reads_on(kind: Kind, over: Over, how: str) -> None:
    """Dropping a stream in its middle ends both of their spans."""
    spans, release = Spans(), asyncio.Event()
    response = ExpandResponse() if kind is Kind.SERVER_STREAM else ChatResponse()

    async def flow(_request: Untyped, context: Context) -> AsyncIterator[Any]:
        yield response
        await release.wait()

    async with bridged(spans, how, over, echo(**all_methods(flow))) as ends:
        call = begin(ends.channel, kind)
        await call.read()
        assert not spans.all
        del call
        await finished(spans, 2)


@how
@both
async def test_a_client_that_writes(over: Over, how: str) -> None:
    """``write()`` and ``done_writing()`` work inside their span."""
    spans = Spans()
    async with bridged(spans, how, over, echo()) as ends:
        call = stub_of(ends.channel).Sum()
        for message in numbers(1, 2):
            await call.write(message)
        await call.done_writing()
        assert (await call).total == 3
        await finished(spans, 2)


@how
@both
@every_kind
@pytest.mark.parametrize("side", list(Side))
async def test_never_two_spans_for_one_call(kind: Kind, over: Over, how: str, side: Side) -> None:
    """Where Tracing is on a side, theirs steps back there, and says so once in the log."""
    theirs, ours, log = Spans(), Spans(), Log()
    telemetry = Telemetry(log="json", stream=log.stream, traces=ours.provider)
    links: dict[str, Any] = {"middleware" if side is Side.SERVER else "client": [Tracing(telemetry)]}
    for _ in range(2):
        async with bridged(theirs, how, over, echo(), **links) as ends:
            assert await ask(ends.channel, kind) == ANSWERS[kind]
            await finished(ours, 1)
            await finished(theirs, 1)
        one, other = ours.one, theirs.one
        assert {one.kind, other.kind} == {SpanKind.SERVER, SpanKind.CLIENT}
        assert one.kind is (SpanKind.SERVER if side is Side.SERVER else SpanKind.CLIENT)
        assert same_trace(one, other)
        ours.exporter.clear()
        theirs.exporter.clear()
    assert "steps back" in str(log.line["event"])


@how
@both
async def test_tracing_for_some_methods_leaves_theirs_the_others(over: Over, how: str) -> None:
    """Inside ``only``, Tracing has its methods, and they have the rest."""
    theirs, ours = Spans(), Spans()
    links = [chain(only(f"/{SERVICE}/Echo", Tracing(ours.telemetry)))]
    async with bridged(theirs, how, over, echo(), middleware=links) as ends:
        for kind in (Kind.UNARY, Kind.SERVER_STREAM):
            await ask(ends.channel, kind)
        await finished(theirs, 3)
    assert ours.one.name == f"{SERVICE}/Echo"
    assert theirs.of(SpanKind.SERVER).name == f"/{SERVICE}/Expand"


@how
@both
async def test_their_filters_hold(over: Over, how: str) -> None:
    """What their filter leaves out has no span, and is served."""
    spans = Spans()
    async with bridged(spans, how, over, echo(), filter_=filters.method_name("Expand")) as ends:
        for kind in (Kind.UNARY, Kind.SERVER_STREAM):
            assert await ask(ends.channel, kind) == ANSWERS[kind]
        await finished(spans, 2)
    assert {span.name for span in spans.all} == {f"/{SERVICE}/Expand"}


async def test_their_hooks_run() -> None:
    """Their request and response hooks are called; one that fails costs nothing but itself."""
    spans = Spans()
    seen: list[object] = []

    def hook(_span: object, thing: object) -> None:
        seen.append(thing)
        raise RuntimeError

    interceptors = client_interceptors(tracer_provider=spans.provider, request_hook=hook, response_hook=hook)
    async with pair(echo()) as ends:
        channel = ends.connect(interceptors=interceptors)
        assert await ask(channel, Kind.UNARY) == ["a"]
        await channel.close()
    assert len(seen) == 2
    assert len(spans.all) == 1


@how
@both
async def test_our_observers_are_inside_their_span(over: Over, how: str) -> None:
    """The access log names their trace, and it is the exemplar of our figures."""
    spans, log, page = Spans(), Log(), Page()
    links: list[Middleware] = [AccessLog(log.telemetry), Metrics(page.telemetry)]
    async with bridged(spans, how, over, echo(), middleware=links) as ends:
        await ask(ends.channel, Kind.UNARY)
        await finished(spans, 2)
    (span,) = {sample.exemplar.labels["trace_id"] for sample in page.samples if sample.exemplar}
    assert span == log.line["trace_id"]


@both
async def test_an_unknown_method_is_answered(over: Over) -> None:
    """A path that theirs cannot even read is UNIMPLEMENTED, as without it."""
    spans = Spans()
    async with bridged(spans, "given", over, echo()) as ends:
        for path in ("/no.Such/Thing", "/no"):
            with pytest.raises(Exception, match="not found"):
                await ends.channel.unary_unary(path)(b"")


async def test_other_interceptors_stay_where_they_are() -> None:
    """Theirs alone is moved into the chain; somebody else's interceptor runs where it was given."""
    asked: list[str] = []

    class Other(grpc.aio.ServerInterceptor):
        async def intercept_service(self, continuation: Callable[..., Any], handler_call_details: Untyped) -> Untyped:
            asked.append(handler_call_details.method)
            return await continuation(handler_call_details)

    spans = Spans()
    interceptors = [server_interceptor(tracer_provider=spans.provider), Other()]
    async with pair(echo(), interceptors=interceptors) as ends:
        await ask(ends.channel, Kind.UNARY)
    assert asked == [f"/{SERVICE}/Echo"]
    assert spans.one.kind is SpanKind.SERVER


PROGRAM = """
import asyncio, json, sys
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from servicekit import Server, Telemetry, connect, standard, standard_client
from servicekit.method import Kind
from tests.transport.clients import ANSWERS, ask, echo

async def main() -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    telemetry = Telemetry(log="json", stream=sys.stderr, traces={traces})
    server = Server("127.0.0.1:0", middleware=standard(telemetry), telemetry=telemetry)
    echo()(server)
    async with server, connect(server.addresses[0], middleware=standard_client(telemetry)) as channel:
        for kind in Kind:
            assert await ask(channel, kind) == ANSWERS[kind]
    scopes = [[span.kind.name, span.instrumentation_scope.name] for span in exporter.get_finished_spans()]
    print(json.dumps(scopes))

asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("traces", "scope"), [("None", "opentelemetry.instrumentation.grpc"), ("'auto'", "servicekit")]
)
def test_under_opentelemetry_instrument(traces: str, scope: str, tmp_path: Path) -> None:
    """Started by ``opentelemetry-instrument``, every call has one span on each side: theirs, or ours and one line.

    Ours has attempts in it, which are spans of another kind.
    """
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.replace("{traces}", traces))
    command = [str(Path(sys.executable).parent / "opentelemetry-instrument"), sys.executable, str(program)]
    root = Path(__file__).parent.parent.parent
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": f"{root / 'src'}:{root}", "OTEL_TRACES_EXPORTER": "none"}
    shown = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False, env=environment)
    assert shown.returncode == 0, shown.stderr
    spans = json.loads(shown.stdout)
    attempts = ["INTERNAL"] * 4 if traces != "None" else []
    assert sorted(kind for kind, _ in spans) == ["CLIENT"] * 4 + attempts + ["SERVER"] * 4
    assert {name.removesuffix("._aio") for _, name in spans} == {scope}
    assert shown.stderr.count("steps back") == (traces != "None")
