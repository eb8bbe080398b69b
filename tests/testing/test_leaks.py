"""A leak check finds what was left, by name, and waits for nothing when there is nothing."""

from __future__ import annotations

import asyncio
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from servicekit.clock import MovableClock, settle
from servicekit.testing import no_leaks, pair
from servicekit.testing.v1.echo_pb2 import EchoRequest
from servicekit.testing.v1.echo_pb2_grpc import EchoServiceStub
from tests.transport.clients import Held, Untyped, all_methods, echo

linux = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="only there can a process list its sockets")


async def test_a_block_that_leaves_nothing() -> None:
    """It passes, at once: what could still run has run."""
    start = time.monotonic()
    async with no_leaks(MovableClock()):
        quick = asyncio.create_task(asyncio.sleep(0))
        asyncio.get_running_loop().call_soon(quick.cancel)
    assert time.monotonic() - start < 0.5


async def test_a_task_that_was_left() -> None:
    """It is named, with the place that it waits at, however deep."""
    stop = asyncio.Event()

    async def waits_inside() -> None:
        await stop.wait()

    async def left_behind() -> None:
        await waits_inside()

    with pytest.raises(AssertionError, match=r"task 'mine', in .*left_behind \(test_leaks.py:\d+\) > .*waits_inside"):
        async with no_leaks(patience=0.0):
            task = asyncio.create_task(left_behind(), name="mine")
    stop.set()
    await task


async def test_what_was_there_before_does_not_count() -> None:
    """Nor does the task that runs the check."""
    clock = MovableClock()
    before = asyncio.create_task(clock.sleep(1.0))
    await settle()
    async with no_leaks(clock, patience=0.0):
        pass
    await clock.advance(1.0)
    await before


async def test_a_timer_that_was_left() -> None:
    """A clock that is watched has as few timers after the block as before it; a cancelled one is none."""
    clock = MovableClock()
    clock.call_at(clock.time() + 1.0, lambda: None)

    async def leaving() -> None:
        async with no_leaks(clock, patience=0.0):
            clock.call_at(clock.time() + 5.0, lambda: None).cancel()
            clock.call_at(clock.time() + 5.0, lambda: None)
            clock.call_at(clock.time() + 6.0, lambda: None)

    with pytest.raises(AssertionError, match=r"2 pending timers of MovableClock"):
        await leaving()


@linux
async def test_a_socket_that_was_left() -> None:
    """It is named by its two ends."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        with pytest.raises(AssertionError, match=rf"open socket from 127\.0\.0\.1:\d+ to 127\.0\.0\.1:{port}"):
            async with no_leaks(patience=0.0):
                left = socket.create_connection(("127.0.0.1", port))
        left.close()
    with pytest.raises(AssertionError, match=r"open socket from 127\.0\.0\.1:\d+ to nobody"):
        async with no_leaks(patience=0.0):
            left = socket.create_server(("127.0.0.1", 0))
    left.close()


@linux
async def test_a_socket_that_closes_a_little_later() -> None:
    """What ends in another thread has time for it: the check waits as long as it must, and no longer."""
    loop = asyncio.get_running_loop()
    async with no_leaks(patience=30.0):
        left = socket.create_server(("127.0.0.1", 0))
        loop.call_later(0.02, left.close)


@pytest.mark.parametrize("over", ["memory", "socket", "native"])
async def test_a_call_that_was_left(over: Untyped) -> None:
    """Of a channel and a server that are watched, the calls under way are counted, each on its side."""
    held = Held()
    async with pair(echo(**all_methods(held.method)), over=over) as ends:
        calls = []

        async def leaving() -> None:
            async with no_leaks(ends.channel, ends.server, patience=0.0):
                calls.append(EchoServiceStub(ends.channel).Echo(EchoRequest()))
                await held.begun.wait()

        with pytest.raises(AssertionError) as caught:
            await leaving()
        assert "1 calls under way of <Channel to" in str(caught.value)
        assert "1 calls under way of <Server on" in str(caught.value)
        calls[0].cancel()


@pytest.mark.parametrize("over", ["memory", "socket", "native"])
async def test_a_pair_leaves_nothing(over: Untyped) -> None:
    """Neither after good calls nor with one that was still under way, and although the test still holds all of it."""
    clock = MovableClock()
    settings: dict[str, Any] = {"clock": clock} if over == "memory" else {}
    held = Held()
    async with no_leaks(clock, patience=5.0), pair(echo(Store=held.method), over=over, **settings) as ends:
        stub: Any = EchoServiceStub(ends.channel)
        await stub.Echo(EchoRequest())
        call = stub.Store(EchoRequest())
        await held.begun.wait()
    assert call.done()


async def test_what_cannot_be_watched_is_named() -> None:
    """Before the block is begun."""
    wrong: Any = "clock"
    with pytest.raises(TypeError, match="watched='clock' is no MovableClock, Channel or Server"):
        async with no_leaks(MovableClock(), wrong):
            pytest.fail("the block was begun")
    with pytest.raises(ValueError, match="patience=nan"):
        async with no_leaks(patience=float("nan")):
            pytest.fail("the block was begun")


async def test_a_block_that_fails_raises_its_own_exception() -> None:
    """What it left behind is not looked for: the reason is the better message."""
    clock = MovableClock()

    async def failing() -> None:
        async with no_leaks(clock):
            clock.call_at(clock.time() + 1.0, lambda: None)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await failing()


async def test_garbage_is_no_leak() -> None:
    """A call in a circle of references ends with it, even where nobody has collected it yet."""
    held = Held()
    async with pair(echo(Echo=held.method)) as ends, no_leaks(ends.channel, patience=5.0):
        circle: list[Any] = [EchoServiceStub(ends.channel).Echo(EchoRequest())]
        circle.append(circle)
        await held.begun.wait()
        del circle
