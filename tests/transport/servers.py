"""What the tests of the server side share: a service made of functions, a client that writes down what it got, a log."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

import grpc
import pytest
from grpc_health.v1.health_pb2_grpc import HealthStub

from servicekit import CallError, Kind, Message, Server, Telemetry
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
from servicekit.testing.v1.echo_pb2_grpc import (
    EchoServiceServicer,
    EchoServiceStub,
    add_EchoServiceServicer_to_server,
)

T = TypeVar("T")

Context: TypeAlias = Any
"""A servicer's context, an async one's or a plain one's: its stubs know neither all that it takes nor all it returns."""

AnyCall: TypeAlias = Any
"""A call object of a stub, of any kind."""

HealthApi: TypeAlias = Any
"""The generated stub of the health service, which has no types of its own."""

Work: TypeAlias = "Callable[[Context], Coroutine[Any, Any, object]]"
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any] | None"
Continuation: TypeAlias = "Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]]"

PATIENCE = 5.0
"""Seconds of real time after which a client counts as left hanging."""

OVER = pytest.mark.parametrize("over", ["memory", "socket", "native"])
KINDS = pytest.mark.parametrize("kind", list(Kind))
STREAMS = pytest.mark.parametrize("kind", [kind for kind in Kind if kind.response_streaming])

CLIENTS_CANNOT = {
    "headers of a stream without messages": "grpc.aio's client asks for the headers of a stream when its request is out. "
    "Where the status is there by then, as it is from a server that answers at once, it takes them for empty.",
}
"""What no server can bring about, for grpc.aio's client does not do it, and why; over memory the rule is tested."""

NAMES = {Kind.UNARY: "Echo", Kind.CLIENT_STREAM: "Sum", Kind.SERVER_STREAM: "Expand", Kind.BIDI_STREAM: "Chat"}
REQUESTS: dict[Kind, type[Any]] = {
    Kind.UNARY: EchoRequest,
    Kind.CLIENT_STREAM: SumRequest,
    Kind.SERVER_STREAM: ExpandRequest,
    Kind.BIDI_STREAM: ChatRequest,
}
RESPONSES: dict[Kind, type[Any]] = {
    Kind.UNARY: EchoResponse,
    Kind.CLIENT_STREAM: SumResponse,
    Kind.SERVER_STREAM: ExpandResponse,
    Kind.BIDI_STREAM: ChatResponse,
}


def service(**methods: Callable[..., Any]) -> Callable[[grpc.aio.Server], None]:
    """Return what registers the echo service with these functions, ``(request, context)``, as its methods."""
    assert set(methods) <= set(NAMES.values())
    # The generated class is abstract to type checkers; what is not given here is unimplemented.
    functions = {name: staticmethod(method) for name, method in methods.items()}
    servicer: Any = type("Servicer", (EchoServiceServicer,), functions)()

    def register(server: grpc.aio.Server) -> None:
        add_EchoServiceServicer_to_server(servicer, server)

    return register


def method(kind: Kind, work: Work, *, first: int = 0) -> Callable[..., Any]:
    """Return a method of ``kind`` that answers once, after ``await work(context)``; a streaming one ``first`` times before."""
    response = RESPONSES[kind]

    async def one(_request: object, context: Context) -> Message:
        await work(context)
        return response()

    async def many(_request: object, context: Context) -> AsyncIterator[Any]:
        for _ in range(first):
            yield response()
        await work(context)
        yield response()

    return many if kind.response_streaming else one


def health_of(channel: grpc.aio.Channel) -> HealthApi:
    """Return a stub of the health service."""
    return HealthStub(channel)


def serving(kind: Kind, method: Callable[..., Any]) -> Callable[[Server], None]:
    """Return what registers the echo service with ``method`` as its method of ``kind``."""
    return service(**{NAMES[kind]: method})


