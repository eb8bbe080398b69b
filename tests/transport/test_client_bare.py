"""The chain as ordinary interceptors of a channel that somebody already runs, with other people's around and inside."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from servicekit import Code, Error, client_interceptors
from servicekit.call import Call
from servicekit.clock import settle
from servicekit.endpoint import Endpoint, Message
from servicekit.method import Kind
from servicekit.testing import pair
from servicekit.testing.pair import ALONE, Pair
from servicekit.testing.v1.echo_pb2 import (
    ChatResponse,
    EchoRequest,
    EchoResponse,
    ExpandRequest,
    ExpandResponse,
    SumResponse,
)

from .clients import (
    ANSWERS,
    NAMES,
    Context,
    Flaky,
    Held,
    Untyped,
    _nothing_is_left,  # noqa: F401 - a fixture for every test here
    all_methods,
    ask,
    begin,
    echo,
    every_kind,
    finish,
    numbers,
    streaming_requests,
    streaming_responses,
    stub_of,
    texts,
)


def bare(ends: Pair, *interceptors: Untyped) -> grpc.aio.Channel:
    """Return a channel of grpc.aio's own."""
    return grpc.aio.insecure_channel(ends.server.addresses[0], options=ALONE, interceptors=list(interceptors))


class Theirs:
    """Somebody else's interceptors, one for each kind, that note each call and pass it on."""

    def __init__(self, name: str = "theirs") -> None:
        self.name = name
        self.seen: list[str] = []
        self.requests: list[Any] = []

    async def pass_on(self, continuation: Untyped, details: Untyped, request: Message) -> Untyped:
        self.seen.append(self.name)
        self.requests.append(request)
        metadata = grpc.aio.Metadata(*(details.metadata or ()))
        metadata.add(self.name, "yes")
        return await continuation(details._replace(metadata=metadata), request)

    @property
    def four(self) -> list[Any]:
        outer = self

        class UnaryUnary(grpc.aio.UnaryUnaryClientInterceptor):
            async def intercept_unary_unary(self, continuation: Untyped, details: Untyped, request: Message) -> Untyped:
                return await outer.pass_on(continuation, details, request)

        class UnaryStream(grpc.aio.UnaryStreamClientInterceptor):
            async def intercept_unary_stream(
                self, continuation: Untyped, details: Untyped, request: Message
            ) -> Untyped:
                return await outer.pass_on(continuation, details, request)

        class StreamUnary(grpc.aio.StreamUnaryClientInterceptor):
            async def intercept_stream_unary(
                self, continuation: Untyped, details: Untyped, request: Message
            ) -> Untyped:
                return await outer.pass_on(continuation, details, request)

        class StreamStream(grpc.aio.StreamStreamClientInterceptor):
            async def intercept_stream_stream(
                self, continuation: Untyped, details: Untyped, request: Message
            ) -> Untyped:
                return await outer.pass_on(continuation, details, request)

        return [UnaryUnary(), UnaryStream(), StreamUnary(), StreamStream()]


