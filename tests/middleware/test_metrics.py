"""Figures of every call, as Prometheus reads them."""

from __future__ import annotations

import asyncio
import random
import string
from collections.abc import Callable
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics import parser
from prometheus_client.samples import Sample

from servicekit.call import Call, Side
from servicekit.clock import MovableClock, settle
from servicekit.endpoint import Endpoint, Message, Middleware, chain, only
from servicekit.errors import Code, Error
from servicekit.instruments import Provider
from servicekit.method import Kind
from servicekit.metrics.otel import OtelMetrics
from servicekit.metrics.prometheus import PrometheusMetrics
from servicekit.middleware import Metrics, Recovery, Tracing
from servicekit.middleware import metrics as bounds
from servicekit.telemetry import Telemetry
from servicekit.testing import make_call, pair, run, scripted, sends, waits
from servicekit.testing.pair import Over
from tests.transport.clients import (
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
)

from .spans import Spans, ids

CANARY = "canary-" + "3e70"
SERVICE = "servicekit.testing.v1.EchoService"
LABEL = "test.Service/Method"

parse: Untyped = parser.text_string_to_metric_families  # it has no types


class Page:
    """A telemetry whose figures are read as they are scraped, in OpenMetrics form."""

    def __init__(self, **settings: Untyped) -> None:
        self.provider = PrometheusMetrics(CollectorRegistry())
        self.telemetry = Telemetry(log=None, metrics=self.provider, **settings)

    @property
    def text(self) -> str:
        text, _ = self.provider.render()
        return text.decode()

    @property
    def samples(self) -> list[Sample]:
        return [sample for family in parse(self.text) for sample in family.samples]

    def get(self, name: str, **labels: str) -> float | None:
        """Return the one figure of this name that has these labels, or None."""
        found = [s.value for s in self.samples if s.name == name and labels.items() <= s.labels.items()]
        assert len(found) <= 1, found
        return found[0] if found else None


def measured(page: Page, over: Over, **methods: Callable[..., Any]) -> Untyped:
    """Return a pair with figures on both sides."""
    metrics = Metrics(page.telemetry)
    return pair(echo(**methods), over=over, middleware=[metrics, Recovery()], client=[metrics])


async def over_on_both(page: Page, name: str) -> None:
    """Return once both sides have counted the end of a call: a server's may come after its client has its answer."""
    async with asyncio.timeout(2):
        for side in Side:
            while not page.get(f"rpc_{side.value}_call_handled_total", rpc_method=name):  # noqa: ASYNC110 - as it says
                await asyncio.sleep(0.001)


MESSAGES = {Kind.UNARY: (1, 1), Kind.CLIENT_STREAM: (3, 1), Kind.SERVER_STREAM: (1, 3), Kind.BIDI_STREAM: (3, 3)}


@both
@every_kind
async def test_a_good_call(kind: Kind, over: Over) -> None:
    """Begun once, handled once, timed once, none in flight any more, and every message with its bytes, on both sides."""
    page, name = Page(), f"{SERVICE}/{NAMES[kind]}"
    async with measured(page, over) as ends:
        assert await ask(ends.channel, kind) == ANSWERS[kind]
        await over_on_both(page, name)
    requests, responses = MESSAGES[kind]
    for side, received, sent in (("server", requests, responses), ("client", responses, requests)):
        prefix = f"rpc_{side}_call"
        ok = {"rpc_method": name, "rpc_response_status_code": "OK"}
        assert page.get(f"{prefix}_started_total", rpc_method=name) == 1
        assert page.get(f"{prefix}_in_flight", rpc_method=name) == 0
        assert page.get(f"{prefix}_handled_total", **ok) == 1
        assert page.get(f"{prefix}_duration_seconds_count", **ok, rpc_system_name="grpc", error_type="") == 1
        assert page.get(f"{prefix}_messages_total", rpc_method=name, direction="received") == received
        assert page.get(f"{prefix}_messages_total", rpc_method=name, direction="sent") == sent
    for one, other in (("received", "sent"), ("sent", "received")):
        size = page.get("rpc_server_call_bytes_total", rpc_method=name, direction=one)
        assert size == page.get("rpc_client_call_bytes_total", rpc_method=name, direction=other)
        assert size is not None
        assert size > 0


