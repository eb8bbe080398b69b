"""A second attempt beside a slow first one."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import pytest

from servicekit.call import Call, Side
from servicekit.clock import MovableClock
from servicekit.endpoint import Endpoint, Message
from servicekit.errors import By, Code, Error
from servicekit.method import Idempotency, Kind
from servicekit.middleware.hedge import Hedge
from servicekit.policy.budget import Budget
from servicekit.testing import make_call, pair, run, scripted, sends, waits
from servicekit.testing.recorded import RecordedCall
from servicekit.testing.v1.echo_pb2 import EchoRequest, EchoResponse
from tests.transport.clients import ANSWERS, Context, Untyped, ask, echo, every_kind

DOWN = Error(Code.UNAVAILABLE, "down")


@dataclass
class Stage:
    """One link, one clock, and as many calls as a test makes."""

    link: Hedge
    clock: MovableClock = field(default_factory=MovableClock)
    decisions: list[str] = field(default_factory=list)

    def call(self, **settings: Untyped) -> RecordedCall:
        settings = {"side": Side.CLIENT, "idempotency": Idempotency.NO_SIDE_EFFECTS, "clock": self.clock, **settings}
        call = make_call(**settings)
        call.on_decision(lambda _, decision: self.decisions.append(decision))
        return call

    def begin(self, endpoint: Endpoint, call: RecordedCall | None = None) -> asyncio.Future[Message]:
        return asyncio.ensure_future(run(self.link, endpoint, "hi", call or self.call()))

    async def learn(self, *, calls: int = 100, seconds: float = 0.01) -> None:
        """Make calls that take ``seconds`` each, and all at once."""
        running = [self.begin(scripted(waits(seconds, "ok"))) for _ in range(calls)]
        await self.clock.advance(seconds)
        assert await asyncio.gather(*running) == ["ok"] * calls


async def stage(**settings: Untyped) -> Stage:
    """A stage whose method is known to take 10 ms."""
    made = Stage(Hedge(**settings))
    await made.learn()
    return made


@dataclass
class Slow:
    """An outcome that takes its time, and notes when it was cancelled."""

    seconds: float | None = None
    outcome: Message = "slow"
    cancelled: list[float] = field(default_factory=list)

    async def __call__(self, _request: Message, call: Call) -> Message:
        try:
            await call.clock.sleep(self.seconds if self.seconds is not None else 1e6)
        except asyncio.CancelledError:
            self.cancelled.append(call.clock.time())
            raise
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


async def test_what_takes_longer_than_usual_gets_company() -> None:
    """After the 95th percentile one more attempt is made; it wins, and the first is cancelled at once."""
    here = await stage()
    slow, began = Slow(), here.clock.time()
    endpoint = scripted(slow, waits(0.003, "fast"))
    running = here.begin(endpoint)
    await here.clock.advance(0.0099)
    assert len(endpoint.calls) == 1
    await here.clock.advance(0.0002)
    assert len(endpoint.calls) == 2
    await here.clock.advance(0.003)
    assert await running == "fast"
    assert slow.cancelled == [pytest.approx(began + 0.013)]
    assert here.decisions == ["sent", "won"]
    assert here.clock.pending == 0


async def test_the_first_may_still_win() -> None:
    """Then the extra attempt is cancelled."""
    here = await stage()
    extra = Slow()
    running = here.begin(scripted(waits(0.012, "first"), extra))
    await here.clock.advance(0.02)
    assert await running == "first"
    assert len(extra.cancelled) == 1
    assert here.decisions == ["sent"]


async def test_what_is_quick_is_left_alone() -> None:
    """And leaves no timer."""
    here = await stage()
    endpoint = scripted(waits(0.009, "ok"))
    running = here.begin(endpoint)
    await here.clock.advance(0.009)
    assert await running == "ok"
    assert (here.clock.pending, here.decisions) == (0, [])


async def test_nothing_is_hedged_before_there_are_a_hundred_answers() -> None:
    """Nobody knows yet what is usual."""
    here = Stage(Hedge())
    await here.learn(calls=99)
    endpoint = scripted(waits(5.0, "ok"))
    running = here.begin(endpoint)
    await here.clock.advance(5.0)
    assert await running == "ok"
    assert len(endpoint.calls) == 1


async def test_nothing_is_hedged_before_two_milliseconds() -> None:
    """However quick the method is."""
    here = Stage(Hedge())
    await here.learn(seconds=0.0001)
    endpoint = scripted(Slow(), "fast")
    running = here.begin(endpoint)
    await here.clock.advance(0.0019)
    assert len(endpoint.calls) == 1
    await here.clock.advance(0.0002)
    assert await running == "fast"


async def test_at_most_one_call_in_twenty_gets_an_extra_attempt() -> None:
    """The other slow ones wait."""
    here = await stage()  # a hundred calls within the window
    endpoints = [scripted(waits(0.1, "slow"), "fast") for _ in range(20)]
    running = [here.begin(endpoint) for endpoint in endpoints]
    await here.clock.advance(0.1)
    assert sorted(await asyncio.gather(*running)) == ["fast"] * 6 + ["slow"] * 14  # 5 % of 120
    assert here.decisions.count("over_budget") == 14


async def test_slowness_becomes_usual_when_everything_is_slow() -> None:
    """A hedged answer counts with the time the caller waited, so the quantile is not drawn down by its own success."""
    here = await stage(budget=Budget(share=1.0))
    for _ in range(512):
        running = here.begin(scripted(waits(0.05, "slow"), waits(0.045, "fast")))
        await here.clock.advance(0.06)
        await running
    endpoint = scripted(waits(0.04, "ok"))
    running = here.begin(endpoint)
    await here.clock.advance(0.04)
    assert await running == "ok"


async def test_a_first_attempt_that_is_lost_is_replaced_at_once() -> None:
    """Who fails in passing is not waited for; also before anybody knows what is usual."""
    here = Stage(Hedge(budget=Budget()))
    assert await here.begin(scripted(DOWN, "ok")) == "ok"
    assert here.decisions == ["sent", "won"]


@pytest.mark.parametrize(("retry_after", "decisions"), [(3.0, ["sent", "won"]), (-1.0, ["pushed_back"])])
async def test_the_server_may_say_when_or_never(retry_after: float, decisions: list[str]) -> None:
    """Its word decides about the extra attempt."""
    here = await stage()
    began = here.clock.time()
    answered: list[float] = []

    async def second(_request: Message, call: Call) -> Message:
        answered.append(call.clock.time())
        return "ok"

    running = here.begin(scripted(Error(Code.UNAVAILABLE, "away", retry_after=retry_after), second))
    await here.clock.advance(10.0)
    if retry_after < 0:
        with pytest.raises(Error, match="away"):
            await running
    else:
        assert await running == "ok"
        assert answered == [began + retry_after]
    assert here.decisions == decisions


async def test_no_attempt_is_begun_past_the_deadline() -> None:
    """The caller gets what there is."""
    here = await stage()
    call = here.call(deadline=here.clock.time() + 1.0)
    with pytest.raises(Error, match="away"):
        await here.begin(scripted(Error(Code.UNAVAILABLE, "away", retry_after=2.0)), call)
    assert here.decisions == ["too_late"]


@pytest.mark.parametrize(
    ("error", "taken"),
    [(Error(Code.NOT_FOUND), True), (Error(Code.INTERNAL), False), (DOWN, False), (ValueError("a bug"), True)],
    ids=str,
)
async def test_an_answer_wins_also_when_it_is_a_refusal(error: Exception, *, taken: bool) -> None:
    """NOT_FOUND is what the other one would say too; what is broken leaves the field to the other."""
    here = await stage()
    running = here.begin(scripted(waits(0.02, "first"), error))
    await here.clock.advance(0.02)
    if taken:
        with pytest.raises(type(error)):
            await running
    else:
        assert await running == "first"


async def test_when_both_break_the_later_one_tells_why() -> None:
    """Unless it was refused on this side, which tells nothing."""
    for extra, told in (
        (Error(Code.INTERNAL, "two", by=By.PEER), "two"),
        (Error(Code.UNAVAILABLE, "open", refused=True), "one"),
    ):
        here = await stage()
        running = here.begin(scripted(Slow(0.02, Error(Code.INTERNAL, "one")), extra))
        await here.clock.advance(0.02)
        with pytest.raises(Error, match=told):
            await running


@pytest.mark.parametrize("seconds", [0.005, 0.015])
async def test_a_caller_that_leaves_ends_all_attempts(seconds: float) -> None:
    """Before and after the second one was made; nothing is left behind."""
    here = await stage()
    attempts = [Slow(), Slow()]
    running = here.begin(scripted(*attempts))
    await here.clock.advance(seconds)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert [len(each.cancelled) for each in attempts] == [1, seconds > 0.01]
    assert here.clock.pending == 0
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_deadline_ends_all_attempts() -> None:
    """With DEADLINE_EXCEEDED, as for any call."""
    here = await stage()
    attempts = [Slow(), Slow()]
    running = here.begin(scripted(*attempts), here.call(deadline=here.clock.time() + 0.5))
    await here.clock.advance(0.5)
    with pytest.raises(Error) as caught:
        await running
    assert caught.value.code is Code.DEADLINE_EXCEEDED
    assert [len(each.cancelled) for each in attempts] == [1, 1]
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_loser_that_takes_its_leave_slowly_is_waited_for() -> None:
    """Also when the caller leaves meanwhile: no task goes on without an owner."""
    here = await stage()
    gone = asyncio.Event()

    async def lingers(_request: Message, _call: Call) -> Message:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await gone.wait()
            raise

    running = here.begin(scripted(lingers, "fast"))
    await here.clock.advance(0.02)
    assert not running.done()
    running.cancel()
    await here.clock.advance(0.0)
    assert not running.done()
    gone.set()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_the_winner_hands_its_metadata_back() -> None:
    """Also when the other one answers in the same moment; and the second attempt says what it is."""
    here = await stage()

    def answering(name: str) -> Endpoint:
        async def answer(_request: Message, call: Call) -> Message:
            await call.clock.sleep(0.02 if name == "first" else 0.01)
            call.trailers.add("from", name)
            return name

        return answer

    endpoint, call = scripted(answering("first"), answering("second")), here.call()
    running = here.begin(endpoint, call)
    await here.clock.advance(0.02)
    assert call.trailers.get("from") == await running
    assert [each.metadata.get("grpc-previous-rpc-attempts") for each in endpoint.calls[-2:]] == [None, "1"]


async def test_the_second_attempt_knows_where_the_first_went() -> None:
    """So that a balancer may go elsewhere."""
    here = await stage()
    seen: list[tuple[str, ...]] = []

    async def balancer(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        seen.append(call.tried)
        call.instance = "b:1" if call.tried else "a:1"
        return await next(request, call)

    call = here.call()
    running = asyncio.ensure_future(run([here.link, balancer], scripted(Slow(), "ok"), "hi", call))
    await here.clock.advance(0.02)
    assert await running == "ok"
    assert seen == [(), ("a:1",)]
    assert call.instance == "b:1"


@pytest.mark.parametrize(
    "settings",
    [
        {"idempotency": Idempotency.UNKNOWN},
        {"side": Side.SERVER},
        {"parent": make_call(metadata=[("grpc-previous-rpc-attempts", "1")])},
        *({"kind": kind} for kind in Kind if kind is not Kind.UNARY),
    ],
    ids=str,
)
async def test_all_others_pass(settings: dict[str, Any]) -> None:
    """What is not safe to repeat, streams, servers, and what is itself a further attempt."""
    here = await stage()
    call = here.call(**settings)
    answer = sends("x") if call.method.kind.response_streaming else "x"
    endpoint = scripted(waits(1.0, answer))
    request = ["a"] if call.method.kind.request_streaming else "hi"
    running = asyncio.ensure_future(run(here.link, endpoint, request, call))
    await here.clock.advance(1.0)
    await running
    assert endpoint.calls == [call]
    assert here.decisions == []


async def test_settings_mark_methods_as_safe() -> None:
    """As with Retry."""
    here = Stage(Hedge(idempotent=["/test.Service/*"], budget=Budget()))
    call = here.call(idempotency=Idempotency.UNKNOWN)
    assert await here.begin(scripted(DOWN, "ok"), call) == "ok"


@pytest.mark.parametrize(
    ("settings", "names"), [({"quantile": 1.0}, r"quantile=1\.0"), ({"least": -1.0}, r"least=-1\.0")]
)
def test_wrong_settings_are_named(settings: dict[str, Any], names: str) -> None:
    """A wrong value fails where it is written."""
    with pytest.raises(ValueError, match=names):
        Hedge(**settings)


async def test_on_a_wire_the_tail_is_cut() -> None:
    """One call in fifty hangs at the server: its caller gets an answer when the others do, and the server is told."""
    count, cancelled = 0, 0

    async def hangs_at_times(request: EchoRequest, _context: Context) -> EchoResponse:
        nonlocal count, cancelled
        count += 1
        if count > 100 and count % 50 == 0:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled += 1
                raise
        await ends.clock.sleep(0.01)
        return EchoResponse(text=request.text)

    async with pair(echo(Echo=hangs_at_times), client=[Hedge(least=0.0105)]) as ends:
        for _ in range(300):
            asking = asyncio.ensure_future(ask(ends.channel, Kind.UNARY))
            await ends.clock.advance(0.021)
            assert asking.done()
            assert await asking == ANSWERS[Kind.UNARY]
    assert cancelled == 4
    assert count == 304


@every_kind
async def test_on_a_wire_every_kind_passes(kind: Kind) -> None:
    """Also where there is nothing to hedge."""
    async with pair(echo(), client=[Hedge()]) as ends:
        assert await ask(ends.channel, kind) == ANSWERS[kind]
