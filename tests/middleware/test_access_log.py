"""One line for each call, however it ended."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator

import pytest
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from servicekit.call import Call, Side
from servicekit.clock import MovableClock
from servicekit.endpoint import Endpoint, Message, chain, only
from servicekit.errors import By, Code, Error
from servicekit.method import Kind
from servicekit.middleware import AccessLog, Recovery, RequestId, Tracing
from servicekit.telemetry import Level, Telemetry
from servicekit.testing import make_call, run, scripted, sends, waits

from .probes import Log
from .spans import Spans, ids

CANARY = "canary-" + "51c0"


async def test_a_call_that_went_well() -> None:
    """A call that returned is one line at level info, with what an operator asks for first."""
    log, clock = Log(), MovableClock()
    call = make_call(clock=clock, peer="ipv4:10.0.0.1:4711", deadline=clock.time() + 1.0)
    running = asyncio.create_task(run(AccessLog(log.telemetry), scripted(waits(0.25, "ok")), "hi", call))
    await clock.advance(0.25)
    await running
    line = log.line
    assert isinstance(line.pop("timestamp"), str)
    assert line == {
        "level": "info",
        "event": "rpc",
        "method": "/test.Service/Method",
        "kind": "unary",
        "side": "server",
        "code": "OK",
        "duration_ms": 250.0,
        "received": 1,
        "sent": 1,
        "peer": "ipv4:10.0.0.1:4711",
        "remaining_ms": 750.0,
    }


@pytest.mark.parametrize(
    ("kind", "side", "received", "sent"),
    [
        (Kind.UNARY, Side.SERVER, 1, 1),
        (Kind.CLIENT_STREAM, Side.SERVER, 3, 1),
        (Kind.SERVER_STREAM, Side.SERVER, 1, 2),
        (Kind.BIDI_STREAM, Side.SERVER, 3, 2),
        (Kind.UNARY, Side.CLIENT, 1, 1),
        (Kind.CLIENT_STREAM, Side.CLIENT, 1, 3),
        (Kind.SERVER_STREAM, Side.CLIENT, 2, 1),
        (Kind.BIDI_STREAM, Side.CLIENT, 2, 3),
    ],
)
async def test_counts_messages(kind: Kind, side: Side, received: int, sent: int) -> None:
    """``received`` and ``sent`` count messages as this side sees them, for every kind."""
    log = Log()
    request = ["a", "b", "c"] if kind.request_streaming else "a"
    outcome = sends("x", "y") if kind.response_streaming else "x"
    await run(AccessLog(log.telemetry), scripted(outcome), request, make_call(kind=kind, side=side))
    assert (log.line["received"], log.line["sent"]) == (received, sent)
    assert (log.line["kind"], log.line["side"]) == (kind.value, side.value)


async def test_counts_what_got_through_before_the_end() -> None:
    """A stream that broke has the messages that had been sent by then."""
    log = Log()
    call = make_call(kind=Kind.SERVER_STREAM)
    with pytest.raises(Error):
        await run(AccessLog(log.telemetry), scripted(sends("x", "y", then=Error(Code.ABORTED))), "a", call)
    assert (log.line["code"], log.line["sent"]) == ("ABORTED", 2)


LEVELS = {
    Code.INTERNAL: "error",
    Code.UNKNOWN: "error",
    Code.DATA_LOSS: "error",
    Code.DEADLINE_EXCEEDED: "warning",
    Code.UNAVAILABLE: "warning",
    Code.RESOURCE_EXHAUSTED: "warning",
}


@pytest.mark.parametrize("code", [code for code in Code if code is not Code.OK])
async def test_the_level_tells_how_bad_it_is(code: Code) -> None:
    """What nobody did on purpose is an error, what time and load did a warning, all else info."""
    log = Log()
    with pytest.raises(Error):
        await run(AccessLog(log.telemetry), scripted(Error(code, "why", reason="WHY")), "hi", make_call())
    line = log.line
    assert (line["level"], line["code"]) == (LEVELS.get(code, "info"), code.name)
    assert (line["error"], line["reason"]) == ("why", "WHY")
    assert "exception" not in line


async def test_an_unexpected_exception_has_its_traceback_in_the_line() -> None:
    """Behind Recovery the line has the id that the client got, the exception's type and the full traceback."""
    log = Log()
    with pytest.raises(Error) as caught:
        await run([AccessLog(log.telemetry), Recovery()], scripted(ValueError(CANARY)), "hi", make_call())
    line = log.line
    assert (line["level"], line["code"], line["error"]) == ("error", "INTERNAL", "internal error")
    assert ("x-error-id", line["error_id"]) in caught.value.trailers
    assert line["error_type"] == "ValueError"
    assert str(line["exception"]).startswith("Traceback (most recent call last):")
    assert str(line["exception"]).endswith(f"ValueError: {CANARY}")
    assert log.text.count(CANARY) == 1
    assert log.text.count("\n") == 1


