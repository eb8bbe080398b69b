"""What grpc's interop clients call, written with grpc.aio's API."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, TypeAlias

import grpc

from .interop_pb2 import (
    EchoStatus,
    Empty,
    Payload,
    SimpleRequest,
    SimpleResponse,
    StreamingInputCallRequest,
    StreamingInputCallResponse,
    StreamingOutputCallRequest,
    StreamingOutputCallResponse,
    TestOrcaReport,
)
from .interop_pb2_grpc import TestServiceServicer
from .orca_pb2 import OrcaLoadReport, OrcaLoadReportRequest
from .orca_pb2_grpc import OpenRcaServiceServicer

if TYPE_CHECKING:
    Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

INITIAL = "x-grpc-test-echo-initial"
TRAILING = "x-grpc-test-echo-trailing-bin"
LOAD = "endpoint-load-metrics-bin"
CODES = {code.value[0]: code for code in grpc.StatusCode}


class LoadServicer(OpenRcaServiceServicer):
    """Tells of the load that somebody said there is."""

    def __init__(self) -> None:
        self.report = OrcaLoadReport()

    async def StreamCoreMetrics(
        self, request: OrcaLoadReportRequest, context: Context
    ) -> AsyncIterator[OrcaLoadReport]:
        while True:
            yield self.report
            await asyncio.sleep(request.report_interval.ToTimedelta().total_seconds())


class InteropServicer(TestServiceServicer):
    """Sends back what it is asked for."""

    def __init__(self, load: LoadServicer) -> None:
        self._load = load

    async def EmptyCall(self, request: Empty, context: Context) -> Empty:
        return Empty()

    async def UnaryCall(self, request: SimpleRequest, context: Context) -> SimpleResponse:
        await begin(context, request.orca_per_query_report if request.HasField("orca_per_query_report") else None)
        await end_as(request.response_status, context)
        response = SimpleResponse(payload=Payload(body=bytes(request.response_size)))
        if request.fill_server_id:
            response.server_id = str(os.getpid())
        return response

    async def StreamingOutputCall(
        self, request: StreamingOutputCallRequest, context: Context
    ) -> AsyncIterator[StreamingOutputCallResponse]:
        for parameters in request.response_parameters:
            await asyncio.sleep(parameters.interval_us / 1e6)
            yield StreamingOutputCallResponse(payload=Payload(body=bytes(parameters.size)))

    async def StreamingInputCall(
        self, request_iterator: AsyncIterator[StreamingInputCallRequest], context: Context
    ) -> StreamingInputCallResponse:
        sizes = [len(request.payload.body) async for request in request_iterator]
        return StreamingInputCallResponse(aggregated_payload_size=sum(sizes))

    async def FullDuplexCall(
        self, request_iterator: AsyncIterator[StreamingOutputCallRequest], context: Context
    ) -> AsyncIterator[StreamingOutputCallResponse]:
        await begin(context)
        async for request in request_iterator:
            if request.HasField("orca_oob_report"):
                self._load.report = load_report(request.orca_oob_report)
            await end_as(request.response_status, context)
            async for response in self.StreamingOutputCall(request, context):
                yield response


async def begin(context: Context, load: TestOrcaReport | None = None) -> None:
    """Send two metadata back, at once and at the end, and there the load that the call is said to have been."""
    given = dict(context.invocation_metadata() or ())
    if INITIAL in given:
        await context.send_initial_metadata(((INITIAL, given[INITIAL]),))
    trailing = [(TRAILING, given[TRAILING])] if TRAILING in given else []
    if load is not None:
        trailing.append((LOAD, load_report(load).SerializeToString()))
    context.set_trailing_metadata(tuple(trailing))


def load_report(given: TestOrcaReport) -> OrcaLoadReport:
    """Return the report that shall be sent, in the words of those who read it."""
    return OrcaLoadReport(
        cpu_utilization=given.cpu_utilization,
        mem_utilization=given.memory_utilization,
        request_cost=given.request_cost,
        utilization=given.utilization,
    )


async def end_as(status: EchoStatus, context: Context) -> None:
    """End the call with the status that it asked for, if it did."""
    if status.code:
        await context.abort(CODES[status.code], status.message)