class Noted:
    """A middleware that notes how each call went."""

    def __init__(self) -> None:
        self.codes: list[Code] = []
        self.messages = 0

    async def __call__(self, request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        def count(_message: object, _size: int) -> None:
            self.messages += 1

        call.on_received(count)
        call.on_sent(count)
        call.metadata.add("ours", "yes")
        error: BaseException | None = None
        try:
            return await next(request, call)
        except BaseException as raised:
            error = raised
            raise
        finally:
            self.codes.append(call.outcome(error))


@every_kind
@pytest.mark.parametrize("place", ["alone", "outside", "inside", "both"])
async def test_every_kind_of_call(place: str, kind: Kind) -> None:
    """The chain runs once, for every kind, wherever other people's interceptors stand, and all of them are seen."""
    noted, outside, inside = Noted(), Theirs("outside"), Theirs("inside")
    arrived: list[set[str]] = []

    async def looking(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        arrived.append({key for key, _ in call.metadata} & {"ours", "outside", "inside", "mine"})
        return await next(request, call)

    async with pair(echo(), over="socket", middleware=[looking]) as ends:
        links = [
            *(outside.four if place in {"outside", "both"} else []),
            *client_interceptors([noted]),
            *(inside.four if place in {"inside", "both"} else []),
        ]
        async with bare(ends, *links) as channel:
            call = begin(channel, kind, metadata=[("mine", "yes")])
            assert await finish(call, kind) == ANSWERS[kind]
            assert await call.code() is grpc.StatusCode.OK
            assert await call.details() == ""
    expected = {"mine", "ours"} | ({place} if place in {"inside", "outside"} else set())
    assert arrived == [expected | ({"inside", "outside"} if place == "both" else set())]
    assert noted.codes == [Code.OK]
    assert noted.messages == {Kind.UNARY: 2, Kind.CLIENT_STREAM: 4, Kind.SERVER_STREAM: 4, Kind.BIDI_STREAM: 6}[kind]


@every_kind
async def test_metadata_of_the_answer(kind: Kind) -> None:
    """Initial and trailing metadata come through."""
    async with pair(Flaky(times=0).register, over="socket") as ends, bare(ends, *client_interceptors([])) as channel:
        call = begin(channel, kind)
        assert await finish(call, kind) == ANSWERS[kind]
        assert ("attempt", "1") in list(await call.initial_metadata())
        assert ("attempt", "1") in list(await call.trailing_metadata())


@every_kind
async def test_an_error_of_the_servers(kind: Kind) -> None:
    """Code, message and metadata are the server's; the chain has seen the code."""
    noted = Noted()

    async def failing(request: Message, context: Context) -> None:
        if kind.request_streaming:  # else a write of grpc.aio's own that comes too late may hide the status
            async for _ in request:
                pass
        raise Error(Code.NOT_FOUND, "no such thing", reason="GONE", trailers=(("k", "v"),))

    async with (
        pair(echo(**all_methods(failing)), over="socket") as ends,
        bare(ends, *client_interceptors([noted])) as channel,
    ):
        call = begin(channel, kind)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await finish(call, kind)
        assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.NOT_FOUND, "no such thing")
        assert ("k", "v") in list(caught.value.trailing_metadata())
        assert await call.code() is grpc.StatusCode.NOT_FOUND
        assert ("k", "v") in list(await call.trailing_metadata())
    assert noted.codes == [Code.NOT_FOUND]


@every_kind
async def test_a_cancellation_by_the_server(kind: Kind) -> None:
    """A CANCELLED that came over the wire is an error: nobody on this side has cancelled anything."""
    noted = Noted()

    async def cancelling(request: Message, context: Context) -> None:
        if kind.request_streaming:
            async for _ in request:
                pass
        raise Error(Code.CANCELLED, "changed my mind")

    async with (
        pair(echo(**all_methods(cancelling)), over="socket") as ends,
        bare(ends, *client_interceptors([noted])) as channel,
    ):
        with pytest.raises(grpc.aio.AioRpcError, match="changed my mind"):
            await ask(channel, kind)
    assert noted.codes == [Code.CANCELLED]


@every_kind
async def test_a_refusal_by_the_chain(kind: Kind) -> None:
    """It never reaches the wire, and leaves as an AioRpcError."""

    async def refusing(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        raise Error(Code.UNAVAILABLE, "circuit open")

    held = Held()
    async with (
        pair(echo(**all_methods(held.method)), over="socket") as ends,
        bare(ends, *client_interceptors([refusing])) as channel,
    ):
        call = begin(channel, kind)
        with pytest.raises(grpc.aio.AioRpcError, match="circuit open"):
            await finish(call, kind)
        assert await call.code() is grpc.StatusCode.UNAVAILABLE
    assert held.calls == 0


@every_kind
async def test_an_answer_by_the_chain(kind: Kind) -> None:
    """A middleware that answers by itself needs no continuation: neither reading nor closing the channel fails."""

    async def answering(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        if kind is Kind.UNARY:
            return EchoResponse(text="a")
        if kind is Kind.CLIENT_STREAM:
            return SumResponse(total=6)
        for index, text in enumerate("abc"):
            await call.send(ExpandResponse(index=index) if kind is Kind.SERVER_STREAM else ChatResponse(text=text))
        return None

    held = Held()
    async with (
        pair(echo(**all_methods(held.method)), over="socket") as ends,
        bare(ends, *client_interceptors([answering])) as channel,
    ):
        assert await ask(channel, kind) == ANSWERS[kind]
    assert held.calls == 0


@pytest.mark.parametrize("place", ["alone", "outside", "inside"])
async def test_write_and_read(place: str) -> None:
    """A conversation in turns, and an upload, with ``write()``."""
    theirs = Theirs()
    async with pair(echo(), over="socket") as ends:
        links = [
            *(theirs.four if place == "outside" else []),
            *client_interceptors([Noted()]),
            *(theirs.four if place == "inside" else []),
        ]
        async with bare(ends, *links) as channel:
            stub = stub_of(channel)
            chat = stub.Chat()
            for word in ("a", "b", "c"):
                await chat.write(texts(word)[0])
                answer = await chat.read()
                assert isinstance(answer, ChatResponse)
                assert answer.text == word
            await chat.done_writing()
            assert await chat.read() is grpc.aio.EOF
            upload = stub.Sum()
            for message in numbers(1, 2, 3):
                await upload.write(message)
            await upload.done_writing()
            assert (await upload).total == 6


@every_kind
@pytest.mark.parametrize("place", ["alone", "outside", "inside"])
async def test_cancel(place: str, kind: Kind) -> None:
    """The RPC is cancelled, the handler too, and the chain has seen it."""
    noted, held, theirs = Noted(), Held(), Theirs()
    async with pair(echo(**all_methods(held.method)), over="socket") as ends:
        links = [
            *(theirs.four if place == "outside" else []),
            *client_interceptors([noted]),
            *(theirs.four if place == "inside" else []),
        ]
        async with bare(ends, *links) as channel:
            call = begin(channel, kind)
            finishing = asyncio.create_task(finish(call, kind))
            await held.begun.wait()
            await settle()
            assert call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await finishing
            assert await call.code() is grpc.StatusCode.CANCELLED
            await held.cancelled.wait()
    assert noted.codes == [Code.CANCELLED]


@every_kind
async def test_a_deadline(kind: Kind) -> None:
    """The call's own timeout goes to the wire, and its end comes back as DEADLINE_EXCEEDED."""
    noted, held = Noted(), Held()
    async with (
        pair(echo(**all_methods(held.method)), over="socket") as ends,
        bare(ends, *client_interceptors([noted])) as channel,
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ask(channel, kind, timeout=0.5)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await held.cancelled.wait()
    assert noted.codes == [Code.DEADLINE_EXCEEDED]


@every_kind
async def test_a_retry_inside_the_chain(kind: Kind) -> None:
    """``next`` twice asks the continuation twice, with a request that was kept: the second attempt's answer is right."""

    async def retrying(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        if kind.request_streaming:
            request.keep()
        try:
            return await next(request, call.fork())
        except Error:
            return await next(request, call.fork())

    flaky = Flaky(after=2 if kind.request_streaming else 0)
    async with pair(flaky.register, over="socket") as ends, bare(ends, *client_interceptors([retrying])) as channel:
        call = begin(channel, kind)
        assert await finish(call, kind) == ANSWERS[kind]
        assert ("attempt", "2") in list(await call.trailing_metadata())
    assert len(flaky.attempts) == 2


class StockRetry(grpc.aio.UnaryUnaryClientInterceptor):
    """A retry as people write it for grpc.aio: it calls the continuation again."""

    async def intercept_unary_unary(self, continuation: Untyped, details: Untyped, request: Message) -> Untyped:
        call: Any = None
        for _ in range(3):
            call = await continuation(details, request)
            if await call.code() is grpc.StatusCode.OK:
                break
        return call


@pytest.mark.parametrize("place", ["outside", "inside"])
async def test_somebody_elses_retry(place: str) -> None:
    """Outside, the chain runs once for each attempt; inside, once for all of them."""
    noted, flaky = Noted(), Flaky(times=2)
    ours = client_interceptors([noted])
    async with pair(flaky.register, over="socket") as ends:
        links = [StockRetry(), *ours] if place == "outside" else [*ours, StockRetry()]
        async with bare(ends, *links) as channel:
            assert await ask(channel, Kind.UNARY) == ["a"]
    assert len(flaky.attempts) == 3
    bad = [Code.UNAVAILABLE, Code.UNAVAILABLE] if place == "outside" else []
    assert noted.codes == [*bad, Code.OK]


class Generating(grpc.aio.UnaryStreamClientInterceptor):
    """Somebody else's interceptor that answers with a plain generator, as grpc.aio allows."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error

    async def intercept_unary_stream(self, continuation: Untyped, details: Untyped, request: Message) -> Untyped:
        call = await continuation(details, request)

        async def doubled() -> AsyncIterator[ExpandResponse]:
            async for message in call:
                yield ExpandResponse(index=message.index * 2)
            if self.error is not None:
                raise self.error

        return doubled()


@pytest.mark.parametrize("place", ["outside", "inside"])
async def test_an_interceptor_that_answers_with_a_generator(place: str) -> None:
    """Its messages are read to their end, which is OK, and closing the channel does not fail."""
    noted = Noted()
    ours = client_interceptors([noted])
    async with pair(echo(), over="socket") as ends:
        channel = bare(ends, *([Generating(), *ours] if place == "outside" else [*ours, Generating()]))
        call = begin(channel, Kind.SERVER_STREAM)
        assert await finish(call, Kind.SERVER_STREAM) == [0, 2, 4]
        assert await call.code() is grpc.StatusCode.OK
        assert list(await call.trailing_metadata()) == []
        await channel.close()
    assert noted.codes == [Code.OK]


@pytest.mark.parametrize("error", [ZeroDivisionError(), Error(Code.ABORTED, "mine")], ids=["stranger", "error"])
async def test_a_generator_inside_that_fails(error: Exception) -> None:
    """What it raises is how the attempt ended."""
    noted = Noted()
    async with (
        pair(echo(), over="socket") as ends,
        bare(ends, *client_interceptors([noted]), Generating(error)) as channel,
    ):
        call = begin(channel, Kind.SERVER_STREAM)
        with pytest.raises(grpc.aio.AioRpcError):
            await finish(call, Kind.SERVER_STREAM)
    assert noted.codes != [Code.OK]


@streaming_responses
async def test_break_and_cancel(kind: Kind) -> None:
    """On a bare channel a stream that was left goes on until ``cancel()``: grpc.aio itself holds the call."""
    left = asyncio.Event()

    async def endless(request: Message, context: Context) -> None:
        try:
            while True:
                await context.write(ExpandResponse())
        finally:
            left.set()

    async with (
        pair(echo(**all_methods(endless)), over="socket") as ends,
        bare(ends, *client_interceptors([Noted()])) as channel,
    ):
        call = begin(channel, kind)
        async for _ in call:
            break
        assert not call.done()
        call.cancel()
        await left.wait()
        assert await call.code() is grpc.StatusCode.CANCELLED


@streaming_responses
async def test_a_cancelled_read_ends_the_call(kind: Kind) -> None:
    """On a bare channel, as without the chain: grpc.aio's own iterator has ended by then, so nobody could read on."""
    noted, left = Noted(), asyncio.Event()

    async def silent(request: Message, context: Context) -> None:
        try:
            await context.write(ExpandResponse())
            await asyncio.Event().wait()
        finally:
            left.set()

    async with (
        pair(echo(**all_methods(silent)), over="socket") as ends,
        bare(ends, *client_interceptors([noted])) as channel,
    ):
        call = begin(channel, kind)
        await call.read()
        reading = asyncio.ensure_future(call.read())
        await settle()
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        await settle()
        assert call.done()
        assert await call.code() is grpc.StatusCode.CANCELLED
        await left.wait()
    assert noted.codes == [Code.CANCELLED]


@every_kind
async def test_closing_the_channel(kind: Kind) -> None:
    """It ends the calls under way and does not fail itself."""
    held = Held()
    async with pair(echo(**all_methods(held.method)), over="socket") as ends:
        channel = bare(ends, *client_interceptors([Noted()]))
        finishing = asyncio.create_task(finish(begin(channel, kind), kind))
        await held.begun.wait()
        await channel.close()
        with pytest.raises((asyncio.CancelledError, grpc.aio.AioRpcError)):
            await finishing
        await held.cancelled.wait()


@every_kind
async def test_closing_the_channel_with_grace(kind: Kind) -> None:
    """Calls under way may finish first."""
    held = Held()
    async with pair(echo(), over="socket", middleware=[held.first]) as ends:
        channel = bare(ends, *client_interceptors([Noted()]))
        finishing = asyncio.create_task(finish(begin(channel, kind), kind))
        await held.begun.wait()
        closing = asyncio.create_task(channel.close(5.0))
        await settle()
        held.release.set()
        assert await finishing == ANSWERS[kind]
        await closing


@streaming_requests
async def test_what_the_callers_iterator_raises(kind: Kind) -> None:
    """It ends the call, and no half stream is taken for a whole one."""
    seen: list[str] = []

    async def broken() -> AsyncIterator[Any]:
        yield numbers(1)[0] if kind is Kind.CLIENT_STREAM else texts("a")[0]
        raise ZeroDivisionError

    async def noting(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        response = await next(request, call)
        seen.append("answered")
        return response

    async with pair(echo(), over="socket") as ends, bare(ends, *client_interceptors([noting])) as channel:
        stub = stub_of(channel)
        call: Any = stub.Sum(broken()) if kind is Kind.CLIENT_STREAM else stub.Chat(broken())
        with pytest.raises(ZeroDivisionError):
            await finish(call, kind)
    assert seen == []


@every_kind
async def test_messages_that_are_bytes(kind: Kind) -> None:
    """Without codecs messages are bytes, and none at all is a message too."""
    path = f"/servicekit.testing.v1.EchoService/{NAMES[kind]}"
    channel: Any
    theirs = Theirs()
    async with (
        pair(echo(), over="socket") as ends,
        bare(ends, *client_interceptors([Noted()]), *theirs.four) as channel,
    ):
        if kind is Kind.UNARY:
            assert await channel.unary_unary(path)(b"") == b""
        elif kind is Kind.SERVER_STREAM:
            assert [message async for message in channel.unary_stream(path)(b"")] == []
        elif kind is Kind.CLIENT_STREAM:
            assert await channel.stream_unary(path)([b"", b""]) == b"\x10\x02"
        else:
            assert [message async for message in channel.stream_stream(path)([b"", b""])] == [b"", b""]
    if not kind.request_streaming:
        assert theirs.requests == [b""]


async def test_a_chain_is_shared_by_all_methods_and_calls() -> None:
    """The four interceptors are made once, and serve any number of channels and calls at a time."""
    noted = Noted()
    ours = client_interceptors([noted])
    async with pair(echo(), over="socket") as ends, bare(ends, *ours) as one, bare(ends, *ours) as other:
        calls = [stub_of(channel).Echo(EchoRequest(text="x")) for channel in (one, other) * 5]
        assert [(await call).text for call in calls] == ["x"] * 10
        stream = stub_of(one).Expand(ExpandRequest(count=2))
        assert [message.index async for message in stream] == [0, 1]
    assert noted.codes == [Code.OK] * 11


async def test_the_code_of_a_stream_that_nobody_reads() -> None:
    """Without messages there is nothing to read first: the code is told, as a bare channel tells it."""
    async with pair(echo(), over="socket") as ends, bare(ends, *client_interceptors([])) as channel:
        call = stub_of(channel).Expand(ExpandRequest(count=0))
        assert await call.code() is grpc.StatusCode.OK
        assert await finish(call, Kind.SERVER_STREAM) == []


@pytest.mark.parametrize("error", [None, Error(Code.RESOURCE_EXHAUSTED, "enough")], ids=["answer", "error"])
async def test_writing_to_a_server_that_has_ended(error: Error | None) -> None:
    """What comes too late is lost, the answer and its status are not: grpc.aio's own write would put INTERNAL there."""
    ended = asyncio.Event()

    async def short(requests: AsyncIterator[Message], context: Context) -> None:
        await context.write(ChatResponse(text="one"))
        await anext(requests)
        ended.set()
        if error is not None:
            raise error

    async with pair(echo(Chat=short), over="socket") as ends, bare(ends, *client_interceptors([])) as channel:
        call = stub_of(channel).Chat()
        await call.write(texts("x")[0])
        await ended.wait()
        for _ in range(100):
            await call.write(texts("x")[0])
        await call.done_writing()
        assert (await anext(aiter(call))).text == "one"
        if error is None:
            assert await finish(call, Kind.BIDI_STREAM) == []
            assert await call.code() is grpc.StatusCode.OK
        else:
            with pytest.raises(grpc.aio.AioRpcError, match="enough"):
                await finish(call, Kind.BIDI_STREAM)
