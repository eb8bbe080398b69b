"""Another attempt where one may help and is safe."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from servicekit.call import Call, Side
from servicekit.clock import MovableClock
from servicekit.endpoint import Endpoint, Message
from servicekit.errors import By, Code, Error
from servicekit.method import Idempotency, Kind
from servicekit.middleware.retry import Retry
from servicekit.policy.backoff import Backoff
from servicekit.policy.budget import Budget
from servicekit.testing import make_call, pair, run, scripted, sends, waits
from servicekit.testing.pair import Over
from servicekit.testing.recorded import RecordedCall
from servicekit.testing.v1.echo_pb2 import EchoRequest, EchoResponse
from tests.transport.clients import ANSWERS, Context, Flaky, Untyped, ask, both, echo, every_kind, stub_of

DOWN = Error(Code.UNAVAILABLE, "down")
ALL = ["/servicekit.testing.v1.EchoService/*"]


class Middle(MovableClock):
    """A clock whose chance is always one half."""

    def random(self) -> float:
        return 0.5


def a_call(
    kind: Kind = Kind.UNARY, *, level: Idempotency = Idempotency.IDEMPOTENT, **settings: Untyped
) -> tuple[RecordedCall, list[tuple[str, str]]]:
    """A client's call, and the list of what is decided about it."""
    settings = {"clock": Middle(), "side": Side.CLIENT, **settings}
    call = make_call(kind=kind, idempotency=level, **settings)
    decisions: list[tuple[str, str]] = []
    call.on_decision(lambda *each: decisions.append(each))
    return call, decisions


async def play(link: Retry, endpoint: Endpoint, call: RecordedCall, request: Message = "hi") -> Message:
    """Run the call, with as much time as it takes."""
    assert isinstance(call.clock, MovableClock)
    running = asyncio.ensure_future(run(link, endpoint, request, call))
    await call.clock.advance(1000.0)
    assert running.done()
    assert call.clock.pending == 0
    return await running


def request_of(kind: Kind) -> Message:
    return ["a", "b"] if kind.request_streaming else "hi"


@every_kind
async def test_a_failure_in_passing_is_not_seen(kind: Kind) -> None:
    """The second attempt answers in the place of the first, for every kind, and gets the same request."""
    answer = sends("x", "y") if kind.response_streaming else "x"
    endpoint = scripted(DOWN, answer)
    call, decisions = a_call(kind)
    assert await play(Retry(), endpoint, call, request_of(kind)) == (None if kind.response_streaming else "x")
    assert call.recorder.messages == (["x", "y"] if kind.response_streaming else [])
    assert endpoint.requests == [request_of(kind)] * 2
    assert decisions == [("retry", "retried")]


@pytest.mark.parametrize(
    ("error", "attempts"),
    [
        (Error(Code.UNAVAILABLE), 3),
        (Error(Code.UNAVAILABLE, retry_after=0.1), 3),
        (Error(Code.UNAVAILABLE, retry_after=-1.0), 1),
        (Error(Code.CANCELLED, by=By.PEER), 3),
        (Error(Code.CANCELLED, by=By.LOCAL), 1),
        (Error(Code.CANCELLED, by=By.CALLER), 1),
        (Error(Code.RESOURCE_EXHAUSTED), 1),
        (Error(Code.RESOURCE_EXHAUSTED, retry_after=0.0), 3),
        (Error(Code.RESOURCE_EXHAUSTED, retry_after=-1.0), 1),
        (Error(Code.DEADLINE_EXCEEDED), 1),
        (Error(Code.INTERNAL), 1),
        (Error(Code.UNKNOWN), 1),
        (Error(Code.ABORTED), 1),
        (Error(Code.NOT_FOUND), 1),
        (ValueError("a bug"), 1),
    ],
    ids=str,
)
async def test_what_is_tried_again(error: Exception, attempts: int) -> None:
    """Three codes, two of them on a condition; the caller gets the error itself."""
    endpoint = scripted(error, error, error)
    call, _ = a_call()
    with pytest.raises(type(error)) as caught:
        await play(Retry(), endpoint, call)
    assert caught.value is error
    assert len(endpoint.calls) == attempts


