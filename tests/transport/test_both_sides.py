"""One middleware, written once, sees every call of every kind as it was: on both sides, over every wire."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest

from servicekit import CallError, Code, Error, Side
from servicekit.call import Call
from servicekit.clock import settle
from servicekit.endpoint import Endpoint, Message
from servicekit.method import Kind
from servicekit.testing import pair
from servicekit.testing.pair import Over, Pair
from servicekit.testing.v1.echo_pb2 import ChatResponse, EchoResponse, ExpandResponse, SumResponse

from .clients import (
    ANSWERS,
    NAMES,
    Context,
    Held,
    Untyped,
    _nothing_is_left,  # noqa: F401 - a fixture for every test here
    all_methods,
    ask,
    begin,
    both,
    echo,
    every_kind,
    finish,
    streaming_requests,
)


@dataclass
class Seen:
    """What the observer saw of one call."""

    side: Side
    name: str
    code: Code | None = None
    seconds: float = 0.0
    received: int = 0
    sent: int = 0
    bytes: int = 0


@dataclass
class Observer:
    """The one middleware. It knows neither the side nor the kind."""

    calls: list[Seen] = field(default_factory=list)

    async def __call__(self, request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        seen = Seen(call.side, call.method.name)

        def received(_: object, size: int) -> None:
            seen.received += 1
            seen.bytes += size

        def sent(_: object, size: int) -> None:
            seen.sent += 1
            seen.bytes += size

        call.on_received(received)
        call.on_sent(sent)
        error: BaseException | None = None
        try:
            return await next(request, call)
        except BaseException as raised:
            error = raised
            raise
        finally:
            seen.code, seen.seconds = call.outcome(error), round(call.clock.time() - call.started, 3)
            self.calls.append(seen)

    def on(self, side: Side) -> Seen:
        """The one call of this side."""
        (seen,) = (seen for seen in self.calls if seen.side is side)
        return seen


def watched(observer: Observer, over: Over, **methods: Callable[..., Any]) -> Untyped:
    """Return a pair with the same observer on both sides."""
    return pair(echo(**methods), over=over, middleware=[observer], client=[observer])


# (sent, received) by the client; the server sees them the other way round
MESSAGES = {Kind.UNARY: (1, 1), Kind.CLIENT_STREAM: (3, 1), Kind.SERVER_STREAM: (1, 3), Kind.BIDI_STREAM: (3, 3)}


@both
@every_kind
async def test_a_good_call(kind: Kind, over: Over) -> None:
    """OK, and every message counted on both sides, with the size it has on the wire."""
    observer = Observer()
    async with watched(observer, over) as ends:
        assert await ask(ends.channel, kind) == ANSWERS[kind]
    client, server = observer.on(Side.CLIENT), observer.on(Side.SERVER)
    assert (client.code, server.code) == (Code.OK, Code.OK)
    assert (client.sent, client.received) == MESSAGES[kind]
    assert (server.received, server.sent) == MESSAGES[kind]
    assert client.bytes == server.bytes > 0
    assert client.name == server.name == NAMES[kind]


@every_kind
async def test_how_long_it_took(kind: Kind) -> None:
    """The time until the call was over, on both sides, for a stream the time of all of it."""
    observer = Observer()

    async def slow(request: Message, context: Context) -> Untyped:
        if kind.request_streaming:
            async for _ in request:
                await ends.clock.sleep(1.0)
        if kind.response_streaming:
            for index in range(3):
                await ends.clock.sleep(10.0)
                await context.write(ExpandResponse(index=index))
            return None
        await ends.clock.sleep(10.0)
        return EchoResponse()

    async with watched(observer, "memory", **all_methods(slow)) as ends:
        asking = asyncio.create_task(ask(ends.channel, kind))
        await ends.clock.advance(60.0)
        await asking
    expected = {Kind.UNARY: 10.0, Kind.CLIENT_STREAM: 13.0, Kind.SERVER_STREAM: 30.0, Kind.BIDI_STREAM: 33.0}[kind]
    assert observer.on(Side.CLIENT).seconds == observer.on(Side.SERVER).seconds == expected


async def fails(request: Message, context: Context) -> None:
    raise Error(Code.NOT_FOUND, "no such thing")


async def breaks(request: Message, context: Context) -> None:
    raise ZeroDivisionError


async def swallows_its_abort(request: Message, context: Context) -> None:
    with contextlib.suppress(Exception):
        await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not now")


@both
@every_kind
@pytest.mark.parametrize(
    ("servicer", "code", "words"),
    [
        (fails, Code.NOT_FOUND, "no such thing"),
        (breaks, Code.INTERNAL, "internal error"),
        (swallows_its_abort, Code.FAILED_PRECONDITION, "not now"),
    ],
)
async def test_a_servicer_that_fails(
    servicer: Callable[..., Any], code: Code, words: str, kind: Kind, over: Over
) -> None:
    """Both sides see the code that was raised, INTERNAL for a stranger, and that of an ``abort`` which it swallowed."""
    observer = Observer()
    async with watched(observer, over, **all_methods(servicer)) as ends:
        with pytest.raises(CallError, match=words):
            await ask(ends.channel, kind)
    assert observer.on(Side.CLIENT).code is observer.on(Side.SERVER).code is code


async def _half_way(ends: Pair, kind: Kind, held: Held) -> Untyped:
    call = begin(ends.channel, kind)
    await held.begun.wait()
    return call


@both
@every_kind
async def test_the_caller_cancels_half_way(kind: Kind, over: Over) -> None:
    """CANCELLED on both sides, when it happens."""
    observer, held = Observer(), Held()
    async with watched(observer, over, **all_methods(held.method)) as ends:
        call = await _half_way(ends, kind, held)
        if over == "memory":
            await ends.clock.advance(7.0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await finish(call, kind)
        await held.cancelled.wait()
    client, server = observer.on(Side.CLIENT), observer.on(Side.SERVER)
    assert (client.code, server.code) == (Code.CANCELLED, Code.CANCELLED)
    if over == "memory":
        assert (client.seconds, server.seconds) == (7.0, 7.0)


@both
async def test_the_caller_cancels_a_stream_in_the_middle(over: Over) -> None:
    """What was delivered until then is counted on both sides."""
    observer, left = Observer(), asyncio.Event()

    async def chat(requests: AsyncIterator[Any], context: Context) -> AsyncIterator[ChatResponse]:
        try:
            async for message in requests:
                yield ChatResponse(text=message.text)
                if message.text == "b":
                    await asyncio.Event().wait()
        finally:
            left.set()

    async with watched(observer, over, Chat=chat) as ends:
        call = begin(ends.channel, Kind.BIDI_STREAM)
        assert [(await call.read()).text, (await call.read()).text] == ["a", "b"]
        call.cancel()
        assert await call.code() is grpc.StatusCode.CANCELLED
        await left.wait()
    assert observer.on(Side.CLIENT).received == observer.on(Side.SERVER).sent == 2
    assert observer.on(Side.CLIENT).code is observer.on(Side.SERVER).code is Code.CANCELLED


class Disliked(Exception):
    """What a hook raises."""


def dislike(side: Side, direction: str) -> Callable[[Message, Call, Endpoint], Awaitable[Message]]:
    """Return a middleware with a hook that raises, on one side and in one direction."""

    async def hooked(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        def hook(_message: object, _size: int) -> None:
            raise Disliked

        if call.side is side:
            (call.on_received if direction == "received" else call.on_sent)(hook)
        return await next(request, call)

    return hooked


@both
@every_kind
@pytest.mark.parametrize("direction", ["received", "sent"])
async def test_a_hook_that_raises_on_the_client(direction: str, kind: Kind, over: Over) -> None:
    """The call ends with what the hook raised, and no answer leaves: the caller has it as itself."""
    observer = Observer()
    hooked = dislike(Side.CLIENT, direction)
    async with pair(echo(), over=over, client=[observer, hooked]) as ends:
        call = begin(ends.channel, kind)
        with pytest.raises(Disliked):
            await finish(call, kind)
        assert await call.code() is grpc.StatusCode.UNKNOWN
    assert observer.on(Side.CLIENT).code is Code.INTERNAL


@both
@every_kind
@pytest.mark.parametrize("direction", ["received", "sent"])
async def test_a_hook_that_raises_on_the_server(direction: str, kind: Kind, over: Over) -> None:
    """The call fails, INTERNAL on both sides, even where the servicer swallows all there is to swallow."""
    observer = Observer()

    async def swallowing(request: Message, context: Context) -> Untyped:
        try:
            if kind.request_streaming:
                async for _ in request:
                    pass
            if kind.response_streaming:
                await context.write(ExpandResponse())
        except Exception:  # noqa: BLE001 - that is what it is about
            pass
        return None if kind.response_streaming else EchoResponse()

    hooked = dislike(Side.SERVER, direction)
    server = echo(**all_methods(swallowing))
    async with pair(server, over=over, middleware=[observer, hooked], client=[observer]) as ends:
        with pytest.raises(CallError, match="internal error"):
            await ask(ends.channel, kind)
    assert observer.on(Side.CLIENT).code is observer.on(Side.SERVER).code is Code.INTERNAL


GARBLED = b"\xff\xff\xff\xff"


def raw(channel: Untyped, kind: Kind, request: object, **codec: Callable[..., Untyped]) -> Untyped:
    """Return a call of ``kind`` that sends this one message as it is, unless there is a codec."""
    make = {
        Kind.UNARY: channel.unary_unary,
        Kind.CLIENT_STREAM: channel.stream_unary,
        Kind.SERVER_STREAM: channel.unary_stream,
        Kind.BIDI_STREAM: channel.stream_stream,
    }[kind]
    method = make(f"/servicekit.testing.v1.EchoService/{NAMES[kind]}", **codec)
    return method([request] if kind.request_streaming else request)


async def drained(call: Untyped, kind: Kind) -> list[bytes]:
    """Take all answers of a raw call."""
    return [message async for message in call] if kind.response_streaming else [await call]


@both
@every_kind
async def test_a_request_that_cannot_be_decoded(kind: Kind, over: Over) -> None:
    """INVALID_ARGUMENT on both sides: the server's chain has run, and counted no message."""
    observer = Observer()
    async with watched(observer, over) as ends:
        with pytest.raises(CallError, match="malformed request"):
            await drained(raw(ends.channel, kind, GARBLED), kind)
    client, server = observer.on(Side.CLIENT), observer.on(Side.SERVER)
    assert (client.code, server.code) == (Code.INVALID_ARGUMENT, Code.INVALID_ARGUMENT)
    assert (client.sent, server.received) == (1, 0)


