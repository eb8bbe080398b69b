"""Conformance cases: closing a wire and stopping a listener."""

# ruff: noqa: S101 - a case asserts: its module is a test that ships

from __future__ import annotations

import asyncio

from servicekit.errors import By, Code
from servicekit.wire import END, Incoming, Wire

from .wire_pair import (
    OK,
    Pair,
    Watched,
    bidi,
    echo,
    head,
    linger,
    quit_task,
    refused,
    unary,
)


async def closing_a_wire_waits_for_its_calls(pair: Pair) -> None:
    """``close`` lets calls in flight finish within its grace, and returns when the last one has."""
    release = asyncio.Event()

    async def serve(incoming: Incoming) -> None:
        await release.wait()
        await incoming.finish(OK, b"done")

    watched = Watched(serve)
    wire = await pair.connect(unary(watched))
    calling = asyncio.create_task(wire.unary(head(), b""))
    await watched.started.wait()
    closing = asyncio.create_task(wire.close(10))
    await pair.pass_time(0.05)
    assert not closing.done()
    release.set()
    assert (await calling).data == b"done"
    await closing


async def closing_a_wire_ends_what_does_not(pair: Pair) -> None:
    """What is in flight after ``close``'s grace is ended on both sides, and not by the peer."""
    watched = Watched(linger)
    wire = await pair.connect(bidi(watched))
    stream = wire.open(head(), None)
    await watched.started.wait()
    await pair.during(0.25, wire.close(0.2))
    assert await stream.receive() is END
    status = await stream.ended()
    assert status.code in {Code.CANCELLED, Code.UNAVAILABLE}
    assert status.by is not By.PEER
    await watched.cancelled.wait()


async def a_closed_wire_refuses(pair: Pair) -> None:
    """An RPC on a closed wire ends at once, never begun; closing again is harmless."""
    watched = Watched(echo)
    wire = await pair.connect(unary(watched))
    await wire.close(0)
    stream = wire.open(head(), b"x")
    assert await stream.receive() is END
    status = await stream.ended()
    assert (status.code, status.begun, status.by) == (Code.UNAVAILABLE, False, By.LOCAL)
    assert (await refused(wire.unary(head(), b"x"))).code is Code.UNAVAILABLE
    await wire.close(0)
    assert watched.calls == 0


async def a_drain_answers_what_is_in_flight(pair: Pair) -> None:
    """``stop`` returns when all RPCs in flight are served; no reply is lost, however large."""
    count, size = 20, 256 * 1024
    release, started = asyncio.Event(), asyncio.Event()
    served: list[Incoming] = []

    async def serve(incoming: Incoming) -> None:
        served.append(incoming)
        if len(served) == count:
            started.set()
        await release.wait()
        await incoming.finish(OK, bytes(size))

    listener = await pair.serve(unary(serve))
    wire = pair.wire()
    calls = [asyncio.create_task(wire.unary(head(), b"")) for _ in range(count)]
    await started.wait()
    stopping = asyncio.create_task(listener.stop(10))
    await pair.pass_time(0.05)
    assert not stopping.done()
    release.set()
    assert [len((await call).data) for call in calls] == [size] * count
    await stopping


async def a_stopped_listener_accepts_nothing(pair: Pair) -> None:
    """From ``stop`` on a new RPC is UNAVAILABLE and never begun, while those in flight go on."""
    release = asyncio.Event()

    async def serve(incoming: Incoming) -> None:
        await release.wait()
        await incoming.finish(OK, b"served")

    watched = Watched(serve)
    listener = await pair.serve(unary(watched))
    wire = pair.wire()
    calling = asyncio.create_task(wire.unary(head(), b""))
    await watched.started.wait()
    stopping = asyncio.create_task(listener.stop(10))
    await pair.pass_time(0.05)
    error = await refused(pair.wire().unary(head(), b""))
    assert (error.code, error.begun, error.by) == (Code.UNAVAILABLE, False, By.LOCAL)
    release.set()
    assert (await calling).data == b"served"
    await stopping
    assert watched.calls == 1


async def a_drain_cancels_what_outlasts_its_grace(pair: Pair) -> None:
    """After ``stop``'s grace the serving tasks are cancelled, the clients told, and ``stop`` returns after both."""
    watched = Watched(linger)
    listener = await pair.serve(bidi(watched))
    stream = pair.wire().open(head(), None)
    await watched.started.wait()
    await pair.during(0.25, listener.stop(0.2))
    assert watched.cancelled.is_set()
    assert await stream.receive() is END
    assert (await stream.ended()).code in {Code.UNAVAILABLE, Code.CANCELLED}


async def a_stop_without_grace_cancels_at_once(pair: Pair) -> None:
    """``stop(0)`` waits for the serving tasks' clean-up and for nothing else."""
    cleaned: list[bool] = []

    async def serve(incoming: Incoming) -> None:
        try:
            await linger(incoming)
        finally:
            for _ in range(5):
                await asyncio.sleep(0)
            cleaned.append(True)

    watched = Watched(serve)
    listener = await pair.serve(unary(watched))
    calling = asyncio.create_task(refused(pair.wire().unary(head(), b"")))
    await watched.started.wait()
    await listener.stop(0)
    assert cleaned == [True]
    assert (await calling).code in {Code.UNAVAILABLE, Code.CANCELLED}


async def a_shorter_grace_shortens_the_stop(pair: Pair) -> None:
    """``stop`` may come again: the shorter grace counts, and each returns when all is over."""
    watched = Watched(linger)
    listener = await pair.serve(unary(watched))
    calling = asyncio.create_task(refused(pair.wire().unary(head(), b"")))
    await watched.started.wait()
    stopping = asyncio.create_task(listener.stop(3600))
    await pair.pass_time(0.01)
    await listener.stop(0)
    await stopping
    assert watched.cancelled.is_set()
    await calling
    await listener.stop(0)


async def an_idle_listener_stops_at_once(pair: Pair) -> None:
    """With nothing in flight ``stop`` does not wait for its grace, and no time need pass."""
    listener = await pair.serve(unary(echo))
    wire: Wire = pair.wire()
    await wire.unary(head(), b"")
    await wire.close(0)
    await listener.stop(3600)


async def a_waiting_stop_may_be_given_up(pair: Pair) -> None:
    """Cancelling the task that waits in ``stop`` leaves it to the next one; nothing is left hanging."""
    watched = Watched(linger)
    listener = await pair.serve(unary(watched))
    calling = asyncio.create_task(refused(pair.wire().unary(head(), b"")))
    await watched.started.wait()
    stopping = asyncio.create_task(listener.stop(3600))
    await pair.pass_time(0.01)
    await quit_task(stopping)
    await listener.stop(0)
    await calling
