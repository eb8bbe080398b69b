"""How a servicer says how its call ends, and what of that arrives: codes, messages, details and metadata."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable
from typing import Any, NamedTuple

import grpc
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import BadRequest, DebugInfo, ErrorInfo
from google.rpc.status_pb2 import Status as RichStatus

from servicekit import Call, Code, Endpoint, Error, Kind, Message, Method, current_call, only, standard
from servicekit.testing import pair
from servicekit.testing.pair import Over
from servicekit.testing.v1.echo_pb2 import EchoRequest, EchoResponse, ExpandRequest, ExpandResponse, SumResponse
from servicekit.testing.v1.echo_pb2_grpc import EchoServiceStub

from .servers import (
    KINDS,
    OVER,
    RESPONSES,
    STREAMS,
    AnyCall,
    Context,
    Log,
    Work,
    answered,
    ask,
    method,
    needs,
    service,
    serving,
    until,
)

Grpc = grpc.StatusCode


@OVER
@KINDS
async def test_an_abort_that_was_swallowed_still_ends_the_call(
    over: Over, kind: Kind, caplog: pytest.LogCaptureFixture
) -> None:
    """AbortError is a plain Exception, so a broad ``except`` catches it: the client gets, and the log has, the abort."""
    log = Log(caplog)

    async def work(context: Context) -> None:
        with contextlib.suppress(Exception):
            await context.abort(Grpc.NOT_FOUND, "no such thing", (("why", "gone"),))

    async with pair(serving(kind, method(kind, work)), over=over, middleware=standard(log.telemetry)) as ends:
        answer = await ask(ends.channel, kind)
    assert (answer.code, answer.details, answer.trailer("why")) == (Grpc.NOT_FOUND, "no such thing", ["gone"])
    assert answer.messages == []
    assert log.line["code"] == "NOT_FOUND"


@OVER
@KINDS
async def test_an_abort_in_another_task_ends_the_call(over: Over, kind: Kind) -> None:
    """Aborted by a task of the servicer's group, the call ends with that, not with the group's exception."""

    async def work(context: Context) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(context.abort(Grpc.ABORTED, "by a child"))

    async with pair(serving(kind, method(kind, work)), over=over) as ends:
        answer = await ask(ends.channel, kind)
    assert (answer.code, answer.details) == (Grpc.ABORTED, "by a child")


@OVER
async def test_the_first_abort_wins(over: Over) -> None:
    """A second one, while the first is on its way, changes nothing."""

    async def work(context: Context) -> None:
        try:
            await context.abort(Grpc.NOT_FOUND, "first")
        finally:
            await context.abort(Grpc.INTERNAL, "second")

    async with pair(serving(Kind.UNARY, method(Kind.UNARY, work)), over=over) as ends:
        answer = await ask(ends.channel)
    assert (answer.code, answer.details) == (Grpc.NOT_FOUND, "first")


@OVER
@pytest.mark.parametrize("trailing", [[("why", "gone")], (("why", "gone"),), grpc.aio.Metadata(("why", "gone"))])
async def test_aborts_metadata_may_be_any_sequence(over: Over, trailing: Iterable[tuple[str, str]]) -> None:
    """A tuple, a list or a Metadata: grpc.aio fails on all but the first."""

    async def work(context: Context) -> None:
        await context.abort(Grpc.NOT_FOUND, "", trailing_metadata=trailing)

    async with pair(serving(Kind.UNARY, method(Kind.UNARY, work)), over=over) as ends:
        answer = await ask(ends.channel)
    assert (answer.code, answer.trailer("why")) == (Grpc.NOT_FOUND, ["gone"])


@OVER
@KINDS
async def test_a_code_that_was_set_is_how_the_call_ends(
    over: Over, kind: Kind, caplog: pytest.LogCaptureFixture
) -> None:
    """``set_code`` and return: the client gets that code and, of a unary response, nothing; the chain sees an error."""
    log = Log(caplog)

    async def work(context: Context) -> None:
        context.set_code(Grpc.ALREADY_EXISTS)
        context.set_details("was here before")

    async with pair(serving(kind, method(kind, work)), over=over, middleware=standard(log.telemetry)) as ends:
        answer = await ask(ends.channel, kind)
    assert (answer.code, answer.details) == (Grpc.ALREADY_EXISTS, "was here before")
    assert len(answer.messages) == kind.response_streaming
    assert (log.line["code"], log.line["sent"]) == ("ALREADY_EXISTS", int(kind.response_streaming))


@OVER
@KINDS
async def test_a_code_that_was_set_wins_over_an_exception(over: Over, kind: Kind) -> None:
    """``set_code`` and raise: the code is what the servicer meant, and the exception's text stays here."""

    async def work(context: Context) -> None:
        context.set_code(Grpc.FAILED_PRECONDITION)
        context.set_details("not now")
        raise ValueError("secret")

    async with pair(serving(kind, method(kind, work)), over=over) as ends:
        answer = await ask(ends.channel, kind)
    assert (answer.code, answer.details) == (Grpc.FAILED_PRECONDITION, "not now")
    assert "secret" not in answer.text


