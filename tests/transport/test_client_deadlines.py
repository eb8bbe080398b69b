"""Time and names travel: what a call made for a served call inherits from it, and what it does not."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from servicekit import CallError, Code, Deadline, Error, RequestId, detached
from servicekit.call import Call
from servicekit.clock import MovableClock
from servicekit.endpoint import Endpoint, Message
from servicekit.memory import MemoryNetwork
from servicekit.method import Kind
from servicekit.testing import no_leaks, pair
from servicekit.testing.pair import Over
from servicekit.testing.v1.echo_pb2 import EchoRequest, EchoResponse

from .clients import (
    Context,
    Held,
    Untyped,
    _nothing_is_left,  # noqa: F401 - a fixture for every test here
    all_methods,
    ask,
    begin,
    both,
    echo,
    every_kind,
    finish,
)


class Hop:
    """A servicer's methods that ask the next server before they answer, and note how that went."""

    def __init__(self, channel: grpc.aio.Channel, kind: Kind = Kind.UNARY, **settings: Untyped) -> None:
        self.channel = channel
        self.kind = kind
        self.settings = settings
        self.ended: list[float] = []
        self.codes: list[grpc.StatusCode] = []

    async def method(self, request: Message, context: Context) -> Untyped:
        call = begin(self.channel, self.kind, **self.settings)
        try:
            await finish(call, self.kind)
        finally:
            self.ended.append(time.monotonic())
            self.codes.append(await call.code())
        return EchoResponse()


@every_kind
async def test_a_deadline_ends_the_whole_path(kind: Kind) -> None:
    """A calls B, which calls C, with 300 ms at A and a C that sleeps 10 s.

    Neither the deadline nor anything else reaches the next hop by itself: here it does. All three see the end by
    400 ms, and at 500 ms no task is alive.
    """
    clock = MovableClock()
    network = MemoryNetwork(clock)
    ended: dict[str, float] = {}
    start = clock.time()

    async def sleeping(request: Message, context: Context) -> None:
        try:
            await clock.sleep(10.0)
        finally:
            ended["C"] = clock.time() - start

    async with contextlib.AsyncExitStack() as stack:
        c = await stack.enter_async_context(pair(echo(**all_methods(sleeping)), network=network, clock=clock))

        async def asking(request: Message, context: Context) -> Untyped:
            try:
                await ask(c.channel, kind)
            finally:
                ended["B"] = clock.time() - start

        b = await stack.enter_async_context(pair(echo(**all_methods(asking)), network=network, clock=clock))
        before, timers = asyncio.all_tasks(), clock.pending
        call = begin(b.channel, kind, timeout=0.3)
        call.add_done_callback(lambda _: ended.update(A=clock.time() - start))
        await clock.advance(0.4)
        assert sorted(ended) == ["A", "B", "C"]
        assert max(ended.values()) <= 0.4
        assert await call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await clock.advance(0.1)
        assert asyncio.all_tasks() == before
        assert clock.pending == timers


async def test_a_deadline_ends_the_whole_path_over_sockets() -> None:
    """The same in real time, over two connections."""
    held = Held()
    async with pair(echo(Echo=held.method), over="socket") as c:
        hop = Hop(c.channel)
        async with pair(echo(Echo=hop.method), over="socket") as b:
            start = time.monotonic()
            call = begin(b.channel, Kind.UNARY, timeout=1.0)
            with pytest.raises(CallError) as caught:
                await call
            assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            await held.cancelled.wait()
    # C was told to end before B, and B before A: each hop keeps something of the time for itself.
    assert hop.codes == [grpc.StatusCode.DEADLINE_EXCEEDED]
    assert hop.ended[0] - start < 1.2