@dataclass(kw_only=True)
class Answer:
    """All that a client gets to see of one call."""

    code: grpc.StatusCode
    details: str = ""
    messages: list[Any] = field(default_factory=list)
    headers: list[tuple[str, str | bytes]] = field(default_factory=list)
    trailers: list[tuple[str, str | bytes]] = field(default_factory=list)
    error: grpc.aio.AioRpcError | None = None

    def trailer(self, key: str) -> list[str | bytes]:
        return [value for name, value in self.trailers if name == key]

    def header(self, key: str) -> list[str | bytes]:
        return [value for name, value in self.headers if name == key]

    @property
    def failure(self) -> CallError:
        assert isinstance(self.error, CallError)
        return self.error

    @property
    def text(self) -> str:
        """Everything that came over the wire, and everything that can be printed of it."""
        parts: list[object] = [self.code, self.details, self.messages, self.headers, self.trailers]
        if self.error is not None:
            parts += [self.error, self.error.debug_error_string(), vars(self.error), str(self.error)]
        return "\n".join(repr(part) for part in parts)


async def ask(  # noqa: PLR0913 - a call has that many sides
    channel: grpc.aio.Channel,
    kind: Kind = Kind.UNARY,
    requests: Iterable[Any] | AsyncIterator[Any] | None = None,
    *,
    timeout: float | None = None,
    metadata: Sequence[tuple[str, str | bytes]] | None = None,
    patience: float = PATIENCE,
) -> Answer:
    """Return what comes of one call of ``kind``; AssertionError when nothing does."""
    stub = EchoServiceStub(channel)
    begin: Any = getattr(stub, NAMES[kind])
    sent: Any = [REQUESTS[kind]()] if requests is None else requests
    if not kind.request_streaming:
        (sent,) = sent
    return await answered(answer_of(begin(sent, timeout=timeout, metadata=metadata), kind), patience)


def needs(what: str, *, over: str, kind: Kind) -> None:
    """Skip a test of streams that is among ``CLIENTS_CANNOT`` when the server answers at once."""
    if over != "memory" and kind is not Kind.UNARY:
        pytest.skip(CLIENTS_CANNOT[what])


async def answer_of(call: AnyCall, kind: Kind) -> Answer:
    """Return what comes of a call that was begun."""
    messages: list[Any] = []
    error: grpc.aio.AioRpcError | None = None
    try:
        if kind.response_streaming:
            async for message in call:
                messages.append(message)  # noqa: PERF401 - what came before a failure stays
        else:
            messages.append(await call)
    except grpc.aio.AioRpcError as failure:
        error = failure
    answer = Answer(
        code=await call.code(),
        details=await call.details() or "",
        messages=messages,
        headers=list(await call.initial_metadata() or ()),
        trailers=list(await call.trailing_metadata() or ()),
        error=error,
    )
    assert (error is None) == (answer.code is grpc.StatusCode.OK)
    return answer


async def answered(work: Awaitable[T], patience: float = PATIENCE) -> T:
    """Return what ``work`` does; AssertionError when it hangs."""
    try:
        async with asyncio.timeout(patience):
            return await work
    except TimeoutError:
        raise AssertionError("the client was left hanging") from None


async def passing(ends: Pair, seconds: float, work: Coroutine[Any, Any, T]) -> T:
    """Return what ``work`` does while ``seconds`` pass: over memory by moving the clock, over a socket by themselves."""
    task = asyncio.ensure_future(work)
    try:
        if ends.over == "memory":
            await ends.clock.advance(seconds)
        return await task
    finally:
        task.cancel()


async def until(condition: Callable[[], object]) -> None:
    """Return once ``condition()`` holds; AssertionError when it never does."""
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110 - of anything, not of what sets an event
            await asyncio.sleep(0.001)


@dataclass
class Log:
    """All that is written down: the lines of a telemetry, and what goes to the standard library's logging."""

    caplog: pytest.LogCaptureFixture
    stream: io.StringIO = field(default_factory=io.StringIO)

    def __post_init__(self) -> None:
        self.caplog.set_level(logging.DEBUG)
        self.caplog.set_level(logging.WARNING, "asyncio")
        self.telemetry = Telemetry(log="json", stream=self.stream)

    @property
    def text(self) -> str:
        return self.stream.getvalue() + self.caplog.text

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The lines of the access log."""
        lines = [json.loads(line) for line in self.stream.getvalue().splitlines()]
        return [line for line in lines if line["event"] == "rpc"]

    @property
    def line(self) -> dict[str, Any]:
        (line,) = self.lines
        return line
