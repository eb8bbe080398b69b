"""What became of a call: every attempt, why it failed, what the links decided and how long they let it wait."""

from __future__ import annotations

import asyncio
import copy
import pickle
from collections.abc import Callable

import grpc
import pytest

from servicekit import CallError, Code, Error, report
from servicekit.call import Call, Side
from servicekit.endpoint import Endpoint, Message
from servicekit.errors import Attempt, CallReport
from servicekit.method import Kind
from servicekit.middleware.access_log import AccessLog
from servicekit.middleware.circuit_breaker import CircuitBreaker
from servicekit.middleware.hedge import Hedge
from servicekit.middleware.rate_limit import RateLimit
from servicekit.middleware.retry import Retry
from servicekit.policy.backoff import Backoff
from servicekit.policy.budget import Budget
from servicekit.testing import make_call, pair
from servicekit.testing.pair import Over
from tests.middleware.probes import Log

from .clients import (
    ANSWERS,
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
)

ALL = ["/servicekit.testing.v1.EchoService/*"]


def retry() -> Retry:
    return Retry(idempotent=ALL, backoff=Backoff(first=0.002))


async def finished(call: Untyped, kind: Kind, over: Over, clock: Callable[[], Untyped]) -> list[object]:
    """Take all answers; over memory, time has to be moved."""
    finishing = asyncio.ensure_future(finish(call, kind))
    if over == "memory":
        await clock().advance(60.0)
    return await finishing


def short(told: CallReport) -> list[tuple[int, str, Code | None, str, bool]]:
    """Each attempt without its times."""
    return [(each.number, each.again, each.code, each.message, each.begun) for each in told.attempts]


def decided(told: CallReport) -> list[tuple[str, str]]:
    return [(each.link, each.decision) for each in told.decisions]


@both
@every_kind
async def test_a_failed_call_tells_of_every_attempt(kind: Kind, over: Over) -> None:
    """The error, its ``error``, copies of it and the call object tell the same."""
    flaky = Flaky(times=9, after=1 if kind.request_streaming else 0)
    async with pair(flaky.register, over=over, client=[retry()]) as ends:
        call = begin(ends.channel, kind)
        with pytest.raises(CallError) as caught:
            await finished(call, kind, over, lambda: ends.clock)
    told = report(caught.value)
    assert short(told) == [
        (1, "", Code.UNAVAILABLE, "attempt 1", True),
        (2, "retry", Code.UNAVAILABLE, "attempt 2", True),
        (3, "retry", Code.UNAVAILABLE, "attempt 3", True),
    ]
    assert decided(told) == [("retry", "retried"), ("retry", "retried"), ("retry", "exhausted")]
    starts = [each.started for each in told.attempts]
    assert starts == sorted(starts)
    assert told.seconds >= starts[-1] + told.attempts[-1].seconds
    assert [link for link, _ in told.waited] == ["retry"]
    assert told.waited[0][1] == pytest.approx(sum(each.waited for each in told.attempts))
    assert told == caught.value.report == report(caught.value.error) == report(call)
    for again in (pickle.loads(pickle.dumps(caught.value)), copy.copy(caught.value), copy.deepcopy(caught.value)):
        assert report(again) == told
        assert ("attempt", "3") in again.error.trailers


@both
@every_kind
async def test_a_call_that_went_well_tells_too(kind: Kind, over: Over) -> None:
    """Of what went wrong on the way, when it is over."""
    flaky = Flaky(after=1 if kind.request_streaming else 0)
    async with pair(flaky.register, over=over, client=[retry()]) as ends:
        call = begin(ends.channel, kind)
        assert await finished(call, kind, over, lambda: ends.clock) == ANSWERS[kind]
        await call.code()
        told = report(call)
        assert report(call) == told
    assert short(told) == [(1, "", Code.UNAVAILABLE, "attempt 1", True), (2, "retry", Code.OK, "", True)]
    if over == "memory":
        assert told.instances == (f"memory:{ends.server.addresses[0]}",)


@every_kind
async def test_a_call_of_one_attempt(kind: Kind) -> None:
    """Without any link there is one attempt all the same."""
    async with pair(echo()) as ends:
        call = begin(ends.channel, kind)
        await finish(call, kind)
        await call.code()
        assert short(report(call)) == [(1, "", Code.OK, "", True)]


