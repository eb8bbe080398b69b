"""No work without an end, none that is already late."""

from __future__ import annotations

import asyncio
import math

import pytest

from servicekit.call import Call, Side
from servicekit.clock import MovableClock
from servicekit.endpoint import Message, only
from servicekit.errors import Code, Error
from servicekit.inherit import inherited
from servicekit.method import Kind
from servicekit.middleware import Deadline
from servicekit.testing import make_call, run, scripted, waits

FINITE = [Kind.UNARY, Kind.CLIENT_STREAM]
OPEN = [Kind.SERVER_STREAM, Kind.BIDI_STREAM]


def request_of(kind: Kind) -> Message:
    return ["hi"] if kind.request_streaming else "hi"


async def deadline_of(link: Deadline, call: Call) -> float | None:
    """The deadline that the endpoint sees."""
    seen: list[float | None] = []

    async def endpoint(_request: Message, call: Call) -> Message:
        seen.append(call.deadline)
        return "ok"

    await link("hi", call, endpoint)
    return seen[0]


@pytest.mark.parametrize("kind", FINITE)
async def test_server_gives_a_default(kind: Kind) -> None:
    """A unary or client-streaming call that came without a deadline gets 30 s."""
    call = make_call(kind=kind)
    assert await deadline_of(Deadline(), call) == call.clock.time() + 30.0


@pytest.mark.parametrize("kind", FINITE)
async def test_server_caps_what_was_asked_for(kind: Kind) -> None:
    """A unary or client-streaming call that asked for more than 300 s gets 300 s; less is left alone."""
    clock = MovableClock()
    long = make_call(kind=kind, clock=clock, deadline=clock.time() + 3600)
    assert await deadline_of(Deadline(), long) == clock.time() + 300.0
    short = make_call(kind=kind, clock=clock, deadline=clock.time() + 299)
    assert await deadline_of(Deadline(), short) == clock.time() + 299
    assert short.recorder.limits == []


@pytest.mark.parametrize("kind", OPEN)
async def test_streams_of_responses_stay_open(kind: Kind) -> None:
    """A response-streaming call has neither default nor cap."""
    clock = MovableClock()
    assert await deadline_of(Deadline(), make_call(kind=kind, clock=clock)) is None
    far = clock.time() + 86400
    assert await deadline_of(Deadline(), make_call(kind=kind, clock=clock, deadline=far)) == far


@pytest.mark.parametrize("kind", list(Kind))
@pytest.mark.parametrize("side", list(Side))
async def test_refuses_what_is_already_late(kind: Kind, side: Side) -> None:
    """A call with nothing left ends with DEADLINE_EXCEEDED, and the endpoint is not run; on both sides, any kind."""
    clock, endpoint = MovableClock(), scripted("ok")
    call = make_call(kind=kind, side=side, clock=clock, deadline=clock.time())
    with pytest.raises(Error) as caught:
        await run(Deadline(), endpoint, request_of(kind), call)
    assert caught.value.code is Code.DEADLINE_EXCEEDED
    assert not caught.value.begun
    assert endpoint.calls == []


@pytest.mark.parametrize("kind", FINITE)
async def test_the_default_ends_the_call(kind: Kind) -> None:
    """When the time is over the work is cancelled and the caller gets DEADLINE_EXCEEDED; nothing is left behind."""
    clock, cancelled = MovableClock(), []

    async def endpoint(_request: Message, _call: Call) -> Message:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(clock.time())
            raise

    call = make_call(kind=kind, clock=clock)
    running = asyncio.create_task(run(Deadline(), endpoint, request_of(kind), call))
    await clock.advance(29.9)
    assert not running.done()
    await clock.advance(0.1)
    with pytest.raises(Error) as caught:
        await running
    assert caught.value.code is Code.DEADLINE_EXCEEDED
    assert cancelled == [1030.0]
    assert clock.pending == 0


async def test_a_call_that_ends_in_time_leaves_no_timer() -> None:
    """The timer goes with the call."""
    clock = MovableClock()
    assert await run(Deadline(), scripted("ok"), "hi", make_call(clock=clock)) == "ok"
    assert clock.pending == 0