@both
@every_kind
@pytest.mark.parametrize(
    ("raised", "code", "server", "client"),
    [
        (Error(Code.NOT_FOUND, CANARY), "NOT_FOUND", "", "NOT_FOUND"),
        (ValueError(CANARY), "INTERNAL", "INTERNAL", "INTERNAL"),
    ],
)
async def test_a_failed_call(  # noqa: PLR0913, PLR0917 - parameters of a test
    kind: Kind, over: Over, raised: Exception, code: str, server: str, client: str
) -> None:
    """A failure is counted as what the client got, on both sides, and as an error by the conventions of each."""

    async def fail(_request: Message, context: Context) -> None:
        raise raised

    page, name = Page(), f"{SERVICE}/{NAMES[kind]}"
    async with measured(page, over, **all_methods(fail)) as ends:
        with pytest.raises(Exception, match=r"canary|internal error"):
            await ask(ends.channel, kind)
        await over_on_both(page, name)
    for side, error_type in (("server", server), ("client", client)):
        labels = {"rpc_method": name, "rpc_response_status_code": code}
        assert page.get(f"rpc_{side}_call_handled_total", **labels) == 1
        assert page.get(f"rpc_{side}_call_duration_seconds_count", **labels, error_type=error_type) == 1
        assert page.get(f"rpc_{side}_call_in_flight", rpc_method=name) == 0
    assert CANARY not in page.text


@both
@every_kind
async def test_a_cancelled_call_and_a_late_one(kind: Kind, over: Over) -> None:
    """In flight while it is, then CANCELLED or DEADLINE_EXCEEDED."""
    for timeout, code in ((None, "CANCELLED"), (0.2, "DEADLINE_EXCEEDED")):
        page, name, held = Page(), f"{SERVICE}/{NAMES[kind]}", Held()
        async with measured(page, over, **all_methods(held.method)) as ends:
            call = begin(ends.channel, kind, timeout=timeout)
            await held.begun.wait()
            for side in Side:
                assert page.get(f"rpc_{side.value}_call_in_flight", rpc_method=name) == 1
                assert page.get(f"rpc_{side.value}_call_handled_total", rpc_method=name) is None
            if timeout is None:
                call.cancel()
            elif over == "memory":
                await ends.clock.advance(timeout)
            await over_on_both(page, name)
            call.cancel()
        for side in Side:
            labels = {"rpc_method": name, "rpc_response_status_code": code}
            assert page.get(f"rpc_{side.value}_call_handled_total", **labels) == 1
            assert page.get(f"rpc_{side.value}_call_in_flight", rpc_method=name) == 0


async def test_how_long_it_took() -> None:
    """The time until the call was over, in seconds of its clock, in the conventions' buckets."""
    page, clock = Page(), MovableClock()
    call = make_call(clock=clock, kind=Kind.SERVER_STREAM)
    running = asyncio.create_task(run(Metrics(page.telemetry), scripted(sends("a", "b", every=0.03)), "hi", call))
    await clock.advance(0.06)
    await running
    buckets = {s.labels["le"]: s.value for s in page.samples if s.name.endswith("duration_seconds_bucket")}
    assert list(buckets)[:4] == ["0.005", "0.01", "0.025", "0.05"]
    assert len(buckets) == 15
    assert (buckets["0.05"], buckets["0.075"], buckets["+Inf"]) == (0, 1, 1)
    assert page.get("rpc_server_call_duration_seconds_sum") == pytest.approx(0.06)


async def test_messages_are_counted_as_they_pass() -> None:
    """A stream that lasts is seen while it does."""
    page, clock = Page(), MovableClock()
    call = make_call(clock=clock, kind=Kind.SERVER_STREAM)
    running = asyncio.create_task(run(Metrics(page.telemetry), scripted(sends("a", "b", every=1.0)), "hi", call))
    await clock.advance(1.0)
    assert page.get("rpc_server_call_messages_total", direction="sent") == 1
    assert page.get("rpc_server_call_in_flight", rpc_method=LABEL) == 1
    await clock.advance(1.0)
    await running
    assert page.get("rpc_server_call_messages_total", direction="sent") == 2


async def test_the_trace_is_the_exemplar() -> None:
    """Inside Tracing a call's figure says in which trace to look; one that is not sampled says nothing."""
    for sampled in (True, False):
        spans = Spans() if sampled else Spans(ALWAYS_OFF)
        page = Page(traces=spans.provider)
        await run([Tracing(page.telemetry), Metrics(page.telemetry)], scripted("ok"), "hi", make_call())
        exemplars = [sample.exemplar.labels for sample in page.samples if sample.exemplar]
        assert exemplars == ([{"trace_id": f"{ids(spans.one).trace_id:032x}"}] if sampled else [])