@every_kind
async def test_a_call_under_way_tells_so(kind: Kind) -> None:
    """Its attempt has no code yet, and time runs on; a cancelled one was cancelled."""
    held = Held()
    async with pair(echo(**all_methods(held.method))) as ends:
        call = begin(ends.channel, kind)
        await ends.clock.advance(2.0)
        (attempt,) = report(call).attempts
        assert (attempt.code, attempt.seconds) == (None, 2.0)
        await ends.clock.advance(1.0)
        assert report(call).seconds == 3.0
        call.cancel()
        await ends.clock.advance(0.0)
        assert short(report(call)) == [(1, "", Code.CANCELLED, "CancelledError", True)]


@every_kind
async def test_a_deadline_tells_how_far_the_call_came(kind: Kind) -> None:
    """The attempt that ran into it is in the report, and what it waited for before."""
    held = Held()
    async with pair(echo(**all_methods(held.method)), client=[retry()]) as ends:
        call = begin(ends.channel, kind, timeout=2.0)
        await ends.clock.advance(3.0)
        with pytest.raises(CallError) as caught:
            await finish(call, kind)
    (attempt,) = report(caught.value).attempts
    assert (attempt.number, attempt.code, attempt.seconds) == (1, Code.DEADLINE_EXCEEDED, 2.0)


