"""Time on the server: what gets a deadline, who is told of it, and whose it no longer is when the call is over."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from servicekit import Call, Code, Deadline, Endpoint, Error, Kind, Message, current_call, detached, standard
from servicekit.testing import pair
from servicekit.testing.pair import Over
from servicekit.testing.v1.echo_pb2 import (
    ChatRequest,
    ChatResponse,
    EchoRequest,
    EchoResponse,
    ExpandRequest,
    ExpandResponse,
    SumResponse,
)
from servicekit.testing.v1.echo_pb2_grpc import EchoServiceStub

from .servers import (
    KINDS,
    NAMES,
    OVER,
    REQUESTS,
    STREAMS,
    Context,
    Log,
    answered,
    ask,
    health_of,
    method,
    passing,
    service,
    serving,
    until,
)

Grpc = grpc.StatusCode
ONE_RESPONSE = pytest.mark.parametrize("kind", [Kind.UNARY, Kind.CLIENT_STREAM])


async def wait(_: object) -> None:
    await asyncio.Event().wait()


@ONE_RESPONSE
@pytest.mark.parametrize(
    ("asked", "given"), [(None, 30.0), (10.0, 10.0), (1000.0, 300.0)], ids=["default", "own", "cap"]
)
async def test_a_call_with_one_response_has_an_end(
    kind: Kind, asked: float | None, given: float, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a deadline it gets 30 s, with a long one 5 min at most, with its own that: log and client agree."""
    log = Log(caplog)
    async with pair(serving(kind, method(kind, wait)), middleware=standard(log.telemetry)) as ends:
        asking = asyncio.ensure_future(ask(ends.channel, kind, timeout=asked))
        await ends.clock.advance(given - 0.01)
        assert not asking.done()
        assert not log.lines
        await ends.clock.advance(0.01)
        answer = await asking
    assert answer.code is Grpc.DEADLINE_EXCEEDED
    assert (log.line["code"], log.line["duration_ms"]) == ("DEADLINE_EXCEEDED", given * 1000)


async def test_a_stream_of_responses_may_stay_open() -> None:
    """A conversation, and a Watch, that are older than the default and the cap are still there, and still work."""

    async def chat(request: Message, _context: object) -> AsyncIterator[ChatResponse]:
        async for message in request:
            yield ChatResponse(text=message.text)

    async with pair(service(Chat=chat), middleware=[Deadline()]) as ends:
        talk = EchoServiceStub(ends.channel).Chat()
        watch = health_of(ends.channel).Watch(HealthCheckRequest())
        assert (await answered(watch.read())).status == HealthCheckResponse.SERVING
        await ends.clock.advance(3600.0)
        await talk.write(ChatRequest(text="still here"))
        assert await answered(talk.read()) == ChatResponse(text="still here")
        assert ends.server.health is not None
        await ends.server.health.set("", serving=False)
        assert (await answered(watch.read())).status == HealthCheckResponse.NOT_SERVING
        talk.cancel()
        watch.cancel()


@STREAMS
async def test_a_stream_of_responses_has_the_time_that_was_asked_for(kind: Kind) -> None:
    """Neither default nor cap, but the client's own deadline holds for it like for any other."""
    async with pair(serving(kind, method(kind, wait)), middleware=[Deadline()]) as ends:
        asking = asyncio.ensure_future(ask(ends.channel, kind, timeout=1000.0))
        await ends.clock.advance(999.0)
        assert not asking.done()
        await ends.clock.advance(1.0)
        assert (await asking).code is Grpc.DEADLINE_EXCEEDED


