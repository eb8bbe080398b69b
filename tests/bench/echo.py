"""What is served and called: the echo service, and services of very many methods made at run time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool

from servicekit.testing.v1.echo_pb2 import (
    DESCRIPTOR,
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
from servicekit.testing.v1.echo_pb2_grpc import EchoServiceServicer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

MESSAGES = 500
"""How many messages a stream has, in either direction."""

ECHO = "/servicekit.testing.v1.EchoService/Echo"
EXPAND = "/servicekit.testing.v1.EchoService/Expand"
SUM = "/servicekit.testing.v1.EchoService/Sum"
CHAT = "/servicekit.testing.v1.EchoService/Chat"

# About 100 bytes on the wire, in both directions.
UNARY = EchoRequest(text="how much is a call?", payload=bytes(75))
STREAM = ExpandRequest(text="how much is a message?", count=MESSAGES, payload=bytes(75))
NUMBER = SumRequest(number=7, payload=bytes(94))
LINE = ChatRequest(text="how much is a message? " * 4)

_PACKAGE = "servicekit.bench.v1"


class EchoServicer(EchoServiceServicer):
    """Does what the proto says, and nothing else."""

    async def Echo(self, request: EchoRequest, context: object) -> EchoResponse:
        return EchoResponse(text=request.text, payload=request.payload)

    async def Store(self, request: StoreRequest, context: object) -> StoreResponse:
        return StoreResponse(text=request.text)

    async def Append(self, request: AppendRequest, context: object) -> AppendResponse:
        return AppendResponse(text=request.text)

    async def Expand(self, request: ExpandRequest, context: object) -> AsyncIterator[ExpandResponse]:
        for index in range(request.count):
            yield ExpandResponse(text=request.text, index=index, payload=request.payload)

    async def Sum(self, request: AsyncIterator[SumRequest], context: object) -> SumResponse:
        numbers = [message.number async for message in request]
        return SumResponse(total=sum(numbers), count=len(numbers))

    async def Chat(self, request: AsyncIterator[ChatRequest], context: object) -> AsyncIterator[ChatResponse]:
        async for message in request:
            yield ChatResponse(text=message.text)


def many_path(count: int) -> str:
    """Return the path of the method in the middle of a service of ``count`` methods."""
    return f"/{_PACKAGE}.Many{count}Service/Echo{count // 2}"


def add_many(count: int, server: grpc.aio.Server) -> None:
    """Register a service of ``count`` methods, each of them Echo, the way generated code does."""
    service = f"Many{count}Service"
    file = descriptor_pb2.FileDescriptorProto(
        name=f"servicekit/bench/v1/many{count}.proto",
        package=_PACKAGE,
        dependency=[DESCRIPTOR.name],
        syntax="proto3",
    )
    described = file.service.add(name=service)
    handlers: dict[str, Any] = {}
    for index in range(count):
        described.method.add(
            name=f"Echo{index}",
            input_type=f".{EchoRequest.DESCRIPTOR.full_name}",
            output_type=f".{EchoResponse.DESCRIPTOR.full_name}",
        )
        handlers[f"Echo{index}"] = grpc.unary_unary_rpc_method_handler(
            EchoServicer().Echo,
            request_deserializer=EchoRequest.FromString,
            response_serializer=EchoResponse.SerializeToString,
        )
    descriptor_pool.Default().AddSerializedFile(file.SerializeToString())
    name = f"{_PACKAGE}.{service}"
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, handlers),))
    server.add_registered_method_handlers(name, handlers)