async def test_times_are_those_of_the_clock() -> None:
    """Between the attempts lies what the server asked for, and the report says who waited for it."""
    times = iter([Error(Code.UNAVAILABLE, "later", reason="BUSY", retry_after=3.0, begun=False), None])

    async def once(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        await call.clock.sleep(0.5)
        error = taken()
        if error is not None:
            raise error
        return await next(request, call)

    def taken() -> Error | None:
        return next(times)

    async with pair(echo(), middleware=[once], client=[retry()]) as ends:
        call = begin(ends.channel, Kind.UNARY)
        finishing = asyncio.ensure_future(finish(call, Kind.UNARY))
        await ends.clock.advance(10.0)
        await finishing
        told = report(call)
    assert [(each.started, each.seconds, each.waited) for each in told.attempts] == [(0.0, 0.5, 0.0), (3.5, 0.5, 3.0)]
    assert (told.attempts[0].reason, told.attempts[0].retry_after) == ("BUSY", 3.0)
    assert [(each.decision, each.after) for each in told.decisions] == [("retried", 0.5)]
    assert (told.waited, told.seconds) == ((("retry", 3.0),), 4.0)


async def test_an_attempt_starts_when_it_is_handed_to_the_wire() -> None:
    """What a link makes it wait for before is that link's time, also where the deadline ends the wait."""
    limit = RateLimit(per_second=1.0, wait=True)
    async with pair(echo(), client=[limit]) as ends:
        await ask(ends.channel, Kind.UNARY)
        call = begin(ends.channel, Kind.UNARY)
        await ends.clock.advance(1.0)
        await call
        told = report(call)
        cut = begin(ends.channel, Kind.UNARY)
        await ends.clock.advance(0.25)
        cut.cancel()
        await ends.clock.advance(0.0)
    assert [(each.started, each.seconds) for each in told.attempts] == [(1.0, 0.0)]
    assert told.waited == (("rate_limit", 1.0),)
    assert (report(cut).attempts, report(cut).waited) == ((), (("rate_limit", 0.25),))


async def test_a_refused_call_tells_who_refused_it() -> None:
    """No attempt reached the wire: the decision says why."""
    async with pair(Flaky(times=9).register, client=[CircuitBreaker(calls=1)]) as ends:
        with pytest.raises(grpc.aio.AioRpcError):
            await begin(ends.channel, Kind.UNARY)
        with pytest.raises(CallError) as caught:
            await begin(ends.channel, Kind.UNARY)
    told = report(caught.value)
    assert (told.attempts, decided(told)) == ((), [("circuit_breaker", "refused")])


async def test_an_attempt_that_a_link_refuses_is_a_decision() -> None:
    """It was never on the wire: its number is missing from the row."""
    async with pair(Flaky(times=9).register, client=[retry(), CircuitBreaker(calls=1)]) as ends:
        with pytest.raises(CallError) as caught:
            await finished(begin(ends.channel, Kind.UNARY), Kind.UNARY, "memory", lambda: ends.clock)
    told = report(caught.value)
    assert [(each.number, each.message) for each in told.attempts] == [(1, "attempt 1"), (3, "attempt 2")]
    assert ("circuit_breaker", "refused") in decided(told)


async def test_a_hedge_tells_of_both() -> None:
    """The winner and the one that was cancelled, and how long the first was given."""
    count = 0

    async def hangs_once(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        nonlocal count
        count += 1
        if count == 101:
            await asyncio.Event().wait()
        return await next(request, call)

    link = Hedge(budget=Budget(), idempotent=ALL)
    async with pair(echo(), middleware=[hangs_once], client=[link]) as ends:
        for _ in range(100):
            await ask(ends.channel, Kind.UNARY)
        call = begin(ends.channel, Kind.UNARY)
        await ends.clock.advance(0.01)
        await call
        told = report(call)
    assert [(each.again, each.waited, each.code) for each in told.attempts] == [
        ("", 0.0, Code.CANCELLED),
        ("hedge", pytest.approx(link.least), Code.OK),
    ]
    assert decided(told) == [("hedge", "sent"), ("hedge", "won")]


async def test_a_link_can_ask_while_the_call_is_under_way() -> None:
    """Of the call or of an attempt: the report is that of the call."""
    seen: list[CallReport] = []

    async def asking(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        try:
            return await next(request, call)
        finally:
            seen.append(report(call))

    async with pair(Flaky().register, client=[asking, retry(), asking]) as ends:
        await finished(begin(ends.channel, Kind.UNARY), Kind.UNARY, "memory", lambda: ends.clock)
    assert [[each.code for each in told.attempts] for told in seen] == [
        [Code.UNAVAILABLE],
        [Code.UNAVAILABLE, Code.OK],
        [Code.UNAVAILABLE, Code.OK],
    ]


@both
@every_kind
async def test_it_holds_no_secret(kind: Kind, over: Over) -> None:
    """Neither metadata, nor what an exception says that was not meant for others."""
    canary = "hunter2-" + "canary"

    async def broken(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        call.metadata.set("authorization", canary)
        call.on_received(fails)
        call.on_sent(fails)
        return await next(request, call)

    def fails(_message: object, _size: int) -> None:
        raise LookupError(canary)

    async with pair(echo(), over=over, client=[retry(), broken]) as ends:
        call = begin(ends.channel, kind, metadata=[("token", canary)])
        with pytest.raises(LookupError):
            await finish(call, kind)
        told = report(call)
    assert [(each.code, each.message) for each in told.attempts] == [(Code.UNKNOWN, "LookupError")]
    assert canary not in repr(told) + str(told)


async def test_the_access_log_has_it_where_there_was_more_than_one_attempt() -> None:
    """One line, with each attempt and why it failed."""
    log = Log()
    async with pair(Flaky(times=9).register, client=[AccessLog(log.telemetry), retry()]) as ends:
        with pytest.raises(CallError) as caught:
            await finished(begin(ends.channel, Kind.UNARY), Kind.UNARY, "memory", lambda: ends.clock)
    assert str(log.line["report"]).startswith("/servicekit.testing.v1.EchoService/Echo in ")
    assert "attempt 3" in str(log.line["report"])
    assert str(log.line["report"]) == str(report(caught.value))


def test_a_server_notes_nothing() -> None:
    """Nobody can ask there: a stream that lasts for days would only gather."""
    call = make_call(side=Side.SERVER)
    call.decide("rate_limit", "waited")
    with call.waiting("rate_limit") as wait:
        pass
    assert (call.notes, wait.seconds) == ((), 0.0)


def test_it_reads_as_one_line() -> None:
    """In the order of time, for a log."""
    first = Attempt(instance="a:1", code=Code.UNAVAILABLE, message="do\nwn", reason="GONE", begun=False, seconds=0.002)
    second = Attempt(number=2, again="retry", waited=0.05, code=Code.OK, started=0.052, seconds=0.003)
    third = Attempt(number=3, code=Code.ABORTED, message="x" * 999, retry_after=1.5, started=0.06)
    told = CallReport(method="/a.B/Get", attempts=(first, second), waited=(("retry", 0.05),), seconds=0.055)
    assert str(told) == (
        "/a.B/Get in 55.0 ms: attempt 1 at a:1: UNAVAILABLE 'do\\nwn' GONE, never begun, in 2.0 ms; "
        "attempt 2 (retry after 50.0 ms): OK in 3.0 ms; retry waited 50.0 ms"
    )
    assert str(third) == f"attempt 3: ABORTED '{'x' * 200}…', come back after 1500.0 ms, in 0.0 ms"
    assert str(CallReport(method="/a.B/Get")) == "/a.B/Get in 0.0 ms: no attempt"


@pytest.mark.parametrize("stranger", [None, object(), Error(Code.INTERNAL)])
def test_a_stranger_tells_nothing(stranger: object) -> None:
    """What no channel of ours has made is refused by name."""
    with pytest.raises(TypeError, match="tells of no call"):
        report(stranger)