@both
async def test_the_next_hop_has_less_time(over: Over) -> None:
    """A tenth of it, at most 200 ms, is kept back, so that B can still say how C's call went."""
    answered = []
    remaining: list[float] = []

    async def looking(request: Message, context: Context) -> EchoResponse:
        remaining.append(context.time_remaining())
        return EchoResponse()

    async with contextlib.AsyncExitStack() as stack:
        c = await stack.enter_async_context(pair(echo(Echo=looking), over=over))
        shared: dict[str, Any] = {"clock": c.movable, "network": c.network} if over == "memory" else {}
        hop = Hop(c.channel)
        b = await stack.enter_async_context(pair(echo(Echo=hop.method), over=over, **shared))
        answered = await ask(b.channel, Kind.UNARY, timeout=10.0)
    assert answered == [""]
    assert 9.5 < remaining[0] <= 9.95


@both
async def test_a_nearer_deadline_of_ones_own_stays(over: Over) -> None:
    """The nearer of the two counts."""
    remaining: list[float] = []

    async def looking(request: Message, context: Context) -> EchoResponse:
        remaining.append(context.time_remaining())
        return EchoResponse()

    async with contextlib.AsyncExitStack() as stack:
        c = await stack.enter_async_context(pair(echo(Echo=looking), over=over))
        shared: dict[str, Any] = {"clock": c.movable, "network": c.network} if over == "memory" else {}
        for timeout in (1.0, 100.0):
            hop = Hop(c.channel, timeout=timeout)
            b = await stack.enter_async_context(pair(echo(Echo=hop.method), over=over, **shared))
            await ask(b.channel, Kind.UNARY, timeout=10.0)
    assert 0.5 < remaining[0] <= 1.05
    assert 9.5 < remaining[1] <= 9.95


