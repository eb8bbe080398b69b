"""What connectrpc's conformance runner calls, written with grpc.aio's API."""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import AsyncIterator, Iterable
from typing import TYPE_CHECKING, Any, TypeAlias

import grpc
from google.protobuf.any_pb2 import Any as Packed
from google.protobuf.message import Message
from google.rpc.status_pb2 import Status

from .conformance_pb2 import (
    BidiStreamRequest,
    BidiStreamResponse,
    ClientStreamRequest,
    ClientStreamResponse,
    ConformancePayload,
    Error,
    Header,
    IdempotentUnaryRequest,
    IdempotentUnaryResponse,
    ServerStreamRequest,
    ServerStreamResponse,
    StreamResponseDefinition,
    UnaryRequest,
    UnaryResponse,
    UnaryResponseDefinition,
)
from .conformance_pb2_grpc import ConformanceServiceServicer

if TYPE_CHECKING:
    Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

BINARY = "-bin"
DETAILS = "grpc-status-details-bin"
CODES = {code.value[0]: code for code in grpc.StatusCode}


class ConformanceServicer(ConformanceServiceServicer):
    """Answers as the request says, and tells what came with it. ``Unimplemented`` is left to the generated class."""

    async def Unary(self, request: UnaryRequest, context: Context) -> UnaryResponse:
        return UnaryResponse(payload=await one(request.response_definition, [request], context))

    async def IdempotentUnary(self, request: IdempotentUnaryRequest, context: Context) -> IdempotentUnaryResponse:
        return IdempotentUnaryResponse(payload=await one(request.response_definition, [request], context))

    async def ClientStream(
        self, request_iterator: AsyncIterator[ClientStreamRequest], context: Context
    ) -> ClientStreamResponse:
        requests = [request async for request in request_iterator]
        definition = requests[0].response_definition if requests else UnaryResponseDefinition()
        return ClientStreamResponse(payload=await one(definition, requests, context))

    async def ServerStream(self, request: ServerStreamRequest, context: Context) -> AsyncIterator[ServerStreamResponse]:
        async for payload in several(request.response_definition, [request], context):
            yield ServerStreamResponse(payload=payload)

    async def BidiStream(
        self, request_iterator: AsyncIterator[BidiStreamRequest], context: Context
    ) -> AsyncIterator[BidiStreamResponse]:
        first = await anext(request_iterator, None)
        if first is None:
            return
        if first.full_duplex:
            payloads = in_turn(first, request_iterator, context)
        else:
            requests = [first, *[request async for request in request_iterator]]
            payloads = several(first.response_definition, requests, context)
        async for payload in payloads:
            yield BidiStreamResponse(payload=payload)


async def one(definition: UnaryResponseDefinition, requests: Iterable[Message], context: Context) -> ConformancePayload:
    """Return the payload that is asked for, or end the call with the error that is."""
    told = info(context, requests)
    await begin(definition, context)
    await asyncio.sleep(definition.response_delay_ms / 1000)
    if definition.HasField("error"):
        await fail(definition.error, definition.response_trailers, context, told)
    return ConformancePayload(data=definition.response_data, request_info=told)


async def several(
    definition: StreamResponseDefinition, requests: Iterable[Message], context: Context
) -> AsyncIterator[ConformancePayload]:
    """Send what is asked for once all the requests are there."""
    told = info(context, requests)
    await begin(definition, context)
    for number, data in enumerate(definition.response_data):
        await asyncio.sleep(definition.response_delay_ms / 1000)
        yield ConformancePayload(data=data, request_info=None if number else told)
    await end(definition, context, told)


async def in_turn(
    first: BidiStreamRequest, requests: AsyncIterator[BidiStreamRequest], context: Context
) -> AsyncIterator[ConformancePayload]:
    """Send a response for each request, and what is left of them when there are no more requests."""
    definition = first.response_definition
    told = info(context, [first])
    await begin(definition, context)
    request: BidiStreamRequest | None = first
    for number, data in enumerate(definition.response_data):
        if number and request is not None:
            request = await anext(requests, None)
        if number:
            told = ConformancePayload.RequestInfo(requests=[packed(request)] if request is not None else [])
        await asyncio.sleep(definition.response_delay_ms / 1000)
        yield ConformancePayload(data=data, request_info=told)
    await end(definition, context, told)


async def begin(definition: UnaryResponseDefinition | StreamResponseDefinition, context: Context) -> None:
    """Send the headers at once, and set the trailers."""
    if definition.response_headers:
        await context.send_initial_metadata(pairs(definition.response_headers))
    context.set_trailing_metadata(pairs(definition.response_trailers))


async def end(definition: StreamResponseDefinition, context: Context, told: ConformancePayload.RequestInfo) -> None:
    """End a stream with the error that is asked for; it tells what came if no response could."""
    if definition.HasField("error"):
        error, trailers = definition.error, definition.response_trailers
        await fail(error, trailers, context, None if definition.response_data else told)


async def fail(
    error: Error, trailers: Iterable[Header], context: Context, told: ConformancePayload.RequestInfo | None
) -> None:
    """End the call with the error, ``told`` behind its details."""
    details = [*error.details, *([] if told is None else [packed(told)])]
    status = Status(code=error.code, message=error.message, details=details)
    metadata = (*pairs(trailers), *(((DETAILS, status.SerializeToString()),) if details else ()))
    await context.abort(CODES[error.code], error.message, metadata)


def info(context: Context, requests: Iterable[Message]) -> ConformancePayload.RequestInfo:
    """Return what came: metadata, the time that there is, and the requests."""
    headers: dict[str, list[str]] = {}
    for name, value in context.invocation_metadata() or ():
        text = base64.b64encode(value).decode() if isinstance(value, bytes) else value
        headers.setdefault(name, []).append(text)
    remaining = context.time_remaining()
    return ConformancePayload.RequestInfo(
        request_headers=[Header(name=name, value=values) for name, values in headers.items()],
        timeout_ms=None if remaining is None else int(remaining * 1000),
        requests=[packed(request) for request in requests],
    )


def packed(message: Message) -> Packed:
    """Return the message with its type."""
    made = Packed()
    made.Pack(message)
    return made


def pairs(headers: Iterable[Header]) -> tuple[tuple[str, str | bytes], ...]:
    """Return headers as metadata; binary ones come as base64 without padding, or as they are."""
    return tuple((header.name.lower(), decoded(header.name, value)) for header in headers for value in header.value)


def decoded(name: str, value: str) -> str | bytes:
    """Return a value as metadata has it."""
    if not name.lower().endswith(BINARY):
        return value
    try:
        return base64.b64decode(value + "=" * (-len(value) % 4), validate=True)
    except binascii.Error:
        return value.encode()
