"""A servicer written against the generated types, and the servers that take it. Checked by ``make types``, never run."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, assert_type

import grpc

from servicekit import Call, Code, Deadline, Error, Recovery, Server, current_call, server_interceptor
from servicekit.testing.v1.echo_pb2 import (
    AppendRequest,
    AppendResponse,
    ChatRequest,
    ChatResponse,
    EchoRequest,
    EchoResponse,
    ExpandRequest,
    ExpandResponse,
    StoreRequest,
    StoreResponse,
    SumRequest,
    SumResponse,
)
from servicekit.testing.v1.echo_pb2_grpc import EchoServiceServicer, add_EchoServiceServicer_to_server


class Servicer(EchoServiceServicer):
    """One method of each form that is typed."""

    async def Echo(self, request: EchoRequest, context: grpc.aio.ServicerContext[Any, Any]) -> EchoResponse:
        call = current_call()
        assert_type(call, Call)
        assert_type(call.remaining(), float | None)
        if not request.text:
            raise Error(Code.INVALID_ARGUMENT, "text is empty", reason="EMPTY")
        return EchoResponse(text=request.text)

    async def Store(self, request: StoreRequest, context: grpc.aio.ServicerContext[Any, Any]) -> StoreResponse:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "not here")

    async def Append(self, request: AppendRequest, context: grpc.aio.ServicerContext[Any, Any]) -> AppendResponse:
        return AppendResponse(text=request.text)

    async def Expand(
        self, request: ExpandRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[ExpandResponse]:
        for index in range(request.count):
            yield ExpandResponse(index=index)

    async def Sum(
        self, request_iterator: AsyncIterator[SumRequest], context: grpc.aio.ServicerContext[Any, Any]
    ) -> SumResponse:
        return SumResponse(total=sum([message.number async for message in request_iterator]))

    async def Chat(
        self, request_iterator: AsyncIterator[ChatRequest], context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[ChatResponse]:
        async for message in request_iterator:
            assert_type(message, ChatRequest)
            yield ChatResponse(text=message.text)


async def ours() -> None:
    """The generated function takes our server: it is a ``grpc.aio.Server``."""
    server = Server(
        "127.0.0.1:0",
        middleware=[Recovery(), Deadline(default=5.0)],
        errors={KeyError: Code.NOT_FOUND, LookupError: lambda error: Error(Code.NOT_FOUND, str(error))},
    )
    add_EchoServiceServicer_to_server(Servicer(), server)
    async with server as started:
        assert_type(started, Server)
        assert_type(started.addresses, tuple[str, ...])
        assert_type(started.in_flight, int)
    await server.run()


def theirs() -> grpc.aio.Server:
    """A bare server takes our interceptor."""
    server = grpc.aio.server(interceptors=[server_interceptor([Recovery()])])
    add_EchoServiceServicer_to_server(Servicer(), server)
    return server
