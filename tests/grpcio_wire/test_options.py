"""Every channel argument takes effect: core ignores a name that it does not know, and says nothing."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from hyperframe.frame import GoAwayFrame, HeadersFrame, PingFrame, RstStreamFrame, SettingsFrame

from servicekit.errors import Code
from servicekit.grpcio.channel import channel_to
from servicekit.grpcio.client import GrpcioWire
from servicekit.grpcio.options import (
    CHANNEL,
    CHANNEL_PRODUCTION,
    KIB,
    MIB,
    SERVER,
    SERVER_EDGE,
    SERVER_PRODUCTION,
    Options,
    merged,
)
from servicekit.grpcio.server import GrpcioListener
from servicekit.method import Kind
from servicekit.testing.wire_pair import refused
from servicekit.wire import Head, Incoming, Route, Serve, Status

from .ground import CLOCK, OK, echo, linger
from .peers import Peer, client_to, server_of

REFUSED_STREAM, ENHANCE_YOUR_CALM = 0x7, 0xB  # RFC 9113, section 7


def production(**shorter: int) -> Options:
    """Return a server's production profile, with other values for some of its names (a "." is written "__")."""
    given = {f"grpc.{name.replace('__', '.')}": value for name, value in shorter.items()}
    assert set(given) <= set(dict(merged(SERVER, SERVER_PRODUCTION, SERVER_EDGE)))
    return merged(SERVER_PRODUCTION, tuple(given.items()))


@contextlib.asynccontextmanager
async def serving(options: Options, serve: Serve = echo, kind: Kind = Kind.UNARY) -> AsyncIterator[str]:
    listener = GrpcioListener(CLOCK, options=options)
    address = listener.bind("127.0.0.1:0")
    route = Route(kind=kind, serve=serve)
    await listener.start(lambda _: route)
    try:
        yield address
    finally:
        await listener.stop(0)


@contextlib.asynccontextmanager
async def connected(address: str, options: Options = ()) -> AsyncIterator[GrpcioWire]:
    wire = GrpcioWire(channel_to(address, None, options=options), CLOCK)
    try:
        yield wire
    finally:
        await wire.close(0)


def head(*metadata: tuple[str, str]) -> Head:
    return Head(path="/test.Service/Method", metadata=metadata)


async def test_one_server_has_a_port_for_itself() -> None:
    """grpc.so_reuseport: a second server on the same port would get half of its traffic."""
    for options, shared in ((SERVER, False), ((("grpc.so_reuseport", 1),), True)):
        first, second = (grpc.aio.server(options=options) for _ in range(2))
        port = first.add_insecure_port("127.0.0.1:0")
        if shared:
            assert second.add_insecure_port(f"127.0.0.1:{port}") == port
        else:
            with pytest.raises(RuntimeError):
                second.add_insecure_port(f"127.0.0.1:{port}")
        for server in (first, second):
            await server.stop(0)


async def _pinged(options: Options) -> bool:
    """Return whether a client that pings 30 times a second, without a call, is sent away for it."""
    async with serving(options) as address, client_to(address) as peer:
        await peer.greeted()
        for count in range(1, 7):
            peer.ping()
            while not peer.all(GoAwayFrame) and len(peer.all(PingFrame)) < count:
                await peer.hear()
            if sent_away := peer.all(GoAwayFrame):
                assert sent_away[0].error_code == ENHANCE_YOUR_CALM
                return True
            await asyncio.sleep(0.03)
        return False


async def test_a_client_may_ping_now_and_then() -> None:
    """grpc.http2.min_ping_interval_without_data_ms: more often is abuse, ENHANCE_YOUR_CALM; less often is not."""
    assert await _pinged(())
    assert not await _pinged((("grpc.http2.min_ping_interval_without_data_ms", 10),))


