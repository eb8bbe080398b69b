"""A client written against the generated types. Checked by ``make types``, never run."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import assert_type

import grpc
from google.rpc.error_details_pb2 import BadRequest

from servicekit import CallError, Code, Deadline, Error, client_interceptors, connect
from servicekit.errors import By
from servicekit.testing.v1.echo_pb2 import (
    ChatRequest,
    ChatResponse,
    EchoRequest,
    EchoResponse,
    ExpandRequest,
    ExpandResponse,
    SumRequest,
    SumResponse,
)
from servicekit.testing.v1.echo_pb2_grpc import EchoServiceStub
from servicekit.transport.channel import Channel


async def numbers() -> AsyncIterator[SumRequest]:
    """A stream of requests."""
    yield SumRequest(number=1)


async def every_kind() -> None:
    """A generated stub takes our channel, and its calls are typed by their messages."""
    async with connect("localhost:50051", middleware=[Deadline(default=2.0, cap=None)]) as channel:
        assert_type(channel, Channel)
        bare: grpc.aio.Channel = channel
        stub = EchoServiceStub(bare)
        unary = stub.Echo(EchoRequest(text="hello"), timeout=1.0, metadata=(("key", "value"),))
        assert_type(await unary, EchoResponse)
        assert_type(await unary.code(), grpc.StatusCode)
        async for message in stub.Expand(ExpandRequest(count=3)):
            assert_type(message, ExpandResponse)
        assert_type(await stub.Sum(numbers()), SumResponse)
        assert_type(await stub.Sum(iter([SumRequest(number=1)])), SumResponse)
        chat = stub.Chat()
        await chat.write(ChatRequest(text="hello"))
        await chat.done_writing()
        async for answer in chat:
            assert_type(answer, ChatResponse)


async def errors(stub: EchoServiceStub) -> None:
    """What a failed call says is typed, details by the type that was asked for."""
    try:
        await stub.Echo(EchoRequest())
    except CallError as error:
        caught: grpc.aio.AioRpcError = error
        assert_type(caught.code(), grpc.StatusCode)
        assert_type(error.error, Error)
        code: Code = error.error.code
        assert_type(code.name, str)
        assert_type(error.error.by, By)
        assert_type(error.error.begun, bool)
        assert_type(error.reason, str)
        assert_type(error.retry_after, float | None)
        assert_type(error.detail(BadRequest), BadRequest | None)


def bare_channel() -> grpc.aio.Channel:
    """Our interceptors go where grpc.aio takes them."""
    return grpc.aio.insecure_channel("localhost:50051", interceptors=client_interceptors([Deadline()]))
