"""The excess is turned away, and what was let in is served."""

from __future__ import annotations

import asyncio
import math
import types
from collections.abc import Coroutine, Generator
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from servicekit import CallError
from servicekit.call import Call, Side
from servicekit.clock import MovableClock, SystemClock
from servicekit.endpoint import Message
from servicekit.errors import Code, Error
from servicekit.metadata import Metadata
from servicekit.method import Kind, Method
from servicekit.middleware.criticality import Criticality
from servicekit.middleware.load_shedding import LoadShedding
from servicekit.testing import RecordedCall, make_call, no_leaks, pair, run, scripted, waits
from servicekit.testing.pair import Over
from servicekit.testing.v1.echo_pb2 import EchoRequest, EchoResponse
from tests.middleware.decisions import Decisions
from tests.transport.clients import ANSWERS, Context, Held, ask, begin, both, echo, every_kind, stub_of

STREAMS = [kind for kind in Kind if kind is not Kind.UNARY]


def start(link: LoadShedding, call: RecordedCall, seconds: float | None = 1.0) -> asyncio.Task[Message]:
    """Begin a call that takes so many seconds."""
    return asyncio.create_task(run(link, scripted(waits(seconds, "ok")), "hi", call))


async def fill(link: LoadShedding, clock: MovableClock, count: int) -> list[asyncio.Task[Message]]:
    """Have so many calls running, until they are cancelled."""
    tasks = [start(link, make_call(clock=clock), None) for _ in range(count)]
    await clock.advance(0.0)
    return tasks


