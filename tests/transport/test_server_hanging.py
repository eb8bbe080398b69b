"""No client is ever left waiting for a status, whatever a servicer does to its own cancellations, reads and brackets."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import grpc
import pytest

from servicekit import Call, Deadline, Endpoint, Kind, Message, Middleware, current_call, standard
from servicekit.errors import Code as Ours
from servicekit.errors import Error
from servicekit.testing import pair
from servicekit.testing.pair import Over
from servicekit.testing.v1.echo_pb2 import (
    ChatRequest,
    ChatResponse,
    EchoResponse,
    ExpandRequest,
    ExpandResponse,
    SumRequest,
    SumResponse,
)
from servicekit.testing.v1.echo_pb2_grpc import EchoServiceStub

from .servers import (
    KINDS,
    NAMES,
    OVER,
    REQUESTS,
    STREAMS,
    Answer,
    Context,
    Log,
    Work,
    answer_of,
    answered,
    ask,
    method,
    passing,
    service,
    serving,
    until,
)

Code = grpc.StatusCode
LARGE = bytes(60_000)


async def raised(_: object) -> None:
    raise asyncio.CancelledError


async def from_a_child(_: object) -> None:
    child = asyncio.ensure_future(asyncio.Event().wait())
    await asyncio.sleep(0)
    child.cancel()
    await child


async def from_a_group(_: object) -> None:
    async with asyncio.TaskGroup() as group:
        child = group.create_task(asyncio.Event().wait())
        await asyncio.sleep(0)
        child.cancel()
        await child


TWO_KINDS = pytest.mark.parametrize("kind", [Kind.UNARY, Kind.BIDI_STREAM])
STRAYS = pytest.mark.parametrize("stray", [raised, from_a_child, from_a_group])


@OVER
@KINDS
@STRAYS
async def test_a_stray_cancellation_is_internal(
    over: Over, kind: Kind, stray: Work, caplog: pytest.LogCaptureFixture
) -> None:
    """A CancelledError that the servicer raises of itself is answered, and logged, as INTERNAL.

    grpc.aio sends no status for it, and the client waits until its deadline.
    """
    log = Log(caplog)
    first = 1 if kind.response_streaming else 0
    async with pair(
        serving(kind, method(kind, stray, first=first)), over=over, middleware=standard(log.telemetry)
    ) as ends:
        answer = await ask(ends.channel, kind)
    assert (answer.code, answer.details, len(answer.messages)) == (Code.INTERNAL, "internal error", first)
    assert (log.line["code"], log.line["error_type"]) == ("INTERNAL", "RuntimeError")


@OVER
@KINDS
async def test_a_stray_cancellation_after_a_group_that_failed_is_internal(
    over: Over, kind: Kind, caplog: pytest.LogCaptureFixture
) -> None:
    """Up to Python 3.12 such a group leaves its task looking cancelled; the client gets a reference all the same."""
    log = Log(caplog)

    async def fail() -> None:
        raise LookupError

    async def work(context: Context) -> None:
        with contextlib.suppress(ExceptionGroup):
            async with asyncio.TaskGroup() as group:
                group.create_task(fail())  # while the group waits at the end of its block
        await from_a_child(context)

    async with pair(serving(kind, method(kind, work)), over=over) as ends:
        answer = await ask(ends.channel, kind)
    assert (answer.code, answer.details) == (Code.INTERNAL, "internal error")
    (reference,) = [value for key, value in answer.trailers if key == "x-error-id"]
    assert str(reference) in log.text


@OVER
async def test_a_stray_cancellation_out_of_a_thread_is_internal(over: Over) -> None:
    """What a plain function raises in its thread is no cancellation of the call either."""

    def plain(_request: object, _context: object) -> None:
        raise asyncio.CancelledError

    async with pair(service(Echo=plain), over=over) as ends:
        assert (await ask(ends.channel)).code is Code.INTERNAL


@OVER
@KINDS
async def test_a_stray_cancellation_out_of_a_middleware_is_internal(
    over: Over, kind: Kind, caplog: pytest.LogCaptureFixture
) -> None:
    """A link that lets a cancelled child of its own leak out has failed, for client and log; nobody has cancelled the call."""
    log = Log(caplog)

    async def leaking(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        await from_a_child(call)
        return await next(request, call)

    chain = [*standard(log.telemetry), leaking]
    async with pair(serving(kind, method(kind, asyncio.sleep)), over=over, middleware=chain) as ends:
        assert (await ask(ends.channel, kind)).code is Code.INTERNAL
    assert log.line["code"] == "INTERNAL"


@OVER
@KINDS
@pytest.mark.parametrize("swallowed", [False, True])
async def test_aborting_with_ok_is_internal(
    over: Over,
    kind: Kind,
    swallowed: bool,  # noqa: FBT001 - a parameter
    caplog: pytest.LogCaptureFixture,
) -> None:
    """``abort(OK)``, for which grpc.aio sends no status at all, is a mistake of the servicer's, and answered as one.

    Also where the servicer goes on as if nothing had been.
    """
    log = Log(caplog)

    async def aborting(context: Context) -> None:
        with contextlib.suppress(ValueError) if swallowed else contextlib.nullcontext():
            await context.abort(Code.OK, "all is well")

    async with pair(serving(kind, method(kind, aborting)), over=over, middleware=standard(log.telemetry)) as ends:
        answer = await ask(ends.channel, kind)
    assert (answer.code, answer.details) == (Code.INTERNAL, "internal error")
    assert log.line["code"] == "INTERNAL"


class Stop(BaseException):
    """Not an Exception, and nothing that ends a process."""


@OVER
@KINDS
@pytest.mark.parametrize("error", [Stop("secret"), BaseExceptionGroup("secret", [Stop("secret")])])
async def test_an_exception_that_is_no_exception_is_answered(
    over: Over, kind: Kind, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    """What a servicer raises past ``except Exception`` is INTERNAL, and the reason is in the log once."""
    log = Log(caplog)

    async def work(_: object) -> None:
        raise error

    async with pair(serving(kind, method(kind, work)), over=over) as ends:
        answer = await ask(ends.channel, kind)
    assert (answer.code, answer.details) == (Code.INTERNAL, "internal error")
    assert log.text.count("failed, error_id") == 1


def test_a_servicer_that_ends_the_process_answers_first() -> None:
    """SystemExit out of a servicer ends the process, as anywhere in Python, and the client is told UNAVAILABLE."""
    loop = asyncio.new_event_loop()

    async def leaving(_request: object, _context: object) -> None:
        raise SystemExit(7)

    async def main(answers: list[Answer]) -> None:
        async with pair(service(Echo=leaving)) as ends:
            answers.append(await ask(ends.channel))

    answers: list[Answer] = []
    running = loop.create_task(main(answers))
    with pytest.raises(SystemExit) as caught:
        loop.run_until_complete(running)
    assert caught.value.code == 7
    with contextlib.suppress(SystemExit):  # the serving task's, once more, for whoever looks
        loop.run_until_complete(running)
    loop.close()
    assert [answer.code for answer in answers] == [Code.UNAVAILABLE]


@OVER
@pytest.mark.parametrize("kind", [Kind.UNARY, Kind.SERVER_STREAM])
async def test_stop_iteration_out_of_a_plain_function_is_internal(over: Over, kind: Kind) -> None:
    """A plain function that runs an iterator dry is answered: a future that refuses StopIteration hangs its waiter."""

    def plain(_request: object, _context: object) -> object:
        return next(iter(()))

    async with pair(serving(kind, plain), over=over) as ends:
        assert (await ask(ends.channel, kind)).code is Code.INTERNAL


def wrapped(request: Message) -> Message:
    """Return the stream as a middleware may give it on: an async generator, which a cancelled read would end."""

    async def messages() -> AsyncIterator[Any]:
        async for message in request:
            yield message

    return messages()


async def wrapping(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
    return await next(wrapped(request) if call.method.kind.request_streaming else request, call)


async def keeping(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
    if call.method.kind.request_streaming:
        request.keep()
    return await next(request, call)


Read = Callable[[Message, Context], Awaitable[Message]]


async def by_read(_request: object, context: Context) -> Message:
    async with asyncio.timeout(0.001):
        return await context.read()


async def by_anext(request: Message, _context: object) -> Message:
    async with asyncio.timeout(0.001):
        return await anext(request, grpc.aio.EOF)


async def by_wait_for(request: Message, _context: object) -> Message:
    return await asyncio.wait_for(anext(request, grpc.aio.EOF), 0.001)


@OVER
@pytest.mark.parametrize("link", [None, wrapping, keeping])
@pytest.mark.parametrize("read", [by_read, by_anext, by_wait_for])
async def test_a_cancelled_read_loses_nothing_and_is_not_the_end(
    over: Over, link: Middleware | None, read: Read
) -> None:
    """A time-out around a read neither ends the stream nor takes a message with it.

    On grpc.aio the stream looks finished after a cancelled read, and the upload is answered OK with the wrong sum.
    """
    timed_out = asyncio.Event()

    async def total(request: Message, context: Context) -> SumResponse:
        numbers: list[int] = []
        while True:
            try:
                message = await read(request, context)
            except TimeoutError:
                timed_out.set()
                continue
            if message is grpc.aio.EOF:
                return SumResponse(total=sum(numbers), count=len(numbers))
            numbers.append(message.number)

    async def numbers() -> AsyncIterator[SumRequest]:
        for number in (1, 2, 3):
            yield SumRequest(number=number)
            timed_out.clear()
            await timed_out.wait()

    async with pair(service(Sum=total), over=over, middleware=[link] if link else []) as ends:
        answer = await ask(ends.channel, Kind.CLIENT_STREAM, numbers())
    assert answer.messages == [SumResponse(total=6, count=3)]


@OVER
async def test_a_reader_that_is_left_behind_ends_with_the_call(over: Over) -> None:
    """A task of the servicer's that still reads when the call is over is not left waiting, and the client has its answer."""
    readers: list[asyncio.Task[Any]] = []

    async def chat(request: Message, _context: object) -> AsyncIterator[ChatResponse]:
        message = await anext(request)
        readers.append(asyncio.ensure_future(anext(request)))
        await asyncio.sleep(0)
        yield ChatResponse(text=message.text)

    async with pair(service(Chat=chat), over=over) as ends:
        call = EchoServiceStub(ends.channel).Chat()
        await call.write(ChatRequest(text="one"))
        answer = await answered(answer_of(call, Kind.BIDI_STREAM))
        assert answer.messages == [ChatResponse(text="one")]
        await until(readers[0].done)
        assert isinstance(readers[0].exception(), Exception)


