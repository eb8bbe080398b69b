"""Conformance cases: deadlines, which both sides keep."""

# ruff: noqa: S101 - a case asserts: its module is a test that ships

from __future__ import annotations

import asyncio

from servicekit.errors import By, Code
from servicekit.wire import END, Ended, Head, Incoming

from .wire_pair import (
    OK,
    Pair,
    Watched,
    bidi,
    drain,
    echo,
    head,
    linger,
    refused,
    unary,
    upload,
)

CHUNK = bytes(64 * 1024)


async def the_deadline_reaches_the_server(pair: Pair) -> None:
    """The server's head has the deadline, in its own clock's seconds; None where the client has none."""
    seen: list[Head] = []

    async def serve(incoming: Incoming) -> None:
        seen.append(incoming.head)
        await incoming.finish(OK, b"")

    wire = await pair.connect(unary(serve))
    deadline = pair.within(30)
    await wire.unary(head(deadline=deadline), b"")
    await wire.unary(head(), b"")
    assert seen[0].deadline is not None
    assert abs(seen[0].deadline - deadline) < 1
    assert seen[1].deadline is None


async def a_deadline_ends_a_unary_call(pair: Pair) -> None:
    """At the deadline ``unary`` raises DEADLINE_EXCEEDED, this side's own word, and the serving task is cancelled."""
    watched = Watched(linger)
    wire = await pair.connect(unary(watched))
    error = await pair.during(0.25, refused(wire.unary(head(deadline=pair.within(0.2)), b"")))
    assert (error.code, error.by) == (Code.DEADLINE_EXCEEDED, By.LOCAL)
    await watched.cancelled.wait()
    assert watched.calls == 1


async def a_deadline_ends_a_stream(pair: Pair) -> None:
    """At the deadline a stream reads END and DEADLINE_EXCEEDED, and the serving task is cancelled."""
    watched = Watched(linger)
    wire = await pair.connect(bidi(watched))
    stream = wire.open(head(deadline=pair.within(0.2)), None)
    await watched.started.wait()
    assert await pair.during(0.25, stream.receive()) is END
    status = await stream.ended()
    assert (status.code, status.by) == (Code.DEADLINE_EXCEEDED, By.LOCAL)
    await watched.cancelled.wait()


async def a_deadline_wakes_a_blocked_sender(pair: Pair) -> None:
    """A ``send`` that waits for a slow reader raises Ended when the deadline passes."""
    wire = await pair.connect(upload(linger))
    stream = wire.open(head(deadline=pair.within(0.3)), None)

    async def send() -> None:
        while True:
            await stream.send(CHUNK)

    sending = asyncio.create_task(send())
    await pair.pass_time(0.35)
    await asyncio.wait([sending])
    assert isinstance(sending.exception(), Ended)
    assert (await stream.ended()).code is Code.DEADLINE_EXCEEDED


async def a_deadline_that_has_passed_ends_at_once(pair: Pair) -> None:
    """An RPC that begins after its deadline is DEADLINE_EXCEEDED without any waiting."""
    wire = await pair.connect({"/t/Unary": unary(linger), "/t/Bidi": bidi(linger)})
    error = await refused(wire.unary(head("/t/Unary", deadline=pair.within(-1)), b""))
    assert error.code is Code.DEADLINE_EXCEEDED
    stream = wire.open(head("/t/Bidi", deadline=pair.within(-1)), None)
    assert await stream.receive() is END
    assert (await stream.ended()).code is Code.DEADLINE_EXCEEDED


async def a_deadline_does_not_touch_what_is_over(pair: Pair) -> None:
    """A deadline that passes after the end changes nothing on either side."""
    watched = Watched(echo)
    wire = await pair.connect(unary(watched))
    stream = wire.open(head(deadline=pair.within(0.3)), b"x")
    assert await drain(stream) == [b"x"]
    await pair.pass_time(0.4)
    assert (await stream.ended()).code is Code.OK
    assert not watched.cancelled.is_set()
    assert watched.ends == 1
