"""What a drain does about calls that were not there when it began: each has the grace, as those under way have."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any, TypeAlias

import grpc
import pytest
from hpack import Decoder, Encoder

from servicekit import Drain, Exit, Server, Telemetry
from servicekit.clock import MovableClock
from servicekit.errors import Code
from servicekit.http2.limits import SERVER
from servicekit.native.options import NativeOptions
from servicekit.native.server import NativeListener
from servicekit.testing import no_leaks

from .ground import ORDINARY, PATIENCE, PREFACE, frame, framed

Untyped: TypeAlias = Any
"""What grpc and hpack leave untyped."""

MESSAGE = framed(bytes(1000))
HALF = 500
DATA, HEADERS, RESET, SETTINGS, PING, GOAWAY = 0, 1, 3, 4, 6, 7
END_STREAM, END_HEADERS, ACK = 1, 4, 1

# Time passes here while nothing is sent, and that is not what these tests are about.
PATIENT = NativeOptions(http2=replace(SERVER, settings_timeout=None, stall_timeout=None, drain_timeout=1e6))


class Peer:
    """A client with one request, by hand: h2's sends nothing any more when it was told that the server goes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self.code: Code | None = None
        self._decoder: Untyped = Decoder()
        self.send(PREFACE + frame(SETTINGS, 0, 0, b""))

    def send(self, octets: bytes) -> None:
        self._writer.write(octets)

    def ask(self, data: bytes, *, end: bool = False, timeout: str | None = None) -> None:
        """Begin the request, with some of its message or all of it."""
        encoder: Untyped = Encoder()
        fields = ORDINARY if timeout is None else {**ORDINARY, "grpc-timeout": timeout}
        self.send(frame(HEADERS, END_HEADERS, 1, encoder.encode(list(fields.items()))))
        self.go_on(data, end=end)

    def go_on(self, data: bytes, *, end: bool) -> None:
        self.send(frame(DATA, END_STREAM if end else 0, 1, data))

    async def read(self) -> None:
        """Take what comes, and answer it as is due, until the connection is over."""
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                self._note(*await self._frame())
        self._writer.close()

    async def _frame(self) -> tuple[int, int, bytes]:
        head = await self._reader.readexactly(9)
        return head[3], head[4], await self._reader.readexactly(int.from_bytes(head[:3], "big"))

    def _note(self, kind: int, flags: int, payload: bytes) -> None:
        if kind in {SETTINGS, PING} and not flags & ACK:
            self.send(frame(kind, ACK, 0, payload if kind == PING else b""))
        elif kind == HEADERS:
            fields = dict(self._decoder.decode(payload))
            if "grpc-status" in fields:
                self.code = Code(int(fields["grpc-status"]))

    def close(self) -> None:
        self._writer.close()


class Ground:
    """A server of one unary method that waits until ``release`` is set, and the time that it has."""

    def __init__(self, drain: Drain) -> None:
        self.clock = MovableClock()
        self.listener = NativeListener(self.clock, options=PATIENT)
        self.begun, self.release = asyncio.Event(), asyncio.Event()
        settings: Untyped = {"wire": self.listener, "clock": self.clock, "drain": drain}
        self.server = Server("127.0.0.1:0", middleware=[], telemetry=Telemetry(log=None), **settings)
        handlers: Untyped = {"C": grpc.unary_unary_rpc_method_handler(self._echo)}
        self.server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("a.B", handlers)])

    async def _echo(self, request: bytes, _context: object) -> bytes:
        self.begun.set()
        await self.release.wait()
        return request

    async def drain(self) -> asyncio.Task[Exit]:
        """Begin to drain, and return when time has passed, more than is for flushing."""
        going = asyncio.ensure_future(self.server.drain())
        await until(self.server.draining.is_set)
        for _ in range(4):
            await self.clock.advance(1.0)
        return going


async def until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not holds():  # noqa: ASYNC110 - of anything, not of what sets an event
            await asyncio.sleep(0.001)


@contextlib.asynccontextmanager
async def ground(drain: Drain) -> AsyncIterator[tuple[Ground, Peer]]:
    """Serve, and connect."""
    async with no_leaks():
        made = Ground(drain)
        async with made.server:
            host, _, port = made.server.addresses[0].rpartition(":")
            peer = Peer(*await asyncio.open_connection(host, int(port)))
            try:
                await until(lambda: made.listener.connections)
                yield made, peer
            finally:
                peer.close()


async def test_a_request_that_is_half_read_has_the_grace() -> None:
    """Nobody serves it yet, so that it is no call in flight; but its client was told that it would be served."""
    async with ground(Drain(delay=0.0, grace=60.0, flush=0.5)) as (made, peer):
        made.release.set()
        reading = asyncio.ensure_future(peer.read())
        peer.ask(MESSAGE[:HALF])
        await until(lambda: made.listener.busy)
        going = await made.drain()
        peer.go_on(MESSAGE[HALF:], end=True)
        await asyncio.wait_for(reading, PATIENCE)
        assert peer.code is Code.OK
        assert await asyncio.wait_for(going, PATIENCE) is Exit.DRAINED


async def test_a_request_that_is_half_read_has_no_more_than_the_grace() -> None:
    """Then its client is told, as all others are. Nobody had begun it, so no call was abandoned."""
    async with ground(Drain(delay=0.0, grace=60.0, flush=0.5)) as (made, peer):
        reading = asyncio.ensure_future(peer.read())
        peer.ask(MESSAGE[:HALF])
        await until(lambda: made.listener.busy)
        going = await made.drain()
        assert not going.done()
        await made.clock.advance(60.0)
        await made.clock.advance(0.5)
        await asyncio.wait_for(reading, PATIENCE)
        assert peer.code is Code.UNAVAILABLE
        assert await asyncio.wait_for(going, PATIENCE) is Exit.DRAINED


@pytest.mark.parametrize("how", ["taken back", "left", "late"])
async def test_a_request_that_will_not_come_is_not_waited_for(how: str) -> None:
    """Its client takes it back, or goes, or had no more time than this; the connection may well be there still."""
    async with ground(Drain(delay=0.0, grace=1000.0, flush=0.5)) as (made, peer):
        peer.ask(MESSAGE[:HALF], timeout="5S" if how == "late" else None)
        await until(lambda: made.listener.busy)
        going = await made.drain()
        assert not going.done()
        if how == "taken back":
            peer.send(frame(RESET, 0, 1, bytes([0, 0, 0, 8])))
        elif how == "left":
            peer.close()
        soon = made.clock.time() + 60.0  # before anything else would end the connection
        while not going.done() and made.clock.time() < soon:
            await made.clock.advance(0.1)
        assert going.done()
        assert await going is Exit.DRAINED


async def test_a_call_that_comes_while_the_rest_is_flushed_has_the_grace() -> None:
    """Its client did not know yet that the server goes, and nothing was under way before it called."""
    async with ground(Drain(delay=0.0, grace=60.0, flush=10.0)) as (made, peer):
        going = await made.drain()
        assert not going.done()  # for the client does not say that it knows
        peer.ask(MESSAGE, end=True)
        await asyncio.wait_for(made.begun.wait(), PATIENCE)
        for _ in range(4):
            await made.clock.advance(5.0)
        assert not going.done()
        made.release.set()
        await asyncio.wait_for(peer.read(), PATIENCE)
        assert peer.code is Code.OK
        assert await asyncio.wait_for(going, PATIENCE) is Exit.DRAINED
