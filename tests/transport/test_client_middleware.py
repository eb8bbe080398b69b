"""What a middleware may do on a client: answer by itself, answer instead, change what is sent, stay out of it."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from servicekit import CallError, Code, Error, Side, Telemetry, chain, connect, only, standard_client
from servicekit.call import Call
from servicekit.clock import settle
from servicekit.endpoint import Endpoint, Message, Middleware
from servicekit.method import Kind
from servicekit.middleware import Backoff, Budget, Hedge, Retry
from servicekit.testing import pair
from servicekit.testing.pair import Over
from servicekit.testing.v1.echo_pb2 import ChatResponse, EchoRequest, EchoResponse, ExpandResponse, SumResponse
from servicekit.testing.v1.echo_pb2_grpc import EchoServiceStub

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
    both,
    echo,
    every_kind,
    finish,
    streaming_requests,
    streaming_responses,
    stub_of,
)


async def _answer(call: Call) -> Message:
    """Answer as the servicer would."""
    kind = call.method.kind
    if kind is Kind.UNARY:
        return EchoResponse(text="a")
    if kind is Kind.CLIENT_STREAM:
        return SumResponse(total=6)
    for index, text in enumerate("abc"):
        await call.send(ExpandResponse(index=index) if kind is Kind.SERVER_STREAM else ChatResponse(text=text))
    return None


@both
@pytest.mark.parametrize("kind", [Kind.UNARY, Kind.CLIENT_STREAM], ids=lambda kind: kind.value)
@pytest.mark.parametrize("forgot", ["return", "await"])
async def test_a_link_that_forgets_to_answer(kind: Kind, over: Over, forgot: str) -> None:
    """The caller is told what to write, and gets no None for a response; the log does not say OK."""
    stream = io.StringIO()

    async def link(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        if forgot == "await":
            return next(request, call)
        await next(request, call)
        return None

    for links in ([link], [*standard_client(Telemetry(log="json", stream=stream)), link]):
        async with pair(echo(), over=over, client=links) as ends:
            with pytest.raises(TypeError, match=r"return await next\(request, call\)"):
                await ask(ends.channel, kind)
    (line,) = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert line["code"] != "OK"


@both
@every_kind
async def test_a_middleware_that_answers_by_itself(kind: Kind, over: Over) -> None:
    """The caller sees a good call, hooks see its messages, and nothing reaches the wire."""
    received = []

    async def counting(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        call.on_received(lambda message, _: received.append(message))
        return await next(request, call)

    async def answering(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        return await _answer(call)

    flaky = Flaky()
    async with pair(flaky.register, over=over, client=[counting, answering]) as ends:
        call = begin(ends.channel, kind)
        assert await finish(call, kind) == ANSWERS[kind]
        assert await call.code() is grpc.StatusCode.OK
        assert list(await call.initial_metadata()) == list(await call.trailing_metadata()) == []
    assert flaky.attempts == []
    assert len(received) == (3 if kind.response_streaming else 0)


@both
@every_kind
async def test_a_fallback_after_an_error(kind: Kind, over: Over) -> None:
    """When the attempt failed before any message, a middleware may answer in its place, with the same call or a fork."""
    for forked in (False, True):

        async def falling_back(request: Message, call: Call, next: Endpoint, /, forked: bool = forked) -> Message:  # noqa: A002, FBT001 - the term; bound here
            try:
                return await next(request, call)
            except Error:
                return await _answer(call.fork() if forked else call)

        async with pair(Flaky().register, over=over, client=[falling_back]) as ends:
            call = begin(ends.channel, kind)
            assert await finish(call, kind) == ANSWERS[kind]
            assert await call.code() is grpc.StatusCode.OK


@both
async def test_a_fallback_comes_too_late_after_a_message(over: Over) -> None:
    """What the caller has got cannot be taken back: the fallback is refused with the attempt's own error."""
    taken = asyncio.Event()

    async def expand(request: Message, context: Context) -> AsyncIterator[ExpandResponse]:
        yield ExpandResponse(index=0)
        await taken.wait()
        raise Error(Code.UNAVAILABLE, "attempt 1")

    async def falling_back(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        try:
            return await next(request, call)
        except Error:
            return await _answer(call)

    async with pair(echo(Expand=expand), over=over, client=[falling_back]) as ends:
        call = begin(ends.channel, Kind.SERVER_STREAM)
        assert (await call.read()).index == 0
        taken.set()
        with pytest.raises(CallError, match="attempt 1"):
            await call.read()


@both
@streaming_responses
async def test_a_middleware_that_sends_and_then_fails(kind: Kind, over: Over) -> None:
    """Its messages are read, then its error."""

    async def partly(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        await _answer(call)
        raise Error(Code.DATA_LOSS, "the rest is lost")

    async with pair(echo(), over=over, client=[partly]) as ends:
        call = begin(ends.channel, kind)
        for _ in range(3):
            assert await call.read() is not grpc.aio.EOF
        with pytest.raises(CallError, match="the rest is lost"):
            await call.read()


@both
async def test_messages_before_and_after_the_servers(over: Over) -> None:
    """A middleware may put messages of its own around those of the wire: they come in that order."""

    async def framing(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        await call.send(ExpandResponse(index=-1))
        await next(request, call)
        await call.send(ExpandResponse(index=99))

    async with pair(echo(), over=over, client=[framing]) as ends:
        assert await ask(ends.channel, Kind.SERVER_STREAM) == [-1, 0, 1, 2, 99]


@both
async def test_send_returns_when_the_message_was_taken(over: Over) -> None:
    """A middleware does not run ahead of a caller that does not read."""
    sent = []

    async def eager(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        for index in range(3):
            await call.send(ExpandResponse(index=index))
            sent.append(index)

    async with pair(echo(), over=over, client=[eager]) as ends:
        call = begin(ends.channel, Kind.SERVER_STREAM)
        await settle()
        assert sent == []
        assert (await call.read()).index == 0
        await settle()
        assert sent == [0]
        assert await finish(call, Kind.SERVER_STREAM) == [1, 2]


@both
@streaming_responses
async def test_a_message_in_between_is_refused(kind: Kind, over: Over) -> None:
    """While an attempt is under way its messages go straight to the caller: one from the side would get lost among them."""

    async def butting_in(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        async with asyncio.TaskGroup() as group:
            group.create_task(_sending_aside(call))
            await next(request, call)

    async def _sending_aside(call: Call) -> None:
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="before or after"):
            await call.send(ExpandResponse())

    async with pair(echo(), over=over, client=[butting_in]) as ends:
        assert await ask(ends.channel, kind) == ANSWERS[kind]


@both
@streaming_responses
async def test_a_hook_that_dislikes_a_middlewares_message(kind: Kind, over: Over) -> None:
    """It fails the call as it would for a message of the wire: through the chain, and the caller gets no message."""
    noticed = []

    async def strict(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        def hook(_message: object, _size: int) -> None:
            raise Error(Code.OUT_OF_RANGE, "no such message")

        call.on_received(hook)
        try:
            return await next(request, call)
        except Error as error:
            noticed.append(error.message)
            raise

    async def answering(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        return await _answer(call)

    async with pair(echo(), over=over, client=[strict, answering]) as ends:
        with pytest.raises(CallError, match="no such message"):
            await ask(ends.channel, kind)
    assert noticed == ["no such message"]


@both
@pytest.mark.parametrize("kind", [Kind.UNARY, Kind.CLIENT_STREAM], ids=["unary", "client_stream"])
async def test_a_single_response_is_returned_not_sent(kind: Kind, over: Over) -> None:
    """``call.send`` for a method with one response is a mistake that is told at once, not a call that hangs."""

    async def sending(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        await call.send(EchoResponse())

    async with pair(echo(), over=over, client=[sending]) as ends:
        with pytest.raises(TypeError, match="returns it"):
            await ask(ends.channel, kind)


@both
@every_kind
async def test_a_middleware_that_wraps_the_request(kind: Kind, over: Over) -> None:
    """To change messages, or to wait between them, it passes another request on."""

    async def shouting(messages: AsyncIterator[Any]) -> AsyncIterator[Any]:
        async for message in messages:
            await asyncio.sleep(0)
            yield (
                type(message)(number=message.number * 2)
                if kind is Kind.CLIENT_STREAM
                else type(message)(text=message.text.upper())
            )

    async def wrapping(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        if kind.request_streaming:
            return await next(shouting(request), call)
        return await next(type(request)(text="A", **({"count": 2} if kind is Kind.SERVER_STREAM else {})), call)

    async with pair(echo(), over=over, client=[wrapping]) as ends:
        answers = await ask(ends.channel, kind)
    assert (
        answers
        == {
            Kind.UNARY: ["A"],
            Kind.CLIENT_STREAM: [12],
            Kind.SERVER_STREAM: [0, 1],
            Kind.BIDI_STREAM: ["A", "B", "C"],
        }[kind]
    )


@both
@streaming_requests
async def test_a_request_that_was_wrapped_fails_as_itself(kind: Kind, over: Over) -> None:
    """What a wrapping generator raises is an exception of the request stream, like the caller's own."""

    async def picky(messages: AsyncIterator[Any]) -> AsyncIterator[Any]:
        async for _ in messages:
            raise Error(Code.INVALID_ARGUMENT, "not this one")
            yield

    async def wrapping(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        return await next(picky(request), call)

    async with pair(echo(), over=over, client=[wrapping]) as ends:
        with pytest.raises(CallError, match="not this one"):
            await ask(ends.channel, kind)


@both
async def test_only_some_methods(over: Over) -> None:
    """``only`` chooses by path, by service or by predicate; the others never see the middleware."""

    def tagging(tag: str) -> Untyped:
        async def tagged(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
            call.metadata.add("tag", tag)
            return await next(request, call)

        return tagged

    seen: dict[str, list[Any]] = {}

    async def looking(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        seen[call.method.name] = call.metadata.get_all("tag")
        return await next(request, call)

    links = [
        only("/servicekit.testing.v1.EchoService/Echo", tagging("echo")),
        only("/servicekit.testing.v1.EchoService/*", tagging("service")),
        only("/another.Service/*", tagging("never")),
        only(lambda method: method.kind.response_streaming, chain(tagging("stream"), tagging("too"))),
    ]
    async with pair(echo(), over=over, client=links, middleware=[looking]) as ends:
        for kind in Kind:
            await ask(ends.channel, kind)
    assert seen == {
        "Echo": ["echo", "service"],
        "Sum": ["service"],
        "Expand": ["service", "stream", "too"],
        "Chat": ["service", "stream", "too"],
    }


@both
@every_kind
async def test_what_a_middleware_sees_of_a_call(kind: Kind, over: Over) -> None:
    """Its method, side, time and metadata before; headers and trailers of the answer after. First given, outermost."""
    order = []

    def numbered(number: int) -> Untyped:
        async def link(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
            order.append(number)
            assert (call.side, call.method.kind, call.method.name) == (Side.CLIENT, kind, NAMES[kind])
            assert call.method.path == call.path
            assert call.metadata.text("mine") == "x"
            assert 0 < (call.remaining() or 0) <= 5.0
            response = await next(request, call)
            order.append(-number)
            assert call.headers.text("attempt") == call.trailers.text("attempt") == "1"
            return response

        return link

    async with pair(Flaky(times=0).register, over=over, client=[numbered(1), numbered(2)]) as ends:
        assert await ask(ends.channel, kind, timeout=5.0, metadata=[("mine", "x")]) == ANSWERS[kind]
        assert repr(ends.channel).count("link") == 2
    assert order == [1, 2, -2, -1]


@both
@every_kind
async def test_a_middleware_may_keep_time(kind: Kind, over: Over) -> None:
    """``call.limit`` brings the deadline forward for the caller and for the server."""
    remaining: list[float] = []
    within = 0.1 if over == "memory" else 0.5  # over a socket with time to get there first, on a busy machine

    async def limiting(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        call.limit(call.clock.time() + within)
        return await next(request, call)

    async def waiting(request: Message, context: Context) -> None:
        remaining.append(context.time_remaining())
        await asyncio.Event().wait()

    async with pair(echo(**all_methods(waiting)), over=over, client=[limiting]) as ends:
        call = begin(ends.channel, kind, timeout=50.0)
        if over == "memory":
            await ends.clock.advance(0.1)
        with pytest.raises(CallError) as caught:
            await finish(call, kind)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert 0 < remaining[0] <= within * 1.1


async def test_a_middleware_answers_although_nobody_is_there() -> None:
    """A cache needs no server: the target is connected to with the first call that reaches the wire."""

    async def answering(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        return EchoResponse(text="cached")

    async with connect("127.0.0.1:1", middleware=[answering]) as channel:
        assert (await stub_of(channel).Echo(EchoRequest())).text == "cached"


@pytest.mark.parametrize("over", ["socket", "native"])  # in real time
@pytest.mark.parametrize("by", ["timer", "hook"])
@pytest.mark.parametrize("outside", [None, "retry", "hedge"])
async def test_an_attempt_that_is_ended_by_a_link(over: Over, by: str, outside: str | None) -> None:
    """It fails with what it was ended with, in whichever task it is at work; another attempt may still succeed."""
    cut = Error(Code.UNAVAILABLE, "cut", begun=False)
    attempts = 0

    async def cutting(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        nonlocal attempts
        attempts += 1
        if attempts > 1 and outside is not None:
            return await next(request, call)
        if by == "hook":
            call.on_received(lambda _message, _size: call.end(cut))
            return await next(request, call)
        timer = call.clock.call_at(call.clock.time(), lambda: call.end(cut))
        try:
            return await next(request, call)
        finally:
            timer.cancel()

    async def slow(request: EchoRequest, _context: Context) -> EchoResponse:
        if by == "timer" and attempts == 1:
            await asyncio.Event().wait()
        return EchoResponse(text=request.text)

    links: dict[str | None, list[Middleware]] = {
        None: [],
        "retry": [Retry(backoff=Backoff(first=0.001))],
        "hedge": [Hedge(budget=Budget())],
    }
    async with pair(echo(Echo=slow), over=over, client=[*links[outside], cutting]) as ends:
        call = EchoServiceStub(ends.channel).Echo(EchoRequest(text="a"))
        if outside is None:
            with pytest.raises(CallError) as caught:
                await call
            assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.UNAVAILABLE, "cut")
        else:
            assert (await call).text == "a"
            assert attempts == 2


@both
async def test_an_attempt_that_is_ended_before_it_reaches_the_wire(over: Over) -> None:
    """Nothing is sent for it."""

    async def ending(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        call.fail(Error(Code.ABORTED, "no"))
        return await next(request, call)

    held = Held()
    async with pair(echo(**all_methods(held.method)), over=over, client=[ending]) as ends:
        with pytest.raises(CallError) as caught:
            await ask(ends.channel, Kind.UNARY)
        assert caught.value.code() is grpc.StatusCode.ABORTED
    assert held.calls == 0


async def test_a_cancellation_that_meets_the_end_of_an_attempt() -> None:
    """The caller's wins: a link that tries again is cancelled, and not left to itself for ever."""
    held = Held()
    attempts: list[Call] = []

    async def again(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        while True:
            try:
                return await next(request, call.fork())
            except Error:
                await asyncio.sleep(0)

    async def noting(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        attempts.append(call)
        return await next(request, call)

    async with pair(echo(Echo=held.method), client=[again, noting]) as ends:
        call = EchoServiceStub(ends.channel).Echo(EchoRequest())
        await held.begun.wait()
        attempts[0].end(Error(Code.UNAVAILABLE, "cut"))
        call.cancel()
        async with asyncio.timeout(10):
            with pytest.raises(asyncio.CancelledError):
                await call
        assert len(attempts) == 1


def twice(attempts: list[Call]) -> Middleware:
    """Return a link that makes a second attempt after one that has failed; ``attempts`` gets both."""

    async def link(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        for _ in range(2):
            fork = call.fork()
            attempts.append(fork)
            try:
                return await next(request, fork)
            except Error:
                pass
        return None

    return link


async def test_an_attempt_that_is_over_cannot_end_the_call() -> None:
    """A timer that a link forgot belongs to its attempt: the next one goes on, and ends as it does."""
    attempts: list[Call] = []
    release = asyncio.Event()

    async def flaky(request: EchoRequest, context: Context) -> EchoResponse:
        if len(attempts) == 1:
            raise Error(Code.UNAVAILABLE, "first")
        await release.wait()
        return EchoResponse(text="second")

    async with pair(echo(Echo=flaky), client=[twice(attempts)]) as ends:
        call = EchoServiceStub(ends.channel).Echo(EchoRequest())
        while len(attempts) < 2:  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0)
        await settle()
        attempts[0].end(Error(Code.ABORTED, "late"))
        await settle()
        release.set()
        assert (await call).text == "second"


async def test_who_cancels_is_told_so_also_after_an_attempt_was_ended() -> None:
    """What the first attempt was ended with is not how the second one ends."""
    held = Held()
    attempts: list[Call] = []

    async with pair(echo(Echo=held.method), client=[twice(attempts)]) as ends:
        call = EchoServiceStub(ends.channel).Echo(EchoRequest())

        async def asking() -> object:
            return await call

        waiting = asyncio.create_task(asking())
        await held.begun.wait()
        attempts[0].end(Error(Code.UNAVAILABLE, "first"))
        while len(attempts) < 2:  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0)
        await settle()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert call.cancelled()