@OVER
@STREAMS
@pytest.mark.parametrize("whose", ["client", "server"])
async def test_a_deadline_ends_a_write_that_waits_for_the_reader(
    over: Over, kind: Kind, whose: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A client that does not read holds its servicer only until the deadline, and then learns of it."""
    log = Log(caplog)
    left = asyncio.Event()

    async def pouring(_request: object, context: Context) -> None:
        try:
            while True:
                await context.write(
                    ExpandResponse(payload=LARGE) if kind is Kind.SERVER_STREAM else ChatResponse(payload=LARGE)
                )
        finally:
            left.set()

    async def limited(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        if whose == "server":
            call.limit(call.clock.time() + 0.3)
        return await next(request, call)

    chain = [*standard(log.telemetry), limited]
    async with pair(serving(kind, pouring), over=over, middleware=chain) as ends:
        stub = EchoServiceStub(ends.channel)
        timeout = 0.3 if whose == "client" else None
        call = (
            stub.Expand(ExpandRequest(), timeout=timeout)
            if kind is Kind.SERVER_STREAM
            else stub.Chat(iter(()), timeout=timeout)
        )
        await passing(ends, 0.3, answered(left.wait()))
        answer = await passing(ends, 0.0, answered(answer_of(call, kind)))
    assert answer.code is Code.DEADLINE_EXCEEDED
    assert log.line["code"] == "DEADLINE_EXCEEDED" or (
        over != "memory" and whose == "client"
    )  # it may be heard of first


@contextlib.contextmanager
def bracket(seen: list[str]) -> Iterator[None]:
    try:
        yield
    finally:
        seen.append("closed")


@OVER
@STREAMS
@pytest.mark.parametrize("where", ["inside", "in the write"])
async def test_a_bracket_held_open_by_a_generator_ends_the_call(over: Over, kind: Kind, where: str) -> None:
    """A generator that yields inside a time-out is ended by it, brackets closed, and the client is answered.

    grpc.aio throws GeneratorExit into it and sends no status.
    """
    seen: list[str] = []
    response: Any = ExpandResponse if kind is Kind.SERVER_STREAM else ChatResponse

    async def generator(_request: object, _context: object) -> AsyncIterator[Any]:
        with bracket(seen):
            async with asyncio.timeout(0.01):
                yield response()
                while where == "in the write":
                    yield response(payload=LARGE)
                await asyncio.Event().wait()

    async with pair(serving(kind, generator), over=over) as ends:
        stub = EchoServiceStub(ends.channel)
        call = stub.Expand(ExpandRequest()) if kind is Kind.SERVER_STREAM else stub.Chat(iter(()))
        await until(lambda: seen)
        answer = await answered(answer_of(call, kind))
    assert (answer.code, answer.details) == (Code.INTERNAL, "internal error")
    assert seen == ["closed"]


@OVER
@TWO_KINDS
async def test_a_servicer_that_swallows_its_deadline_is_answered_for(
    over: Over, kind: Kind, caplog: pytest.LogCaptureFixture
) -> None:
    """At the server's deadline the client is answered, whatever the servicer makes of its cancellation.

    grpc.aio waits for it, and may then say OK long after the deadline. What is logged is what the client got.
    """
    log = Log(caplog)
    release = asyncio.Event()

    async def stubborn(_: object) -> None:
        while not release.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await release.wait()

    async def limited(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        call.limit(call.clock.time() + 0.02)
        return await next(request, call)

    chain = [*standard(log.telemetry), limited]
    async with pair(serving(kind, method(kind, stubborn)), over=over, middleware=chain) as ends:
        answer = await passing(ends, 0.3, ask(ends.channel, kind))
        release.set()
        await until(lambda: log.lines)
    assert (answer.code, answer.details) == (Code.DEADLINE_EXCEEDED, "deadline exceeded")
    assert log.line["code"] == "DEADLINE_EXCEEDED"


@OVER
@TWO_KINDS
async def test_a_servicer_that_goes_on_after_its_abort_is_answered_for(
    over: Over, kind: Kind, caplog: pytest.LogCaptureFixture
) -> None:
    """An AbortError that was swallowed by a servicer with more to do still reaches the client, at once or soon.

    What it does then is its own affair, its clean-up is not cut short, until the call's deadline passes.
    """
    log = Log(caplog)
    release = asyncio.Event()
    cleaned: list[bool] = []

    async def adding(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        call.headers.add("from", "middleware")
        return await next(request, call)

    async def work(context: Context) -> None:
        with contextlib.suppress(Exception):
            await context.abort(Code.NOT_FOUND, "gone")
        await release.wait()
        cleaned.append(context.done())

    chain = [*standard(log.telemetry), adding]
    async with pair(serving(kind, method(kind, work)), over=over, middleware=chain) as ends:
        answer = await passing(ends, 1.0, ask(ends.channel, kind))
        assert not cleaned
        release.set()
        await until(lambda: log.lines)
    assert (answer.code, answer.details) == (Code.NOT_FOUND, "gone")
    if over == "memory" or kind is Kind.UNARY:  # grpc.aio's client may lose them where no message comes
        assert answer.header("from") == ["middleware"]
    assert cleaned == [True]
    assert log.line["code"] == "NOT_FOUND"


async def test_a_servicer_that_goes_on_after_its_abort_ends_at_its_deadline() -> None:
    """A servicer whose call has failed already is cancelled when its time is over, as any other."""
    ended = asyncio.Event()

    async def work(context: Context) -> None:
        try:
            with contextlib.suppress(Exception):
                await context.abort(Code.NOT_FOUND, "gone")
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with pair(serving(Kind.UNARY, method(Kind.UNARY, work)), middleware=[Deadline()]) as ends:
        assert (await passing(ends, 1.0, ask(ends.channel))).code is Code.NOT_FOUND
        await ends.clock.advance(28.0)
        assert not ended.is_set()
        await ends.clock.advance(1.0)
        assert ended.is_set()


@OVER
@STREAMS
@pytest.mark.parametrize("does", ["abort", "write"])
async def test_a_servicer_that_goes_round_in_circles_does_not_hold_the_loop(over: Over, kind: Kind, does: str) -> None:
    """Swallowing its failure over and over, a servicer would neither end nor let anybody else run: it is cancelled."""

    async def work(_request: object, context: Context) -> None:
        while True:
            with contextlib.suppress(Exception):
                if does == "write":
                    await context.write(object())
                else:
                    await context.abort(Code.NOT_FOUND, "gone")

    async with pair(serving(kind, work), over=over) as ends:
        answer = await ask(ends.channel, kind)
    assert answer.code is {"abort": Code.NOT_FOUND, "write": Code.INTERNAL}[does]


@OVER
@STREAMS
async def test_a_servicer_that_writes_to_nobody_does_not_hold_the_loop(over: Over, kind: Kind) -> None:
    """When the client goes, a servicer that swallows what its writes raise is cancelled all the same."""
    begun = asyncio.Event()
    ended = asyncio.Event()
    response: Any = ExpandResponse if kind is Kind.SERVER_STREAM else ChatResponse

    async def work(_request: object, context: Context) -> None:
        try:
            while True:
                with contextlib.suppress(Exception):
                    await context.write(response(payload=LARGE))
                    begun.set()
        finally:
            ended.set()

    async with pair(serving(kind, work), over=over) as ends:
        stub = EchoServiceStub(ends.channel)
        call = stub.Expand(ExpandRequest()) if kind is Kind.SERVER_STREAM else stub.Chat()
        await answered(begun.wait())
        call.cancel()
        await answered(ended.wait())


@OVER
@TWO_KINDS
@pytest.mark.parametrize("how", ["deadline", "cancel"])
@pytest.mark.parametrize("then", ["returns", "raises"])
async def test_what_a_servicer_answers_after_the_end_is_not_what_is_logged(
    over: Over, kind: Kind, how: str, then: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A servicer that swallows the client's cancellation, or its deadline, is logged as what the client got.

    Whether it returns then, or raises an Error of its own.
    """
    log = Log(caplog)
    begun = asyncio.Event()

    async def swallowing(_: object) -> None:
        begun.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        if then == "raises":
            raise Error(Ours.NOT_FOUND, "too late")

    async with pair(serving(kind, method(kind, swallowing)), over=over, middleware=standard(log.telemetry)) as ends:
        if how == "deadline":
            answer = await passing(ends, 0.3, ask(ends.channel, kind, timeout=0.3))
            assert answer.code is Code.DEADLINE_EXCEEDED
        else:
            stub: Any = EchoServiceStub(ends.channel)
            call = getattr(stub, NAMES[kind])(iter(()) if kind.request_streaming else REQUESTS[kind](), timeout=10.0)
            await begun.wait()
            call.cancel()
        await until(lambda: log.lines)
    told = {"deadline": {"DEADLINE_EXCEEDED"}, "cancel": {"CANCELLED"}}[how]
    if over != "memory":  # a busy machine may hear of a client that gives up before its own deadline
        told.add("CANCELLED")
    assert log.line["code"] in told


@OVER
@STREAMS
async def test_a_generators_clean_up_runs_at_once(over: Over, kind: Kind) -> None:
    """When the client goes, the ``finally`` of the servicer's generator runs then, in the call, not at its collection."""
    seen: list[object] = []
    begun = asyncio.Event()
    response: Any = ExpandResponse if kind is Kind.SERVER_STREAM else ChatResponse

    async def generator(_request: object, _context: object) -> AsyncIterator[Any]:
        call = current_call()
        task = asyncio.current_task()
        try:
            begun.set()
            while True:
                yield response(payload=LARGE)
        finally:
            seen.append((current_call() is call, asyncio.current_task() is task, call.over))

    async with pair(serving(kind, generator), over=over) as ends:
        stub = EchoServiceStub(ends.channel)
        call = stub.Expand(ExpandRequest()) if kind is Kind.SERVER_STREAM else stub.Chat()
        await begun.wait()
        call.cancel()
        await until(lambda: seen)
    assert seen == [(True, True, False)]


@OVER
async def test_a_generator_that_does_not_want_to_end_is_left(over: Over) -> None:
    """A generator that yields while it is closed cannot keep its call, or its client, waiting."""
    closing = asyncio.Event()

    async def generator(_request: object, _context: object) -> AsyncIterator[ExpandResponse]:
        try:
            async with asyncio.timeout(0.01):
                while True:
                    yield ExpandResponse(payload=LARGE)
        finally:
            closing.set()
            yield ExpandResponse()

    async with pair(service(Expand=generator), over=over) as ends:
        call = EchoServiceStub(ends.channel).Expand(ExpandRequest())
        await answered(closing.wait())
        answer = await answered(answer_of(call, Kind.SERVER_STREAM))
    assert answer.code is Code.INTERNAL


@OVER
async def test_work_that_ends_in_time_is_not_touched_by_the_deadline(over: Over) -> None:
    """A servicer that finishes within the limit is answered for by nobody else, also when the time passes later."""

    async def echo(_request: object, _context: object) -> EchoResponse:
        await asyncio.sleep(0)
        return EchoResponse(text="ok")

    async with pair(service(Echo=echo), over=over, middleware=[Deadline(default=0.05)]) as ends:
        answer = await ask(ends.channel)
        assert answer.messages == [EchoResponse(text="ok")]
        if ends.over == "memory":
            await ends.clock.advance(1.0)
            assert ends.clock.pending == 0