async def test_a_client_may_ping_between_calls() -> None:
    """grpc.keepalive_permit_without_calls: else one ping in two hours is allowed when there is no call."""
    often = ("grpc.http2.min_ping_interval_without_data_ms", 10)
    assert not await _pinged((often,))
    assert await _pinged((often, ("grpc.keepalive_permit_without_calls", 0)))


async def test_a_connection_has_so_many_streams() -> None:
    """grpc.max_concurrent_streams: announced, and one more is refused."""
    async with serving(SERVER_PRODUCTION) as address, client_to(address) as peer:
        assert (await peer.greeted())[SettingsFrame.MAX_CONCURRENT_STREAMS] == 100
    few = production(max_concurrent_streams=2)
    async with serving(few, linger, Kind.BIDI_STREAM) as address, client_to(address) as peer:
        await peer.greeted()
        last = [peer.call() for _ in range(3)][-1]
        reset = await peer.frame(RstStreamFrame)
        assert (reset.stream_id, reset.error_code) == (last, REFUSED_STREAM)


async def test_a_server_has_so_many_connections() -> None:
    """grpc.max_allowed_incoming_connections: one more is closed at accept."""
    async with serving(production(max_allowed_incoming_connections=2)) as address, contextlib.AsyncExitStack() as stack:
        for _ in range(2):
            peer = await stack.enter_async_context(client_to(address))
            await peer.greeted()
        peer = await stack.enter_async_context(client_to(address))
        await peer.end()
        assert peer.seen == []


async def test_who_says_nothing_is_cut_off() -> None:
    """grpc.server_handshake_timeout_ms: a connection without a preface is closed."""
    async with (
        serving(production(server_handshake_timeout_ms=200)) as address,
        client_to(address, greets=False) as peer,
    ):
        start = time.monotonic()
        await peer.end(answer=False)
        assert time.monotonic() - start < 3.0


async def test_who_does_not_take_the_settings_is_cut_off() -> None:
    """grpc.http2.settings_timeout: a peer that never acknowledges SETTINGS is disconnected."""
    async with serving(production(http2__settings_timeout=200)) as address, client_to(address) as peer:
        start = time.monotonic()
        await peer.end(answer=False)
        assert time.monotonic() - start < 3.0


async def test_an_idle_connection_is_given_back() -> None:
    """grpc.max_connection_idle_ms: one without calls is told to go."""
    async with serving(production(max_connection_idle_ms=200)) as address, client_to(address) as peer:
        assert (await peer.frame(GoAwayFrame)).additional_data == b"connection idle"


async def test_an_old_connection_moves_on() -> None:
    """grpc.max_connection_age_ms: it is told to go, though calls are under way; those may end by themselves."""
    old = production(max_connection_age_ms=200)
    async with serving(old, linger, Kind.BIDI_STREAM) as address, client_to(address) as peer:
        await peer.greeted()
        peer.call()
        gone = await peer.frame(GoAwayFrame)
        assert gone.error_code == 0
        assert not peer.closed


async def test_an_old_connection_is_closed_in_the_end() -> None:
    """grpc.max_connection_age_grace_ms: what is still under way then is cut off with it."""
    options = production(max_connection_age_ms=200, max_connection_age_grace_ms=200)
    async with serving(options, linger, Kind.BIDI_STREAM) as address, client_to(address) as peer:
        await peer.greeted()
        peer.call()
        await peer.end()
        assert peer.closed


@pytest.mark.system
async def test_a_peer_that_does_not_answer_is_noticed() -> None:
    """grpc.keepalive_time_ms, grpc.http2.ping_timeout_ms: who does not answer a ping is gone, who does is not."""
    options = production(keepalive_time_ms=1000, http2__ping_timeout_ms=300)
    async with serving(options, linger, Kind.BIDI_STREAM) as address:
        async with client_to(address) as peer:
            await peer.greeted()
            peer.call()
            await peer.until(lambda: len(peer.all(PingFrame)) >= 3)
        async with client_to(address) as peer:
            await peer.greeted()
            peer.call()
            await peer.frame(PingFrame, answer=False)
            await peer.end(answer=False)
            assert peer.closed


