"""A service of all four kinds that tells who got through to it, and calls of each kind."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from typing import Any, TypeAlias

import pytest

from servicekit.current import current_call
from servicekit.method import Kind
from servicekit.principal import principal_of
from servicekit.server import Server
from servicekit.testing import Pair
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
from servicekit.testing.v1.echo_pb2_grpc import EchoServiceServicer, EchoServiceStub, add_EchoServiceServicer_to_server

Untyped: TypeAlias = Any
"""What is one of several things, or wrong on purpose."""


over_both = pytest.mark.parametrize("over", ["memory", pytest.param("socket", marks=pytest.mark.conformance)])

BODY = "canary-body-8c1d"


class Reached(EchoServiceServicer):
    """``reached`` has the name of each caller that came through, None for one without."""

    def __init__(self) -> None:
        self.reached: list[str | None] = []

    def register(self, server: Server) -> None:
        add_EchoServiceServicer_to_server(self, server)

    def _note(self) -> None:
        principal = principal_of(current_call())
        self.reached.append(None if principal is None else principal.name)

    async def Echo(self, request: EchoRequest, context: Untyped) -> EchoResponse:
        self._note()
        return EchoResponse(text=request.text)

    async def Expand(self, request: ExpandRequest, context: Untyped) -> AsyncIterator[ExpandResponse]:
        self._note()
        yield ExpandResponse(text=request.text)

    async def Store(self, request: Untyped, context: Untyped) -> Untyped:
        raise NotImplementedError

    async def Append(self, request: Untyped, context: Untyped) -> Untyped:
        raise NotImplementedError

    async def Sum(self, request_iterator: AsyncIterator[SumRequest], context: Untyped) -> SumResponse:
        self._note()
        return SumResponse(count=len([number async for number in request_iterator]))

    async def Chat(self, request_iterator: AsyncIterator[ChatRequest], context: Untyped) -> AsyncIterator[ChatResponse]:
        self._note()
        async for message in request_iterator:
            yield ChatResponse(text=message.text)


async def call(ends: Pair, kind: Kind, metadata: Iterable[tuple[str, str | bytes]] = ()) -> None:
    """Make one call of that kind, and take all of its answer."""
    stub, given = EchoServiceStub(ends.channel), tuple(metadata)
    match kind:
        case Kind.UNARY:
            await stub.Echo(EchoRequest(text=BODY), metadata=given)
        case Kind.SERVER_STREAM:
            async for _ in stub.Expand(ExpandRequest(text=BODY, count=1), metadata=given):
                pass
        case Kind.CLIENT_STREAM:
            await stub.Sum(iter([SumRequest(number=1), SumRequest(number=2)]), metadata=given)
        case Kind.BIDI_STREAM:
            async for _ in stub.Chat(iter([ChatRequest(text=BODY)]), metadata=given):
                pass
