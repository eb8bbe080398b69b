"""Metrics as OpenTelemetry's SDK exports them."""

from __future__ import annotations

from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider

from servicekit.metrics.otel import OtelMetrics


class Read:
    """A provider whose figures can be read."""

    def __init__(self) -> None:
        self.reader = InMemoryMetricReader()
        self.metrics = OtelMetrics(MeterProvider([self.reader], shutdown_on_exit=False))

    def points(self) -> dict[str, list[Any]]:
        data = self.reader.get_metrics_data()
        assert data is not None
        return {
            metric.name: list(metric.data.data_points)
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }


def test_counters_gauges_and_histograms() -> None:
    """Names stay as they are, labels are attributes, one that is "" is absent, and a gauge is where its changes led."""
    read = Read()
    read.metrics.counter("shop.orders", "x", labels=("shop.kind", "b")).labels("gift", "").add(2)
    gauge = read.metrics.gauge("shop.open", "x", labels=("door",)).labels("front")
    gauge.set(5)
    gauge.add(-2)
    gauge.add()
    histogram = read.metrics.histogram("shop.wait", "x", unit="s", buckets=(0.1, 1.0)).labels()
    histogram.observe(0.5)
    points = read.points()
    (orders,), (doors,), (waits,) = points["shop.orders"], points["shop.open"], points["shop.wait"]
    assert (orders.value, dict(orders.attributes)) == (2, {"shop.kind": "gift"})
    assert (doors.value, dict(doors.attributes)) == (4, {"door": "front"})
    assert (waits.bucket_counts, waits.explicit_bounds, waits.sum) == ((0, 1, 0), (0.1, 1.0), 0.5)


def test_the_exemplar_is_the_current_span() -> None:
    """The SDK takes the trace from the context, whatever it is told."""
    read = Read()
    with TracerProvider(shutdown_on_exit=False).get_tracer("x").start_as_current_span("work") as span:
        read.metrics.histogram("a.b", "x").labels().observe(0.5, "0" * 32)
    (point,) = read.points()["a.b"]
    assert [exemplar.trace_id for exemplar in point.exemplars] == [span.get_span_context().trace_id]


def test_one_name_is_one_thing() -> None:
    """The same name gives the same family; another kind, unit or labels under it are refused, and so are odd values."""
    metrics = Read().metrics
    family = metrics.counter("a.b", "x", labels=("c",))
    assert metrics.counter("a.b", "x", labels=("c",)) is family
    assert family.labels("1") is family.labels("1")
    with pytest.raises(ValueError, match=r"a\.b is asked for"):
        metrics.gauge("a.b", "x", labels=("c",))
    with pytest.raises(ValueError, match="not 2 of them"):
        family.labels("1", "2")


def test_the_global_provider_is_the_default() -> None:
    """Without a provider it is the one that OpenTelemetry has; without an SDK that keeps nothing, and hurts nobody."""
    metrics = OtelMetrics()
    metrics.counter("a.b", "x").labels().add()
    assert repr(metrics).startswith("OtelMetrics(")
