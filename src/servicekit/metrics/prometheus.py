"""Metrics to be scraped by Prometheus: kept here, registered with prometheus-client, rendered by it.

The children are this module's own, because a call pays for nine figures, and prometheus-client's cost several times as
much. Registry and text formats are the library's.
"""

from __future__ import annotations

import bisect
import itertools
import math
import re
import threading
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from servicekit.instruments import SECONDS, Counter, Family, Gauge, Histogram
from servicekit.policy.checked import able

try:
    from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, exposition
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
    from prometheus_client.openmetrics import exposition as openmetrics
    from prometheus_client.registry import Collector
    from prometheus_client.samples import Exemplar
except ImportError as error:
    msg = "metrics for Prometheus need prometheus-client: pip install 'servicekit[prometheus]'"
    raise ImportError(msg) from error

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

T = TypeVar("T")

_UNITS: Final = {"s": "seconds", "ms": "milliseconds", "By": "bytes", "1": "ratio"}
_NAME: Final = re.compile(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)*")


class PrometheusMetrics:
    """A Provider whose metrics a Prometheus server scrapes.

    ``registry`` is prometheus-client's; default: a new one, with the usual figures about process, platform and garbage
    collection in it. Give ``prometheus_client.REGISTRY`` where an existing page shows that one. Two of these in one
    registry must not have a metric in common: share this object instead.

    ``rpc.server.call.duration`` in "s" is spelled ``rpc_server_call_duration_seconds`` here, a counter ends in
    ``_total``. Raises ImportError, naming the extra, at import of this module when prometheus-client is not there.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        """Make the registry when none is given. Raises TypeError for what is none."""
        if registry is None:
            registry = CollectorRegistry()
            ProcessCollector(registry=registry)
            PlatformCollector(registry=registry)
            GCCollector(registry=registry)
        self.registry: Final = able("registry", registry, ("register", "collect"), "CollectorRegistry")
        self._families: dict[str, _Family[_Counter] | _Family[_Gauge] | _Family[_Histogram]] = {}
        self._lock = threading.Lock()

    def counter(self, name: str, description: str, *, unit: str = "", labels: Sequence[str] = ()) -> Family[Counter]:
        """Return the counters called ``name``. Raises ValueError when there is something else of that name."""
        return self._family(_Counters(name, description, unit, labels))

    def gauge(self, name: str, description: str, *, unit: str = "", labels: Sequence[str] = ()) -> Family[Gauge]:
        """Return the gauges called ``name``. Raises ValueError when there is something else of that name."""
        return self._family(_Gauges(name, description, unit, labels))

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
        family = _Histograms(name, description, unit, labels)
        family.bound(buckets)
        return self._family(family)

    def render(self, accept: str = "application/openmetrics-text") -> tuple[bytes, str]:
        """Return the page to be scraped and its content type, for a request with this ``Accept`` header.

        In OpenMetrics form, with exemplars, for who accepts that, as Prometheus does; else in the older text form.
        """
        if "application/openmetrics-text" in accept:
            page: bytes = openmetrics.generate_latest(self.registry)  # type: ignore[no-untyped-call]  # it has no types
            return page, openmetrics.CONTENT_TYPE_LATEST
        return exposition.generate_latest(self.registry), exposition.CONTENT_TYPE_LATEST

    def _family(self, wanted: F) -> F:
        with self._lock:
            known = self._families.get(wanted.name)
            if known is None:
                self.registry.register(wanted)
                self._families[wanted.name] = wanted
                return wanted
        if not isinstance(known, type(wanted)) or known.what != wanted.what:
            msg = f"{wanted.name} is asked for as {wanted!r}, and is there as {known!r}"
            raise ValueError(msg)
        return known

    def __repr__(self) -> str:
        """Return how many metrics there are."""
        return f"PrometheusMetrics({len(self._families)} metrics)"


# No locks: they would cost three times what they protect. The interpreter switches threads at calls and backward jumps
# only, and there is neither between the reading and the writing of an augmented assignment to a slot or a list's item.


class _Counter:
    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def add(self, amount: float = 1.0, /) -> None:
        if amount < 0:
            msg = f"a counter only grows: add({amount!r})"
            raise ValueError(msg)
        self.value += amount


class _Gauge:
    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def set(self, value: float, /) -> None:
        self.value = value

    def add(self, amount: float = 1.0, /) -> None:
        self.value += amount


class _Histogram:
    __slots__ = ("_bounds", "counts", "exemplars", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.exemplars: list[Exemplar | None] = [None] * (len(bounds) + 1)  # the last one of each bucket
        self.total = 0.0

    def observe(self, value: float, /, trace_id: str | None = None) -> None:
        place = bisect.bisect_left(self._bounds, value)
        self.counts[place] += 1
        self.total += value
        if trace_id is not None:
            self.exemplars[place] = Exemplar({"trace_id": trace_id}, value)


class _Family(Collector, Generic[T]):
    """One metric in a registry."""

    def __init__(self, name: str, description: str, unit: str, labels: Sequence[str]) -> None:
        for word in (name, *labels):
            if not _NAME.fullmatch(word):
                msg = f"{word!r} is no name of a metric or a label: dotted words of a-z 0-9 _"
                raise ValueError(msg)
        suffix = _UNITS.get(unit, "")
        spelled = name.replace(".", "_")
        self.name = spelled if not suffix or spelled.endswith(f"_{suffix}") else f"{spelled}_{suffix}"
        self.description = description
        self.unit = suffix
        self.names = [label.replace(".", "_") for label in labels]
        self.bounds: tuple[float, ...] = ()
        self._children: dict[tuple[str, ...], T] = {}
        self._lock = threading.Lock()

    @property
    def what(self) -> tuple[object, ...]:
        """What must be the same where the same name is asked for again."""
        return type(self), self.unit, self.names, self.bounds

    def labels(self, *values: str) -> T:
        child = self._children.get(values)
        if child is None:
            if len(values) != len(self.names):
                msg = f"{self.name} has the labels {self.names}, and not {len(values)} of them"
                raise ValueError(msg)
            with self._lock:
                child = self._children.setdefault(values, self.make())
        return child

    def children(self) -> list[tuple[tuple[str, ...], T]]:
        with self._lock:
            return list(self._children.items())

    def make(self) -> T:
        raise NotImplementedError

    def blank(self) -> Metric:
        raise NotImplementedError

    def describe(self) -> Iterator[Metric]:
        """Yield the metric without its figures: what a registry looks for names in."""
        yield self.blank()

    def __repr__(self) -> str:
        return f"{type(self).__name__.strip('_').lower()} in {self.unit!r} with labels {self.names} {self.bounds or ''}"


class _Counters(_Family[_Counter]):
    def make(self) -> _Counter:
        return _Counter()

    def blank(self) -> CounterMetricFamily:
        return CounterMetricFamily(self.name, self.description, labels=self.names, unit=self.unit)

    def collect(self) -> Iterator[Metric]:
        metric = self.blank()
        for values, child in self.children():
            metric.add_metric(values, child.value)
        yield metric


class _Gauges(_Family[_Gauge]):
    def make(self) -> _Gauge:
        return _Gauge()

    def blank(self) -> GaugeMetricFamily:
        return GaugeMetricFamily(self.name, self.description, labels=self.names, unit=self.unit)

    def collect(self) -> Iterator[Metric]:
        metric = self.blank()
        for values, child in self.children():
            metric.add_metric(values, child.value)
        yield metric


class _Histograms(_Family[_Histogram]):
    def bound(self, buckets: Sequence[float]) -> None:
        self.bounds = tuple(float(bound) for bound in buckets if bound != math.inf)
        if not self.bounds or any(first >= second for first, second in itertools.pairwise(self.bounds)):
            msg = f"{self.name}: buckets={buckets!r} do not grow"
            raise ValueError(msg)

    def make(self) -> _Histogram:
        return _Histogram(self.bounds)

    def blank(self) -> HistogramMetricFamily:
        return HistogramMetricFamily(self.name, self.description, labels=self.names, unit=self.unit)

    def collect(self) -> Iterator[Metric]:
        edges = [*map(repr, self.bounds), "+Inf"]
        metric = self.blank()
        for values, child in self.children():
            counts = itertools.accumulate(child.counts)
            buckets: list[tuple[str, float] | tuple[str, float, Exemplar]] = [
                (edge, count) if exemplar is None else (edge, count, exemplar)
                for edge, count, exemplar in zip(edges, counts, child.exemplars, strict=True)
            ]
            metric.add_metric(values, buckets, child.total)
        yield metric


F = TypeVar("F", _Counters, _Gauges, _Histograms)