@OVER
@KINDS
async def test_a_method_that_nobody_wrote_is_unimplemented(
    over: Over, kind: Kind, caplog: pytest.LogCaptureFixture
) -> None:
    """The generated default sets UNIMPLEMENTED and raises: no fault of anybody's, so there is no traceback."""
    log = Log(caplog)
    async with pair(service(), over=over, middleware=standard(log.telemetry)) as ends:
        answer = await ask(ends.channel, kind)
    assert (answer.code, answer.details) == (Grpc.UNIMPLEMENTED, "Method not implemented!")
    assert log.line["code"] == "UNIMPLEMENTED"
    assert log.line["level"] == "info"
    assert "Traceback" not in log.text


async def nothing(_: object) -> None:
    pass


async def wait(_: object) -> None:
    await asyncio.Event().wait()


async def refuse(_: object) -> None:
    raise Error(Code.PERMISSION_DENIED, "no")


async def fail(_: object) -> None:
    raise ValueError


async def abort(context: Context) -> None:
    await context.abort(Grpc.NOT_FOUND, "gone")


ENDS: dict[str, tuple[Work, Grpc, str]] = {
    "returns": (nothing, Grpc.OK, ""),
    "raises an Error": (refuse, Grpc.PERMISSION_DENIED, "no"),
    "raises": (fail, Grpc.INTERNAL, "internal error"),
    "aborts": (abort, Grpc.NOT_FOUND, "gone"),
    "is cancelled": (wait, Grpc.CANCELLED, ""),
    "runs out of the client's time": (wait, Grpc.DEADLINE_EXCEEDED, ""),
    "runs out of the server's time": (wait, Grpc.DEADLINE_EXCEEDED, "deadline exceeded"),
}


@OVER
@pytest.mark.parametrize("end", ENDS)
async def test_done_callbacks_know_how_it_ended(over: Over, end: str) -> None:
    """However the call ends, each callback runs once, in the call's context, with code and details in place.

    On grpc.aio the code is None after an exception or a cancellation, and the context is another one.
    """
    work, code, details = ENDS[end]
    seen: list[tuple[str, Any, str, bool]] = []
    calls: list[Call] = []

    async def echo(_request: object, context: Context) -> EchoResponse:
        calls.append(current_call())
        for name in ("first", "second"):
            context.add_done_callback(
                lambda context, name=name: seen.append(
                    (name, context.code(), context.details(), current_call() is calls[0])
                )
            )
        await work(context)
        return EchoResponse()

    async def limited(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        if end == "runs out of the server's time":
            call.limit(call.clock.time() + 0.1)
        return await next(request, call)

    async with pair(service(Echo=echo), over=over, middleware=[limited]) as ends:
        timeout = 0.3 if "client's" in end else None
        call = EchoServiceStub(ends.channel).Echo(EchoRequest(), timeout=timeout)
        await until(lambda: calls)
        if end == "is cancelled":
            call.cancel()
        if ends.over == "memory":
            await ends.clock.advance(0.3)
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.CancelledError):
            await answered(_awaited(call))
        await until(lambda: seen)
        assert ends.server.in_flight == 0
    if "client's" in end and over != "memory" and seen[0][1] is Grpc.CANCELLED:
        code = Grpc.CANCELLED  # a busy machine may hear of the client's end before its own deadline
    assert seen == [("first", code, details, True), ("second", code, details, True)]


