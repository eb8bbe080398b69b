"""Peers that speak HTTP/2 frame by frame, and so may be slow, rude or deaf."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

from hpack import Encoder
from hyperframe.frame import Frame, HeadersFrame, PingFrame, SettingsFrame

from .ground import PREFACE

F = TypeVar("F", bound=Frame)

PATIENCE = 5.0
METADATA = (
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/test.Service/Method"),
    (":authority", "test"),
    ("te", "trailers"),
    ("content-type", "application/grpc"),
)


class Peer:
    """One end of a connection. ``seen`` are the frames so far; ``closed`` says that the other end has hung up."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._encoder = Encoder()
        self._streams = 0
        self.seen: list[Frame] = []
        self.closed = False
        self.port: int = writer.get_extra_info("sockname")[1]

    def say(self, *frames: Frame) -> None:
        for frame in frames:
            self._writer.write(frame.serialize())

    async def hear(self, *, answer: bool = True) -> None:
        """Take in the next frame, and ``answer`` it if it wants an acknowledgement."""
        try:
            frame, length = Frame.parse_frame_header(memoryview(await self._reader.readexactly(9)))
            frame.parse_body(memoryview(await self._reader.readexactly(length)))
        except (asyncio.IncompleteReadError, ConnectionError):
            self.closed = True
            return
        self.seen.append(frame)
        if answer and isinstance(frame, SettingsFrame | PingFrame) and "ACK" not in frame.flags:
            data = frame.opaque_data if isinstance(frame, PingFrame) else b""
            self.say(PingFrame(0, data, flags=["ACK"]) if data else SettingsFrame(0, flags=["ACK"]))

    async def until(self, condition: Callable[[], object], *, answer: bool = True) -> None:
        """Hear until ``condition()`` holds; AssertionError when it never does."""
        try:
            async with asyncio.timeout(PATIENCE):
                while not condition():
                    if self.closed:
                        raise AssertionError(f"the connection was closed, after {self.seen}")
                    await self.hear(answer=answer)
        except TimeoutError:
            raise AssertionError(f"nothing of the kind in {PATIENCE} s, but {self.seen}") from None

    async def frame(self, kind: type[F], *, answer: bool = True) -> F:
        """Return the first frame of ``kind``, once it is there."""
        await self.until(lambda: self.all(kind), answer=answer)
        return self.all(kind)[0]

    async def greeted(self) -> dict[int, int]:
        """Return what the other end has announced in its SETTINGS."""
        return dict((await self.frame(SettingsFrame)).settings)

    def all(self, kind: type[F]) -> list[F]:
        """Return the frames of ``kind`` so far."""
        return [frame for frame in self.seen if isinstance(frame, kind)]

    async def end(self, *, answer: bool = True) -> None:
        """Return when the other end has hung up; AssertionError when it never does."""
        await self.until(lambda: self.closed, answer=answer)

    def ping(self) -> None:
        self.say(PingFrame(0, b"12345678"))

    def call(self) -> int:
        """Begin a call, with headers only; return its stream."""
        self._streams += 1
        stream = 2 * self._streams - 1
        self.say(HeadersFrame(stream, self._encoder.encode(METADATA), flags=["END_HEADERS"]))
        return stream

    def greet(self, *, preface: bytes = PREFACE) -> None:
        self._writer.write(preface)
        self.say(SettingsFrame(0))

    async def read_preface(self) -> None:
        await self._reader.readexactly(len(PREFACE))

    async def close(self) -> None:
        self._writer.close()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()


@contextlib.asynccontextmanager
async def client_to(address: str, *, greets: bool = True) -> AsyncIterator[Peer]:
    """Connect to a server; by default with the preface and SETTINGS."""
    host, _, port = address.rpartition(":")
    peer = Peer(*await asyncio.open_connection(host, int(port)))
    if greets:
        peer.greet()
    try:
        yield peer
    finally:
        await peer.close()


@contextlib.asynccontextmanager
async def server_of(serve: Callable[[Peer], Awaitable[None]]) -> AsyncIterator[str]:
    """Listen, and have ``await serve(peer)`` run for each connection, then hang up; yield the address."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = Peer(reader, writer)
        try:
            await serve(peer)
        finally:
            await peer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    try:
        yield f"{host}:{port}"
    finally:
        server.close()
        await server.wait_closed()
