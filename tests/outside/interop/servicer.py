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
)
from .interop_pb2_grpc import TestServiceServicer

if TYPE_CHECKING:
    Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

INITIAL = "x-grpc-test-echo-initial"
TRAILING = "x-grpc-test-echo-trailing-bin"
CODES = {code.value[0]: code for code in grpc.StatusCode}


class InteropServicer(TestServiceServicer):
    """Sends back what it is asked for."""

    async def EmptyCall(self, request: Empty, context: Context) -> Empty:
        return Empty()

    async def UnaryCall(self, request: SimpleRequest, context: Context) -> SimpleResponse:
        await echo_metadata(context)
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
        await echo_metadata(context)
        async for request in request_iterator:
            await end_as(request.response_status, context)
            async for response in self.StreamingOutputCall(request, context):
                yield response


async def echo_metadata(context: Context) -> None:
    """Send two metadata back, at once and at the end."""
    given = dict(context.invocation_metadata() or ())
    if INITIAL in given:
        await context.send_initial_metadata(((INITIAL, given[INITIAL]),))
    if TRAILING in given:
        context.set_trailing_metadata(((TRAILING, given[TRAILING]),))


async def end_as(status: EchoStatus, context: Context) -> None:
    """End the call with the status that it asked for, if it did."""
    if status.code:
        await context.abort(CODES[status.code], status.message)