@both
async def test_labels_are_bounded(over: Over) -> None:
    """After 10,000 paths that nobody serves there are as many methods as are registered, and one more."""
    page = Page()
    rng = random.Random(4)  # the same paths each time
    count = 10_000 if over == "memory" else 500
    async with pair(echo(), over=over, middleware=[Metrics(page.telemetry)], reflection=False, health=False) as ends:
        for kind in Kind:
            await ask(ends.channel, kind)

        async def stray() -> None:
            path = "/" + "".join(rng.choices(string.ascii_letters + "./", k=12)) + "/x"
            with pytest.raises(Exception, match="not found"):
                await ends.channel.unary_unary(path)(b"")

        for _ in range(count // 100):
            await asyncio.gather(*(stray() for _ in range(100)))
    named = {sample.labels["rpc_method"] for sample in page.samples if "rpc_method" in sample.labels}
    assert named == {f"{SERVICE}/{name}" for name in NAMES.values()} | {"_OTHER"}
    assert page.get("rpc_server_call_handled_total", rpc_method="_OTHER") == count


async def test_even_known_methods_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a server takes any path, or a client calls any, those after the first 2,000 are one."""
    assert bounds._MOST_METHODS == 2_000
    monkeypatch.setattr(bounds, "_MOST_METHODS", 20)
    page = Page()
    metrics = Metrics(page.telemetry)
    for number in range(30):
        call = make_call(side=Side.CLIENT)
        object.__setattr__(call.method, "path", f"/a.B/m{number}")
        await run(metrics, scripted("ok"), "hi", call)
    named = {sample.labels["rpc_method"] for sample in page.samples if "rpc_method" in sample.labels}
    assert len(named) == 21
    assert page.get("rpc_client_call_handled_total", rpc_method="_OTHER") == 10


async def test_decisions(monkeypatch: pytest.MonkeyPatch) -> None:
    """What links further in decide is counted by link and decision, and the words are bounded too."""
    monkeypatch.setattr(bounds, "_MOST_DECISIONS", 10)
    page = Page()
    metrics = Metrics(page.telemetry)
    words = iter(["refused", "refused", "waited", *(f"word{number}" for number in range(20))])

    async def limit(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        call.decide("rate_limit", next_word())
        return await next(request, call)

    def next_word() -> str:
        return next(words)

    for _ in range(23):
        await run([metrics, limit], scripted("ok"), "hi", make_call())
    assert page.get("servicekit_decisions_total", link="rate_limit", decision="refused") == 2
    assert page.get("servicekit_decisions_total", link="rate_limit", decision="waited") == 1
    assert len([s for s in page.samples if s.name == "servicekit_decisions_total"]) == 11


async def test_attempts_are_one_call_with_all_their_messages() -> None:
    """A call that was tried twice is one call, whose messages were sent twice."""
    page = Page()

    async def twice(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        try:
            return await next(request, call.fork())
        except Error:
            return await next(request, call.fork())

    endpoint = scripted(Error(Code.UNAVAILABLE), "ok")
    await run([Metrics(page.telemetry), twice], endpoint, "hi", make_call(side=Side.CLIENT))
    assert page.get("rpc_client_call_started_total") == page.get("rpc_client_call_handled_total") == 1
    assert page.get("rpc_client_call_messages_total", direction="sent") == 2


async def test_servers_and_channels_share_a_telemetry() -> None:
    """Two links with the same provider count together."""
    page = Page()
    for _ in range(2):
        await run(Metrics(page.telemetry), scripted("ok"), "hi", make_call())
    assert page.get("rpc_server_call_handled_total") == 2


async def test_the_old_name_beside_the_current_one() -> None:
    """With ``old_names`` there is the duration of the conventions before, in milliseconds, with their labels."""
    page, clock = Page(old_names=True), MovableClock()
    running = asyncio.create_task(
        run(Metrics(page.telemetry), scripted(waits(0.2, "ok")), "hi", make_call(clock=clock))
    )
    await clock.advance(0.2)
    await running
    old = {"rpc_system": "grpc", "rpc_service": "test.Service", "rpc_method": "Method", "rpc_grpc_status_code": "0"}
    assert page.get("rpc_server_duration_milliseconds_sum", **old) == pytest.approx(200)
    assert page.get("rpc_server_call_duration_seconds_sum") == pytest.approx(0.2)


async def test_on_opentelemetry() -> None:
    """The same figures on OpenTelemetry's metrics, under the conventions' names."""
    reader = InMemoryMetricReader()
    provider = OtelMetrics(MeterProvider([reader], shutdown_on_exit=False))
    await run(Metrics(Telemetry(log=None, metrics=provider)), scripted("ok"), "hi", make_call())
    data = reader.get_metrics_data()
    assert data is not None
    metrics = {m.name: m for r in data.resource_metrics for scope in r.scope_metrics for m in scope.metrics}
    (point,) = metrics["rpc.server.call.duration"].data.data_points
    assert dict(point.attributes or {}) == {
        "rpc.system.name": "grpc",
        "rpc.method": LABEL,
        "rpc.response.status_code": "OK",
    }
    assert metrics["rpc.server.call.duration"].unit == "s"
    (point,) = metrics["rpc.server.call.in_flight"].data.data_points
    assert getattr(point, "value", None) == 0


@pytest.mark.parametrize("side", list(Side))
@pytest.mark.parametrize("kind", list(Kind))
async def test_no_secrets(kind: Kind, side: Side) -> None:
    """Messages, metadata and texts are in no figure."""
    for outcome in (None, Error(Code.ABORTED, CANARY, reason=CANARY), ValueError(CANARY)):
        page = Page()
        call = make_call(kind=kind, side=side, metadata=[("authorization", CANARY)], peer=CANARY)
        request = [CANARY] if kind.request_streaming else CANARY
        answer = sends(CANARY, then=outcome) if kind.response_streaming else outcome or CANARY
        await asyncio.gather(run(Metrics(page.telemetry), scripted(answer), request, call), return_exceptions=True)
        assert "handled_total" in page.text
        assert CANARY not in page.text


class Raising:
    """A provider whose children fail."""

    def labels(self, *_values: str) -> Raising:
        return self

    def add(self, _amount: float = 1.0, /) -> None:
        raise RuntimeError

    set = observe = add

    def counter(self, *_: object, **__: object) -> Raising:
        return self

    gauge = histogram = counter


async def test_a_provider_that_raises_costs_the_figure_only() -> None:
    """Somebody's provider has nothing to do with the call."""
    provider: Untyped = Raising()

    async def decides(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        call.decide("a", "b")
        return await next(request, call)

    links: list[Middleware] = [Metrics(Telemetry(log=None, metrics=provider)), decides]
    assert await run(links, scripted("ok"), "hi", make_call()) == "ok"
    with pytest.raises(Error, match="why"):
        await run(links, scripted(Error(Code.ABORTED, "why")), "hi", make_call())


async def test_a_call_that_nobody_waits_for_any_more() -> None:
    """A cancelled call is counted, and stays cancelled."""
    page = Page()
    running = asyncio.create_task(run(Metrics(page.telemetry), scripted(waits()), "hi", make_call()))
    await settle()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert page.get("rpc_server_call_handled_total", rpc_response_status_code="CANCELLED") == 1
    assert page.get("rpc_server_call_in_flight") == 0


async def test_only_some_methods() -> None:
    """Inside ``only`` other methods are not counted."""
    page = Page()
    for match in ("/test.Service/Other", "/test.Service/Method"):
        await run(only(match, Metrics(page.telemetry)), scripted("ok"), "hi", make_call())
    assert page.get("rpc_server_call_handled_total") == 1


def test_refuses_a_telemetry_without_metrics() -> None:
    """A link that would do nothing is refused where it is made."""
    with pytest.raises(ValueError, match=r"Metrics needs .*metrics"):
        Metrics(Telemetry(log=None))


@pytest.mark.parametrize("metrics", ["statsd", 5, object()])
def test_refuses_what_is_no_provider(metrics: Untyped) -> None:
    """What cannot keep figures is refused where it is given, by name."""
    with pytest.raises((TypeError, ValueError), match="metrics="):
        Telemetry(metrics=metrics)


def test_nothing_is_kept_unless_asked_for() -> None:
    """What happens to be installed decides nothing: the default is no figures and no spans."""
    telemetry = Telemetry(log=None)
    assert telemetry.metrics is None
    assert telemetry.tracer is None


def test_a_provider_is_one() -> None:
    """Both implementations are what the interface says: mypy checks this."""
    both: list[Provider] = [PrometheusMetrics(CollectorRegistry()), OtelMetrics()]
    assert len(both) == 2


def test_repr() -> None:
    """The settings can be read in a chain's repr."""
    text = "chain(Metrics(telemetry=Telemetry(log=None, level='info', metrics=PrometheusMetrics(0 metrics))))"
    assert repr(chain(Metrics(Page().telemetry))) == text