async def test_an_unexpected_exception_without_recovery() -> None:
    """A stranger that passes is logged as INTERNAL, with its traceback, and goes on."""
    log = Log()
    with pytest.raises(ZeroDivisionError):
        await run(AccessLog(log.telemetry), scripted(ZeroDivisionError(CANARY)), "hi", make_call(side=Side.CLIENT))
    assert (log.line["level"], log.line["code"], log.line["error_type"]) == ("error", "INTERNAL", "ZeroDivisionError")
    assert log.text.count(CANARY) == 1


async def test_says_that_the_reason_is_written_down() -> None:
    """``call.logged`` is set when the line has the traceback under the client's id, and only then."""
    observer, recovery = AccessLog(Log().telemetry), Recovery()
    for link, outcome, logged in (
        (chain(observer, recovery), ValueError(), True),
        (chain(observer, recovery), Error(Code.INTERNAL), False),
        (chain(observer), ValueError(), False),
    ):
        call = make_call()
        with pytest.raises(Error):
            await run(link, scripted(outcome), "hi", call)
        assert call.logged is logged


async def test_a_mapped_exception_has_its_type_but_no_traceback() -> None:
    """What the business raised on purpose is no accident: its type is enough."""
    log = Log()
    with pytest.raises(Error):
        await run(
            [AccessLog(log.telemetry), Recovery({KeyError: Code.NOT_FOUND})],
            scripted(KeyError("k1")),
            "hi",
            make_call(),
        )
    assert (log.line["code"], log.line["error_type"]) == ("NOT_FOUND", "KeyError")
    assert "exception" not in log.line


async def test_an_error_that_came_over_the_wire() -> None:
    """On the client the line says who ended the call, and has the server's id, but no traceback of our own."""
    log = Log()
    error = Error(Code.INTERNAL, "internal error", by=By.PEER, trailers=(("x-error-id", "abc"),))
    error.__cause__ = ConnectionError("lower down")
    with pytest.raises(Error):
        await run(AccessLog(log.telemetry), scripted(error), "hi", make_call(side=Side.CLIENT))
    line = log.line
    assert (line["by"], line["error_id"], line["error_type"]) == ("peer", "abc", "ConnectionError")
    assert "exception" not in line


@pytest.mark.parametrize("kind", list(Kind))
async def test_a_cancelled_call(kind: Kind) -> None:
    """A call that the client left is one line, CANCELLED, at level info, and stays cancelled."""
    log = Log()
    request = ["hi"] if kind.request_streaming else "hi"
    running = asyncio.create_task(run(AccessLog(log.telemetry), scripted(waits()), request, make_call(kind=kind)))
    await asyncio.sleep(0.01)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert (log.line["code"], log.line["level"]) == ("CANCELLED", "info")
    assert "error" not in log.line