@both
@every_kind
async def test_a_response_that_cannot_be_decoded(kind: Kind, over: Over) -> None:
    """INTERNAL on the client alone, its chain included; the server has done its part."""
    observer = Observer()
    async with watched(observer, over) as ends:

        def decode(data: bytes) -> Untyped:
            raise ValueError(data)

        message = b"\x10\x01" if kind is Kind.SERVER_STREAM else b"\x0a\x01a" if kind is not Kind.CLIENT_STREAM else b""
        call = raw(ends.channel, kind, message, response_deserializer=decode)
        with pytest.raises(CallError, match="malformed response") as caught:
            await drained(call, kind)
        assert isinstance(caught.value.__cause__, ValueError)
    client = observer.on(Side.CLIENT)
    assert (client.code, client.received) == (Code.INTERNAL, 0)


@both
@every_kind
async def test_a_request_that_cannot_be_encoded(kind: Kind, over: Over) -> None:
    """INVALID_ARGUMENT on the client, its chain included; for one that is no stream nothing goes to the server."""
    observer = Observer()
    async with watched(observer, over) as ends:

        def encode(message: object) -> bytes:
            raise TypeError(message)

        with pytest.raises(CallError, match="the request cannot be encoded: str") as caught:
            await drained(raw(ends.channel, kind, "x", request_serializer=encode), kind)
        assert isinstance(caught.value.__cause__, TypeError)
    client = observer.on(Side.CLIENT)
    assert (client.code, client.sent) == (Code.INVALID_ARGUMENT, 0)
    if not kind.request_streaming:
        assert len(observer.calls) == 1


