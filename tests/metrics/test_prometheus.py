"""Metrics as a Prometheus server reads them."""

from __future__ import annotations

import subprocess
import sys
import threading
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics import parser
from prometheus_client.parser import text_string_to_metric_families as parse_text

from servicekit.metrics.prometheus import PrometheusMetrics

parse_openmetrics: Any = parser.text_string_to_metric_families  # it has no types
TRACE = "0af7651916cd43dd8448eb211c80319c"


def bare() -> PrometheusMetrics:
    """Return a provider with nothing else in its registry."""
    return PrometheusMetrics(CollectorRegistry())


def page(provider: PrometheusMetrics) -> str:
    text, _ = provider.render()
    return text.decode()


def test_a_counter() -> None:
    """Dots become underscores, the unit and "total" stand at the end, and label values are quoted."""
    provider = bare()
    family = provider.counter("shop.orders", "Orders taken.", unit="By", labels=("shop.kind",))
    family.labels("gift").add()
    family.labels("gift").add(2.5)
    family.labels('a"\n\\').add()
    assert page(provider) == (
        "# HELP shop_orders_bytes Orders taken.\n"
        "# TYPE shop_orders_bytes counter\n"
        "# UNIT shop_orders_bytes bytes\n"
        'shop_orders_bytes_total{shop_kind="gift"} 3.5\n'
        'shop_orders_bytes_total{shop_kind="a\\"\\n\\\\"} 1.0\n'
        "# EOF\n"
    )


def test_a_gauge() -> None:
    """A gauge goes up and down, or is set."""
    provider = bare()
    child = provider.gauge("shop.open", "Doors.").labels()
    child.set(5.0)
    child.add(-2)
    child.add()
    assert "\nshop_open 4.0\n" in page(provider)


def test_a_histogram() -> None:
    """Buckets are cumulative, an upper bound belongs to its bucket, and the last exemplar of each goes with it."""
    provider = bare()
    child = provider.histogram("shop.wait", "Waiting.", unit="s", buckets=(0.1, 1.0)).labels()
    child.observe(0.1)
    child.observe(0.5, TRACE[::-1])
    child.observe(0.7, TRACE)
    child.observe(3.0)
    assert page(provider).splitlines()[3:] == [
        'shop_wait_seconds_bucket{le="0.1"} 1.0',
        f'shop_wait_seconds_bucket{{le="1.0"}} 3.0 # {{trace_id="{TRACE}"}} 0.7',
        'shop_wait_seconds_bucket{le="+Inf"} 4.0',
        "shop_wait_seconds_count 4.0",
        "shop_wait_seconds_sum 4.3",
        "# EOF",
    ]


def test_both_forms_can_be_parsed() -> None:
    """Whoever accepts OpenMetrics gets it, with exemplars; everybody else the older form, without."""
    provider = PrometheusMetrics()
    provider.histogram("a.b", "x", unit="s").labels().observe(0.2, TRACE)
    provider.counter("a.c", "x").labels().add()
    text, kind = provider.render("application/openmetrics-text;version=1.0.0,text/plain;q=0.5")
    assert kind.startswith("application/openmetrics-text")
    exemplars = [s.exemplar for family in parse_openmetrics(text.decode()) for s in family.samples if s.exemplar]
    assert [exemplar.labels for exemplar in exemplars] == [{"trace_id": TRACE}]
    text, kind = provider.render("text/plain")
    assert kind.startswith("text/plain")
    assert {"a_b_seconds", "a_c", "process_cpu_seconds"} <= {family.name for family in parse_text(text.decode())}
    assert TRACE not in text.decode()


def test_children_are_the_same_each_time() -> None:
    """The same values mean the same child, and the same name the same family."""
    provider = bare()
    family = provider.counter("a.b", "x", labels=("c",))
    assert family.labels("1") is family.labels("1") is not family.labels("2")
    assert provider.counter("a.b", "x", labels=("c",)) is family


def test_the_same_name_for_something_else_is_refused() -> None:
    """A name means one kind, unit, set of labels and buckets."""
    provider = bare()
    provider.counter("a.b", "x", labels=("c",))
    provider.histogram("a.h", "x", buckets=(1,))
    with pytest.raises(ValueError, match="a_b is asked for as"):
        provider.counter("a.b", "x", labels=("d",))
    with pytest.raises(ValueError, match="a_b is asked for as"):
        provider.gauge("a.b", "x", labels=("c",))
    with pytest.raises(ValueError, match="a_h is asked for as"):
        provider.histogram("a.h", "x", buckets=(2,))
    with pytest.raises(ValueError, match="Duplicated"):
        PrometheusMetrics(provider.registry).counter("a.b", "x", labels=("c",))


@pytest.mark.parametrize("name", ["", "A.b", "a-b", "a..b", "1a", "a b", "a."])
def test_a_name_that_is_none_is_refused(name: str) -> None:
    """Names are dotted words, of metrics and of labels."""
    with pytest.raises(ValueError, match="is no name"):
        bare().counter(name, "x")
    with pytest.raises(ValueError, match="is no name"):
        bare().counter("a", "x", labels=(name,))


def test_what_cannot_be_counted_is_refused() -> None:
    """A counter does not shrink, buckets grow, and there is one value for each label."""
    provider = bare()
    with pytest.raises(ValueError, match=r"add\(-1\)"):
        provider.counter("a.b", "x").labels().add(-1)
    for buckets in ((), (1, 1), (2, 1)):
        with pytest.raises(ValueError, match="do not grow"):
            provider.histogram("a.h", "x", buckets=buckets)
    with pytest.raises(ValueError, match="not 2 of them"):
        provider.counter("a.c", "x", labels=("d",)).labels("1", "2")


def test_no_figure_is_lost_between_threads() -> None:
    """Children take figures from many threads at once, and each counts, though no lock is taken."""
    provider = bare()
    counter = provider.counter("a.c", "x").labels()
    gauge = provider.gauge("a.g", "x").labels()
    histogram = provider.histogram("a.h", "x").labels()
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)

    def work() -> None:
        for _ in range(20_000):
            counter.add()
            gauge.add(2.0)
            gauge.add(-1.0)
            histogram.observe(1.0)

    try:
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    lines = page(provider).splitlines()
    assert {"a_c_total 80000.0", "a_g 80000.0", "a_h_count 80000.0", "a_h_sum 80000.0"} <= set(lines)


def test_without_the_library_the_error_names_the_extra() -> None:
    """Who asks for Prometheus without prometheus-client is told what to install; nobody else notices."""
    code = (
        "import sys; sys.modules['prometheus_client'] = None\n"
        "from servicekit.telemetry import Telemetry\n"
        "Telemetry()\n"
        "try: Telemetry(metrics='prometheus')\n"
        "except ImportError as error: print(error)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "servicekit[prometheus]" in shown.stdout


def test_repr() -> None:
    """It can be read in a telemetry's repr."""
    provider = bare()
    provider.counter("a.b", "x")
    assert repr(provider) == "PrometheusMetrics(1 metrics)"
