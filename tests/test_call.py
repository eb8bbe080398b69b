from __future__ import annotations

import asyncio
import contextvars

import pytest

from servicekit.call import Call, Side, deadline_error
from servicekit.clock import MovableClock
from servicekit.current import current_call, detached, parent_call, serving
from servicekit.errors import Code, Error
from servicekit.metadata import Metadata
from servicekit.method import Kind, Method
from servicekit.wire import Security

METHOD = Method(service="pkg.Service", name="Do", kind=Kind.BIDI_STREAM)


class Noting:
    """An exchange that remembers what it was asked."""

    draining = None

    def __init__(self) -> None:
        self.committed = False
        self.sent: list[tuple[Call, object]] = []
        self.limits: list[float | None] = []
        self.stopped: list[Call] = []

    def security(self) -> Security:
        return Security()

    async def send(self, call: Call, message: object) -> None:
        self.sent.append((call, message))

    def limit(self, call: Call) -> None:
        self.limits.append(call.deadline)

    def stop(self, call: Call) -> None:
        self.stopped.append(call)


@pytest.fixture
def exchange() -> Noting:
    return Noting()


@pytest.fixture
def clock() -> MovableClock:
    return MovableClock()


@pytest.fixture
def call(exchange: Noting, clock: MovableClock) -> Call:
    return Call(
        METHOD,
        side=Side.CLIENT,
        exchange=exchange,
        clock=clock,
        metadata=Metadata([("k", "v")]),
        peer="memory:server",
        deadline=1010.0,
    )


@pytest.mark.parametrize(
    ("kind", "request_streaming", "response_streaming"),
    [
        (Kind.UNARY, False, False),
        (Kind.CLIENT_STREAM, True, False),
        (Kind.SERVER_STREAM, False, True),
        (Kind.BIDI_STREAM, True, True),
    ],
)
def test_a_kind_says_which_side_streams(*, kind: Kind, request_streaming: bool, response_streaming: bool) -> None:
    """Four kinds, two properties, one to one."""
    assert (kind.request_streaming, kind.response_streaming) == (request_streaming, response_streaming)
    assert Kind.of(request_streaming=request_streaming, response_streaming=response_streaming) is kind


def test_a_method_spells_its_path() -> None:
    """The path is what goes on the wire; a method is its own key."""
    twin = Method(service="pkg.Service", name="Do", kind=Kind.BIDI_STREAM)
    assert METHOD.path == "/pkg.Service/Do"
    assert len({METHOD, twin}) == 2
    assert METHOD.known
    assert not METHOD.auxiliary


async def test_remaining_counts_down_to_zero(call: Call, clock: MovableClock) -> None:
    """The time left is never negative; without a deadline there is none to tell."""
    assert call.remaining() == 10.0
    await clock.advance(4)
    assert call.remaining() == 6.0
    await clock.advance(100)
    assert call.remaining() == 0.0
    call.deadline = None
    assert call.remaining() is None


def test_a_limit_only_brings_the_deadline_nearer(call: Call, exchange: Noting) -> None:
    """A later limit changes nothing and is not heard of; a nearer one reaches the exchange at once."""
    call.limit(1020.0)
    call.limit(1010.0)
    assert (call.deadline, exchange.limits) == (1010.0, [])
    call.limit(1005.0)
    call.limit(1007.0)
    assert (call.deadline, exchange.limits) == (1005.0, [1005.0])


def test_any_limit_is_nearer_than_none(exchange: Noting, clock: MovableClock) -> None:
    """A call without a deadline takes the first one it is given."""
    call = Call(METHOD, side=Side.SERVER, exchange=exchange, clock=clock, metadata=Metadata())
    call.limit(2000.0)
    assert (call.deadline, exchange.limits) == (2000.0, [2000.0])


async def test_send_goes_out_as_this_attempt(call: Call, exchange: Noting) -> None:
    """The exchange learns which attempt sends."""
    attempt = call.fork()
    await attempt.send("message")
    assert exchange.sent == [(attempt, "message")]


def test_committed_is_the_exchanges_word(call: Call, exchange: Noting) -> None:
    """Whether the caller has seen a message is one fact for all attempts."""
    attempt = call.fork()
    exchange.committed = True
    assert call.committed
    assert attempt.committed