@pytest.mark.parametrize("level", list(Idempotency))
@pytest.mark.parametrize("begun", [True, False])
async def test_only_what_is_safe_is_tried_again(level: Idempotency, *, begun: bool) -> None:
    """A method that its proto does not declare safe is repeated only when its work cannot have begun."""
    safe = level is not Idempotency.UNKNOWN or not begun
    endpoint = scripted(Error(Code.UNAVAILABLE, begun=begun), "ok")
    call, decisions = a_call(level=level)
    if safe:
        assert await play(Retry(), endpoint, call) == "ok"
    else:
        with pytest.raises(Error):
            await play(Retry(), endpoint, call)
    assert decisions == [("retry", "retried" if safe else "not_idempotent")]


async def test_settings_mark_methods_as_safe() -> None:
    """By path or by predicate."""
    for marked in (["/test.Service/Method"], lambda method: method.name == "Method"):
        call, _ = a_call(level=Idempotency.UNKNOWN)
        assert await play(Retry(idempotent=marked), scripted(DOWN, "ok"), call) == "ok"


async def test_it_waits_with_full_jitter() -> None:
    """U(0, min(1 s, 50 ms * 2**i)), at a chance of one half."""
    times: list[float] = []

    async def endpoint(_request: Message, call: Call) -> Message:
        times.append(call.clock.time())
        raise DOWN

    call, decisions = a_call()
    with pytest.raises(Error):
        await play(Retry(attempts=8), endpoint, call)
    pauses = [round(after - before, 9) for before, after in itertools.pairwise(times)]
    assert pauses == [0.025, 0.05, 0.1, 0.2, 0.4, 0.5, 0.5]
    assert decisions == [("retry", "retried")] * 7 + [("retry", "exhausted")]


async def test_the_server_says_when() -> None:
    """Its word takes the place of the back-off, to the millisecond."""
    call, _ = a_call()
    began = call.clock.time()
    endpoint = scripted(Error(Code.UNAVAILABLE, retry_after=7.0), lambda _, call: waits_until(call, began + 7.0))
    assert await play(Retry(), endpoint, call) == "ok"


async def waits_until(call: Call, time: float) -> Message:
    assert call.clock.time() == time
    return "ok"


async def test_the_server_says_never() -> None:
    """A negative pushback ends it."""
    call, decisions = a_call()
    with pytest.raises(Error, match="gone"):
        await play(Retry(), scripted(Error(Code.UNAVAILABLE, "gone", retry_after=-1.0)), call)
    assert decisions == [("retry", "pushed_back")]


@pytest.mark.parametrize("kind", [Kind.SERVER_STREAM, Kind.BIDI_STREAM])
async def test_an_answer_that_has_begun_is_not_begun_again(kind: Kind) -> None:
    """From the first message that has reached the caller on, there is no second attempt."""
    call, decisions = a_call(kind)
    endpoint = scripted(sends("x", then=DOWN))
    with pytest.raises(Error, match="down"):
        await play(Retry(), endpoint, call, request_of(kind))
    assert call.recorder.messages == ["x"]
    assert decisions == [("retry", "committed")]


async def test_a_request_stream_too_long_to_keep_is_not_repeated() -> None:
    """Past ``keep`` bytes there is no more retrying: never a second attempt without the first messages."""
    call, decisions = a_call(Kind.CLIENT_STREAM)
    messages = [b"x" * 60, b"x" * 60]
    with pytest.raises(Error, match="down"):
        await play(Retry(keep=100), scripted(DOWN), call, messages)
    assert decisions == [("retry", "not_kept")]
    call, _ = a_call(Kind.CLIENT_STREAM)
    assert await play(Retry(keep=200), scripted(DOWN, "ok"), call, messages) == "ok"