async def _awaited(call: AnyCall) -> Message:
    return await call


@OVER
async def test_a_done_callback_knows_the_end_that_its_servicer_did_not_accept(over: Over) -> None:
    """The client was answered without a servicer that swallowed its deadline; the callback tells of that answer."""
    seen: list[Any] = []
    release = asyncio.Event()

    async def stubborn(_request: object, context: Context) -> EchoResponse:
        context.add_done_callback(lambda context: seen.append(context.code()))
        while not release.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await release.wait()
        return EchoResponse()

    async def limited(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        call.limit(call.clock.time() + 0.02)
        return await next(request, call)

    async with pair(service(Echo=stubborn), over=over, middleware=[limited]) as ends:
        asking = asyncio.ensure_future(ask(ends.channel))
        if ends.over == "memory":
            await ends.clock.advance(1.0)
        await asking
        await until(lambda: seen)
        release.set()
    assert seen == [Grpc.DEADLINE_EXCEEDED]


@OVER
async def test_a_done_callback_that_comes_late_runs_at_once(over: Over) -> None:
    """Added by a task that outlived the call, it is not forgotten."""
    seen: list[str] = []
    contexts: list[Any] = []

    async def echo(_request: object, context: Context) -> EchoResponse:
        contexts.append(context)
        context.add_done_callback(lambda _: seen.append("in time"))
        return EchoResponse()

    async with pair(service(Echo=echo), over=over) as ends:
        await ask(ends.channel)
        await until(lambda: seen)
        contexts[0].add_done_callback(lambda _: seen.append("late"))
        await until(lambda: len(seen) == 2)
        assert contexts[0].done()
    assert seen == ["in time", "late"]


@OVER
@KINDS
async def test_trailing_metadata_of_all_is_merged(over: Over, kind: Kind) -> None:
    """Set by a middleware, and twice by the servicer, all of it arrives: on grpc.aio the last one replaces the others."""

    async def link(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        call.trailers.add("from", "middleware")
        return await next(request, call)

    async def work(context: Context) -> None:
        context.set_trailing_metadata([("from", "servicer"), ("data-bin", b"\x00\xff")])
        context.set_trailing_metadata((("from", "servicer again"),))
        assert ("from", "middleware") in context.trailing_metadata()

    async with pair(serving(kind, method(kind, work)), over=over, middleware=[link]) as ends:
        answer = await ask(ends.channel, kind)
    assert answer.code is Grpc.OK
    assert answer.trailer("from") == ["middleware", "servicer", "servicer again"]
    assert answer.trailer("data-bin") == [b"\x00\xff"]


@OVER
@KINDS
async def test_trailing_metadata_goes_with_a_failure_too(over: Over, kind: Kind) -> None:
    """What was set before an Error is merged with what the Error brings."""

    async def work(context: Context) -> None:
        context.set_trailing_metadata([("from", "servicer")])
        raise Error(Code.NOT_FOUND, "gone", trailers=(("from", "error"),))

    async with pair(serving(kind, method(kind, work)), over=over) as ends:
        answer = await ask(ends.channel, kind)
    assert (answer.code, answer.trailer("from")) == (Grpc.NOT_FOUND, ["servicer", "error"])


@OVER
@KINDS
async def test_initial_metadata_of_all_is_merged(over: Over, kind: Kind) -> None:
    """The middleware's goes out with the servicer's, in one block."""

    async def link(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        call.headers.add("from", "middleware")
        return await next(request, call)

    async def work(context: Context) -> None:
        await context.send_initial_metadata([("from", "servicer")])

    async with pair(serving(kind, method(kind, work)), over=over, middleware=[link]) as ends:
        answer = await ask(ends.channel, kind)
    assert (answer.code, answer.header("from")) == (Grpc.OK, ["middleware", "servicer"])


@OVER
@KINDS
@pytest.mark.parametrize("fails", [False, True])
async def test_initial_metadata_that_nobody_sent_goes_with_the_answer(over: Over, kind: Kind, fails: object) -> None:
    """What only a middleware has set arrives as well, whether the call succeeds or not."""
    if fails:
        needs("headers of a stream without messages", over=over, kind=kind)

    async def link(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        call.headers.add("from", "middleware")
        return await next(request, call)

    async def work(context: Context) -> None:
        if fails:
            await context.abort(Grpc.NOT_FOUND, "")

    async with pair(serving(kind, method(kind, work)), over=over, middleware=[link]) as ends:
        answer = await ask(ends.channel, kind)
    assert answer.header("from") == ["middleware"]


@pytest.mark.parametrize("over", ["socket", "native"])
@KINDS
async def test_a_response_above_the_limit_is_logged_as_what_the_client_gets(
    over: Over, kind: Kind, caplog: pytest.LogCaptureFixture
) -> None:
    """A wire would refuse to send it and answer RESOURCE_EXHAUSTED by itself, below everything that counts and logs."""
    log = Log(caplog)
    large = RESPONSES[kind](payload=bytes(1000)) if kind is not Kind.CLIENT_STREAM else SumResponse(total=1, count=1)

    async def one(_request: object, _context: object) -> Message:
        return large

    async def many(_request: object, _context: object) -> AsyncIterator[Any]:
        yield RESPONSES[kind]()
        yield large

    async with pair(
        serving(kind, many if kind.response_streaming else one),
        over=over,
        middleware=standard(log.telemetry),
        options=[("grpc.max_send_message_length", 3)],
    ) as ends:
        answer = await ask(ends.channel, kind)
    size = large.ByteSize()
    assert (answer.code, answer.details) == (Grpc.RESOURCE_EXHAUSTED, f"the response has {size} bytes, more than 3")
    assert len(answer.messages) == kind.response_streaming
    assert log.line["code"] == "RESOURCE_EXHAUSTED"


@pytest.mark.parametrize("over", ["socket", "native"])
@pytest.mark.parametrize("kind", [Kind.UNARY, Kind.CLIENT_STREAM], ids=lambda kind: kind.value)
async def test_a_response_that_a_link_has_made_too_large_is_not_sent(over: Over, kind: Kind) -> None:
    """What it puts in the place of the servicer's is measured too, and the client told what is wrong."""
    large = EchoResponse(text="a" * 1000)

    async def enlarging(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        await next(request, call)
        return large

    async def one(_request: object, _context: object) -> Message:
        return RESPONSES[kind]()

    async with pair(
        serving(kind, one), over=over, middleware=[enlarging], options=[("grpc.max_send_message_length", 3)]
    ) as ends:
        answer = await ask(ends.channel, kind)
    expected = f"the response has {large.ByteSize()} bytes, more than 3"
    assert (answer.code, answer.details) == (Grpc.RESOURCE_EXHAUSTED, expected)


@OVER
@KINDS
async def test_initial_metadata_is_sent_once(over: Over, kind: Kind) -> None:
    """A second time raises, in the servicer, and says so."""
    needs("headers of a stream without messages", over=over, kind=kind)
    raised: list[RuntimeError] = []

    async def work(context: Context) -> None:
        await context.send_initial_metadata([("a", "1")])
        try:
            await context.send_initial_metadata([("b", "2")])
        except RuntimeError as error:
            raised.append(error)

    async with pair(serving(kind, method(kind, work)), over=over) as ends:
        answer = await ask(ends.channel, kind)
    assert (answer.code, answer.header("a"), answer.header("b")) == (Grpc.OK, ["1"], [])
    assert "sent already" in str(raised[0])


@OVER
@STREAMS
async def test_initial_metadata_after_a_message_is_refused(over: Over, kind: Kind) -> None:
    """The first message takes the headers with it."""
    raised: list[RuntimeError] = []

    async def work(context: Context) -> None:
        try:
            await context.send_initial_metadata([("a", "1")])
        except RuntimeError as error:
            raised.append(error)

    async with pair(serving(kind, method(kind, work, first=1)), over=over) as ends:
        answer = await ask(ends.channel, kind)
    assert answer.code is Grpc.OK
    assert len(raised) == 1


BAD = [
    (("Upper", "x"), ValueError, "'Upper'.*lower-case"),
    (("spa ce", "x"), ValueError, "'spa ce'"),
    (("umlaut", "ä"), ValueError, "'umlaut'.*ASCII"),
    (("line", "a\r\nb: c"), ValueError, "'line'.*ASCII"),
    (("data-bin", "text"), TypeError, "'data-bin'.*bytes"),
    (("data", b"bytes"), TypeError, "'data'.*text"),
    (("grpc-status", "0"), ValueError, "'grpc-status'.*gRPC itself"),
]


@pytest.mark.parametrize(("entry", "kind_of_error", "says"), BAD)
@pytest.mark.parametrize("where", ["set_trailing_metadata", "send_initial_metadata", "abort"])
async def test_metadata_that_cannot_travel_is_refused_where_it_is_written(
    entry: tuple[str, Any], kind_of_error: type[Exception], says: str, where: str
) -> None:
    """The servicer gets an exception that names the key, never the value; the wire would refuse it late and unclearly.

    Left alone it is INTERNAL, like any mistake, also where an abort was meant and its exception is swallowed.
    """
    raised: list[Exception] = []

    async def work(context: Context) -> None:
        try:
            if where == "abort":
                await context.abort(Grpc.NOT_FOUND, "", (entry,))
            elif where == "set_trailing_metadata":
                context.set_trailing_metadata([entry])
            else:
                await context.send_initial_metadata([entry])
        except (ValueError, TypeError) as error:
            raised.append(error)
            if where != "abort":
                raise

    async with pair(serving(Kind.UNARY, method(Kind.UNARY, work))) as ends:
        answer = await ask(ends.channel)
    assert answer.code is Grpc.INTERNAL
    with pytest.raises(kind_of_error, match=says):
        raise raised[0]


@OVER
async def test_metadata_of_an_error_that_cannot_travel_is_left_out(
    over: Over, caplog: pytest.LogCaptureFixture
) -> None:
    """An Error's trailers are checked when it leaves: the code arrives, what is wrong is named in the log."""
    log = Log(caplog)

    async def work(_: object) -> None:
        raise Error(Code.NOT_FOUND, "gone", trailers=(("Upper", "x"), ("fine", "y")))

    async with pair(serving(Kind.UNARY, method(Kind.UNARY, work)), over=over) as ends:
        answer = await ask(ends.channel)
    assert (answer.code, answer.details, answer.trailer("fine")) == (Grpc.NOT_FOUND, "gone", ["y"])
    assert log.text.count("'Upper'") == 1


@OVER
@KINDS
async def test_an_error_arrives_as_it_was_raised(over: Over, kind: Kind) -> None:
    """Code, message, reason, details and retry_after make the round trip, typed."""
    violation = BadRequest(field_violations=[BadRequest.FieldViolation(field="text", description="too long")])

    async def work(_: object) -> None:
        raise Error(
            Code.RESOURCE_EXHAUSTED,
            "slow down",
            reason="QUOTA",
            details=[violation, Duration(seconds=3)],
            retry_after=1.5,
        )

    async with pair(serving(kind, method(kind, work)), over=over) as ends:
        answer = await ask(ends.channel, kind)
    failure = answer.failure
    assert (answer.code, answer.details) == (Grpc.RESOURCE_EXHAUSTED, "slow down")
    assert (failure.reason, failure.retry_after, failure.detail(BadRequest)) == ("QUOTA", 1.5, violation)
    assert answer.trailer("grpc-retry-pushback-ms") == ["1500"]
    packed = failure.detail(AnyMessage)  # not one of google.rpc's: the receiver knows what it is
    assert packed is not None
    assert packed.Is(Duration.DESCRIPTOR)


class Rich(NamedTuple):
    """What ``grpc_status.rpc_status.to_status`` returns."""

    code: Grpc
    details: str
    trailing_metadata: tuple[tuple[str, bytes], ...]


def to_status(rich: RichStatus) -> Rich:
    code = next(code for code in Grpc if code.value[0] == rich.code)
    return Rich(code, rich.message, (("grpc-status-details-bin", rich.SerializeToString()),))


@OVER
async def test_an_error_can_be_read_by_everybody_elses_tools(over: Over) -> None:
    """The details travel in google.rpc.Status, as in every language."""

    async def work(_: object) -> None:
        raise Error(Code.NOT_FOUND, "gone", reason="DELETED")

    async with pair(serving(Kind.UNARY, method(Kind.UNARY, work)), over=over) as ends:
        answer = await ask(ends.channel)
    rich = RichStatus.FromString(answer.trailer("grpc-status-details-bin")[0])
    info = ErrorInfo()
    assert (rich.code, rich.message) == (5, "gone")
    assert rich.details[0].Unpack(info)
    assert info.reason == "DELETED"


@OVER
async def test_a_status_of_grpc_status_arrives(over: Over) -> None:
    """``abort_with_status``, as code written for grpc.aio with grpc_status has it."""
    rich = RichStatus(code=9, message="not now")
    rich.details.add().Pack(ErrorInfo(reason="CLOSED"))

    async def work(context: Context) -> None:
        await context.abort_with_status(to_status(rich))

    async with pair(serving(Kind.UNARY, method(Kind.UNARY, work)), over=over) as ends:
        answer = await ask(ends.channel)
    assert (answer.code, answer.details) == (Grpc.FAILED_PRECONDITION, "not now")
    assert answer.failure.reason == "CLOSED"


def heavy(code: Code) -> Error:
    details = [ErrorInfo(reason="KEPT"), *(DebugInfo(detail="x" * 2000) for _ in range(6))]
    return Error(code, "ж" * 5000, details=details, reason="HEAVY", retry_after=2.0)


@OVER
@KINDS
@pytest.mark.parametrize("by", ["Error", "abort_with_status"])
async def test_details_that_are_too_much_do_not_hide_the_code(over: Over, kind: Kind, by: str) -> None:
    """12,000 bytes of details are cut, last first, before the transport puts RESOURCE_EXHAUSTED in the place of all."""

    async def work(context: Context) -> None:
        error = heavy(Code.NOT_FOUND)
        if by == "Error":
            raise error
        rich = RichStatus(code=5, message=error.message)
        for detail in error.details:
            rich.details.add().Pack(detail)
        await context.abort_with_status(to_status(rich))

    async with pair(serving(kind, method(kind, work)), over=over) as ends:
        answer = await ask(ends.channel, kind)
    assert answer.code is Grpc.NOT_FOUND
    details = answer.trailer("grpc-status-details-bin")[0]
    assert 2000 < len(details) <= 4608
    assert answer.failure.reason == {"Error": "HEAVY", "abort_with_status": "KEPT"}[by]
    assert answer.failure.retry_after == {"Error": 2.0, "abort_with_status": None}[by]


MESSAGES = {
    "empty": ("", ""),
    "unicode": ("größer als 5 €, 100 %\n日本語 🎉", "größer als 5 €, 100 %\n日本語 🎉"),
    "long": ("x" * 5000, "x" * 1015 + "…"),
    "long unicode": ("🎉" * 2000, "🎉" * 84 + "…"),
    "just fits": ("x" * 1024, "x" * 1024),
    "surrogate": ("a\ud800b", "a?b"),
}


@OVER
@pytest.mark.parametrize("which", MESSAGES)
async def test_messages_arrive_whole_or_are_cut(over: Over, which: str) -> None:
    """Any text arrives, and one of which the percent-encoding is too much for the metadata is cut at a character."""
    sent, expected = MESSAGES[which]

    async def work(_: object) -> None:
        raise Error(Code.NOT_FOUND, sent, reason="R")

    async with pair(serving(Kind.UNARY, method(Kind.UNARY, work)), over=over) as ends:
        answer = await ask(ends.channel)
    assert (answer.code, answer.details) == (Grpc.NOT_FOUND, expected)


@OVER
@pytest.mark.parametrize(
    "error",
    [
        Error(Code.NOT_FOUND, "gone", reason="\ud800"),
        Error(Code.NOT_FOUND, "gone", retry_after=float("nan")),
        Error(Code.NOT_FOUND, "gone", retry_after=float("inf")),
        Error(Code.NOT_FOUND, "gone", retry_after=1e30),
        Error(Code.NOT_FOUND, "gone", retry_after=-1e30),
        Error(Code.NOT_FOUND, "gone", reason="X" * 20_000),
        Error(Code.NOT_FOUND, "gone", details=["no message"]),  # type: ignore[list-item]
        Error(Code.NOT_FOUND, "gone", details="no message"),  # type: ignore[arg-type]
        Error(Code.NOT_FOUND, "gone", details=Duration(seconds=3)),  # type: ignore[arg-type]
        Error(Code.NOT_FOUND, "gone", retry_after="5"),  # type: ignore[arg-type]
        Error(Code.NOT_FOUND, "gone", trailers={"a": "b"}),  # type: ignore[arg-type]
        Error(Code.NOT_FOUND, "gone", trailers=None, details=None),  # type: ignore[arg-type]
        Error(Code.NOT_FOUND, "gone", trailers=(None, 5)),  # type: ignore[arg-type]
        Error(Code.NOT_FOUND, "gone", trailers=("a", "b")),  # type: ignore[arg-type]
        Error(Code.NOT_FOUND, "gone", trailers=(("Capital", "b"), ("x",), "")),  # type: ignore[arg-type]
        Error(Grpc.NOT_FOUND, "gone"),  # type: ignore[arg-type]
    ],
)
async def test_a_mistake_in_an_error_does_not_hide_its_code(over: Over, error: Error) -> None:
    """What cannot be sent of an error is left out; the rest arrives."""

    async def work(_: object) -> None:
        raise error

    async with pair(serving(Kind.UNARY, method(Kind.UNARY, work)), over=over) as ends:
        answer = await ask(ends.channel)
    assert (answer.code, answer.details) == (Grpc.NOT_FOUND, "gone")


@OVER
async def test_an_error_that_is_raised_again_takes_nothing_along(over: Over) -> None:
    """One Error object may be raised for many calls: no call's trailing metadata is found in another's."""
    shared = Error(Code.NOT_FOUND, "gone")

    async def forking(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        return await next(request, call.fork())

    async def work(context: Context) -> None:
        context.set_trailing_metadata([("of", current_call().metadata.text("of") or "")])
        raise shared

    async with pair(serving(Kind.UNARY, method(Kind.UNARY, work)), over=over, middleware=[forking]) as ends:
        first = await ask(ends.channel, metadata=[("of", "one")])
        second = await ask(ends.channel, metadata=[("of", "two")])
    assert (first.trailer("of"), second.trailer("of")) == (["one"], ["two"])
    assert shared.trailers == ()


@OVER
@pytest.mark.parametrize(
    ("downstream", "expected"),
    [
        (Grpc.UNAVAILABLE, Grpc.UNAVAILABLE),
        (Grpc.RESOURCE_EXHAUSTED, Grpc.UNAVAILABLE),
        (Grpc.NOT_FOUND, Grpc.INTERNAL),
        (Grpc.PERMISSION_DENIED, Grpc.INTERNAL),
        (Grpc.CANCELLED, Grpc.INTERNAL),
        (Grpc.DEADLINE_EXCEEDED, Grpc.INTERNAL),  # its own, not this call's
    ],
)
@pytest.mark.parametrize("at_once", [0, 1, 2])
async def test_the_failure_of_another_service_is_not_passed_on(
    over: Over, at_once: int, downstream: Grpc, expected: Grpc
) -> None:
    """An AioRpcError that nobody caught says what it means for *this* call, never the other service's words.

    So do several of them, out of a TaskGroup.
    """

    async def fails() -> None:
        raise grpc.aio.AioRpcError(
            downstream, grpc.aio.Metadata(), grpc.aio.Metadata(("secret", "secret")), "secret", "secret"
        )

    async def work(_: object) -> None:
        if not at_once:
            await fails()
        async with asyncio.TaskGroup() as group:
            for _ in range(at_once):
                group.create_task(fails())

    async with pair(serving(Kind.UNARY, method(Kind.UNARY, work)), over=over) as ends:
        answer = await ask(ends.channel)
    assert answer.code is expected
    assert "secret" not in answer.text


@OVER
async def test_failures_of_other_services_that_do_not_agree_are_a_strangers(over: Over) -> None:
    """One that is unavailable and one that knows nothing of it: nobody can say what that means to the client."""

    async def fails(code: Grpc) -> None:
        raise grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), "secret", "secret")

    async def work(_: object) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(fails(Grpc.UNAVAILABLE))
            group.create_task(fails(Grpc.NOT_FOUND))

    async with pair(serving(Kind.UNARY, method(Kind.UNARY, work)), over=over) as ends:
        answer = await ask(ends.channel)
    assert (answer.code, answer.details) == (Grpc.INTERNAL, "internal error")


@OVER
@pytest.mark.parametrize("chained", [False, True])
async def test_an_error_that_is_raised_again_keeps_no_call(over: Over, chained: bool) -> None:  # noqa: FBT001 - a parameter
    """One Error object for many calls gathers no tracebacks, which would keep all that was at work for each of them."""
    shared = Error(Code.NOT_FOUND, "gone")

    async def link(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        return await next(request, call)

    async def work(_: object) -> None:
        raise shared

    async with pair(
        serving(Kind.UNARY, method(Kind.UNARY, work)), over=over, middleware=[link] if chained else []
    ) as ends:
        for _ in range(3):
            assert (await ask(ends.channel)).code is Grpc.NOT_FOUND
    assert shared.__traceback__ is None


async def test_a_deadline_that_was_handed_down_is_this_calls_deadline() -> None:
    """A call made for this one that ends at the deadline it inherited means DEADLINE_EXCEEDED, a little before it is."""

    async def waiting(_request: object, _context: object) -> EchoResponse:
        await asyncio.Event().wait()
        return EchoResponse()

    async with pair(service(Echo=waiting)) as behind:

        async def echo(_request: object, _context: object) -> EchoResponse:
            response: EchoResponse = await EchoServiceStub(behind.channel).Echo(EchoRequest())
            return response

        async with pair(service(Echo=echo), network=behind.network, clock=behind.movable) as ends:
            asking = asyncio.ensure_future(ask(ends.channel, timeout=1.0))
            await ends.clock.advance(0.95)
            answer = await asking
    assert (answer.code, answer.details) == (Grpc.DEADLINE_EXCEEDED, "deadline exceeded")


@OVER
async def test_writing_more_than_the_one_response_is_a_mistake(over: Over) -> None:
    """A method with one response that also writes one does not confuse the client with two."""

    async def echo(_request: object, context: Context) -> EchoResponse:
        await context.write(EchoResponse(text="one"))
        return EchoResponse(text="two")

    async with pair(service(Echo=echo), over=over) as ends:
        answer = await ask(ends.channel)
    assert answer.code is Grpc.INTERNAL
    assert answer.messages == []


def _is_echo(method: Method) -> bool:
    return method.name == "Echo"


@OVER
async def test_a_refusal_by_a_link_is_an_answer_like_any_other(over: Over) -> None:
    """An Error out of a middleware arrives whole, and the servicer does not run."""
    ran: list[str] = []

    async def refusing(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        raise Error(Code.UNAVAILABLE, "not now", retry_after=0.25)

    async def echo(_request: object, _context: object) -> EchoResponse:
        ran.append("echo")
        return EchoResponse()

    async def expand(_request: ExpandRequest, context: Context) -> None:
        await context.write(ExpandResponse())

    async with pair(service(Echo=echo, Expand=expand), over=over, middleware=[only(_is_echo, refusing)]) as ends:
        answer = await ask(ends.channel)
        other = await ask(ends.channel, Kind.SERVER_STREAM)
    assert (answer.code, answer.failure.retry_after, ran) == (Grpc.UNAVAILABLE, 0.25, [])
    assert other.messages == [ExpandResponse()]


class Several(ExceptionGroup[Exception]):
    pass


@OVER
async def test_a_group_means_what_is_said_of_itself_first(over: Over) -> None:
    """What the servicer has set, or a rule for its class; what its members agree on comes after that."""

    async def echo(request: EchoRequest, context: Context) -> EchoResponse:
        if request.text == "set":
            context.set_code(Grpc.NOT_FOUND)
            context.set_details("gone")
        group = Several if request.text == "mapped" else ExceptionGroup
        raise group("group", [KeyError("x"), KeyError("y")])

    errors = {Several: Code.ABORTED, KeyError: Code.OUT_OF_RANGE}
    async with pair(service(Echo=echo), over=over, errors=errors) as ends:
        answers = [await ask(ends.channel, requests=[EchoRequest(text=text)]) for text in ("set", "mapped", "plain")]
    assert [answer.code for answer in answers] == [Grpc.NOT_FOUND, Grpc.ABORTED, Grpc.OUT_OF_RANGE]