def test_attempts_do_not_see_each_other(call: Call) -> None:
    """A fork starts from the call as it is, and keeps its own metadata, hooks, headers, trailers and failure."""
    seen: list[str] = []
    call.headers.add("early", "1")
    call.on_received(lambda *_: seen.append("call"))
    first, second = call.fork(), call.fork()
    first.metadata.add("attempt", "1")
    first.headers.add("h", "1")
    first.trailers.add("t", "1")
    first.instance = "10.0.0.1"
    first.on_received(lambda *_: seen.append("first"))
    first.on_sent(lambda *_: seen.append("first sent"))
    first.fail(Error(Code.UNAVAILABLE))
    for other in (call, second):
        assert other.metadata.pairs() == (("k", "v"),)
        assert other.headers.pairs() == (("early", "1"),)
        assert other.trailers.pairs() == ()
        assert other.instance is None
        assert other.failure is None
    second.received("message", 1)
    second.sent("message", 1)
    assert seen == ["call"]
    first.received("message", 1)
    assert seen == ["call", "call", "first"]


def test_attempts_share_what_belongs_to_the_call(call: Call) -> None:
    """Method, peer, path, deadline, parent and state are the call's."""
    attempt = call.fork()
    attempt.state["seen"] = True
    assert call.state == {"seen": True}
    assert (attempt.method, attempt.peer, attempt.path, attempt.deadline, attempt.side) == (
        call.method,
        "memory:server",
        "/pkg.Service/Do",
        1010.0,
        Side.CLIENT,
    )
    assert attempt.origin is call


def test_attempts_are_numbered(call: Call) -> None:
    """The first fork is attempt 1; the call itself counts how many there were."""
    assert [call.fork().attempt for _ in range(3)] == [1, 2, 3]
    assert call.attempt == 3


def test_settle_hands_back_what_the_attempt_brought(call: Call) -> None:
    """The attempt that succeeds gives its headers, trailers, instance and peer to every call it was forked from."""
    first = call.fork()
    inner = first.fork()
    inner.headers.add("h", "1")
    inner.trailers.add("t", "1")
    inner.instance, inner.peer = "10.0.0.1", "ipv4:10.0.0.1:50051"
    inner.settle()
    for origin in (first, call):
        assert (origin.headers.get("h"), origin.trailers.get("t")) == ("1", "1")
        assert (origin.instance, origin.peer) == ("10.0.0.1", "ipv4:10.0.0.1:50051")


def test_settle_of_the_call_itself_is_nothing(call: Call) -> None:
    """A call that was never forked has nobody to hand anything to."""
    call.headers.add("h", "1")
    call.settle()
    assert call.headers.get("h") == "1"


def test_hooks_see_every_message_in_order(call: Call) -> None:
    """Hooks run in the order they were given, with the message and its size, each for its direction."""
    seen: list[tuple[str, object, int]] = []
    call.on_received(lambda message, size: seen.append(("a", message, size)))
    call.on_received(lambda message, size: seen.append(("b", message, size)))
    call.on_sent(lambda message, size: seen.append(("sent", message, size)))
    call.received("in", 2)
    call.sent("out", 3)
    assert seen == [("a", "in", 2), ("b", "in", 2), ("sent", "out", 3)]


def test_a_hook_that_raises_fails_the_call(call: Call) -> None:
    """Its error is raised and becomes the failure; hooks after it do not run; the first failure stays."""
    after: list[object] = []
    first, second = Error(Code.RESOURCE_EXHAUSTED, "too many"), ValueError("another")
    raising = [first, second]

    def refuse(_: object, __: int) -> None:
        raise raising.pop(0)

    call.on_received(refuse)
    call.on_received(lambda message, _: after.append(message))
    with pytest.raises(Error, match="too many"):
        call.received("message", 1)
    with pytest.raises(ValueError, match="another"):
        call.received("message", 1)
    assert call.failure is first
    assert after == []


def test_the_first_failure_wins(call: Call, exchange: Noting) -> None:
    """``fail`` and ``end`` set the failure once; ``end`` stops the work, unless it has failed before."""
    first, second = Error(Code.ABORTED), Error(Code.NOT_FOUND)
    call.end(first)
    call.fail(second)
    call.end(second)
    assert call.failure is first
    assert exchange.stopped == [call]


