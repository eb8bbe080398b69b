"""The scripted endpoint and the recorded call: the ground that tests of middleware stand on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from servicekit.call import Call, Side
from servicekit.clock import MovableClock
from servicekit.current import current_call
from servicekit.endpoint import Endpoint, Message
from servicekit.errors import Code, Error
from servicekit.method import Idempotency, Kind, Method
from servicekit.testing import make_call, run, scripted, sends, waits


async def test_plays_its_outcomes_in_order() -> None:
    """What is no instruction is returned, an exception is raised, one at each call."""
    endpoint = scripted(Error(Code.UNAVAILABLE, "down"), ValueError, "ok")
    assert repr(endpoint) == "Scripted(3 outcomes, 3 left)"
    with pytest.raises(Error, match="down"):
        await endpoint("a", make_call())
    with pytest.raises(ValueError):
        await endpoint("b", make_call())
    call = make_call()
    assert await endpoint("c", call) == "ok"
    assert endpoint.requests == ["a", "b", "c"]
    assert endpoint.calls[-1] is call
    assert endpoint.left == 0


async def test_a_script_has_an_end() -> None:
    """A call that the script does not know of raises, saying how many it has."""
    endpoint = scripted("ok")
    await endpoint("a", make_call())
    with pytest.raises(AssertionError, match="1 outcomes, and this is call number 2"):
        await endpoint("b", make_call())


async def test_sends_messages() -> None:
    """``sends`` sends through the call, and ends well or with the error."""
    call = make_call(kind=Kind.SERVER_STREAM)
    assert await run([], scripted(sends("x", "y")), "a", call) is None
    assert call.recorder.messages == ["x", "y"]
    assert call.committed
    broken = make_call(kind=Kind.SERVER_STREAM)
    with pytest.raises(Error):
        await run([], scripted(sends("x", then=Error(Code.ABORTED))), "a", broken)
    assert broken.recorder.messages == ["x"]


async def test_waits_on_the_clock() -> None:
    """``waits`` and ``every`` take time on the call's clock, and no other."""
    clock = MovableClock()
    call = make_call(kind=Kind.SERVER_STREAM, clock=clock)
    running = asyncio.create_task(run([], scripted(waits(10.0, sends("x", "y", every=1.0))), "a", call))
    await clock.advance(10.9)
    assert call.recorder.messages == []
    await clock.advance(0.1)
    assert call.recorder.messages == ["x"]
    await clock.advance(1.0)
    assert await running is None
    assert call.recorder.messages == ["x", "y"]


async def test_a_function_is_an_endpoint() -> None:
    """A function among the outcomes has the request and the call to itself."""

    async def echo(request: Message, call: Call) -> Message:
        return request, call.method.name

    assert await run([], scripted(echo), "a", make_call()) == ("a", "Method")


async def test_records_a_request_stream() -> None:
    """A request stream is read to its end and recorded, also when it breaks on the way."""
    endpoint = scripted("ok", "never")
    await run([], endpoint, ["a", "b"], make_call(kind=Kind.CLIENT_STREAM))

    async def breaking() -> AsyncIterator[str]:
        yield "c"
        raise OSError

    with pytest.raises(OSError):
        await run([], endpoint, breaking(), make_call(kind=Kind.CLIENT_STREAM, side=Side.CLIENT))
    assert endpoint.requests == [["a", "b"], ["c"]]


