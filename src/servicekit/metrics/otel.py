"""Metrics on the API of OpenTelemetry: what becomes of them is the MeterProvider's affair.

Exemplars are the SDK's own: it takes the trace from the span that is current when a figure is recorded.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Generic, TypeVar

from opentelemetry import metrics

from servicekit.instruments import SECONDS, Counter, Family, Gauge, Histogram
from servicekit.policy.checked import able

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

T = TypeVar("T")


class OtelMetrics:
    """A Provider on a MeterProvider of OpenTelemetry; default: the global one, looked up when this is made.

    A figure costs some eight times what it does in ``PrometheusMetrics``. A gauge is set to what its changes add up to.
    """

    def __init__(self, provider: metrics.MeterProvider | None = None) -> None:
        """Take the meter called "servicekit". Raises TypeError for what has no meters."""
        if provider is None:
            provider = metrics.get_meter_provider()
        self._provider = able("provider", provider, ("get_meter",), "MeterProvider of OpenTelemetry")
        self._meter = self._provider.get_meter("servicekit")
        self._families: dict[str, tuple[object, object]] = {}
        self._lock = threading.Lock()

    def counter(self, name: str, description: str, *, unit: str = "", labels: Sequence[str] = ()) -> Family[Counter]:
        """Return the counters called ``name``. Raises ValueError when there is something else of that name."""

        def make() -> _Family[_Counter]:
            instrument = self._meter.create_counter(name, unit, description)
            return _Family(name, labels, lambda attributes: _Counter(instrument, attributes))

        return self._family(name, ("counter", unit, tuple(labels)), make)

    def gauge(self, name: str, description: str, *, unit: str = "", labels: Sequence[str] = ()) -> Family[Gauge]:
        """Return the gauges called ``name``. Raises ValueError when there is something else of that name."""

        def make() -> _Family[_Gauge]:
            instrument = self._meter.create_gauge(name, unit, description)
            return _Family(name, labels, lambda attributes: _Gauge(instrument, attributes))

        return self._family(name, ("gauge", unit, tuple(labels)), make)

    def histogram(
        self,
        name: str,
        description: str,
        *,
        unit: str = "",
        labels: Sequence[str] = (),
        buckets: Sequence[float] = SECONDS,
    ) -> Family[Histogram]:
        """Return the histograms called ``name``. Raises ValueError when there is something else of that name."""

        def make() -> _Family[_Histogram]:
            instrument = self._meter.create_histogram(
                name, unit, description, explicit_bucket_boundaries_advisory=list(buckets)
            )
            return _Family(name, labels, lambda attributes: _Histogram(instrument, attributes))

        return self._family(name, ("histogram", unit, tuple(labels), tuple(buckets)), make)

    def _family(self, name: str, what: tuple[object, ...], make: Callable[[], _Family[T]]) -> _Family[T]:
        with self._lock:
            if name not in self._families:
                self._families[name] = (what, make())
            known, family = self._families[name]
        if known != what or not isinstance(family, _Family):
            msg = f"{name} is asked for as {what}, and is there as {known}"
            raise ValueError(msg)
        return family

    def __repr__(self) -> str:
        """Return whose meter it is."""
        return f"OtelMetrics({type(self._provider).__name__})"


class _Family(Generic[T]):
    def __init__(self, name: str, labels: Sequence[str], make: Callable[[dict[str, str]], T]) -> None:
        self._name = name
        self._labels = tuple(labels)
        self._make = make
        self._children: dict[tuple[str, ...], T] = {}
        self._lock = threading.Lock()

    def labels(self, *values: str) -> T:
        if len(values) != len(self._labels):
            msg = f"{self._name} has the labels {self._labels}, and not {len(values)} of them"
            raise ValueError(msg)
        with self._lock:
            child = self._children.get(values)
            if child is None:
                attributes = {label: value for label, value in zip(self._labels, values, strict=True) if value}
                child = self._children[values] = self._make(attributes)
        return child


class _Counter:
    def __init__(self, instrument: metrics.Counter, attributes: dict[str, str]) -> None:
        self._instrument = instrument
        self._attributes = attributes

    def add(self, amount: float = 1.0, /) -> None:
        self._instrument.add(amount, self._attributes)


class _Gauge:
    def __init__(self, instrument: metrics._Gauge, attributes: dict[str, str]) -> None:
        self._instrument = instrument
        self._attributes = attributes
        self._value = 0.0
        self._lock = threading.Lock()

    def set(self, value: float, /) -> None:
        with self._lock:
            self._value = value
            self._instrument.set(value, self._attributes)

    def add(self, amount: float = 1.0, /) -> None:
        with self._lock:
            self._value += amount
            self._instrument.set(self._value, self._attributes)


class _Histogram:
    def __init__(self, instrument: metrics.Histogram, attributes: dict[str, str]) -> None:
        self._instrument = instrument
        self._attributes = attributes

    def observe(self, value: float, /, trace_id: str | None = None) -> None:  # noqa: ARG002 - the SDK knows the trace
        self._instrument.record(value, self._attributes)