async def test_a_connection_that_is_lost_is_noticed() -> None:
    """grpc.keepalive_timeout_ms: the kernel gives up, after that time, on what was sent and not acknowledged by TCP."""
    for options, time_out in ((SERVER_PRODUCTION, 20_000), (production(keepalive_timeout_ms=7000), 7000)):
        async with serving(options) as address, client_to(address) as peer:
            await peer.greeted()
            assert _user_timeouts(peer.port) == [time_out]
    for options, time_out in ((CHANNEL_PRODUCTION, 20_000), ((), 0)):
        async with serving(()) as address, connected(address, options) as wire:
            await wire.unary(head(), b"")
            assert _user_timeouts(int(address.rpartition(":")[2])) == [time_out]


def _user_timeouts(port: int) -> list[int]:
    """Return TCP_USER_TIMEOUT, in milliseconds, of this process's sockets whose other end has this port."""
    found = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(int(descriptor.name))) as copy:
            if copy.family in {socket.AF_INET, socket.AF_INET6} and copy.getpeername()[1] == port:
                found.append(copy.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT))
    return found


async def test_a_request_may_be_so_large() -> None:
    """grpc.max_receive_message_length: one byte more is RESOURCE_EXHAUSTED."""
    large: Options = (("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1))
    for options, most in ((SERVER_PRODUCTION, 4 * MIB), (production(max_receive_message_length=MIB), MIB)):
        async with serving(options) as address, connected(address, large) as wire:
            assert len((await wire.unary(head(), bytes(most))).data) == most
            error = await refused(wire.unary(head(), bytes(most + 1)))
            assert error.code is Code.RESOURCE_EXHAUSTED


async def test_a_response_may_be_so_large() -> None:
    """grpc.max_send_message_length: one byte more is not sent."""

    async def serve(incoming: Incoming) -> None:
        await incoming.finish(OK, bytes(int(incoming.data or b"0")))

    large: Options = (("grpc.max_receive_message_length", -1),)
    async with serving(production(max_send_message_length=MIB), serve) as address, connected(address, large) as wire:
        assert len((await wire.unary(head(), str(MIB).encode())).data) == MIB
        error = await refused(wire.unary(head(), str(MIB + 1).encode()))
        assert error.code in {Code.RESOURCE_EXHAUSTED, Code.INTERNAL}
    assert dict(SERVER_PRODUCTION)["grpc.max_send_message_length"] == 16 * MIB


async def test_metadata_may_be_so_large() -> None:
    """grpc.absolute_max_metadata_size: above it every call is refused, and it is announced."""
    half = production(max_metadata_size=4 * KIB, absolute_max_metadata_size=8 * KIB)
    for options, most in ((SERVER_PRODUCTION, 16), (half, 8)):
        async with serving(options) as address, connected(address) as wire:
            await wire.unary(head(("x", "a" * (most // 2 - 1) * KIB)), b"")
            for _ in range(5):
                error = await refused(wire.unary(head(("x", "a" * (most + 1) * KIB)), b""))
                assert error.code is Code.RESOURCE_EXHAUSTED
    async with serving(SERVER_PRODUCTION) as address, client_to(address) as peer:
        assert (await peer.greeted())[SettingsFrame.MAX_HEADER_LIST_SIZE] == 16 * KIB


async def test_metadata_had_better_be_smaller() -> None:
    """grpc.max_metadata_size: between it and the absolute limit calls are refused the more often the larger they are."""

    async def refusals(size: int, options: Options) -> int:
        async with serving(options) as address, connected(address) as wire:
            answers = await asyncio.gather(
                *(wire.unary(head(("x", "a" * size)), b"") for _ in range(30)), return_exceptions=True
            )
        return sum(isinstance(answer, Exception) for answer in answers)

    assert await refusals(6 * KIB, SERVER_PRODUCTION) == 0
    assert await refusals(15 * KIB, SERVER_PRODUCTION) > 10
    assert await refusals(15 * KIB, production(max_metadata_size=16 * KIB)) == 0


async def test_an_edge_has_no_table_of_headers() -> None:
    """grpc.http2.hpack_table_size.decoder: 0 is announced, so nothing can get out of step."""
    async with serving(merged(SERVER_PRODUCTION, SERVER_EDGE)) as address, client_to(address) as peer:
        assert (await peer.greeted())[SettingsFrame.HEADER_TABLE_SIZE] == 0
    async with serving(SERVER_PRODUCTION) as address, client_to(address) as peer:
        assert (await peer.greeted()).get(SettingsFrame.HEADER_TABLE_SIZE, 4096) == 4096


RETRIES = """{"methodConfig": [{"name": [{}], "retryPolicy": {"maxAttempts": 3, "initialBackoff": "0.01s",
    "maxBackoff": "0.01s", "backoffMultiplier": 1.0, "retryableStatusCodes": ["UNAVAILABLE"]}}]}"""


async def test_core_does_not_retry() -> None:
    """grpc.enable_retries: one layer retries, whatever a service config says."""
    calls = 0

    async def serve(incoming: Incoming) -> None:
        nonlocal calls
        calls += 1
        await incoming.finish(Status(code=Code.UNAVAILABLE))

    config = ("grpc.service_config", RETRIES)
    async with serving((), serve) as address:
        for options, expected in (((config,), 1), ((config, ("grpc.enable_retries", 1)), 3)):
            calls = 0
            async with connected(address, options) as wire:
                await refused(wire.unary(head(), b""))
            assert calls == expected


async def test_a_channel_comes_back_quickly() -> None:
    """grpc.initial_reconnect_backoff_ms: core's own first wait is a second."""
    came: list[float] = []
    twice = asyncio.Event()

    async def hang_up(_: Peer) -> None:
        came.append(time.monotonic())
        if len(came) == 2:
            twice.set()

    async with server_of(hang_up) as address, connected(address) as wire:
        waiting = Head(path="/test.Service/Method", wait_for_ready=True)
        calling = asyncio.ensure_future(wire.unary(waiting, b""))
        try:
            async with asyncio.timeout(5):
                await twice.wait()
        finally:
            calling.cancel()
            await asyncio.wait([calling])
    assert came[1] - came[0] < 0.8  # core's is 0.8 to 1.2


@pytest.mark.system
async def test_a_channel_notices_a_server_that_does_not_answer() -> None:
    """grpc.keepalive_time_ms, grpc.http2.ping_timeout_ms: a call on a dead connection fails, it does not wait for ever."""
    pinged = asyncio.Event()

    async def deaf(peer: Peer) -> None:
        await peer.read_preface()
        peer.greet(preface=b"")
        await peer.greeted()
        await peer.frame(HeadersFrame)
        while not peer.closed:
            await peer.hear(answer=False)
            if peer.all(PingFrame):
                pinged.set()

    # Core raises less than ten seconds to that, on a client.
    short: Options = (("grpc.keepalive_time_ms", 10_000), ("grpc.http2.ping_timeout_ms", 300))
    assert set(dict(short)) < set(dict(CHANNEL_PRODUCTION))
    async with server_of(deaf) as address, connected(address, short) as wire:
        async with asyncio.timeout(20):
            error = await refused(wire.unary(head(), b""))
    assert error.code is Code.UNAVAILABLE
    assert pinged.is_set()


def test_no_option_is_left_out() -> None:
    """Each name that is set anywhere stands in the docstring of a test above."""
    tested = {
        name
        for key, function in globals().items()
        if key.startswith("test_")
        for name in re.findall(r"grpc\.[\w.]*\w", function.__doc__ or "")
    }
    assert set(dict(merged(SERVER, SERVER_PRODUCTION, SERVER_EDGE, CHANNEL, CHANNEL_PRODUCTION))) == tested