async def test_a_request_stream_is_iterable_once() -> None:
    """As on a wire, a second attempt at a stream needs ``keep``."""

    async def twice(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        await next(request, call.fork())
        return await next(request, call.fork())

    async def keeping(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        request.keep()
        return await twice(request, call, next)

    with pytest.raises(RuntimeError, match="keep"):
        await run(twice, scripted(1, 2), ["a"], make_call(kind=Kind.CLIENT_STREAM, side=Side.CLIENT))
    endpoint = scripted(1, 2)
    assert await run(keeping, endpoint, ["a"], make_call(kind=Kind.CLIENT_STREAM, side=Side.CLIENT)) == 2
    assert endpoint.requests == [["a"], ["a"]]


@pytest.mark.parametrize("kind", list(Kind))
@pytest.mark.parametrize("side", list(Side))
async def test_hooks_run_for_every_message(kind: Kind, side: Side) -> None:
    """Requests come in on the server and go out on the client, responses the other way, each with its size."""
    seen: list[tuple[str, object, int]] = []

    async def observe(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        call.on_received(lambda message, size: seen.append(("received", message, size)))
        call.on_sent(lambda message, size: seen.append(("sent", message, size)))
        return await next(request, call)

    request = [b"a"] if kind.request_streaming else b"a"
    outcome = sends(b"xyz") if kind.response_streaming else b"xyz"
    await run(observe, scripted(outcome), request, make_call(kind=kind, side=side))
    there, back = ("received", "sent") if side is Side.SERVER else ("sent", "received")
    assert seen == [(there, b"a", 1), (back, b"xyz", 3)]


async def test_a_hooks_failure_wins() -> None:
    """A failed hook is how the call ends, whatever the endpoint makes of it."""

    def hook(_message: object, _size: int) -> None:
        raise Error(Code.DATA_LOSS, "hook")

    async def swallowing(_request: Message, call: Call) -> Message:
        with pytest.raises(Error):
            await call.send("x")

    call = make_call(kind=Kind.SERVER_STREAM)
    call.on_sent(hook)
    with pytest.raises(Error, match="DATA_LOSS: hook"):
        await run([], swallowing, "a", call)


@pytest.mark.parametrize("side", list(Side))
async def test_a_deadline_ends_the_call(side: Side) -> None:
    """The deadline that the call came with, or was limited to, cancels the chain; the caller gets the error."""
    clock = MovableClock()
    call = make_call(side=side, clock=clock, deadline=clock.time() + 5)
    running = asyncio.create_task(run([], scripted(waits()), "a", call))
    await clock.advance(1)
    call.limit(clock.time() + 1)
    assert call.recorder.limits == [clock.time() + 1]
    await clock.advance(0.9)
    assert not running.done()
    await clock.advance(0.1)
    with pytest.raises(Error) as caught:
        await running
    assert caught.value.code is Code.DEADLINE_EXCEEDED
    assert call.recorder.stopped == 1
    assert clock.pending == 0


async def test_whoever_leaves_cancels() -> None:
    """Cancelling ``run`` cancels the chain, and is no failure of the call."""
    cancelled = []

    async def endpoint(_request: Message, _call: Call) -> Message:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError as error:
            cancelled.append(error)
            raise

    call = make_call()
    running = asyncio.create_task(run([], endpoint, "a", call))
    await asyncio.sleep(0.01)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert len(cancelled) == 1
    assert call.over
    assert call.failure is None


async def test_a_real_cancellation_stays_one_beside_the_end() -> None:
    """Who leaves in the moment when the call ends by itself is still the one who left."""
    call = make_call()
    running = asyncio.create_task(run([], scripted(waits()), "a", call))
    await asyncio.sleep(0.01)
    call.end(Error(Code.ABORTED))
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_a_failure_is_no_reason_to_swallow_a_cancellation() -> None:
    """A call that has failed without being stopped can still be cancelled."""
    call = make_call()
    running = asyncio.create_task(run([], scripted(waits()), "a", call))
    await asyncio.sleep(0.01)
    call.fail(Error(Code.ABORTED))
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_a_stray_cancellation_is_a_fault() -> None:
    """A CancelledError that nobody has asked for becomes INTERNAL, out of the endpoint or out of a middleware."""

    async def stray(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        await next(request, call)
        raise asyncio.CancelledError

    for links, outcome in (([], asyncio.CancelledError()), ([stray], "ok")):
        with pytest.raises(Error) as caught:
            await run(links, scripted(outcome), "a", make_call())
        assert caught.value.code is Code.INTERNAL


async def test_the_edge_answers_for_strangers_on_the_server() -> None:
    """On the server whatever leaves the chain is an Error; on the client it is what was raised."""
    with pytest.raises(Error, match="internal error") as caught:
        await run([], scripted(ValueError("x")), "a", make_call())
    assert isinstance(caught.value.__cause__, ValueError)
    with pytest.raises(ValueError):
        await run([], scripted(ValueError("x")), "a", make_call(side=Side.CLIENT))


async def test_an_attempt_hands_back_what_it_brought() -> None:
    """What the attempt that succeeded has received is the call's, as a transport settles it."""

    async def endpoint(_request: Message, call: Call) -> Message:
        call.trailers.add("from", f"attempt-{call.attempt}")
        return "ok"

    async def forking(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        return await next(request, call.fork())

    call = make_call(side=Side.CLIENT)
    await run(forking, scripted(endpoint), "a", call)
    assert call.trailers.text("from") == "attempt-1"


async def test_the_servicer_finds_its_call() -> None:
    """On the server ``current_call`` works inside; on the client it is the call that is being served, if any."""

    async def endpoint(_request: Message, call: Call) -> Message:
        return current_call() is call

    assert await run([], scripted(endpoint), "a", make_call()) is True
    with pytest.raises(LookupError):
        await run([], scripted(endpoint), "a", make_call(side=Side.CLIENT))


def test_describes_the_call() -> None:
    """What a test is about can be said; all else has a default."""
    call = make_call(
        kind=Kind.BIDI_STREAM,
        side=Side.CLIENT,
        metadata=[("a", "b")],
        deadline=2000.0,
        peer="p",
        path="/x/y",
        parent=make_call(),
        idempotency=Idempotency.IDEMPOTENT,
        known=False,
        auxiliary=True,
    )
    assert (call.method.kind, call.side, call.metadata.text("a")) == (Kind.BIDI_STREAM, Side.CLIENT, "b")
    assert (call.deadline, call.peer, call.path) == (2000.0, "p", "/x/y")
    assert (call.method.idempotency, call.method.known, call.method.auxiliary) == (Idempotency.IDEMPOTENT, False, True)
    method = Method(service="s", name="n", kind=Kind.UNARY)
    assert make_call(method=method).method is method
    with pytest.raises(ValueError, match="lower-case"):
        make_call(metadata=[("A", "b")])
