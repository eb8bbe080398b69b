"""What is exported, taken in by those it is for: a Prometheus server, and an OTLP receiver."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from servicekit import Server, Telemetry
from servicekit.method import Kind
from servicekit.metrics.prometheus import PrometheusMetrics
from servicekit.middleware import standard, standard_client
from servicekit.testing import pair
from tests.transport.clients import ANSWERS, NAMES, Untyped, ask, echo

pytestmark = pytest.mark.integration

SERVICE = "servicekit.testing.v1.EchoService"
PROMETHEUS = shutil.which("prometheus")
CONFIG = """
global: {{scrape_interval: 200ms, scrape_timeout: 200ms}}
scrape_configs:
  - job_name: echo
    static_configs: [{{targets: ["127.0.0.1:{port}"]}}]
"""


@contextlib.contextmanager
def page(metrics: PrometheusMetrics, accepted: list[str]) -> Iterator[int]:
    """Serve ``metrics`` on a free port, as an admin page would; ``accepted`` are the Accept headers of who came."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            accept = self.headers.get("Accept", "")
            accepted.append(accept)
            body, kind = metrics.render(accept)
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *_: object) -> None:  # noqa: A002 - the library's own name
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


@contextlib.contextmanager
def prometheus(folder: Path, port: int) -> Iterator[str]:
    """Run a Prometheus server that scrapes ``port``; gives the address of its API."""
    if PROMETHEUS is None:
        pytest.skip("there is no prometheus here: apt-get install -y prometheus")
    (folder / "prometheus.yml").write_text(CONFIG.format(port=port))
    own = free_port()
    command = [
        PROMETHEUS,
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{own}",
        "--enable-feature=exemplar-storage",
    ]
    with (folder / "log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as server:
        try:
            yield f"http://127.0.0.1:{own}/api/v1"
        finally:
            server.terminate()
            server.wait(timeout=20)


def free_port() -> int:
    """Return a port of the loopback interface that was free a moment ago: Prometheus cannot take one by itself."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def asked(url: str, **query: str) -> Untyped:
    """Return what the API answers, or None while it does not."""
    try:
        with urllib.request.urlopen(f"{url}?{urllib.parse.urlencode(query)}", timeout=5) as answer:
            return json.load(answer)["data"]
    except (urllib.error.URLError, ConnectionError):
        return None


async def until(look: Untyped, patience: float = 30.0) -> Untyped:
    """Return what ``look()`` does, run in a thread, once that is something."""
    end = time.monotonic() + patience
    while not (found := await asyncio.to_thread(look)):
        if time.monotonic() > end:
            raise AssertionError("it never came")
        await asyncio.sleep(0.1)
    return found


async def test_a_prometheus_server_scrapes_and_answers(tmp_path: Path) -> None:
    """Figures and exemplars of real calls come back from a query of a real Prometheus server."""
    provider = TracerProvider(shutdown_on_exit=False)
    metrics = PrometheusMetrics()
    telemetry = Telemetry(log=None, traces=provider, metrics=metrics)
    accepted: list[str] = []
    async with pair(echo(), over="socket", middleware=standard(telemetry), client=standard_client(telemetry)) as ends:
        for kind in Kind:
            for _ in range(3):
                assert await ask(ends.channel, kind) == ANSWERS[kind]
    with page(metrics, accepted) as port, prometheus(tmp_path, port) as api:
        handled = f'rpc_server_call_handled_total{{rpc_method="{SERVICE}/Echo"}}'

        def answered() -> Untyped:
            return (asked(f"{api}/query", query=handled) or {}).get("result")

        (series,) = await until(answered)
        assert series["value"][1] == "3"
        assert series["metric"]["rpc_response_status_code"] == "OK"
        total = asked(f"{api}/query", query="sum(rpc_client_call_duration_seconds_count)")["result"]
        assert total[0]["value"][1] == str(3 * len(NAMES))
        quantile = "histogram_quantile(0.99, sum by (le) (rpc_server_call_duration_seconds_bucket))"
        assert float(asked(f"{api}/query", query=quantile)["result"][0]["value"][1]) > 0

        def exemplars() -> Untyped:
            selector = "rpc_server_call_duration_seconds_bucket"
            return asked(f"{api}/query_exemplars", query=selector, start="0", end=str(time.time() + 9))

        found = await until(exemplars)
        assert all(len(entry["labels"]["trace_id"]) == 32 for series in found for entry in series["exemplars"])
        assert asked(f"{api}/query", query="up")["result"][0]["value"][1] == "1"
    assert any("application/openmetrics-text" in accept for accept in accepted)


class Receiver(trace_service_pb2_grpc.TraceServiceServicer):
    """An OTLP receiver that keeps what it gets."""

    def __init__(self) -> None:
        self.spans: list[Any] = []

    async def Export(self, request: Untyped, context: object) -> Untyped:
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                self.spans.extend(scope.spans)
        return trace_service_pb2.ExportTraceServiceResponse()


async def test_an_otlp_receiver_gets_the_spans() -> None:
    """The real exporter delivers the spans of real calls to OpenTelemetry's own servicer, on a server of ours."""
    receiver = Receiver()
    collector = Server("127.0.0.1:0", middleware=standard(Telemetry(log=None)), telemetry=Telemetry(log=None))
    add: Untyped = trace_service_pb2_grpc.add_TraceServiceServicer_to_server
    add(receiver, collector)
    async with collector:
        provider = TracerProvider(shutdown_on_exit=False)
        exporter = OTLPSpanExporter(endpoint=f"http://{collector.addresses[0]}", insecure=True)
        provider.add_span_processor(BatchSpanProcessor(exporter))
        telemetry = Telemetry(log=None, traces=provider)
        async with pair(
            echo(), over="socket", middleware=standard(telemetry), client=standard_client(telemetry)
        ) as ends:
            for kind in Kind:
                assert await ask(ends.channel, kind) == ANSWERS[kind]
        await asyncio.to_thread(provider.force_flush)
        await asyncio.to_thread(provider.shutdown)
    by_name: dict[str, list[Any]] = {}
    for span in receiver.spans:
        by_name.setdefault(span.name, []).append(span)
    calls = {f"{SERVICE}/{name}" for name in NAMES.values()}
    assert set(by_name) == calls | {f"Attempt.{name}" for name in calls}
    for name in calls:
        client, server = sorted(by_name[name], key=lambda span: bool(span.parent_span_id))
        (attempt,) = by_name[f"Attempt.{name}"]
        assert (client.kind, attempt.kind, server.kind) == (3, 1, 2)
        assert (attempt.parent_span_id, server.parent_span_id) == (client.span_id, attempt.span_id)
        assert client.trace_id == attempt.trace_id == server.trace_id
        codes = {a.key: a.value.string_value for a in server.attributes}
        assert codes["rpc.response.status_code"] == "OK"
