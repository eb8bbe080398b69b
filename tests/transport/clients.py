"""What the tests of the client's side share: a servicer that does as it is told, and calls of every kind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import grpc
import pytest

from servicekit.call import Call
from servicekit.endpoint import Endpoint, Message
from servicekit.method import Kind
from servicekit.server import Server
from servicekit.testing import no_leaks
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
from servicekit.testing.v1.echo_pb2_grpc import (
    EchoServiceServicer,
    EchoServiceStub,
    add_EchoServiceServicer_to_server,
)

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Untyped: TypeAlias = Any
"""What grpc leaves untyped, and what is one of several messages."""

both = pytest.mark.parametrize("over", ["memory", "socket", "native"])
every_kind = pytest.mark.parametrize("kind", list(Kind), ids=lambda kind: kind.value)
streaming_requests = pytest.mark.parametrize(
    "kind", [kind for kind in Kind if kind.request_streaming], ids=lambda kind: kind.value
)
streaming_responses = pytest.mark.parametrize(
    "kind", [kind for kind in Kind if kind.response_streaming], ids=lambda kind: kind.value
)

NAMES = {Kind.UNARY: "Echo", Kind.CLIENT_STREAM: "Sum", Kind.SERVER_STREAM: "Expand", Kind.BIDI_STREAM: "Chat"}
"""The method of each kind that the tests call."""

ANSWERS: dict[Kind, list[object]] = {
    Kind.UNARY: ["a"],
    Kind.CLIENT_STREAM: [6],
    Kind.SERVER_STREAM: [0, 1, 2],
    Kind.BIDI_STREAM: ["a", "b", "c"],
}
"""What ``finish`` returns for a call of ``begin`` that was served as it should be."""


@pytest.fixture(autouse=True)
async def _nothing_is_left() -> AsyncIterator[None]:
    async with no_leaks():
        yield


class Echo(EchoServiceServicer):
    """Does what each method is for."""

    async def Echo(self, request: EchoRequest, context: Context) -> EchoResponse:
        return EchoResponse(text=request.text, payload=request.payload)

    async def Store(self, request: Message, context: Context) -> Untyped:
        raise NotImplementedError

    async def Append(self, request: Message, context: Context) -> Untyped:
        raise NotImplementedError

    async def Expand(self, request: ExpandRequest, context: Context) -> AsyncIterator[ExpandResponse]:
        for index in range(request.count):
            yield ExpandResponse(text=request.text, index=index)

    async def Sum(self, request_iterator: AsyncIterator[SumRequest], context: Context) -> SumResponse:
        total = count = 0
        async for message in request_iterator:
            total, count = total + message.number, count + 1
        return SumResponse(total=total, count=count)

    async def Chat(self, request_iterator: AsyncIterator[ChatRequest], context: Context) -> AsyncIterator[ChatResponse]:
        async for message in request_iterator:
            yield ChatResponse(text=message.text)


def echo(**methods: Callable[..., Any]) -> Callable[[grpc.aio.Server], None]:
    """Return what registers an Echo, with some of its methods replaced."""
    servicer = Echo()
    for name, method in methods.items():
        setattr(servicer, name, method)
    return lambda server: add_EchoServiceServicer_to_server(servicer, server)


def all_methods(method: Callable[..., Any]) -> dict[str, Callable[..., Any]]:
    """Return ``method`` as the one of every kind, for ``echo``."""
    return dict.fromkeys(NAMES.values(), method)


@dataclass
class Held:
    """A servicer's method of any kind that begins, and then waits until its call is cancelled."""

    begun: asyncio.Event = field(default_factory=asyncio.Event)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    release: asyncio.Event = field(default_factory=asyncio.Event)
    calls: int = 0

    async def method(self, request: Message, context: Context | None) -> None:
        self.calls += 1
        self.begun.set()
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    async def first(self, request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        """The same as a middleware, with whatever is inside of it afterwards."""
        await self.method(request, None)
        return await next(request, call)


@dataclass
class Flaky:
    """A servicer's methods of every kind that fail with UNAVAILABLE ``times`` times, having read ``after`` messages.

    ``attempts`` are the metadata of each call, ``read`` what each has read. The attempt's number goes with the initial
    and the trailing metadata.
    """

    times: int = 1
    after: int = 0
    attempts: list[dict[str, Any]] = field(default_factory=list)
    read: list[list[Any]] = field(default_factory=list)

    def register(self, server: Server) -> None:
        echo(Echo=self.echo, Expand=self.expand, Sum=self.sum, Chat=self.chat)(server)

    async def _begin(self, context: Context) -> int:
        self.attempts.append(dict(context.invocation_metadata() or ()))
        self.read.append([])
        number = len(self.attempts)
        context.set_trailing_metadata([("attempt", str(number))])
        if number > self.times or not self.after:
            await context.send_initial_metadata([("attempt", str(number))])
        if number <= self.times and not self.after:
            await self._fail(context, number)
        return number

    async def _fail(self, context: Context, number: int) -> None:
        await context.abort(grpc.StatusCode.UNAVAILABLE, f"attempt {number}")

    async def _note(self, item: object, context: Context, number: int) -> None:
        self.read[-1].append(item)
        if number <= self.times and len(self.read[-1]) >= self.after:
            await self._fail(context, number)

    async def echo(self, request: EchoRequest, context: Context) -> EchoResponse:
        await self._begin(context)
        return EchoResponse(text=request.text)

    async def expand(self, request: ExpandRequest, context: Context) -> None:
        number = await self._begin(context)
        for index in range(request.count):
            await context.write(ExpandResponse(text=str(number), index=index))

    async def sum(self, requests: AsyncIterator[SumRequest], context: Context) -> SumResponse:
        number = await self._begin(context)
        async for message in requests:
            await self._note(message.number, context, number)
        return SumResponse(total=sum(self.read[-1]), count=len(self.read[-1]))

    async def chat(self, requests: AsyncIterator[ChatRequest], context: Context) -> None:
        number = await self._begin(context)
        async for message in requests:
            await self._note(message.text, context, number)
            if number > self.times:
                await context.write(ChatResponse(text=message.text))


def stub_of(channel: grpc.aio.Channel) -> Untyped:
    """Return the generated stub; what its types say is checked in tests/typing."""
    return EchoServiceStub(channel)


def numbers(*values: int) -> list[SumRequest]:
    return [SumRequest(number=value) for value in values]


def texts(*values: str) -> list[ChatRequest]:
    return [ChatRequest(text=value) for value in values]


async def later(messages: Iterable[Any]) -> AsyncIterator[Any]:
    """Yield each message after a turn of the loop."""
    for message in messages:
        await asyncio.sleep(0)
        yield message


def begin(channel: grpc.aio.Channel, kind: Kind, **settings: Untyped) -> Untyped:
    """Begin an ordinary call of ``kind`` and return its call object."""
    stub = stub_of(channel)
    if kind is Kind.UNARY:
        return stub.Echo(EchoRequest(text="a"), **settings)
    if kind is Kind.CLIENT_STREAM:
        return stub.Sum(numbers(1, 2, 3), **settings)
    if kind is Kind.SERVER_STREAM:
        return stub.Expand(ExpandRequest(text="a", count=3), **settings)
    return stub.Chat(texts("a", "b", "c"), **settings)


async def finish(call: Untyped, kind: Kind) -> list[object]:
    """Take all answers of a call and return what is in them."""
    if not kind.response_streaming:
        response = await call
        return [response.text if kind is Kind.UNARY else response.total]
    answers: list[object] = []
    async for response in call:
        answers.append(response.index if kind is Kind.SERVER_STREAM else response.text)  # noqa: PERF401 - a call may fail
    return answers


async def ask(channel: grpc.aio.Channel, kind: Kind, **settings: Untyped) -> list[object]:
    """Make an ordinary call of ``kind`` and return what was answered."""
    return await finish(begin(channel, kind, **settings), kind)
