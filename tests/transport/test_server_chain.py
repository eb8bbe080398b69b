"""What links may do to a call on the server: hooks that fail, and attempts that are made more than once."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from servicekit import Call, Code, Endpoint, Error, Kind, Message, current_call, standard
from servicekit.testing import pair
from servicekit.testing.pair import Over
from servicekit.testing.v1.echo_pb2 import (
    EchoRequest,
    EchoResponse,
    ExpandRequest,
    ExpandResponse,
    SumRequest,
    SumResponse,
)

from .servers import KINDS, OVER, REQUESTS, RESPONSES, STREAMS, Context, Log, ask, method, passing, service, serving

Grpc = grpc.StatusCode


def failing(word: str) -> Message:
    def hook(_message: object, _size: int) -> None:
        raise Error(Code.DATA_LOSS, word)

    return hook


@OVER
@KINDS
@pytest.mark.parametrize("which", ["on_received", "on_sent"])
async def test_a_hook_that_fails_ends_the_call(
    over: Over, kind: Kind, which: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Its failure is how the call ends, even if the servicer swallows it and goes on as if nothing had been."""
    log = Log(caplog)

    async def link(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        getattr(call, which)(failing(which))
        return await next(request, call)

    async def swallowing(request: Message, context: Context) -> Message:
        for _ in range(2):
            with contextlib.suppress(Error):
                if kind.request_streaming:
                    await context.read()
            with contextlib.suppress(Error):
                if kind.response_streaming:
                    await context.write(RESPONSES[kind]())
        return None if kind.response_streaming else RESPONSES[kind]()

    chain = [*standard(log.telemetry), link]
    async with pair(serving(kind, swallowing), over=over, middleware=chain) as ends:
        answer = await ask(ends.channel, kind)
    assert (answer.code, answer.details) == (Grpc.DATA_LOSS, which)
    assert answer.messages == []
    assert log.line["code"] == "DATA_LOSS"


@OVER
@pytest.mark.parametrize("kind", [Kind.UNARY, Kind.CLIENT_STREAM], ids=lambda kind: kind.value)
@pytest.mark.parametrize("forgot", ["return", "await"])
async def test_a_link_that_forgets_to_answer(
    over: Over, kind: Kind, forgot: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The log has what the client got, and the reason says what to write."""
    log = Log(caplog)

    async def link(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        if forgot == "await":
            return next(request, call)
        await next(request, call)
        return None

    async def answering(request: Message, context: Context) -> Message:
        return RESPONSES[kind]()

    async with pair(serving(kind, answering), over=over, middleware=[*standard(log.telemetry), link]) as ends:
        answer = await ask(ends.channel, kind)
        assert answer.code is Grpc.INTERNAL
        assert log.line["code"] == "INTERNAL"
        assert answer.trailer("x-error-id") == [log.line["error_id"]]
        assert "return await next(request, call)" in log.text
    async with pair(serving(kind, answering), over=over, middleware=[link]) as ends:
        assert (await ask(ends.channel, kind)).code is Grpc.INTERNAL
    assert log.text.count("return await next(request, call)") > 1


@OVER
async def test_the_first_failure_wins(over: Over) -> None:
    """A hook that fails before the abort is how the call ends, and an abort before the hook would be."""

    async def link(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        call.on_sent(failing("hook"))
        return await next(request, call)

    async def expand(request: ExpandRequest, context: Context) -> None:
        if request.text == "abort first":
            with contextlib.suppress(grpc.aio.AbortError):
                await context.abort(Grpc.ABORTED, "abort")
        with contextlib.suppress(Error):
            await context.write(ExpandResponse())
        assert current_call().failure is not None
        await context.abort(Grpc.ABORTED, "abort")

    async with pair(service(Expand=expand), over=over, middleware=[link]) as ends:
        hook = await ask(ends.channel, Kind.SERVER_STREAM)
        abort = await ask(ends.channel, Kind.SERVER_STREAM, [ExpandRequest(text="abort first")])
    assert (hook.code, hook.details) == (Grpc.DATA_LOSS, "hook")
    assert (abort.code, abort.details) == (Grpc.ABORTED, "abort")


@OVER
@KINDS
async def test_hooks_see_each_message_once_with_its_size(over: Over, kind: Kind) -> None:
    """Requests as they come in, responses as they go out, in bytes as they travel."""
    seen: list[tuple[str, str, int]] = []

    async def link(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        call.on_received(lambda message, size: seen.append(("in", type(message).__name__, size)))
        call.on_sent(lambda message, size: seen.append(("out", type(message).__name__, size)))
        return await next(request, call)

    response = SumResponse(total=300) if kind is Kind.CLIENT_STREAM else RESPONSES[kind](text="abc")

    async def one(request: Message, context: Context) -> Message:
        if kind.request_streaming:
            async for _ in request:
                pass
        if not kind.response_streaming:
            return response
        for _ in range(2):
            await context.write(response)
        return None

    async with pair(serving(kind, one), over=over, middleware=[link]) as ends:
        await ask(ends.channel, kind)
    request = REQUESTS[kind].__name__
    out = [("out", type(response).__name__, response.ByteSize())]
    assert seen == [("in", request, 0), *out * (1 + kind.response_streaming)]


class Again:
    """A link that calls ``next`` a second time, whatever came of the first."""

    def __init__(self, *, fork: bool = True, keep: bool = False) -> None:
        self.fork = fork
        self.keep = keep
        self.first: BaseException | None = None

    async def __call__(self, request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        if self.keep:
            request.keep()
        try:
            await next(request, call.fork() if self.fork else call)
        except Exception as error:  # noqa: BLE001 - that is the test
            self.first = error
        return await next(request, call.fork() if self.fork else call)


@OVER
@KINDS
async def test_a_second_attempt_without_a_fork_is_refused_loudly(
    over: Over, kind: Kind, caplog: pytest.LogCaptureFixture
) -> None:
    """``next`` twice with the same call is a mistake of the middleware's; it says so, in the log."""
    log = Log(caplog)
    async with pair(serving(kind, method(kind, refuse)), over=over, middleware=[Again(fork=False)]) as ends:
        answer = await ask(ends.channel, kind)
    assert (answer.code, answer.details) == (Grpc.INTERNAL, "internal error")
    assert log.text.count("every further attempt takes call.fork()") == 1


async def refuse(_: object) -> None:
    raise Error(Code.UNAVAILABLE, "not yet")


@OVER
async def test_another_attempt_at_a_unary_call(over: Over) -> None:
    """A forked attempt runs the servicer anew; the client gets what came of the last one, and nothing of the others."""
    attempts: list[int] = []

    async def echo(request: EchoRequest, context: Context) -> EchoResponse:
        attempt = current_call().attempt
        attempts.append(attempt)
        context.set_trailing_metadata([("attempt", str(attempt))])
        if attempt == 1:
            raise Error(Code.UNAVAILABLE, "not yet", trailers=(("of-error", "1"),))
        return EchoResponse(text=request.text)

    async with pair(service(Echo=echo), over=over, middleware=[Again()]) as ends:
        answer = await ask(ends.channel, requests=[EchoRequest(text="hi")])
    assert answer.messages == [EchoResponse(text="hi")]
    assert attempts == [1, 2]
    assert (answer.trailer("attempt"), answer.trailer("of-error")) == (["2"], [])


@OVER
async def test_the_attempt_that_failed_last_is_what_the_client_gets(over: Over) -> None:
    """When all attempts fail, code and trailers are the last one's."""

    async def echo(_request: object, context: Context) -> EchoResponse:
        attempt = current_call().attempt
        context.set_trailing_metadata([("attempt", str(attempt))])
        await context.abort(Grpc.UNAVAILABLE, f"attempt {attempt}")
        return EchoResponse()

    async with pair(service(Echo=echo), over=over, middleware=[Again()]) as ends:
        answer = await ask(ends.channel)
    assert (answer.code, answer.details, answer.trailer("attempt")) == (Grpc.UNAVAILABLE, "attempt 2", ["2"])


async def add_up(request: Message, _context: object) -> SumResponse:
    numbers = [message.number async for message in request]
    if current_call().attempt == 1:
        raise Error(Code.UNAVAILABLE, "not yet")
    return SumResponse(total=sum(numbers), count=len(numbers))


NUMBERS = [SumRequest(number=number) for number in (1, 2, 3)]


@OVER
async def test_another_attempt_has_no_requests_left(over: Over, caplog: pytest.LogCaptureFixture) -> None:
    """A request stream is gone through once: the second attempt fails, it does not answer OK with the wrong sum."""
    log = Log(caplog)
    async with pair(service(Sum=add_up), over=over, middleware=[Again()]) as ends:
        answer = await ask(ends.channel, Kind.CLIENT_STREAM, NUMBERS)
    assert answer.code is Grpc.INTERNAL
    assert "request.keep()" in log.text


@OVER
@pytest.mark.parametrize("read_first", [0, 1, 3])
async def test_another_attempt_at_a_kept_stream_begins_with_the_first_message(over: Over, read_first: int) -> None:
    """With ``request.keep()`` every attempt gets all messages, however many the first one took."""

    async def total(request: Message, _context: object) -> SumResponse:
        if current_call().attempt == 1:
            for _ in range(read_first):
                await anext(request)
            raise Error(Code.UNAVAILABLE, "not yet")
        numbers = [message.number async for message in request]
        return SumResponse(total=sum(numbers), count=len(numbers))

    async with pair(service(Sum=total), over=over, middleware=[Again(keep=True)]) as ends:
        answer = await ask(ends.channel, Kind.CLIENT_STREAM, NUMBERS)
    assert answer.messages == [SumResponse(total=6, count=3)]


@OVER
@STREAMS
@pytest.mark.parametrize("first", ["fails", "succeeds"])
async def test_there_is_no_other_attempt_once_a_message_is_out(
    over: Over, kind: Kind, first: str, caplog: pytest.LogCaptureFixture
) -> None:
    """No client gets messages of two attempts: the second one is refused, with the failure of the first if it had one."""
    log = Log(caplog)
    attempts: list[int] = []

    async def generator(_request: object, _context: object) -> AsyncIterator[Any]:
        attempts.append(current_call().attempt)
        yield RESPONSES[kind](text="one")
        if first == "fails":
            raise Error(Code.ABORTED, "after a message")

    again = Again()
    async with pair(serving(kind, generator), over=over, middleware=[again]) as ends:
        answer = await ask(ends.channel, kind)
    assert [message.text for message in answer.messages] == ["one"]
    assert attempts == [1]
    if first == "fails":
        assert (answer.code, answer.details) == (Grpc.ABORTED, "after a message")
    else:
        assert answer.code is Grpc.INTERNAL
        assert "after messages were sent" in log.text


@OVER
@STREAMS
async def test_a_stream_may_be_tried_again_before_its_first_message(over: Over, kind: Kind) -> None:
    """An attempt that failed before it sent anything leaves no trace."""

    async def generator(_request: object, _context: object) -> AsyncIterator[Any]:
        if current_call().attempt == 1:
            raise Error(Code.UNAVAILABLE, "not yet")
        yield RESPONSES[kind](text="one")

    async with pair(serving(kind, generator), over=over, middleware=[Again()]) as ends:
        answer = await ask(ends.channel, kind)
    assert answer.code is Grpc.OK
    assert [message.text for message in answer.messages] == ["one"]


async def test_a_deadline_that_passes_while_an_attempt_cleans_up_ends_the_next_one() -> None:
    """The attempt was ended before, and was told so once; what the call itself is told must not be lost by that."""
    ended: list[int] = []

    async def impatient(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        call.limit(call.clock.time() + 0.03)
        attempt = call.fork()
        call.clock.call_at(call.clock.time() + 0.02, lambda: attempt.end(Error(Code.UNAVAILABLE, "too slow")))
        with contextlib.suppress(Error):
            return await next(request, attempt)
        return await next(request, call.fork())

    async def echo(_request: object, _context: object) -> EchoResponse:
        try:
            await asyncio.Event().wait()
        finally:
            await current_call().clock.sleep(0.02)
            ended.append(current_call().attempt)
        return EchoResponse()

    async with pair(service(Echo=echo), middleware=[impatient]) as ends:
        answer = await passing(ends, 1.0, ask(ends.channel))
    assert answer.code is Grpc.DEADLINE_EXCEEDED
    assert ended[0] == 1


@OVER
@STREAMS
async def test_a_link_may_send_before_and_after_the_servicer(over: Over, kind: Kind) -> None:
    """``call.send`` of a middleware is no attempt: its messages and the servicer's arrive in order."""

    async def framing(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        await call.send(RESPONSES[kind](text="before"))
        await next(request, call)
        await call.send(RESPONSES[kind](text="after"))

    async def generator(_request: object, _context: object) -> AsyncIterator[Any]:
        yield RESPONSES[kind](text="servicer")

    async with pair(serving(kind, generator), over=over, middleware=[framing]) as ends:
        answer = await ask(ends.channel, kind)
    assert [message.text for message in answer.messages] == ["before", "servicer", "after"]


async def test_an_attempt_that_was_ended_leaves_room_for_another() -> None:
    """A timer that ends one attempt ends that one: the link outside gets its error, and may try again."""

    async def impatient(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        attempt = call.fork()
        timer = call.clock.call_at(call.clock.time() + 0.02, lambda: attempt.end(Error(Code.UNAVAILABLE, "too slow")))
        with contextlib.suppress(Error):
            return await next(request, attempt)
        timer.cancel()
        await call.clock.sleep(0.5)  # longer than the last word that the first one had
        return await next(request, call.fork())

    async def echo(_request: object, _context: object) -> EchoResponse:
        if current_call().attempt == 1:
            await current_call().clock.sleep(10.0)
        return EchoResponse(text=f"attempt {current_call().attempt}")

    async with pair(service(Echo=echo), middleware=[impatient]) as ends:
        answer = await passing(ends, 1.0, ask(ends.channel))
    assert answer.messages == [EchoResponse(text="attempt 2")]


@OVER
async def test_what_a_link_does_to_the_response_is_what_is_sent(over: Over) -> None:
    """A response that a link changes, or puts in its place, is encoded after that."""

    async def changing(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        response = await next(request, call)
        response.text += " and more"
        return response

    async def echo(request: EchoRequest, _context: object) -> EchoResponse:
        return EchoResponse(text=request.text)

    async with pair(service(Echo=echo), over=over, middleware=[changing]) as ends:
        answer = await ask(ends.channel, requests=[EchoRequest(text="hi")])
    assert answer.messages == [EchoResponse(text="hi and more")]


@OVER
async def test_state_belongs_to_the_call(over: Over) -> None:
    """What a link leaves in ``call.state`` is there for the servicer, also in a forked attempt, and gone with the call."""

    async def noting(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        assert not call.state
        call.state["who"] = "me"
        return await next(request, call.fork())

    async def echo(_request: object, _context: object) -> EchoResponse:
        return EchoResponse(text=str(current_call().state["who"]))

    async with pair(service(Echo=echo), over=over, middleware=[noting]) as ends:
        for _ in range(2):
            assert (await ask(ends.channel)).messages == [EchoResponse(text="me")]
