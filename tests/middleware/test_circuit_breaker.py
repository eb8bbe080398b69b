"""Calls that would fail anyway are not made. The state machine itself is tested in tests/policy."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest

from servicekit.call import Call, Side
from servicekit.clock import MovableClock
from servicekit.endpoint import Endpoint, Message
from servicekit.errors import By, Code, Error
from servicekit.method import Kind, Method
from servicekit.middleware.circuit_breaker import CircuitBreaker
from servicekit.testing import make_call, pair, run, scripted, sends, waits
from servicekit.testing.pair import Over
from servicekit.testing.recorded import RecordedCall
from servicekit.testing.v1.echo_pb2 import EchoRequest, EchoResponse
from tests.transport.clients import ANSWERS, Flaky, Untyped, ask, echo, every_kind, stub_of

DOWN = Error(Code.UNAVAILABLE, "down", by=By.PEER)


class Middle(MovableClock):
    """A clock whose chance is always one half, at which jitter changes nothing."""

    def random(self) -> float:
        return 0.5


METHODS = {
    (kind, name): Method(service="test.Service", name=name, kind=kind) for kind in Kind for name in ("Get", "Put")
}


@dataclass
class Stage:
    """One breaker, one clock, and as many calls as a test makes."""

    link: CircuitBreaker
    kind: Kind = Kind.UNARY
    clock: Middle = field(default_factory=Middle)
    decisions: list[str] = field(default_factory=list)
    reached: int = 0

    def call(self, *, name: str = "Get", instance: str | None = None, **settings: Untyped) -> RecordedCall:
        settings = {"side": Side.CLIENT, "clock": self.clock, "method": METHODS[self.kind, name], **settings}
        call = make_call(**settings)
        call.instance = instance
        call.on_decision(lambda _, decision: self.decisions.append(decision))
        return call

    async def play(self, *outcomes: Message, **settings: Untyped) -> list[Message]:
        """Make a call for each outcome; return what came of them, refused calls as "refused"."""
        came: list[Message] = []
        for outcome in outcomes:
            endpoint = scripted(outcome)
            request = ["a"] if self.kind.request_streaming else "hi"
            try:
                came.append(await run(self.link, endpoint, request, self.call(**settings)))
            except Error as error:
                came.append("refused" if error.refused else error.code.name)
            self.reached += len(endpoint.calls)
        return came

    @property
    def answer(self) -> Message:
        return sends("x", "y") if self.kind.response_streaming else "ok"


@every_kind
async def test_it_opens_probes_and_closes(kind: Kind) -> None:
    """The whole way round, for every kind: twenty failures, five seconds of nothing, three probes, all is well."""
    here = Stage(CircuitBreaker(), kind)
    assert await here.play(*[DOWN] * 21) == ["UNAVAILABLE"] * 20 + ["refused"]
    assert here.reached == 20
    await here.clock.advance(4.999)
    assert await here.play(here.answer) == ["refused"]
    await here.clock.advance(0.001)
    assert "refused" not in await here.play(*[here.answer] * 10)
    assert here.reached == 30
    assert here.decisions == ["opened", "refused", "refused", "probing", "closed"]


async def test_a_refusal_says_what_it_is_and_when_to_come_back() -> None:
    """UNAVAILABLE "circuit open", never begun, with the time that is left."""
    here = Stage(CircuitBreaker())
    await here.play(*[DOWN] * 20)
    await here.clock.advance(2.0)
    with pytest.raises(Error) as caught:
        await run(here.link, scripted(), "hi", here.call())
    error = caught.value
    assert (error.code, error.message, error.reason) == (Code.UNAVAILABLE, "circuit open", "CIRCUIT_OPEN")
    assert (error.begun, error.refused, error.by, error.retry_after) == (False, True, By.LOCAL, 3.0)


@pytest.mark.parametrize(
    ("error", "counts"),
    [
        (DOWN, True),
        (Error(Code.INTERNAL, by=By.PEER), True),
        (Error(Code.DEADLINE_EXCEEDED), True),
        (Error(Code.DEADLINE_EXCEEDED, begun=False, by=By.PEER), True),
        (Error(Code.DEADLINE_EXCEEDED, begun=False, by=By.LOCAL), False),
        (Error(Code.UNAVAILABLE, begun=False, by=By.LOCAL), True),
        (Error(Code.CANCELLED, by=By.PEER), True),
        (Error(Code.UNAVAILABLE, by=By.PEER, retry_after=1.0), False),
        (Error(Code.NOT_FOUND, by=By.PEER), False),
        (Error(Code.UNAVAILABLE, refused=True), False),
    ],
    ids=str,
)
async def test_what_counts_as_a_failure_is_the_verdict(error: Error, *, counts: bool) -> None:
    """One function decides, here as elsewhere."""
    here = Stage(CircuitBreaker())
    await here.play(*[error] * 40)
    assert ("opened" in here.decisions) is counts


async def test_a_deadline_that_passes_is_a_failure() -> None:
    """Also when it comes as a cancellation: an instance that hangs is broken."""
    here = Stage(CircuitBreaker())
    for _ in range(20):
        call = here.call(deadline=here.clock.time() + 0.1)
        running = asyncio.ensure_future(run(here.link, scripted(waits()), "hi", call))
        await here.clock.advance(0.1)
        with pytest.raises(Error):
            await running
    assert here.decisions == ["opened"]


async def test_a_deadline_that_passes_before_an_attempt_counts_for_nothing() -> None:
    """A link further in took all of the time: no instance was asked, so none is broken."""
    here = Stage(CircuitBreaker())

    async def slow(request: Message, call: Call, next: Endpoint) -> Message:  # noqa: A002 - the term
        await call.clock.sleep(1.0)
        return await next(request, call)

    for _ in range(40):
        call = here.call(deadline=here.clock.time() + 0.1)
        running = asyncio.ensure_future(run([here.link, slow], scripted("ok"), "hi", call))
        await here.clock.advance(0.1)
        with pytest.raises(Error):
            await running
    assert here.decisions == []


@pytest.mark.parametrize("over", ["memory", "socket"])
async def test_a_deadline_that_has_passed_before_the_wire_counts_for_nothing(over: Over) -> None:
    """On the wire: calls whose time is over when they come to it are not sent, and open no circuit."""
    decisions: list[str] = []

    async def noting(request: Message, call: Call, next: Endpoint) -> Message:  # noqa: A002 - the term
        call.on_decision(lambda _, decision: decisions.append(decision))
        return await next(request, call)

    async with pair(echo(), over=over, client=[noting, CircuitBreaker()]) as ends:
        for _ in range(40):
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await stub_of(ends.channel).Echo(EchoRequest(text="hi"), timeout=0)
            assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert decisions == []


async def test_a_call_that_its_caller_cancels_counts_for_nothing() -> None:
    """And frees its place among the probes."""
    here = Stage(CircuitBreaker())

    async def leave(count: int) -> None:
        running = [asyncio.ensure_future(run(here.link, scripted(waits()), "hi", here.call())) for _ in range(count)]
        await here.clock.advance(0.0)
        for each in running:
            each.cancel()
        assert all(
            isinstance(each, asyncio.CancelledError) for each in await asyncio.gather(*running, return_exceptions=True)
        )

    await leave(40)
    assert here.decisions == []
    await here.play(*[DOWN] * 20)
    await here.clock.advance(5.0)
    for _ in range(5):
        await leave(3)
    assert await here.play("ok", "ok", "ok") == ["ok"] * 3
    assert here.decisions == ["opened", "probing", "closed"]


async def test_three_probes_at_a_time() -> None:
    """What comes beside them is refused, and comes back soon."""
    here = Stage(CircuitBreaker())
    await here.play(*[DOWN] * 20)
    await here.clock.advance(5.0)
    probes = [asyncio.ensure_future(run(here.link, scripted(waits(0.5, "ok")), "hi", here.call())) for _ in range(3)]
    await here.clock.advance(0.25)
    assert await here.play("ok") == ["refused"]
    await here.clock.advance(0.25)
    assert await asyncio.gather(*probes) == ["ok"] * 3
    assert here.decisions[-1] == "closed"


async def test_results_from_before_it_opened_do_not_close_it() -> None:
    """What was begun in better times says nothing about these."""
    here = Stage(CircuitBreaker())
    old = [asyncio.ensure_future(run(here.link, scripted(waits(6.0, "ok")), "hi", here.call())) for _ in range(5)]
    await here.clock.advance(0.0)
    await here.play(*[DOWN] * 20)
    await here.clock.advance(5.0)
    assert await here.play("ok") == ["ok"]
    await here.clock.advance(1.0)
    assert await asyncio.gather(*old) == ["ok"] * 5
    assert here.decisions == ["opened", "probing"]


@pytest.mark.parametrize("kind", [Kind.SERVER_STREAM, Kind.BIDI_STREAM])
async def test_a_stream_counts_with_its_first_message(kind: Kind) -> None:
    """One that stays open for days is a success now; if it breaks, a failure then."""
    here = Stage(CircuitBreaker(), kind)
    await here.play(*[DOWN] * 20)
    await here.clock.advance(5.0)
    streams = [
        asyncio.ensure_future(
            run(here.link, scripted(open_stream), ["a"] if kind.request_streaming else "hi", here.call())
        )
        for _ in range(3)
    ]
    await here.clock.advance(0.0)
    assert here.decisions == ["opened", "probing", "closed"]
    for each in streams:
        each.cancel()
    await asyncio.wait(streams)
    await here.play(*[sends("x", then=DOWN)] * 10)
    assert here.decisions[-1] == "opened"


async def open_stream(_request: Message, call: Call) -> None:
    await call.send("x")
    await asyncio.Event().wait()


async def test_each_instance_and_each_method_has_its_own() -> None:
    """One broken thing does not close the way to another."""
    here = Stage(CircuitBreaker())
    await here.play(*[DOWN] * 20, instance="a:1")
    assert await here.play("ok", instance="a:1") == ["refused"]
    assert await here.play("ok", instance="a:1", name="Put") == ["ok"]
    assert await here.play("ok", instance="b:1") == ["ok"]
    assert await here.play("ok") == ["ok"]


async def test_only_so_many_circuits_are_kept() -> None:
    """The one that was asked for longest ago is forgotten: closed, as at the beginning."""
    here = Stage(CircuitBreaker(max_keys=2))
    await here.play(*[DOWN] * 20, instance="a:1")
    await here.play("ok", instance="b:1")
    assert await here.play("ok", instance="a:1") == ["refused"]
    await here.play("ok", instance="c:1")
    await here.play("ok", instance="d:1")
    assert await here.play("ok", instance="a:1") == ["ok"]


@every_kind
async def test_a_fallback_gives_the_value_instead(kind: Kind) -> None:
    """It is given the request, the call and the refusal, and answers as an endpoint does."""
    refusals: list[Error] = []

    async def fallback(_request: Message, call: Call, error: Error) -> Message:
        refusals.append(error)
        if not kind.response_streaming:
            return "kept"
        await call.send("kept")
        return None

    here = Stage(CircuitBreaker(fallback=fallback), kind)
    await here.play(*[DOWN] * 20)
    call = here.call()
    came = await run(here.link, scripted(), ["a"] if kind.request_streaming else "hi", call)
    assert (call.recorder.messages if kind.response_streaming else [came]) == ["kept"]
    assert [error.message for error in refusals] == ["circuit open"]
    assert here.decisions == ["opened", "fallback"]


async def test_it_works_on_a_server_too() -> None:
    """Around a handler that is broken, and for a stream what is sent is what counts."""
    here = Stage(CircuitBreaker(), Kind.SERVER_STREAM)
    await here.play(*[Error(Code.INTERNAL)] * 20, side=Side.SERVER)
    await here.clock.advance(5.0)
    await here.play(*[sends("x")] * 3, side=Side.SERVER)
    assert here.decisions == ["opened", "probing", "closed"]


@pytest.mark.parametrize(
    ("settings", "kind", "names"),
    [
        ({"calls": 0}, ValueError, "calls=0"),
        ({"max_keys": 0}, ValueError, "max_keys=0"),
        ({"fallback": "x"}, TypeError, "fallback='x'"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], kind: type[Exception], names: str) -> None:
    """A wrong value fails where it is written."""
    with pytest.raises(kind, match=names):
        CircuitBreaker(**settings)


@every_kind
async def test_on_a_wire_nothing_reaches_it_while_open(kind: Kind) -> None:
    """The server sees four calls, no more until the time is over, and then all of them."""
    flaky, clock = Flaky(times=4, after=1 if kind.request_streaming else 0), Middle()
    async with pair(flaky.register, client=[CircuitBreaker(calls=4)], clock=clock) as ends:
        for number in range(10):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await ask(ends.channel, kind)
            assert (caught.value.details() == "circuit open") is (number >= 4)
        assert len(flaky.attempts) == 4
        await clock.advance(5.0)
        for _ in range(5):
            assert await ask(ends.channel, kind) == ANSWERS[kind]
    assert len(flaky.attempts) == 9


async def test_on_a_wire_a_fallback_answers() -> None:
    """The stub's caller cannot tell the difference."""

    async def fallback(_request: Message, _call: Call, _error: Error) -> Message:
        return EchoResponse(text="kept")

    link = CircuitBreaker(calls=4, fallback=fallback)
    async with pair(Flaky(times=4).register, client=[link]) as ends:
        for _ in range(4):
            with pytest.raises(grpc.aio.AioRpcError):
                await ask(ends.channel, Kind.UNARY)
        assert await ask(ends.channel, Kind.UNARY) == ["kept"]
        assert stub_of(ends.channel)
