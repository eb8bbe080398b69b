"""A server and a channel in one block: in virtual time, or over a socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import grpc
import pytest

from servicekit import CallError, Server, Telemetry, connect
from servicekit.call import Call
from servicekit.clock import MovableClock
from servicekit.endpoint import Endpoint, Message
from servicekit.memory import MemoryNetwork
from servicekit.method import Kind
from servicekit.testing import no_leaks, pair
from servicekit.testing.pair import Over
from servicekit.testing.v1.echo_pb2 import EchoRequest, EchoResponse
from servicekit.testing.v1.echo_pb2_grpc import EchoServiceStub
from tests.transport.clients import ANSWERS, Context, Held, Untyped, ask, begin, both, echo, every_kind


@pytest.fixture(autouse=True)
async def _nothing_is_left() -> AsyncIterator[None]:
    async with no_leaks():
        yield


@both
@every_kind
async def test_every_kind_of_call(kind: Kind, over: Over) -> None:
    """What a stub sends is served, over either wire alike."""
    async with pair(echo(), over=over) as ends:
        assert ends.over == over
        assert await ask(ends.channel, kind) == ANSWERS[kind]


@both
async def test_middleware_on_both_sides(over: Over) -> None:
    """``client`` stands around the channel's calls, ``middleware`` around the server's; neither has any by default."""
    order: list[str] = []

    def link(name: str) -> Untyped:
        async def linked(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
            order.append(f"{name} {call.side.value}")
            return await next(request, call)

        return linked

    async with pair(echo(), over=over, middleware=[link("a"), link("b")], client=[link("c")]) as ends:
        await ask(ends.channel, Kind.UNARY)
        other = ends.connect(link("d"))
        await ask(other, Kind.UNARY)
        await other.close()
    assert order == ["c client", "a server", "b server", "d client", "a server", "b server"]


async def test_peers_over_memory_say_once_that_they_are_there() -> None:
    """As a socket's say ``ipv4:``."""
    peers: list[str] = []

    async def link(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        try:
            return await next(request, call)
        finally:
            peers.append(call.peer)

    async with pair(echo(), middleware=[link], client=[link]) as ends:
        await ask(ends.channel, Kind.UNARY)
    assert [peer.rpartition(":")[0] or peer.rpartition("-")[0] for peer in peers] == ["memory", "memory:server"]


async def test_time_stands_still_until_it_is_moved() -> None:
    """Both ends share one clock: an hour passes in an instant, and only when the test says so."""

    async def slow(request: Message, context: Context) -> EchoResponse:
        await ends.clock.sleep(3600.0)
        return EchoResponse(text="late")

    async with pair(echo(Echo=slow)) as ends:
        call = begin(ends.channel, Kind.UNARY)
        await ends.clock.advance(3599.0)
        assert not call.done()
        await ends.clock.advance(1.0)
        assert call.done()
        assert (await call).text == "late"


async def test_time_over_a_socket_is_nobodys_to_move() -> None:
    """Asking for the clock there is an error that says so."""
    async with pair(echo(), over="socket") as ends:
        with pytest.raises(RuntimeError, match="time is real"):
            _ = ends.clock
        assert ends.network is None


async def test_an_over_that_is_neither() -> None:
    """It is named."""
    nowhere: Any = "pigeon"
    with pytest.raises(ValueError, match="'pigeon'"):
        async with pair(echo(), over=nowhere):
            pass


async def test_pairs_that_call_each_other() -> None:
    """Over one network several servers have names of their own, and one clock."""
    clock = MovableClock()
    network = MemoryNetwork(clock)
    async with pair(echo(), network=network, clock=clock) as c:

        async def asking(request: EchoRequest, context: Context) -> Untyped:
            return await EchoServiceStub(c.channel).Echo(EchoRequest(text=request.text.upper()))

        async with pair(echo(Echo=asking), network=network, clock=clock) as b:
            assert b.server.addresses != c.server.addresses
            assert b.clock is c.clock is clock
            assert await ask(b.channel, Kind.UNARY) == ["A"]


@both
async def test_the_block_ends_what_is_under_way(over: Over) -> None:
    """Nobody waits for a handler that would wait for ever."""
    held = Held()
    async with pair(echo(Echo=held.method), over=over) as ends:
        call = begin(ends.channel, Kind.UNARY)
        await held.begun.wait()
    await held.cancelled.wait()
    with pytest.raises(CallError):
        await call


@both
async def test_the_block_ends_when_the_test_fails(over: Over) -> None:
    """The test's own exception leaves, and nothing is left."""

    async def failing() -> None:
        async with pair(echo(), over=over) as ends:
            await ask(ends.channel, Kind.UNARY)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await failing()


@both
async def test_settings_of_the_server(over: Over) -> None:
    """What else is given goes to the Server as it is."""
    async with pair(echo(), over=over, errors={KeyError: lambda error: error}, health=False) as ends:
        assert isinstance(ends.server, Server)
        assert ends.server.health is None


@both
async def test_several_services(over: Over) -> None:
    """Each of ``register`` adds what it likes; without any there is a server that knows no method."""
    added: list[Server] = []
    async with pair(echo(), added.append, over=over) as ends:
        assert added == [ends.server]
    async with pair(over=over) as ends:
        with pytest.raises(CallError) as caught:
            await ask(ends.channel, Kind.UNARY)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_the_same_every_time() -> None:
    """Over memory a conversation takes the same course at every run."""

    async def course() -> list[str]:
        steps: list[str] = []

        async def noting(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
            steps.append(f"{call.side.value} {call.method.name}")
            await call.clock.sleep(call.clock.random())
            try:
                return await next(request, call)
            finally:
                steps.append(f"{call.side.value} {call.clock.time():.3f}")

        async with pair(echo(), middleware=[noting], client=[noting]) as ends:
            asking = [asyncio.create_task(ask(ends.channel, kind)) for kind in Kind]
            await ends.clock.advance(10.0)
            await asyncio.gather(*asking)
        return steps

    assert await course() == await course()


async def test_a_network_lends_its_clock() -> None:
    """Several pairs need one clock: it is the network's, unless it is another one, which is refused."""
    network = MemoryNetwork(MovableClock())
    async with pair(echo(), network=network) as ends:
        assert ends.clock is network.clock
    with pytest.raises(ValueError, match="share a movable clock"):
        async with pair(echo(), network=network, clock=MovableClock()):
            pass


async def test_a_port_that_had_another_server_is_called_anew() -> None:
    """A channel that is left from before knows that the port refuses its clients: a pair does not believe it."""
    async with pair(echo(), over="native") as before:
        address = before.server.addresses[0]
    async with connect(address, middleware=[]) as left:
        with pytest.raises(CallError):
            await ask(left, Kind.UNARY)
        async with Server(address, middleware=[], telemetry=Telemetry(log=None), wire="native") as server:
            async with connect(address, middleware=[]) as shared:
                with pytest.raises(CallError, match="Connection refused"):  # the trap itself
                    await ask(shared, Kind.UNARY)
            async with replace(before, server=server).connect() as channel:
                with pytest.raises(CallError, match="method not found"):
                    await ask(channel, Kind.UNARY)