async def end(tasks: list[asyncio.Task[Message]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


async def refused(link: LoadShedding, call: RecordedCall) -> Error:
    endpoint = scripted("ok")
    with pytest.raises(Error) as caught:
        await run(link, endpoint, [] if call.method.kind.request_streaming else "hi", call)
    assert endpoint.calls == []
    return caught.value


async def test_refuses_above_the_limit() -> None:
    """UNAVAILABLE and when to come back; it is our own refusal, and no work was begun."""
    clock, link = MovableClock(), LoadShedding(initial=5, retry_after=2.0)
    tasks = await fill(link, clock, 5)
    assert (link.running, link.limit) == (5, 5)
    call = make_call(clock=clock)
    decisions = Decisions(call)
    error = await refused(link, call)
    assert (error.code, error.message, error.reason) == (Code.UNAVAILABLE, "overloaded", "OVERLOADED")
    assert error.retry_after == 2.0
    assert error.refused
    assert not error.begun
    assert decisions.seen == [("load_shedding", "refused_limit")]
    await end(tasks[:1])
    assert link.running == 4
    tasks.append(start(link, make_call(clock=clock)))
    await clock.advance(0.0)
    assert link.running == 5
    await end(tasks)
    assert link.running == 0


async def test_begins_at_twenty() -> None:
    """The limit of nobody's asking."""
    clock, link = MovableClock(), LoadShedding()
    tasks = await fill(link, clock, 20)
    await refused(link, make_call(clock=clock))
    await end(tasks)


@pytest.mark.parametrize("kind", STREAMS)
async def test_streams_take_no_place_and_are_not_begun_when_there_is_none(kind: Kind) -> None:
    """They may be open for days; but to begin one now would be more work."""
    clock, link = MovableClock(), LoadShedding(initial=4)
    held = []
    for _ in range(10):
        call = make_call(clock=clock, kind=kind)
        held.append(asyncio.create_task(run(link, scripted(waits()), [] if kind.request_streaming else "hi", call)))
    await clock.advance(0.0)
    assert link.running == 0
    held += await fill(link, clock, 4)
    await refused(link, make_call(clock=clock, kind=kind))
    await end(held)


async def test_learns_from_what_calls_take() -> None:
    """A second of ten calls that take what they did, half of the places in use: four fifths of a place more."""
    clock, link = MovableClock(), LoadShedding()
    for _ in range(3):
        tasks = [start(link, make_call(clock=clock), 0.6) for _ in range(20)]
        await clock.advance(0.6)
        await asyncio.gather(*tasks)
    assert link._state.gradient._limit == pytest.approx(20.8)
    assert link._state.gradient._long == pytest.approx(0.6)


async def test_learns_from_calls_that_ran_out_of_time_and_from_no_other_failure() -> None:
    """A server that answers nobody in time has to see that; one that refuses bad requests quickly is not fast."""
    clock, link = MovableClock(), LoadShedding()
    call = make_call(clock=clock, deadline=clock.time() + 0.5)
    late = start(link, call, None)
    await clock.advance(0.5)
    with pytest.raises(Error):
        await late
    assert (link._state.gradient._count, link._state.gradient._sum) == (1, 0.5)
    with pytest.raises(Error):
        await run(link, scripted(Error(Code.NOT_FOUND)), "hi", make_call(clock=clock))
    with pytest.raises(Error):
        await run(link, scripted(ZeroDivisionError), "hi", make_call(clock=clock))
    await end([start(link, make_call(clock=clock), None)])
    assert link._state.gradient._count == 1
    assert link.running == 0


async def test_overload_and_after() -> None:
    """Twice what eight places of 20 ms can bear: calls take at most three times as long, and then all are served again."""
    clock, link = MovableClock(), LoadShedding()
    places, took = asyncio.Semaphore(8), []

    async def endpoint(_request: Message, call: Call) -> Message:
        async with places:
            await call.clock.sleep(0.02)
        took.append(call.clock.time() - call.started)

    async def served(per_second: float, seconds: float) -> float:
        """The share of so many calls that is served."""
        tasks = []
        for _ in range(int(per_second * seconds)):
            tasks.append(asyncio.create_task(run(link, endpoint, "hi", make_call(clock=clock))))
            await clock.advance(1 / per_second)
        await clock.advance(1.0)
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        return sum(outcome is None for outcome in outcomes) / len(outcomes)

    assert await served(200, 2.0) == 1.0
    for times in (2, 4):
        took.clear()
        assert await served(times * 400, 10.0) >= 0.8 / times
        assert sorted(took)[int(0.99 * len(took))] <= 3 * 0.02
        assert 12 <= link.limit <= 20
    await served(300, 5.0)
    assert await served(300, 1.0) == 1.0


async def test_a_late_loop_sheds() -> None:
    """While the loop lags every call is refused, however few there are; then it is over at once."""
    clock, link = MovableClock(), LoadShedding()
    assert link.loop_lag is not None
    link.loop_lag.look(10.0, 1.5)
    call = make_call(clock=clock)
    decisions = Decisions(call)
    assert (await refused(link, call)).code is Code.UNAVAILABLE
    assert decisions.seen == [("load_shedding", "refused_lag")]
    link.loop_lag.look(10.1, 0.0)
    assert await run(link, scripted("ok"), "hi", make_call(clock=clock)) == "ok"


async def test_lag_can_be_switched_off() -> None:
    """And its bounds are settings."""
    assert LoadShedding(lag=None).loop_lag is None
    link = LoadShedding(lag=0.2, lag_time=3.0)
    assert link.loop_lag is not None
    assert (link.loop_lag.over, link.loop_lag.during) == (0.2, 3.0)
    assert await run(LoadShedding(lag=None), scripted("ok"), "hi", make_call()) == "ok"


async def test_the_loop_is_watched_on_the_real_clock_only() -> None:
    """Where a test moves time nothing runs beside it."""
    link = LoadShedding()
    assert link.loop_lag is not None
    await run(link, scripted("ok"), "hi", make_call(clock=MovableClock()))
    assert link.loop_lag._handle is None
    await run(link, scripted("ok"), "hi", make_call(clock=SystemClock()))
    assert link.loop_lag._handle is not None
    link.loop_lag.stop()


async def test_criticality_of_those_who_are_trusted() -> None:
    """Half of the limit, three quarters, all of it, and a quarter on top; no word and a strange one are "critical"."""
    clock, link = MovableClock(), LoadShedding(initial=8, trusted=lambda call: call.peer == "unix:/run/ours")
    expected = {"sheddable": 4, "sheddable_plus": 6, "critical": 8, "critical_plus": 10, "urgent": 8, "": 8}
    for word, most in expected.items():
        admitted = []
        for _ in range(12):
            metadata = [("x-criticality", word)] if word else []
            call = make_call(clock=clock, peer="unix:/run/ours", metadata=metadata)
            admitted.append(start(link, call, None))
            await clock.advance(0.0)
        assert link.running == most, word
        await asyncio.gather(*(task for task in admitted if task.done()), return_exceptions=True)
        await end(admitted)


@pytest.mark.parametrize("trusted", [None, lambda _call: False], ids=["nobody is", "this one is not"])
async def test_criticality_of_strangers_is_not_believed(trusted: types.FunctionType | None) -> None:
    """Anybody could say so."""
    clock, link = MovableClock(), LoadShedding(initial=4, trusted=trusted)
    tasks = await fill(link, clock, 4)
    call = make_call(clock=clock, metadata=[("x-criticality", "critical_plus")])
    await refused(link, call)
    assert "criticality" not in call.state
    await end(tasks)


async def test_the_most_critical_are_served_while_the_loop_is_late() -> None:
    """These alone."""
    link = LoadShedding(trusted=lambda _call: True)
    assert link.loop_lag is not None
    link.loop_lag.look(10.0, 1.5)
    for word in ("critical", "sheddable_plus", "sheddable"):
        await refused(link, make_call(metadata=[("x-criticality", word)]))
    assert await run(link, scripted("ok"), "hi", make_call(metadata=[("x-criticality", "critical_plus")])) == "ok"


async def test_criticality_goes_along() -> None:
    """What is called for a served call is as critical as that; the caller's own word wins, and ``default`` is the last."""
    heard: list[str | None] = []

    async def endpoint(_request: Message, call: Call) -> Message:
        heard.append(call.metadata.text("x-criticality"))

    served = make_call(metadata=[("x-criticality", "sheddable")])
    await run(LoadShedding(trusted=lambda _call: True), scripted("ok"), "hi", served)
    believed, unheard = served, make_call(metadata=[("x-criticality", "critical_plus")])
    for parent, own, default in (
        (believed, None, None),
        (believed, "critical", None),
        (believed, None, "critical_plus"),
        (unheard, None, None),
        (unheard, None, "sheddable_plus"),
        (None, None, None),
    ):
        metadata = [] if own is None else [("x-criticality", own)]
        call = make_call(side=Side.CLIENT, parent=parent, metadata=metadata)
        await run(Criticality(default=default), endpoint, "hi", call)
    assert heard == ["sheddable", "critical", "sheddable", None, "sheddable_plus", None]
    heard.clear()
    await run(Criticality(default="critical"), endpoint, "hi", make_call())
    assert heard == [None]
    with pytest.raises(ValueError, match="default='urgent'"):
        Criticality(default="urgent")


async def test_the_servers_own_methods_pass() -> None:
    """Health says that we live, however much there is to do."""
    clock, link = MovableClock(), LoadShedding(initial=4)
    tasks = await fill(link, clock, 4)
    assert await run(link, scripted("ok"), "hi", make_call(clock=clock, auxiliary=True)) == "ok"
    await end(tasks)


@both
@every_kind
async def test_every_kind_on_a_wire(kind: Kind, over: Over) -> None:
    """Served when there is room; the refusal arrives with its pushback, and leaves nothing behind."""
    held, link = Held(), LoadShedding(initial=1, least=1)
    async with no_leaks(), pair(echo(Store=held.method), over=over, middleware=[link]) as ends:
        assert await ask(ends.channel, kind) == ANSWERS[kind]
        first = asyncio.ensure_future(stub_of(ends.channel).Store(EchoRequest()))
        await held.begun.wait()
        with pytest.raises(CallError) as caught:
            await ask(ends.channel, kind)
        assert caught.value.error.code is Code.UNAVAILABLE
        assert caught.value.error.retry_after == 1.0
        first.cancel()
        await held.cancelled.wait()
        await asyncio.wait([first])
    if link.loop_lag is not None:
        link.loop_lag.stop()


async def test_a_client_that_goes_gives_its_place_back() -> None:
    """Whenever it does."""
    held, link = Held(), LoadShedding(initial=2, least=1)
    async with pair(echo(Echo=held.method), middleware=[link]) as ends:
        for _ in range(5):
            held.begun.clear()
            held.cancelled.clear()
            call = begin(ends.channel, Kind.UNARY)
            await held.begun.wait()
            assert link.running == 1
            call.cancel()
            await held.cancelled.wait()
            await ends.clock.advance(0.0)
            assert link.running == 0


async def test_a_handler_that_blocks_the_loop_is_shed_and_named(caplog: pytest.LogCaptureFixture) -> None:
    """On the real clock: the log line says which RPC, and where it stands."""
    link = LoadShedding(lag=0.02, lag_time=0.1)

    async def blocking(request: EchoRequest, context: Context) -> EchoResponse:
        import time  # noqa: PLC0415 - so that the reader sees what is real here

        time.sleep(0.3)  # noqa: ASYNC251 - that is the point
        return EchoResponse(text=request.text)

    async with pair(echo(Echo=blocking), over="socket", middleware=[link]) as ends:
        codes = set()
        for outcome in await asyncio.gather(
            *(stub_of(ends.channel).Echo(EchoRequest(text="a")) for _ in range(8)), return_exceptions=True
        ):
            codes.add(outcome.error.code if isinstance(outcome, CallError) else Code.OK)
        assert Code.OK in codes
    (line,) = [record.getMessage() for record in caplog.records if "ms late" in record.getMessage()]
    assert "/servicekit.testing.v1.EchoService/Echo, in " in line
    assert "blocking (test_load_shedding.py:" in line
    assert link.loop_lag is not None
    link.loop_lag.stop()


class Suspended:
    """What an endpoint waits for, until the machine lets it go on."""

    def __await__(self) -> Generator[None, Exception | None, None]:
        error = yield
        if error is not None:
            raise error


async def suspended(_request: Message, _call: Call) -> Message:
    await Suspended()


METHOD = Method(service="test.Service", name="Method", kind=Kind.UNARY)
NOBODY = make_call().recorder


class Shedder(RuleBasedStateMachine):
    """Calls begin, end, fail, are cancelled and run out of time, in any order and at any time, without a loop."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = MovableClock()
        self.link = LoadShedding(initial=6, least=4, most=8, trusted=lambda _call: True)
        self.running: list[tuple[Coroutine[Any, Any, Message], Call]] = []

    @rule(word=st.sampled_from(["", "", "critical_plus", "sheddable_plus", "sheddable"]))
    def begin(self, word: str) -> None:
        for _ in range(3):
            call = Call(
                METHOD,
                side=Side.SERVER,
                exchange=NOBODY,
                clock=self.clock,
                metadata=Metadata([("x-criticality", word)] if word else []),
            )
            share = {"critical_plus": 1.25, "": 1.0, "sheddable_plus": 0.75, "sheddable": 0.5}[word]
            room = len(self.running) < share * self.link.limit
            coroutine = self.link("hi", call, suspended)
            try:
                coroutine.send(None)
            except Error:
                assert not room
            else:
                assert room
                self.running.append((coroutine, call))

    @precondition(lambda self: self.running)
    @rule(how=st.sampled_from(["ends", "ends", "fails", "is cancelled", "is late"]))
    def one_is_over(self, how: str) -> None:
        coroutine, call = self.running.pop(len(self.running) // 2)
        if how == "is late":
            call.deadline = self.clock.time()
        try:
            if how == "ends":
                coroutine.send(None)
            elif how == "fails":
                coroutine.send(Error(Code.INTERNAL))
            else:
                coroutine.throw(asyncio.CancelledError())
        except (StopIteration, Error, asyncio.CancelledError):
            return
        pytest.fail("it has not ended")

    @rule(seconds=st.sampled_from([0.0, 0.001, 0.02, 0.3, 1.0, 30.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock._now += seconds

    @rule(duration=st.sampled_from([0.0, 0.001, 0.02, 0.3, 5.0]))
    def a_window_passes(self, duration: float) -> None:
        """A second of ten calls that took so long."""
        for _ in range(10):
            self.clock._now += 0.11
            self.link._state.gradient.sample(self.clock.time(), duration, len(self.running))

    @invariant()
    def the_limit_is_within_its_bounds(self) -> None:
        assert 4 <= self.link.limit <= 8

    @invariant()
    def no_place_is_lost(self) -> None:
        assert self.link.running == len(self.running) <= math.ceil(1.25 * 8)

    def teardown(self) -> None:
        while self.running:
            self.one_is_over("ends")
        assert self.link.running == 0


@pytest.mark.fuzz
def test_whatever_happens_no_place_is_lost() -> None:
    """And the limit stays within its bounds: a thousand stories of fifty steps."""
    run_state_machine_as_test(Shedder, settings=settings(max_examples=1000, stateful_step_count=50, deadline=None))


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"initial": 3}, "initial=3"),
        ({"least": 0}, "least=0"),
        ({"most": 10}, "most=10"),
        ({"lag": 0}, "lag=0"),
        ({"lag_time": -1}, "lag_time=-1"),
        ({"retry_after": "1"}, "retry_after='1'"),
    ],
)
def test_refuses_what_is_no_bound(wrong: dict[str, int], named: str) -> None:
    """Setting and value are named."""
    with pytest.raises((ValueError, TypeError), match=named):
        LoadShedding(**wrong)  # type: ignore[arg-type]  # that is the point


def test_shows_its_settings() -> None:
    """And nothing else."""
    shown = "LoadShedding(initial=20, least=4, most=200, lag=0.1, lag_time=1.0, trusted=None, retry_after=1.0)"
    assert repr(LoadShedding()) == shown