@OVER
@KINDS
async def test_what_is_late_already_is_not_begun(over: Over, kind: Kind) -> None:
    """A call with nothing left is refused before its servicer runs."""
    ran: list[object] = []

    async def queueing(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        call.limit(call.clock.time())  # as if it had waited here for too long
        return await next(request, call)

    async def work(context: object) -> None:
        ran.append(context)

    async with pair(serving(kind, method(kind, work)), over=over, middleware=[queueing, Deadline()]) as ends:
        answer = await ask(ends.channel, kind)
    assert answer.code is Grpc.DEADLINE_EXCEEDED
    assert ran == []


@OVER
@KINDS
async def test_a_limit_ends_a_servicer_that_is_stuck(over: Over, kind: Kind, caplog: pytest.LogCaptureFixture) -> None:
    """When the time that a link gave is over, the servicer is cancelled and the client answered at once."""
    log = Log(caplog)
    cancelled = asyncio.Event()

    async def stuck(_: object) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async def limited(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        call.limit(call.clock.time() + 0.05)
        call.limit(call.clock.time() + 100.0)  # a later one changes nothing
        return await next(request, call)

    chain = [*standard(log.telemetry), limited]
    async with pair(serving(kind, method(kind, stuck)), over=over, middleware=chain) as ends:
        answer = await passing(ends, 0.05, ask(ends.channel, kind))
    assert (answer.code, answer.details) == (Grpc.DEADLINE_EXCEEDED, "deadline exceeded")
    assert cancelled.is_set()
    assert log.line["code"] == "DEADLINE_EXCEEDED"


@OVER
@pytest.mark.parametrize("where", ["before", "inside", "after"])
async def test_a_limit_ends_a_link_that_is_stuck(over: Over, where: str) -> None:
    """The deadline ends the call wherever it is: in a link on the way in, in the servicer, or on the way out."""

    async def stuck(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        call.limit(call.clock.time() + 0.02)
        if where == "before":
            await asyncio.Event().wait()
        response = await next(request, call)
        await asyncio.Event().wait()
        return response

    async def work(context: object) -> None:
        if where == "inside":
            await asyncio.Event().wait()

    async with pair(serving(Kind.UNARY, method(Kind.UNARY, work)), over=over, middleware=[stuck]) as ends:
        answer = await passing(ends, 0.02, ask(ends.channel))
    assert (answer.code, answer.details) == (Grpc.DEADLINE_EXCEEDED, "deadline exceeded")


@OVER
@KINDS
async def test_a_timer_may_end_the_call_with_an_error_of_its_own(
    over: Over, kind: Kind, caplog: pytest.LogCaptureFixture
) -> None:
    """``call.end`` is how a limit on idle time ends a call: the client gets that error, and so does the log."""
    log = Log(caplog)

    async def idle(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        timer = call.clock.call_at(call.clock.time() + 0.02, lambda: call.end(Error(Code.ABORTED, "idle")))
        try:
            return await next(request, call)
        finally:
            timer.cancel()

    chain = [*standard(log.telemetry), idle]
    async with pair(serving(kind, method(kind, wait)), over=over, middleware=chain) as ends:
        answer = await passing(ends, 0.02, ask(ends.channel, kind))
    assert (answer.code, answer.details) == (Grpc.ABORTED, "idle")
    assert log.line["code"] == "ABORTED"


@OVER
@KINDS
@pytest.mark.parametrize("end", ["cancel", "deadline"])
async def test_a_cancellation_is_told_from_a_deadline(
    over: Over, kind: Kind, end: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Both reach the servicer as CancelledError; every link can ask the call which of them the client has seen."""
    log = Log(caplog)
    outcomes: list[Code] = []
    begun = asyncio.Event()

    async def observing(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        try:
            return await next(request, call)
        except asyncio.CancelledError as error:
            outcomes.append(call.outcome(error))
            raise

    async def work(_: object) -> None:
        begun.set()
        await asyncio.Event().wait()

    chain = [*standard(log.telemetry), observing]
    async with pair(serving(kind, method(kind, work)), over=over, middleware=chain) as ends:
        stub: Any = EchoServiceStub(ends.channel)
        begin = getattr(stub, NAMES[kind])
        call = begin(
            iter(()) if kind.request_streaming else REQUESTS[kind](), timeout=0.3 if end == "deadline" else 60.0
        )
        await answered(begun.wait())
        if end == "cancel":
            call.cancel()
        elif ends.over == "memory":
            await ends.clock.advance(0.3)
        seen = await answered(call.code())
        await until(lambda: log.lines)
    expected = {"cancel": Code.CANCELLED, "deadline": Code.DEADLINE_EXCEEDED}[end]
    assert seen.value[0] == expected
    if end == "deadline" and over != "memory" and outcomes == [Code.CANCELLED]:
        expected = (
            Code.CANCELLED
        )  # the client's reset was there before the server's own deadline: a machine that is busy
    assert outcomes == [expected]
    assert log.line["code"] == expected.name


@KINDS
async def test_a_clean_up_that_takes_its_time_does_not_change_the_outcome(
    kind: Kind, caplog: pytest.LogCaptureFixture
) -> None:
    """The client cancelled, and the servicer cleans up until after the deadline: what is logged is CANCELLED."""
    log = Log(caplog)
    begun = asyncio.Event()

    async def work(_: object) -> None:
        try:
            begun.set()
            await asyncio.Event().wait()
        finally:
            await current_call().clock.sleep(5.0)

    async with pair(serving(kind, method(kind, work)), middleware=standard(log.telemetry)) as ends:
        stub: Any = EchoServiceStub(ends.channel)
        begin = getattr(stub, NAMES[kind])
        call = begin(iter(()) if kind.request_streaming else REQUESTS[kind](), timeout=3.0)
        await answered(begun.wait())
        call.cancel()
        await ends.clock.advance(10.0)
        await until(lambda: log.lines)
    assert log.line["code"] == "CANCELLED"


@OVER
async def test_nobody_is_told_of_cancellation_by_an_answer(over: Over, caplog: pytest.LogCaptureFixture) -> None:
    """A servicer at work in a child task when the client goes is cancelled there, and nothing is logged as a fault."""
    log = Log(caplog)
    begun = asyncio.Event()

    async def reads(request: Message) -> None:
        begun.set()
        async for _ in request:
            pass

    async def chat(request: Message, _context: object) -> AsyncIterator[ChatResponse]:
        async with asyncio.TaskGroup() as group:
            group.create_task(reads(request))
            yield ChatResponse()

    async with pair(service(Chat=chat), over=over, middleware=standard(log.telemetry)) as ends:
        call = EchoServiceStub(ends.channel).Chat()
        await answered(begun.wait())
        call.cancel()
        await until(lambda: log.lines)
    assert log.line["code"] == "CANCELLED"
    assert "Traceback" not in log.text


# The call as a parent of others: those that the servicer makes of other services.


class Behind:
    """A service behind the one under test, which writes down what time its calls were given."""

    def __init__(self) -> None:
        self.given: list[float | None] = []

    async def echo(self, _request: object, context: Context) -> EchoResponse:
        self.given.append(context.time_remaining())
        return EchoResponse()


@OVER
async def test_a_call_made_for_a_call_ends_before_it(over: Over) -> None:
    """The outgoing call inherits the remaining time, less a tenth; its own shorter timeout stays what it is."""
    behind = Behind()
    async with pair(service(Echo=behind.echo), over=over) as other:

        async def echo(_request: object, _context: object) -> EchoResponse:
            stub = EchoServiceStub(other.channel)
            await stub.Echo(EchoRequest())
            await stub.Echo(EchoRequest(), timeout=0.2)
            return EchoResponse()

        async with pair(service(Echo=echo), over=over, network=other.network, clock=other.movable) as ends:
            assert (await ask(ends.channel, timeout=1.5)).code is Grpc.OK
    inherited, own = behind.given
    assert inherited is not None
    assert 0.2 < inherited <= 1.37  # over a socket the time is rounded up, by some milliseconds
    assert own is not None
    assert own <= 0.21


@OVER
@pytest.mark.parametrize("forked", [False, True])
async def test_a_call_that_is_over_is_no_parent(over: Over, forked: object) -> None:
    """A task that outlives its call makes calls like anybody else; on grpc.aio it would inherit a negative time."""
    behind = Behind()
    over_now = asyncio.Event()
    tasks: list[asyncio.Task[Any]] = []

    async def forking(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        with contextlib.suppress(Error):
            return await next(request, call.fork())
        return await next(request, call.fork())

    async with pair(service(Echo=behind.echo), over=over) as other:

        async def later() -> None:
            await over_now.wait()
            await EchoServiceStub(other.channel).Echo(EchoRequest())

        async def echo(_request: object, _context: object) -> EchoResponse:
            tasks.append(asyncio.ensure_future(later()))
            if forked and len(tasks) == 1:
                raise Error(Code.UNAVAILABLE)
            return EchoResponse()

        chain = [forking] if forked else []
        async with pair(
            service(Echo=echo), over=over, network=other.network, clock=other.movable, middleware=chain
        ) as ends:
            assert (await ask(ends.channel, timeout=5.0)).code is Grpc.OK
            if ends.over == "memory":
                await ends.clock.advance(6.0)
            over_now.set()
            await answered(asyncio.wait_for(asyncio.gather(*tasks), 10.0))
    assert behind.given == [None] * len(tasks)
    assert len(tasks) == (2 if forked else 1)


@OVER
async def test_detached_work_belongs_to_no_call(over: Over) -> None:
    """Inside ``detached()`` nothing is inherited while the call goes on, and there is no current call."""
    behind = Behind()
    async with pair(service(Echo=behind.echo), over=over) as other:

        async def echo(_request: object, _context: object) -> EchoResponse:
            with detached():
                with pytest.raises(LookupError):
                    current_call()
                await EchoServiceStub(other.channel).Echo(EchoRequest())
            assert current_call().deadline is not None
            return EchoResponse()

        async with pair(service(Echo=echo), over=over, network=other.network, clock=other.movable) as ends:
            assert (await ask(ends.channel, timeout=5.0)).code is Grpc.OK
    assert behind.given == [None]


@OVER
async def test_no_timer_outlives_its_call(over: Over) -> None:
    """Whatever was limited, ended, refused or cancelled, the clock has nothing left to do for it."""
    chain = [Deadline(default=20.0)]

    async def echo(request: EchoRequest, _context: object) -> EchoResponse:
        if request.text == "fail":
            raise ValueError
        if request.text == "wait":
            await asyncio.Event().wait()
        return EchoResponse()

    async def total(request: Message, _context: object) -> SumResponse:
        await anext(request, None)
        return SumResponse()

    async def expand(_request: ExpandRequest, _context: object) -> AsyncIterator[ExpandResponse]:
        yield ExpandResponse()

    async with pair(service(Echo=echo, Sum=total, Expand=expand), over=over, middleware=chain) as ends:
        for text in ("", "fail"):
            await ask(ends.channel, requests=[EchoRequest(text=text)])
        await ask(ends.channel, Kind.CLIENT_STREAM)
        await ask(ends.channel, Kind.SERVER_STREAM)
        call = EchoServiceStub(ends.channel).Echo(EchoRequest(text="wait"))
        await until(lambda: ends.server.in_flight)
        call.cancel()
        await until(lambda: not ends.server.in_flight)
        if ends.over == "memory":
            await ends.clock.advance(0.0)
            assert ends.clock.pending == 0