async def test_an_endpoint_that_swallows_the_cancellation_is_late_all_the_same() -> None:
    """What it returns after the end is not the answer."""
    clock = MovableClock()

    async def endpoint(_request: Message, _call: Call) -> Message:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "too late"

    running = asyncio.create_task(run(Deadline(), endpoint, "hi", make_call(clock=clock)))
    await clock.advance(31)
    with pytest.raises(Error) as caught:
        await running
    assert caught.value.code is Code.DEADLINE_EXCEEDED


@pytest.mark.parametrize("kind", OPEN)
async def test_a_watch_outlives_the_default(kind: Kind) -> None:
    """A stream of responses older than default and cap is still open."""
    clock = MovableClock()
    running = asyncio.create_task(
        run(Deadline(), scripted(waits(1000.0)), request_of(kind), make_call(kind=kind, clock=clock))
    )
    await clock.advance(999.0)
    assert not running.done()
    await clock.advance(1.0)
    assert await running is None


async def test_the_servers_own_methods_pass() -> None:
    """Health and reflection have neither default nor cap, and are answered when late."""
    clock = MovableClock()
    assert await deadline_of(Deadline(), make_call(clock=clock, auxiliary=True)) is None
    late = make_call(clock=clock, auxiliary=True, deadline=clock.time() - 1)
    assert await deadline_of(Deadline(), late) == clock.time() - 1


async def test_client_gives_a_default_only() -> None:
    """On the client a call without a deadline gets the default, and what the caller asked for is not capped."""
    clock, link = MovableClock(), Deadline(default=2.0)
    assert await deadline_of(link, make_call(side=Side.CLIENT, clock=clock)) == clock.time() + 2.0
    far = clock.time() + 3600
    assert await deadline_of(link, make_call(side=Side.CLIENT, clock=clock, deadline=far)) == far
    assert await deadline_of(link, make_call(side=Side.CLIENT, clock=clock, kind=Kind.SERVER_STREAM)) is None


async def test_none_switches_a_rule_off() -> None:
    """Without default a server's cap holds for calls without a deadline; without cap any time is given."""
    clock = MovableClock()
    far = clock.time() + 3600
    assert await deadline_of(Deadline(default=None), make_call(clock=clock)) == clock.time() + 300.0
    assert await deadline_of(Deadline(cap=None), make_call(clock=clock, deadline=far)) == far
    off = Deadline(default=None, cap=None)
    assert await deadline_of(off, make_call(clock=clock)) is None
    assert await deadline_of(off, make_call(clock=clock, deadline=far)) == far
    assert await deadline_of(Deadline(default=None), make_call(clock=clock, side=Side.CLIENT)) is None


async def test_a_nearer_one_outside_stays() -> None:
    """Of two in one chain the shorter time holds: ``only`` can shorten one method."""
    call = make_call()
    links = [Deadline(), only("/test.Service/Method", Deadline(default=5.0, cap=5.0))]
    await run(links, scripted("ok"), "hi", call)
    assert call.deadline == call.clock.time() + 5.0
    other = make_call()
    await run([Deadline(), only("/test.Service/Other", Deadline(default=5.0, cap=5.0))], scripted("ok"), "hi", other)
    assert other.deadline == other.clock.time() + 30.0


@pytest.mark.parametrize("setting", ["default", "cap"])
@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf, True, "30"])
def test_refuses_what_is_no_time(setting: str, value: float) -> None:
    """A wrong time is refused where it is written, naming setting and value."""
    with pytest.raises((ValueError, TypeError), match=f"{setting}={value!r}"):
        Deadline(default=value) if setting == "default" else Deadline(cap=value)


def test_refuses_a_default_above_the_cap() -> None:
    """A default that the cap would not allow is a contradiction."""
    with pytest.raises(ValueError, match=r"default=600\.0 is more than cap=300\.0"):
        Deadline(default=600.0)


@pytest.mark.parametrize(
    ("remaining", "left"),
    [
        (10.0, 9.8),
        (2.0, 1.8),
        (1.0, 0.9),
        (0.1, 0.09),
        (0.05, 0.045),
        (0.02, 0.015),
        (0.005, 0.0),
        (0.0, 0.0),
        (-3.0, 0.0),
    ],
)
def test_what_an_outgoing_call_inherits(remaining: float, left: float) -> None:
    """A tenth is kept back, at least 5 ms and at most 200 ms, and nothing negative is handed on."""
    assert inherited(remaining) == pytest.approx(left)
