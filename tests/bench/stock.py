"""The stock assembly: what people put around grpc.aio from separate parts, as those parts' own pages show it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import structlog
from opentelemetry.instrumentation.grpc import aio_server_interceptor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from prometheus_client import CollectorRegistry, Histogram

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from opentelemetry.sdk.trace import ReadableSpan


def stock_interceptors() -> list[grpc.aio.ServerInterceptor]:
    """Return spans (all recorded, exported to nowhere), metrics and a log line (to /dev/null), each by its own part."""
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(_Nowhere()))
    seconds = Histogram("rpc_seconds", "Time.", ["method", "code"], registry=CollectorRegistry())
    log = structlog.wrap_logger(
        structlog.WriteLogger(Path("/dev/null").open("w")),  # noqa: SIM115 - open as long as the process runs
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.JSONRenderer(),
        ],
    )

    def count(method: str, code: str, taken: float) -> None:
        seconds.labels(method, code).observe(taken)

    def write(method: str, code: str, taken: float) -> None:
        log.info("rpc", method=method, code=code, duration_ms=round(taken * 1e3, 3))

    spans: grpc.aio.ServerInterceptor = aio_server_interceptor(tracer_provider=provider)  # type: ignore[no-untyped-call]  # it has no types
    return [spans, _Observed(count), _Observed(write)]


class _Observed(grpc.aio.ServerInterceptor):
    """Tells how a call ended and how long it took, in the usual way: another handler around the handler."""

    def __init__(self, observe: Callable[[str, str, float], object]) -> None:
        self._observe = observe

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:  # noqa: ANN401 - a handler, of which the stubs know only the sync server's
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        observe = self._observe

        async def unary(request: object, context: object) -> object:
            start, code = time.perf_counter(), "UNKNOWN"
            try:
                response: object = await handler.unary_unary(request, context)
                code = "OK"
                return response
            finally:
                observe(method, code, time.perf_counter() - start)

        async def stream(request: object, context: object) -> AsyncIterator[object]:
            start, code = time.perf_counter(), "UNKNOWN"
            try:
                async for message in handler.unary_stream(request, context):
                    yield message
                code = "OK"
            finally:
                observe(method, code, time.perf_counter() - start)

        make: Any = grpc  # the stubs know only the sync server's behaviours
        codecs = (handler.request_deserializer, handler.response_serializer)
        if handler.unary_unary is not None:
            return make.unary_unary_rpc_method_handler(unary, *codecs)
        if handler.unary_stream is not None:
            return make.unary_stream_rpc_method_handler(stream, *codecs)
        return handler


class _Nowhere(SpanExporter):
    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        return SpanExportResult.SUCCESS