class Stuck:
    """A middleware in which the deadline finds the call: the cancellation passes through no endpoint."""

    async def __call__(self, request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        await asyncio.Event().wait()
        return await next(request, call)


@pytest.mark.parametrize("links", [[], [Stuck()]])
async def test_a_deadline_is_told_from_a_cancellation(links: list[Stuck]) -> None:
    """A call that ran out of time is one line, DEADLINE_EXCEEDED, wherever the end found it."""
    log, clock = Log(), MovableClock()
    call = make_call(clock=clock, deadline=clock.time() + 1.0)
    running = asyncio.create_task(run([AccessLog(log.telemetry), *links], scripted(waits()), "hi", call))
    await clock.advance(1.0)
    with pytest.raises(Error) as caught:
        await running
    assert caught.value.code is Code.DEADLINE_EXCEEDED
    line = log.line
    assert (line["code"], line["level"], line["remaining_ms"]) == ("DEADLINE_EXCEEDED", "warning", 0.0)
    assert line["error"] == "deadline exceeded"


async def test_a_wires_own_deadline_is_told_from_a_cancellation() -> None:
    """Where the wire cancels the task when time is over, without a word to the call, the clock tells."""
    log, clock = Log(), MovableClock()
    call = make_call(clock=clock, deadline=clock.time())

    async def cancelled(_request: Message, _call: Call) -> Message:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await AccessLog(log.telemetry)("hi", call, cancelled)
    assert log.line["code"] == "DEADLINE_EXCEEDED"


async def test_a_call_ended_by_a_middleware() -> None:
    """``call.end`` with an error of any kind is the line's outcome, with the traceback if it was no Error."""
    log = Log()
    call = make_call()
    running = asyncio.create_task(run([AccessLog(log.telemetry), Stuck()], scripted("ok"), "hi", call))
    await asyncio.sleep(0.01)
    call.end(OSError("disk"))
    with pytest.raises(Error, match="internal error"):
        await running
    assert (log.line["code"], log.line["error_type"]) == ("INTERNAL", "OSError")
    assert "disk" in str(log.line["exception"])


async def test_the_request_id_is_in_the_line() -> None:
    """Inside RequestId the line has the call's id."""
    log = Log()
    call = make_call(metadata=[("x-request-id", "abc")])
    await run([RequestId(), AccessLog(log.telemetry)], scripted("ok"), "hi", call)
    assert log.line["request_id"] == "abc"


async def test_what_is_not_known_is_not_there() -> None:
    """Without a peer, an id or a deadline the line has no such fields."""
    log = Log()
    await run(AccessLog(log.telemetry), scripted("ok"), "hi", make_call(peer=""))
    assert not {"peer", "request_id", "remaining_ms", "attempts", "path"} & log.line.keys()


async def test_attempts_are_one_line() -> None:
    """A call that was tried several times is one line that says so, with the messages of all attempts."""

    async def twice(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        try:
            return await next(request, call.fork())
        except Error:
            return await next(request, call.fork())

    log = Log()
    endpoint = scripted(Error(Code.UNAVAILABLE), "ok")
    await run([AccessLog(log.telemetry), twice], endpoint, "hi", make_call(side=Side.CLIENT))
    assert (log.line["code"], log.line["attempts"], log.line["sent"], log.line["received"]) == ("OK", 2, 2, 1)


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("/a.B/C", "/a.B/C"),
        ('/a"\n{"event": "forged"}', r'/a"\n{"event": "forged"}'),
        ("/\x1b[2Jx\x00", r"/\x1b[2Jx\x00"),
        ("/a\u2028b\u202e\x9b", r"/a\u2028b\u202e\x9b"),
        ("/\udc80", r"/\udc80"),
        ("/" + "a" * 5000, "/" + "a" * 127 + "..."),
    ],
)
async def test_an_unknown_methods_path_cannot_forge_a_line(path: str, shown: str) -> None:
    """Every unknown method has one name in the log; what was asked for is escaped, cut short, and in its own field."""
    log = Log()
    call = make_call(known=False, path=path)
    with pytest.raises(Error):
        await run(AccessLog(log.telemetry), scripted(Error(Code.UNIMPLEMENTED, "unknown method")), "hi", call)
    assert log.line["method"] == "/test.Service/Method"
    assert log.line["path"] == shown
    assert log.text.isascii()


async def test_nothing_of_messages_and_metadata() -> None:
    """Neither messages nor metadata are in the line, on either side and whatever happens."""
    for side in Side:
        for outcome in (CANARY, Error(Code.ABORTED, "why", details=[], headers=(("h", CANARY),))):
            log = Log()
            call = make_call(side=side, metadata=[("authorization", CANARY)])
            call.trailers.add("t", CANARY)
            await asyncio.gather(run(AccessLog(log.telemetry), scripted(outcome), CANARY, call), return_exceptions=True)
            assert log.line["event"] == "rpc"
            assert CANARY not in log.text