@both
@streaming_requests
async def test_a_servicer_that_swallows_everything(kind: Kind, over: Over) -> None:
    """A malformed message that the servicer overlooks still ends the call with INVALID_ARGUMENT on both sides."""
    observer = Observer()

    async def swallowing(request: Message, context: Context) -> Untyped:
        try:
            async for _ in request:
                pass
        except Exception:  # noqa: BLE001 - that is what it is about
            pass
        return None if kind.response_streaming else SumResponse(total=99)

    async with watched(observer, over, **all_methods(swallowing)) as ends:
        with pytest.raises(CallError, match="malformed request"):
            await drained(raw(ends.channel, kind, GARBLED), kind)
    assert observer.on(Side.CLIENT).code is observer.on(Side.SERVER).code is Code.INVALID_ARGUMENT


@every_kind
async def test_a_deadline(kind: Kind) -> None:
    """DEADLINE_EXCEEDED on both sides, at the deadline."""
    observer, held = Observer(), Held()
    async with watched(observer, "memory", **all_methods(held.method)) as ends:
        call = begin(ends.channel, kind, timeout=5.0)
        await settle()
        await ends.clock.advance(4.99)
        assert not call.done()
        await ends.clock.advance(0.01)
        with pytest.raises(CallError) as caught:
            await finish(call, kind)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    client, server = observer.on(Side.CLIENT), observer.on(Side.SERVER)
    assert (client.code, server.code) == (Code.DEADLINE_EXCEEDED, Code.DEADLINE_EXCEEDED)
    assert (client.seconds, server.seconds) == (5.0, 5.0)


@every_kind
async def test_a_deadline_over_a_socket(kind: Kind) -> None:
    """The same on core's clock; the server may hear of it first by the client's reset, where the request took its time."""
    observer, held = Observer(), Held()
    async with watched(observer, "socket", **all_methods(held.method)) as ends:
        with pytest.raises(CallError) as caught:
            await ask(ends.channel, kind, timeout=0.5)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await held.cancelled.wait()
    assert observer.on(Side.CLIENT).code is Code.DEADLINE_EXCEEDED
    assert observer.on(Side.SERVER).code in {Code.DEADLINE_EXCEEDED, Code.CANCELLED}


@both
@every_kind
async def test_a_call_that_the_server_refuses(kind: Kind, over: Over) -> None:
    """A middleware inside the observer that refuses is seen as what it is, on both sides; the servicer never ran."""
    observer, held = Observer(), Held()

    async def refusing(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        raise Error(Code.RESOURCE_EXHAUSTED, "too much", retry_after=1.5)

    server = echo(**all_methods(held.method))
    async with pair(server, over=over, middleware=[observer, refusing], client=[observer]) as ends:
        with pytest.raises(CallError, match="too much") as caught:
            await ask(ends.channel, kind)
        assert caught.value.retry_after == 1.5
    assert observer.on(Side.CLIENT).code is observer.on(Side.SERVER).code is Code.RESOURCE_EXHAUSTED
    assert held.calls == 0
