from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Callable

import pytest

from servicekit.clock import MovableClock, SystemClock, settle
from servicekit.errors import By, Code, Error
from servicekit.memory import Limits, MemoryNetwork
from servicekit.testing.wire_conformance import CASES, Case, check
from servicekit.testing.wire_pair import (
    OK,
    Pair,
    Watched,
    bidi,
    download,
    drain,
    echo,
    head,
    linger,
    quit_task,
    refused,
    unary,
    upload,
)
from servicekit.wire import BindError, Ended, Head, Incoming, Listener, Route, Status, Wire

WIDE = Limits(window=1 << 20, messages=10_000)


class InMemory:
    address = "server:0"

    def __init__(self, limits: Limits | None = None) -> None:
        self.clock = MovableClock()
        self.network = MemoryNetwork(self.clock, limits)

    def listener(self) -> Listener:
        return self.network.listener()

    def wire(self, address: str) -> Wire:
        return self.network.wire(address)

    async def pass_time(self, seconds: float) -> None:
        await self.clock.advance(seconds)


@pytest.mark.parametrize("limits", [Limits(), WIDE], ids=["narrow", "wide"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
async def test_memory_keeps(case: Case, limits: Limits) -> None:
    ground = InMemory(limits)
    await check(case, ground)
    assert ground.clock.pending == 0


def test_every_case_states_its_rule() -> None:
    """A case's docstring is the rule, its name is its own, and helpers are not taken for cases."""
    assert len(CASES) > 50
    assert len({case.__name__ for case in CASES}) == len(CASES)
    assert all(case.__doc__ and case.__doc__.rstrip().endswith(".") for case in CASES)


async def test_check_finds_what_is_left_running() -> None:
    """A task that outlives both ends fails the case."""
    left: list[asyncio.Task[None]] = []

    async def case(_: Pair) -> None:
        left.append(asyncio.create_task(asyncio.sleep(3600), name="left behind"))

    with pytest.raises(AssertionError, match="left behind"):
        await check(case, InMemory())
    await quit_task(left[0])


async def test_check_finds_a_hang() -> None:
    """A case that never ends is a TimeoutError, not a stuck test run."""

    async def case(_: Pair) -> None:
        await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        await check(case, InMemory(), patience=0.05)


@pytest.fixture
async def pair() -> Pair:
    return Pair(InMemory())


async def _sent_until_full(pair: Pair, size: int) -> int:
    """Return how many messages of ``size`` bytes go to a server that does not read."""
    stream = (await pair.connect(upload(linger))).open(head(), None)
    count = 0

    async def send() -> None:
        nonlocal count
        while True:
            await stream.send(bytes(size))
            count += 1

    sending = asyncio.create_task(send())
    await pair.quiet(lambda: count)
    await quit_task(sending)
    await pair.close()
    return count


@pytest.mark.parametrize(
    ("size", "count"),
    [(0, 16), (1, 16), (4096, 16), (10_000, 6), (32 * 1024, 2), (64 * 1024, 1), (64 * 1024 + 1, 1), (1 << 20, 1)],
)
async def test_a_direction_holds_16_messages_or_64_kib(pair: Pair, size: int, count: int) -> None:
    """The window is exact; a message larger than it travels alone."""
    assert await _sent_until_full(pair, size) == count


async def test_the_window_can_be_set() -> None:
    """Limits say how much is held."""
    assert await _sent_until_full(Pair(InMemory(Limits(window=10, messages=3))), 4) == 2
    assert await _sent_until_full(Pair(InMemory(Limits(window=10, messages=3))), 1) == 3


async def test_a_blocked_send_raises_ended_itself(pair: Pair) -> None:
    """The send that waits learns of the end, not the one after it."""
    stream = (await pair.connect(upload(linger))).open(head(), None)
    await stream.send(bytes(64 * 1024))
    sending = asyncio.create_task(stream.send(b"x"))
    await settle()
    assert not sending.done()
    stream.cancel()
    with pytest.raises(Ended):
        await sending
    await pair.close()


@pytest.mark.parametrize(("name", "value"), [("window", 0), ("messages", 0), ("message", -1)])
def test_limits_refuse_what_nothing_could_pass(name: str, value: int) -> None:
    """A wrong limit fails where it is written, naming itself and its value."""
    with pytest.raises(ValueError, match=f"{name} must be at least 1, not {value}"):
        Limits(**{name: value})


async def test_any_name_is_an_address() -> None:
    """Names and host:port are one namespace; port 0 becomes a number of its own."""
    network = MemoryNetwork()
    listener = network.listener()
    assert listener.bind("encryption") == "encryption"
    first, second = listener.bind("localhost:0"), listener.bind("localhost:0")
    assert first != second
    assert int(first.removeprefix("localhost:")) > 0
    for taken in ("encryption", first):
        with pytest.raises(BindError, match=taken):
            network.listener().bind(taken)
    with pytest.raises(BindError, match="''"):
        listener.bind("")
    assert "encryption" in repr(listener)


async def test_networks_do_not_know_each_other() -> None:
    """A name belongs to its network."""
    one, other = MemoryNetwork(), MemoryNetwork()
    listener = one.listener()
    listener.bind("name")
    await listener.start(lambda _: unary(echo))
    assert other.listener().bind("name") == "name"
    assert (await one.wire("name").unary(head(), b"x")).data == b"x"
    assert (await refused(other.wire("name").unary(head(), b"x"))).code is Code.UNAVAILABLE
    await listener.stop(0)


async def test_a_name_is_free_after_stop() -> None:
    """What a stopped listener had can be bound again, and the same wire reaches the new one."""
    network = MemoryNetwork()
    wire = network.wire("name")
    for _ in range(3):
        listener = network.listener()
        listener.bind("name")
        assert (await refused(wire.unary(head(), b"x"))).begun is False  # bound, not started
        await listener.start(lambda _: unary(echo))
        assert (await wire.unary(head(), b"x")).data == b"x"
        await listener.stop(0)


async def test_a_listener_lives_once() -> None:
    """A listener is started once; after stop it binds nothing."""
    listener = MemoryNetwork().listener()
    await listener.start(lambda _: unary(echo))
    with pytest.raises(RuntimeError, match="started once"):
        await listener.start(lambda _: unary(echo))
    await listener.stop(0)
    with pytest.raises(RuntimeError, match="stopped"):
        listener.bind("name")


async def test_a_started_listener_can_bind_more() -> None:
    """An address bound after start is answered at once."""
    network = MemoryNetwork()
    listener = network.listener()
    await listener.start(lambda _: unary(echo))
    address = listener.bind("late:0")
    assert (await network.wire(address).unary(head(), b"x")).data == b"x"
    await listener.stop(0)


async def test_peers_have_names(pair: Pair) -> None:
    """Each wire is a client of its own; a client knows the server by its address."""
    seen: list[str] = []

    async def serve(incoming: Incoming) -> None:
        seen.append(incoming.head.peer)
        assert "client" in repr(incoming)
        await incoming.finish(OK, b"")

    wire = await pair.connect(unary(serve))
    reply = await wire.unary(head(), b"")
    await wire.unary(head(), b"")
    await pair.wire().unary(head(), b"")
    assert reply.peer == f"memory:{pair.address}"
    assert seen == ["memory:client-1", "memory:client-1", "memory:client-2"]
    stream = wire.open(head(), b"")
    assert repr(stream).endswith(f"to memory:{pair.address}, open>")
    assert await drain(stream) == [b""]
    assert repr(stream).endswith("over>")
    await pair.close()
    assert repr(wire) == f"<MemoryWire to {pair.address}, 0 in flight, closed>"


async def test_begun_is_exact(pair: Pair) -> None:
    """An RPC that ends before its serving task ran has not begun; one that ends after it has."""
    watched = Watched(linger)
    wire = await pair.connect({"/t/Bidi": bidi(watched), "/t/Unary": unary(watched)})
    stream = wire.open(head("/t/Bidi"), None)
    stream.cancel()
    assert (await stream.ended()).begun is False
    stream = wire.open(head("/t/Unary"), None)  # never sends its request
    await settle()
    stream.cancel()
    assert (await stream.ended()).begun is False
    assert watched.calls == 0
    stream = wire.open(head("/t/Bidi"), None)
    await settle()
    stream.cancel()
    assert (await stream.ended()).begun is True
    late = await refused(wire.unary(head("/t/Unary", deadline=pair.clock.time()), b""))
    assert (late.code, late.begun, late.by) == (Code.DEADLINE_EXCEEDED, False, By.LOCAL)
    assert watched.calls == 1
    await pair.close()


async def test_a_request_that_never_comes_ends_at_the_deadline(pair: Pair) -> None:
    """A unary RPC whose message never comes is not served, and does not outlive its deadline."""
    watched = Watched(linger)
    wire = await pair.connect(unary(watched))
    stream = wire.open(head(deadline=pair.within(3600)), None)
    await pair.pass_time(3599)
    ended = asyncio.create_task(stream.ended())
    await settle()
    assert not ended.done()
    await pair.pass_time(1)
    assert (await ended).code is Code.DEADLINE_EXCEEDED
    assert watched.calls == 0
    await pair.close()


async def test_a_deadline_holds_while_messages_wait(pair: Pair) -> None:
    """A client that leaves a finished answer unread until its deadline has missed it."""

    async def serve(incoming: Incoming) -> None:
        await incoming.send(b"1")
        await incoming.finish(OK)

    wire = await pair.connect(download(serve))
    stream = wire.open(head(deadline=pair.within(1)), b"")
    await pair.pass_time(1)
    assert await drain(stream) == []
    assert (await stream.ended()).code is Code.DEADLINE_EXCEEDED
    await pair.close()


async def test_clean_up_is_not_cancelled_twice(pair: Pair) -> None:
    """A serving task that cleans up after a cancellation is left alone until a stop runs out of grace."""
    cleaned = asyncio.Event()

    async def serve(incoming: Incoming) -> None:
        try:
            await linger(incoming)
        finally:
            await pair.clock.sleep(5)
            cleaned.set()

    listener = await pair.serve(bidi(serve))
    stream = pair.wire().open(head(deadline=pair.within(1)), None)
    await settle()
    stream.cancel()
    stream.cancel()
    await pair.during(6, listener.stop(10))
    assert cleaned.is_set()
    await pair.close()


async def test_a_stop_cancels_again_who_swallowed_it(pair: Pair) -> None:
    """A serving task that did not heed its RPC's cancellation is cancelled by stop: nothing hangs."""

    async def serve(incoming: Incoming) -> None:
        try:
            await linger(incoming)
        except asyncio.CancelledError:
            await linger(incoming)

    listener = await pair.serve(bidi(serve))
    stream = pair.wire().open(head(), None)
    await settle()
    stream.cancel()
    await settle()
    await listener.stop(0)
    await pair.close()


async def test_a_stop_takes_no_answer_away(pair: Pair) -> None:
    """What the server had finished can still be read after its stop."""

    async def serve(incoming: Incoming) -> None:
        await incoming.send(b"1")
        await incoming.finish(OK)
        await linger(incoming)

    listener = await pair.serve(download(serve))
    stream = pair.wire().open(head(), b"")
    await settle()
    await listener.stop(0)
    assert await drain(stream) == [b"1"]
    assert (await stream.ended()).code is Code.OK
    await pair.close()


async def test_a_failing_serve_is_reported(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    """What serve or route raised goes to the loop's exception handler, once, and not to the client."""

    async def serve(_: Incoming) -> None:
        raise ValueError("secret")

    def route(path: str) -> Route:
        if path == "/t/Lost":
            raise KeyError("lost")
        return unary(serve)

    wire = await pair.connect(route)
    with caplog.at_level(logging.ERROR, "asyncio"):
        assert (await refused(wire.unary(head(), b""))).message == "internal error"
        assert (await refused(wire.unary(head("/t/Lost"), b""))).message == "internal error"
    assert [type(record.exc_info[1]) for record in caplog.records if record.exc_info] == [ValueError, KeyError]
    await pair.close()


async def test_a_broken_rpc_is_no_failure_of_serve(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    """A serving task that ends with Ended after its RPC was finished has nothing to report."""
    watched = Watched(echo)
    wire = await pair.connect(bidi(watched))
    stream = wire.open(head(), None)
    await watched.started.wait()
    assert watched.incoming is not None
    await watched.incoming.finish(Status(code=Code.ABORTED))
    await watched.left.wait()
    await settle()
    assert await drain(stream) == []
    assert not caplog.records
    await pair.close()


async def test_on_end_runs_for_who_comes_late(pair: Pair) -> None:
    """A callback given after the end runs soon; one that fails hurts nobody."""
    ran: list[str] = []

    def fail() -> None:
        ran.append("fail")
        raise ValueError

    async def serve(incoming: Incoming) -> None:
        incoming.on_end(fail)
        incoming.on_end(lambda: ran.append("early"))
        await incoming.finish(OK, b"")
        incoming.on_end(lambda: ran.append("late"))

    wire = await pair.connect(unary(serve))
    await wire.unary(head(), b"")
    await settle()
    assert ran == ["fail", "early", "late"]
    await pair.close()


async def test_headers_are_gone_with_the_first_message(pair: Pair) -> None:
    """After a message the headers have been sent, empty; after the end nobody minds them."""
    raised: list[BaseException] = []

    async def serve(incoming: Incoming) -> None:
        await incoming.send(b"1")
        try:
            incoming.send_headers((("k", "late"),))
        except RuntimeError as error:
            raised.append(error)
        await incoming.finish(OK)
        incoming.send_headers((("k", "later"),))

    wire = await pair.connect(download(serve))
    stream = wire.open(head(), b"")
    assert await drain(stream) == [b"1"]
    assert await stream.headers() == ()
    assert len(raised) == 1
    await pair.close()


async def test_nothing_is_sent_after_half_close(pair: Pair) -> None:
    """A message after half_close is a mistake of the caller's, and says so."""
    wire = await pair.connect(bidi(echo))
    stream = wire.open(head(), None)
    await stream.half_close()
    with pytest.raises(RuntimeError, match="half_close"):
        await stream.send(b"x")
    stream = wire.open(head(), b"x")
    with pytest.raises(RuntimeError, match="half_close"):
        await stream.send(b"y")
    await pair.close()


async def test_two_responses_to_a_unary_request_are_an_error(pair: Pair) -> None:
    """Exactly one response makes a unary reply."""

    async def serve(incoming: Incoming) -> None:
        await incoming.send(b"1")
        await incoming.finish(OK, b"2")

    wire = await pair.connect(unary(serve))
    error = await refused(wire.unary(head(), b""))
    assert (error.code, error.message) == (Code.UNIMPLEMENTED, "more than one response to a unary request")
    await pair.close()


async def test_large_messages_in_streams_are_refused(pair: Pair) -> None:
    """The limit holds for every message of a stream, both ways, and resets both sides."""
    large = bytes((4 << 20) + 1)

    async def serve(incoming: Incoming) -> None:
        await incoming.send(large)
        await linger(incoming)

    answering, reading = Watched(serve), Watched(echo)
    wire = await pair.connect({"/t/Answer": download(answering), "/t/Read": bidi(reading)})
    stream = wire.open(head("/t/Answer"), b"")
    assert await drain(stream) == []
    assert (await stream.ended()).by is By.LOCAL
    await answering.cancelled.wait()
    stream = wire.open(head("/t/Read"), None)
    await stream.send(b"fits")
    assert await stream.receive() == b"fits"
    await stream.send(large)
    status = await stream.ended()
    assert (status.code, status.by) == (Code.RESOURCE_EXHAUSTED, By.PEER)
    assert status.message == "received a message of 4194305 bytes, more than 4194304"
    await reading.cancelled.wait()
    await pair.close()


async def test_an_rpc_that_waited_and_was_cancelled_is_not_served(pair: Pair) -> None:
    """Who gave up waiting for a server is not served by it, and leaves nothing behind."""
    address = await pair.nobody()
    wire, watched = pair.wire(address), Watched(echo)
    for _ in range(3):
        stream = wire.open(head(wait_for_ready=True), b"x")
        await settle()
        stream.cancel()
    kept = wire.open(head(wait_for_ready=True), None)
    await kept.send(b"early")
    await pair.serve(bidi(watched), address)
    await kept.half_close()
    assert await drain(kept) == [b"early"]
    assert watched.calls == 1
    await pair.close()


async def test_a_dropped_answer_does_not_hold_the_wire(pair: Pair) -> None:
    """A stream dropped with its answer unread is over for the wire, so that close does not wait for it."""
    wire = await pair.connect(unary(echo))
    wire.open(head(), b"x")
    await settle()
    gc.collect()
    await wire.close(3600)  # no time passes
    await pair.close()


def test_a_stream_may_outlive_its_loop() -> None:
    """Dropping a stream after its loop has closed is harmless."""

    async def leave() -> object:
        pair = Pair(InMemory())
        stream = (await pair.connect(bidi(linger))).open(head(), None)
        await settle()
        return stream

    stream = asyncio.run(leave())
    del stream
    gc.collect()


async def _conversation(note: Callable[[str], None]) -> None:
    ground = InMemory()
    pair = Pair(ground)

    async def serve(incoming: Incoming) -> None:
        await ground.clock.sleep(ground.clock.random())
        note(f"{ground.clock.time():.6f} {incoming.data!r}")
        await incoming.finish(OK, incoming.data)

    wire = await pair.connect(unary(serve))

    async def ask(number: int) -> None:
        try:
            reply = await wire.unary(head(deadline=pair.within(0.7)), b"%d" % number)
            note(f"{ground.clock.time():.6f} got {reply.data!r}")
        except Error as error:
            note(f"{ground.clock.time():.6f} {number} {error}")

    async with asyncio.TaskGroup() as group:
        for number in range(50):
            group.create_task(ask(number))
        await pair.pass_time(1)
    await pair.close()


async def test_everything_happens_the_same_way_twice() -> None:
    """Under a movable clock a conversation is the same every time: order, times, outcomes."""
    first: list[str] = []
    second: list[str] = []
    await _conversation(first.append)
    await _conversation(second.append)
    assert first == second
    assert any("DEADLINE" in line for line in first)
    assert any("got" in line for line in first)


async def test_the_real_clock_is_the_default() -> None:
    """Without a clock, deadlines are those of the system."""
    network = MemoryNetwork()
    assert isinstance(network.clock, SystemClock)
    listener = network.listener()
    listener.bind("name")
    await listener.start(lambda _: unary(linger))
    wire = network.wire("name")
    error = await refused(wire.unary(Head(path="/t/M", deadline=network.clock.time() + 0.02), b""))
    assert error.code is Code.DEADLINE_EXCEEDED
    await listener.stop(0)