async def test_an_unsafe_stream_is_repeated_only_if_nobody_has_read_of_it() -> None:
    """Nothing of it is kept, but a first read that was under way is not lost either."""

    async def messages() -> AsyncIterator[str]:
        await asyncio.sleep(0)
        yield "a"

    async def refuses(request: Message, _call: Call) -> Message:
        reading = asyncio.ensure_future(anext(aiter(request)))
        await asyncio.sleep(0)
        reading.cancel()
        raise Error(Code.UNAVAILABLE, begun=False)

    call, _ = a_call(Kind.CLIENT_STREAM, level=Idempotency.UNKNOWN)
    endpoint = scripted(refuses, "ok")
    assert await play(Retry(), endpoint, call, messages()) == "ok"
    assert endpoint.requests[1] == ["a"]
    call, decisions = a_call(Kind.CLIENT_STREAM, level=Idempotency.UNKNOWN)
    with pytest.raises(Error):
        await play(Retry(), scripted(Error(Code.UNAVAILABLE, begun=False)), call, [b"a", b"b"])
    assert decisions == [("retry", "not_kept")]


async def test_a_stream_that_another_link_has_made_is_not_repeated() -> None:
    """Nobody knows whether it can be gone through twice."""

    async def outer(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        return await next((message async for message in request), call)

    call, decisions = a_call(Kind.CLIENT_STREAM)
    with pytest.raises(Error, match="down"):
        await run([outer, Retry()], scripted(DOWN), ["a"], call)
    assert decisions == [("retry", "not_kept")]


async def test_no_attempt_is_begun_that_the_deadline_would_end() -> None:
    """If the pause alone would pass it, the caller gets the last error at once, and not DEADLINE_EXCEEDED."""
    clock = Middle()
    call, decisions = a_call(clock=clock, deadline=clock.time() + 1.0)
    endpoint = scripted(DOWN, waits(0.95, Error(Code.UNAVAILABLE, "second")))
    with pytest.raises(Error, match="second"):
        await play(Retry(), endpoint, call)
    assert decisions == [("retry", "retried"), ("retry", "too_late")]


@pytest.mark.parametrize(("after", "decision"), [(30.0, "retried"), (30.1, "too_late")])
async def test_a_call_without_a_deadline_does_not_wait_for_ever(after: float, decision: str) -> None:
    """A server that wants it back in an hour gets no further attempt, and the caller its error at once."""
    call, decisions = a_call(deadline=None)
    endpoint = scripted(Error(Code.RESOURCE_EXHAUSTED, "later", retry_after=after), "ok")
    if decision == "retried":
        assert await play(Retry(), endpoint, call) == "ok"
    else:
        with pytest.raises(Error, match="later"):
            await play(Retry(), endpoint, call)
    assert decisions == [("retry", decision)]


async def test_the_usual_time_of_the_method_counts_too() -> None:
    """An attempt that half of its kind would not end in time is not begun; one that is quicker is."""
    clock, link = Middle(), Retry()
    for _ in range(100):
        call, _ = a_call(clock=clock)
        running = asyncio.ensure_future(run(link, scripted(waits(0.5, "ok")), "hi", call))
        await clock.advance(0.5)
        assert await running == "ok"
    for left, decision in ((0.52, "too_late"), (0.53, "retried")):
        call, decisions = a_call(clock=clock, deadline=clock.time() + left)
        running = asyncio.ensure_future(run(link, scripted(DOWN, "ok"), "hi", call))
        await clock.advance(0.1)
        assert running.done()
        running.exception()
        assert decisions == [("retry", decision)]


@pytest.mark.parametrize("kind", [Kind.SERVER_STREAM, Kind.BIDI_STREAM])
async def test_how_long_streams_last_does_not_count(kind: Kind) -> None:
    """It says nothing about how soon one answers."""
    clock, link = Middle(), Retry()
    for _ in range(100):
        call, _ = a_call(kind, clock=clock)
        running = asyncio.ensure_future(run(link, scripted(waits(50.0, None)), request_of(kind), call))
        await clock.advance(50.0)
        await running
    call, decisions = a_call(kind, clock=clock, deadline=clock.time() + 1.0)
    await play(link, scripted(DOWN, sends("x")), call, request_of(kind))
    assert decisions == [("retry", "retried")]


async def test_the_budget_bounds_a_storm() -> None:
    """While everything fails, attempts are 1.2 times the calls and 10 a second, and not three times."""
    clock, link, attempts = MovableClock(), Retry(), [0]

    async def endpoint(_request: Message, _call: Call) -> Message:
        attempts[0] += 1
        raise DOWN

    refused = 0
    for _ in range(100):  # ten seconds of 100 calls a second
        for _ in range(10):
            call, decisions = a_call(clock=clock)
            running = asyncio.ensure_future(run(link, endpoint, "hi", call))
            await clock.advance(0.01)
            running.add_done_callback(lambda done: done.exception())
            refused += ("retry", "over_budget") in decisions
    await clock.advance(10.0)
    assert attempts[0] <= 1.2 * 1000 + 100
    assert attempts[0] >= 1.2 * 1000
    assert refused > 500


async def test_a_budget_can_be_shared_by_what_goes_to_one_target() -> None:
    """Two links, one bound."""
    budget = Budget(share=0.0, per_second=0.1)
    for number, link in enumerate([Retry(budget=budget), Retry(budget=budget)]):
        call, decisions = a_call()
        with pytest.raises(Error):
            await play(link, scripted(DOWN, DOWN), call)
        assert decisions[0] == ("retry", "over_budget" if number else "retried")


async def test_one_layer_retries() -> None:
    """While a further attempt is being served, nothing below is repeated; a first one does not hinder."""
    for sent, decision in (("1", "nested"), ("0", "retried")):
        parent = make_call(metadata=[("grpc-previous-rpc-attempts", sent)])
        call, decisions = a_call(parent=parent)
        endpoint = scripted(DOWN, "ok")
        if decision == "nested":
            with pytest.raises(Error, match="down"):
                await play(Retry(), endpoint, call)
        else:
            assert await play(Retry(), endpoint, call) == "ok"
        assert decisions == [("retry", decision)]


async def test_every_further_attempt_says_which_it_is() -> None:
    """In the metadata that gRPC has for it; the first one says nothing."""
    endpoint = scripted(DOWN, DOWN, "ok")
    call, _ = a_call()
    assert await play(Retry(), endpoint, call) == "ok"
    assert [each.metadata.get("grpc-previous-rpc-attempts") for each in endpoint.calls] == [None, "1", "2"]
    assert "grpc-previous-rpc-attempts" not in call.metadata


async def test_an_attempt_knows_where_the_others_went() -> None:
    """So that a balancer may go elsewhere."""

    async def balancer(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        call.instance = next_of(call.tried)
        return await next(request, call)

    def next_of(tried: tuple[str, ...]) -> str:
        return next(each for each in ("a:1", "b:1", "c:1") if each not in tried)

    endpoint = scripted(DOWN, DOWN, "ok")
    call, _ = a_call()
    running = asyncio.ensure_future(run([Retry(), balancer], endpoint, "hi", call))
    assert isinstance(call.clock, MovableClock)
    await call.clock.advance(10.0)
    assert await running == "ok"
    assert [each.instance for each in endpoint.calls] == ["a:1", "b:1", "c:1"]
    assert call.instance == "c:1"


async def test_the_caller_gets_the_last_word_of_somebody_else() -> None:
    """A refusal by a link of this side, which the failures have caused, tells less than they do."""
    refusal = Error(Code.UNAVAILABLE, "circuit open", refused=True, begun=False, retry_after=0.01)
    call, _ = a_call()
    with pytest.raises(Error, match="down"):
        await play(Retry(), scripted(DOWN, refusal, refusal), call)
    call, _ = a_call()
    with pytest.raises(Error, match="circuit open"):
        await play(Retry(attempts=2), scripted(refusal, refusal), call)


async def test_a_caller_that_leaves_ends_the_waiting() -> None:
    """No attempt, no timer, no task is left."""
    call, _ = a_call()
    endpoint = scripted(DOWN)
    running = asyncio.ensure_future(run(Retry(), endpoint, "hi", call))
    await asyncio.sleep(0.001)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert isinstance(call.clock, MovableClock)
    assert call.clock.pending == 0
    assert len(endpoint.calls) == 1


async def test_attempts_do_not_see_each_others_changes() -> None:
    """What a link inside has put on the first attempt is not on the second as well."""

    async def credentials(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        call.metadata.add("authorization", "made up")
        return await next(request, call)

    endpoint = scripted(DOWN, "ok")
    call, _ = a_call()
    running = asyncio.ensure_future(run([Retry(), credentials], endpoint, "hi", call))
    assert isinstance(call.clock, MovableClock)
    await call.clock.advance(1.0)
    assert await running == "ok"
    assert endpoint.calls[1].metadata.get_all("authorization") == ["made up"]


async def test_on_a_server_every_call_passes() -> None:
    """Whoever serves does not try again on its caller's behalf."""
    call, decisions = a_call(side=Side.SERVER)
    endpoint = scripted(DOWN)
    with pytest.raises(Error, match="down"):
        await play(Retry(), endpoint, call)
    assert (len(endpoint.calls), decisions) == (1, [])


@pytest.mark.parametrize(
    ("settings", "kind", "names"),
    [
        ({"attempts": 0}, ValueError, "attempts=0"),
        ({"attempts": 2.5}, TypeError, r"attempts=2\.5"),
        ({"keep": -1}, ValueError, "keep=-1"),
        ({"idempotent": ["Echo"]}, ValueError, "Echo"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], kind: type[Exception], names: str) -> None:
    """A wrong value fails where it is written."""
    with pytest.raises(kind, match=names):
        Retry(**settings)


@both
@every_kind
async def test_on_a_wire_every_kind_is_tried_again(kind: Kind, over: Over) -> None:
    """The caller sees the answers, the metadata and the code of the attempt that succeeded, and no other."""
    flaky = Flaky(times=2, after=1 if kind.request_streaming else 0)
    link = Retry(idempotent=ALL, backoff=Backoff(first=0.001))
    async with pair(flaky.register, over=over, client=[link]) as ends:
        asking = asyncio.ensure_future(ask(ends.channel, kind))
        if over == "memory":
            await ends.clock.advance(1.0)
        assert await asking == ANSWERS[kind]
    assert [attempt.get("grpc-previous-rpc-attempts") for attempt in flaky.attempts] == [None, "1", "2"]


@both
async def test_on_a_wire_one_layer_retries(over: Over) -> None:
    """A server that is asked for the second time asks others once only."""
    behind, before = Flaky(times=9), [0]
    link = Retry(backoff=Backoff(first=0.001))
    async with pair(behind.register, over=over, client=[link]) as inner:

        async def calls_on(request: EchoRequest, context: Context) -> EchoResponse:
            before[0] += 1
            try:
                response: EchoResponse = await stub_of(inner.channel).Echo(request)
            except grpc.aio.AioRpcError:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "behind")
                raise
            return response

        async with pair(
            echo(Echo=calls_on), over=over, client=[link], clock=inner.movable, network=inner.network
        ) as outer:
            asking = asyncio.ensure_future(ask(outer.channel, Kind.UNARY))
            if over == "memory":
                await outer.clock.advance(1.0)
            with pytest.raises(grpc.aio.AioRpcError):
                await asking
    assert before == [3]
    assert len(behind.attempts) == 3 + 1 + 1