@both
async def test_a_request_id_is_the_same_on_every_hop(over: Over) -> None:
    """It is named once, at the edge."""
    seen: list[object] = []

    async def noting(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        seen.append(call.state["request_id"])
        return await next(request, call)

    links: dict[str, Any] = {"over": over, "middleware": [RequestId(), noting], "client": [RequestId()]}
    async with contextlib.AsyncExitStack() as stack:
        c = await stack.enter_async_context(pair(echo(), **links))
        if over == "memory":
            links.update(clock=c.movable, network=c.network)
        hop = Hop(c.channel)
        b = await stack.enter_async_context(pair(echo(Echo=hop.method), **links))
        await ask(b.channel, Kind.UNARY, metadata=[("x-request-id", "mine")])
        await ask(b.channel, Kind.UNARY)
    assert seen[:2] == ["mine", "mine"]
    assert seen[2] == seen[3] != "mine"


@both
async def test_detached_work_inherits_nothing(over: Over) -> None:
    """A task that was begun inside ``detached()`` has neither the call's deadline nor its id, and may outlive it."""
    remaining: list[Any] = []
    ids: list[object] = []
    tasks: list[asyncio.Task[Any]] = []

    async def noting(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        remaining.append(call.remaining())
        ids.append(call.state["request_id"])
        return await next(request, call)

    async with contextlib.AsyncExitStack() as stack:
        c = await stack.enter_async_context(
            pair(echo(), over=over, middleware=[RequestId(), noting], client=[RequestId()])
        )
        shared: dict[str, Any] = {"clock": c.movable, "network": c.network} if over == "memory" else {}
        go = asyncio.Event()

        async def work() -> list[object]:
            await go.wait()
            return await ask(c.channel, Kind.UNARY)

        async def handing_over(request: EchoRequest, context: Context) -> EchoResponse:
            with detached():
                tasks.append(asyncio.create_task(work()))
            tasks.append(asyncio.create_task(work()))
            return EchoResponse()

        b = await stack.enter_async_context(
            pair(echo(Echo=handing_over), over=over, middleware=[RequestId()], **shared)
        )
        await ask(b.channel, Kind.UNARY, timeout=5.0, metadata=[("x-request-id", "mine")])
        # The call is over: it is no parent any more, for the other task either.
        go.set()
        await asyncio.gather(*tasks)
    assert remaining == [None, None]
    assert "mine" not in ids


@both
async def test_a_task_of_a_call_under_way_inherits(over: Over) -> None:
    """Child tasks belong to the call for as long as it lasts."""
    remaining: list[Any] = []

    async def looking(request: Message, context: Context) -> EchoResponse:
        remaining.append(context.time_remaining())
        return EchoResponse()

    async with contextlib.AsyncExitStack() as stack:
        c = await stack.enter_async_context(pair(echo(Echo=looking), over=over))
        shared: dict[str, Any] = {"clock": c.movable, "network": c.network} if over == "memory" else {}

        async def spreading(request: EchoRequest, context: Context) -> EchoResponse:
            async with asyncio.TaskGroup() as group:
                for _ in range(3):
                    group.create_task(ask(c.channel, Kind.UNARY))
            return EchoResponse()

        b = await stack.enter_async_context(pair(echo(Echo=spreading), over=over, **shared))
        await ask(b.channel, Kind.UNARY, timeout=5.0)
    assert len(remaining) == 3
    assert all(3.5 < left <= 4.95 for left in remaining)


@both
async def test_an_inherited_deadline_is_told_as_a_deadline(over: Over) -> None:
    """When the next hop's time was the call's own, its end is DEADLINE_EXCEEDED to the caller too; else INTERNAL."""
    held = Held()

    async def catching(request: Message, context: Context) -> None:
        with pytest.raises(CallError) as caught:
            await ask(c.channel, Kind.UNARY)
        assert caught.value.inherited
        raise caught.value

    async def impatient(request: Message, context: Context) -> None:
        await ask(c.channel, Kind.UNARY, timeout=0.01)

    async with contextlib.AsyncExitStack() as stack:
        c = await stack.enter_async_context(pair(echo(Echo=held.method), over=over))
        shared: dict[str, Any] = {"clock": c.movable, "network": c.network} if over == "memory" else {}
        for method, code in ((catching, grpc.StatusCode.DEADLINE_EXCEEDED), (impatient, grpc.StatusCode.INTERNAL)):
            b = await stack.enter_async_context(pair(echo(Echo=method), over=over, **shared))
            call = begin(b.channel, Kind.UNARY, timeout=1.0)
            if over == "memory":
                await c.clock.advance(0.95)
            assert await call.code() is code


@both
@every_kind
async def test_a_default_deadline_on_the_client(kind: Kind, over: Over) -> None:
    """``Deadline(default=…)`` gives time to calls that have none and one response; a stream stays open."""
    held = Held()
    async with pair(echo(**all_methods(held.method)), over=over, client=[Deadline(default=0.1, cap=None)]) as ends:
        call = begin(ends.channel, kind)
        await held.begun.wait()
        if over == "memory":
            await ends.clock.advance(1000.0)
        if kind.response_streaming:
            assert not call.done()
            call.cancel()
            assert await call.code() is grpc.StatusCode.CANCELLED
        else:
            assert await call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await held.cancelled.wait()


async def test_an_hour_of_streaming_leaves_nothing() -> None:
    """Calls that ended leave no timer behind on the clock, however far away their deadlines were."""
    clock = MovableClock()
    network = MemoryNetwork(clock)

    async def ticking(request: Message, context: Context) -> AsyncIterator[Any]:
        for _ in range(3):
            await clock.sleep(1200.0)
            yield EchoResponse()

    async def failing(request: Message, context: Context) -> None:
        raise Error(Code.ABORTED)

    async with (
        no_leaks(clock),
        pair(echo(Expand=ticking, Echo=failing), clock=clock, network=network) as ends,
        no_leaks(clock, ends.channel, ends.server),
    ):
        asking = asyncio.create_task(ask(ends.channel, Kind.SERVER_STREAM, timeout=7200.0))
        await clock.advance(3600.0)
        assert len(await asking) == 3
        with pytest.raises(CallError):
            await ask(ends.channel, Kind.UNARY, timeout=7200.0)
        await ask(ends.channel, Kind.CLIENT_STREAM, timeout=7200.0)