def test_end_is_harmless_after_a_failure(call: Call, exchange: Noting) -> None:
    """What has failed by itself is not stopped again."""
    call.fail(Error(Code.ABORTED))
    call.end(Error(Code.NOT_FOUND))
    assert exchange.stopped == []


async def test_outcome_tells_a_deadline_from_a_cancellation(call: Call, clock: MovableClock) -> None:
    """A CancelledError is CANCELLED well before the deadline, DEADLINE_EXCEEDED from it on."""
    assert call.outcome(asyncio.CancelledError()) is Code.CANCELLED
    await clock.advance(9.5)
    assert call.outcome(asyncio.CancelledError()) is Code.CANCELLED
    await clock.advance(0.5)
    assert call.outcome(asyncio.CancelledError()) is Code.DEADLINE_EXCEEDED
    call.deadline = None
    assert call.outcome(asyncio.CancelledError()) is Code.CANCELLED


async def test_outcome_of_an_ended_call_is_its_failure(call: Call, clock: MovableClock) -> None:
    """A cancellation that a failure set off is that failure, also past the deadline."""
    call.end(Error(Code.RESOURCE_EXHAUSTED))
    await clock.advance(100)
    assert call.outcome(asyncio.CancelledError()) is Code.RESOURCE_EXHAUSTED


async def test_outcome_of_all_else_is_what_it_is(call: Call, clock: MovableClock) -> None:
    """A late answer is OK, an Error its code, a stranger INTERNAL."""
    await clock.advance(100)
    assert call.outcome(None) is Code.OK
    assert call.outcome(Error(Code.NOT_FOUND)) is Code.NOT_FOUND
    assert call.outcome(ValueError()) is Code.INTERNAL


def test_its_repr_shows_no_secrets(call: Call) -> None:
    """Path, kind, side, attempt and time left; never metadata or state."""
    call.state["secret"] = "secret"
    call.metadata.add("authorization", "secret")
    assert repr(call) == "<Call /pkg.Service/Do bidi_stream on the client, 10.000s left>"
    assert repr(call.fork()) == "<Call /pkg.Service/Do bidi_stream on the client, attempt 1, 10.000s left>"
    call.deadline = None
    assert repr(call) == "<Call /pkg.Service/Do bidi_stream on the client>"


def test_an_unknown_path_is_kept(exchange: Noting, clock: MovableClock) -> None:
    """Unknown methods share one Method, but the call knows what was asked for."""
    unknown = Method(service="unknown", name="unknown", kind=Kind.UNARY, known=False)
    call = Call(
        unknown, side=Side.SERVER, exchange=exchange, clock=clock, metadata=Metadata(), path="/who/Knows", peer="p"
    )
    assert call.path == "/who/Knows"
    assert call.fork().path == "/who/Knows"


def test_there_is_a_current_call_only_while_serving(call: Call) -> None:
    """Outside of a served call there is none; blocks nest; a detached one belongs to nobody."""
    with pytest.raises(LookupError, match="no call"):
        current_call()
    assert parent_call() is None
    with serving(call):
        assert current_call() is call
        inner = call.fork()
        with serving(inner):
            assert current_call() is inner
        assert current_call() is call
        with detached():
            assert parent_call() is None
            with pytest.raises(LookupError):
                current_call()
        assert parent_call() is call
    assert parent_call() is None


async def test_tasks_inherit_the_call_until_it_is_over(call: Call) -> None:
    """A child task belongs to the call, a detached one does not; a call that is over is nobody's parent."""

    async def parent() -> Call | None:
        return parent_call()

    with serving(call):
        assert await asyncio.create_task(parent()) is call
        with detached():
            outside = asyncio.create_task(parent())
        assert await outside is None
        context = contextvars.copy_context()
    call.over = True
    assert context.run(parent_call) is None
    assert context.run(current_call) is call


def test_a_missed_deadline_is_an_error() -> None:
    """The error of a deadline that has passed has that code."""
    assert deadline_error().code is Code.DEADLINE_EXCEEDED