async def test_health_is_quiet_but_for_its_faults() -> None:
    """The server's own methods are at debug, also when they were cancelled or late; their faults are errors."""
    outcomes = ["ok", Error(Code.UNAVAILABLE), Error(Code.INTERNAL)]
    log = Log()
    for outcome in outcomes:
        await asyncio.gather(
            run(AccessLog(log.telemetry), scripted(outcome), "hi", make_call(auxiliary=True)), return_exceptions=True
        )
    assert [line["level"] for line in log.lines] == ["debug", "debug", "error"]
    assert [await count_of("info", outcome) for outcome in outcomes] == [0, 0, 1]


async def count_of(level: Level, outcome: Message, auxiliary: Level | None = "debug") -> int:
    log = Log(level)
    call = make_call(auxiliary=True)
    await asyncio.gather(
        run(AccessLog(log.telemetry, auxiliary=auxiliary), scripted(outcome), "hi", call), return_exceptions=True
    )
    return len(log.lines)


async def test_health_can_be_heard_or_silenced() -> None:
    """``auxiliary`` is the level of those lines; None leaves them out, but for the faults."""
    assert await count_of("info", "ok", "info") == 1
    assert await count_of("debug", "ok", None) == 0
    assert await count_of("debug", Error(Code.INTERNAL), None) == 1


async def test_lines_below_the_level_are_not_made() -> None:
    """At level warning a call that went well has no line, and one that did not has."""
    log = Log("warning")
    await run(AccessLog(log.telemetry), scripted("ok"), "hi", make_call())
    assert log.lines == []
    with pytest.raises(Error):
        await run(AccessLog(log.telemetry), scripted(Error(Code.UNAVAILABLE)), "hi", make_call())
    assert log.line["level"] == "warning"


class Broken(io.BytesIO):
    """A pipe that nobody reads any more."""

    def write(self, data: object, /) -> int:
        raise BrokenPipeError(32, "Broken pipe")


async def test_a_broken_stream_fails_no_call() -> None:
    """A log that cannot be written costs the line, not the call; and the error of a call stays its own."""
    telemetry = Telemetry(log="json", stream=Broken())
    assert await run(AccessLog(telemetry), scripted("ok"), "hi", make_call()) == "ok"
    with pytest.raises(Error) as caught:
        await run(AccessLog(telemetry), scripted(Error(Code.NOT_FOUND)), "hi", make_call())
    assert caught.value.code is Code.NOT_FOUND
    assert telemetry.lost == 2


async def test_a_logger_that_raises_fails_no_call() -> None:
    """Nor does a logger of somebody's own that raises."""

    class Raising:
        def debug(self, event: str, /, **fields: object) -> None:
            raise RuntimeError(event)

        info = warning = error = debug

    assert await run(AccessLog(Telemetry(log=Raising())), scripted("ok"), "hi", make_call()) == "ok"


async def test_a_reader_that_never_comes_is_no_line_yet() -> None:
    """The line is written when the call ends, not before."""
    log, clock = Log(), MovableClock()

    async def never() -> AsyncIterator[str]:
        yield "a"
        await asyncio.Event().wait()

    call = make_call(kind=Kind.CLIENT_STREAM, clock=clock, deadline=clock.time() + 5)
    running = asyncio.create_task(run(AccessLog(log.telemetry), scripted("ok"), never(), call))
    await clock.advance(4.9)
    assert log.lines == []
    await clock.advance(0.1)
    with pytest.raises(Error):
        await running
    assert (log.line["code"], log.line["received"]) == ("DEADLINE_EXCEEDED", 1)


async def test_only_some_methods() -> None:
    """Inside ``only`` other methods have no line."""
    log = Log()
    for match in ("/test.Service/Other", "/test.Service/Method"):
        await run(only(match, AccessLog(log.telemetry)), scripted("ok"), "hi", make_call())
    assert len(log.lines) == 1


async def test_a_recorded_span_is_named() -> None:
    """While a span is recorded the line has its trace and span; of one that is not sampled it says nothing."""
    for sampled in (True, False):
        log, spans = Log(), Spans() if sampled else Spans(ALWAYS_OFF)
        await run([Tracing(spans.telemetry), AccessLog(log.telemetry)], scripted("ok"), "hi", make_call())
        line = log.line
        if sampled:
            assert line["trace_id"] == f"{ids(spans.one).trace_id:032x}"
            assert line["span_id"] == f"{ids(spans.one).span_id:016x}"
        else:
            assert not {"trace_id", "span_id"} & line.keys()


