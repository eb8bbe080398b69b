"""Spans that are read back as they were exported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, Sampler
from opentelemetry.trace import SpanContext, SpanKind

from servicekit.telemetry import Telemetry


@dataclass
class Spans:
    """A telemetry whose spans can be read."""

    sampler: Sampler = ALWAYS_ON
    old_names: bool = False
    exporter: InMemorySpanExporter = field(default_factory=InMemorySpanExporter)

    def __post_init__(self) -> None:
        self.provider = TracerProvider(sampler=self.sampler, shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.telemetry = Telemetry(log=None, traces=self.provider, old_names=self.old_names)

    @property
    def all(self) -> tuple[ReadableSpan, ...]:
        return self.exporter.get_finished_spans()

    @property
    def one(self) -> ReadableSpan:
        (span,) = self.all
        return span

    def of(self, kind: SpanKind) -> ReadableSpan:
        """The one span of this kind."""
        (span,) = (span for span in self.all if span.kind is kind)
        return span

    @property
    def text(self) -> str:
        """Everything that leaves the process."""
        return "\n".join(span.to_json() for span in self.all)


def attributes(span: ReadableSpan) -> Mapping[str, object]:
    """Return the attributes of a span."""
    assert span.attributes is not None
    return span.attributes


def ids(span: ReadableSpan) -> SpanContext:
    """Return what names a span."""
    context = span.get_span_context()
    assert context is not None
    return context


def same_trace(*spans: ReadableSpan) -> bool:
    """Return whether all belong to one trace."""
    return len({ids(span).trace_id for span in spans}) == 1


def is_child(span: ReadableSpan, parent: ReadableSpan) -> bool:
    """Return whether ``parent`` is right above ``span``."""
    return span.parent is not None and span.parent.span_id == ids(parent).span_id