async def test_few_of_the_calls_that_went_well() -> None:
    """``success_ratio`` of them have a line, drawn by the clock; of the others every one."""
    log, clock = Log(), MovableClock()
    link = AccessLog(log.telemetry, success_ratio=0.1)
    for _ in range(1000):
        await run(link, scripted("ok"), "hi", make_call(clock=clock))
    assert 70 <= len(log.lines) <= 130
    before = len(log.lines)
    for code in (Code.NOT_FOUND, Code.INTERNAL):
        for _ in range(20):
            with pytest.raises(Error):
                await run(link, scripted(Error(code)), "hi", make_call(clock=clock))
    assert len(log.lines) == before + 40


async def test_none_or_all_of_the_calls_that_went_well() -> None:
    """0.0 leaves all of them out, 1.0 none."""
    for ratio, count in ((0.0, 0), (1.0, 50)):
        log = Log()
        for _ in range(50):
            await run(AccessLog(log.telemetry, success_ratio=ratio), scripted("ok"), "hi", make_call())
        assert len(log.lines) == count


@pytest.mark.parametrize(
    ("kind", "code", "seconds", "level"),
    [
        (Kind.UNARY, Code.OK, 1.0, "warning"),
        (Kind.CLIENT_STREAM, Code.OK, 1.5, "warning"),
        (Kind.UNARY, Code.NOT_FOUND, 1.0, "warning"),
        (Kind.UNARY, Code.INTERNAL, 1.0, "error"),
        (Kind.UNARY, Code.OK, 0.9, None),
        (Kind.UNARY, Code.NOT_FOUND, 0.9, "info"),
        (Kind.SERVER_STREAM, Code.OK, 60.0, None),
        (Kind.BIDI_STREAM, Code.NOT_FOUND, 60.0, "info"),
    ],
)
async def test_a_slow_call(kind: Kind, code: Code, seconds: float, level: Level | None) -> None:
    """One that took ``slow`` seconds has a line, marked, at "warning" at least; streams of responses may last."""
    log, clock = Log(), MovableClock()
    link = AccessLog(log.telemetry, slow=1.0, success_ratio=0.0)
    outcome = waits(seconds, sends() if kind.response_streaming else "ok")
    if code is not Code.OK:
        outcome = waits(seconds, Error(code))
    request = ["hi"] if kind.request_streaming else "hi"
    running = asyncio.create_task(run(link, scripted(outcome), request, make_call(kind=kind, clock=clock)))
    await clock.advance(seconds)
    await asyncio.gather(running, return_exceptions=True)
    assert [line["level"] for line in log.lines] == ([] if level is None else [level])
    slow = seconds >= 1.0 and not kind.response_streaming
    assert ["slow" in line for line in log.lines] == ([] if level is None else [slow])


async def test_health_is_never_slow() -> None:
    """The server's own methods stay at their level, however long they took."""
    log, clock = Log(), MovableClock()
    link = AccessLog(log.telemetry, slow=1.0)
    running = asyncio.create_task(run(link, scripted(waits(9.0, "ok")), "hi", make_call(clock=clock, auxiliary=True)))
    await clock.advance(9.0)
    await running
    assert (log.line["level"], "slow" in log.line) == ("debug", False)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"success_ratio": 1.1}, "success_ratio=1.1"),
        ({"success_ratio": -0.1}, "success_ratio=-0.1"),
        ({"success_ratio": float("nan")}, "success_ratio=nan"),
        ({"slow": 0}, "slow=0"),
        ({"slow": float("inf")}, "slow=inf"),
    ],
)
def test_refuses_what_is_no_share_or_time(settings: dict[str, float], named: str) -> None:
    """A wrong figure is refused where it is written, by name."""
    with pytest.raises(ValueError, match=named):
        AccessLog(Log().telemetry, **settings)  # type: ignore[arg-type]  # not the level


def test_refuses_a_level_that_does_not_exist() -> None:
    """A wrong level is refused where it is written, by name."""
    with pytest.raises(ValueError, match="auxiliary='trace'"):
        AccessLog(Log().telemetry, auxiliary="trace")  # type: ignore[arg-type]  # on purpose


def test_repr() -> None:
    """The settings can be read in a chain's repr."""
    text = "AccessLog(telemetry=Telemetry(log='json', level='debug'), auxiliary='debug', "
    text += "success_ratio=1.0, slow=None)"
    assert repr(AccessLog(Log().telemetry)) == text
