"""A native listener on a free port, and a client that says in HTTP/2 whatever it is told to."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, ResponseReceived, StreamEnded, StreamReset, TrailersReceived
from h2.settings import SettingCodes

from servicekit.clock import Clock, SystemClock
from servicekit.errors import Code
from servicekit.method import Kind
from servicekit.native.options import NativeOptions
from servicekit.native.server import NativeListener
from servicekit.wire import END, Incoming, Route, Serve, Status

OK = Status()
PATIENCE = 10.0
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
NOTHING: Mapping[str, str | None] = {}

ORDINARY = {
    ":method": "POST",
    ":scheme": "http",
    ":path": "/a.B/C",
    ":authority": "test",
    "te": "trailers",
    "content-type": "application/grpc",
}


async def echo(incoming: Incoming) -> None:
    if incoming.data is not None:
        await incoming.finish(OK, incoming.data)
        return
    while (message := await incoming.receive()) is not END:
        await incoming.send(message)
    await incoming.finish(OK)


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """RFC 9113, section 4.1."""
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def framed(data: bytes, flag: int = 0) -> bytes:
    return bytes([flag]) + len(data).to_bytes(4, "big") + data


@dataclass
class Answer:
    """What came back on one stream."""

    headers: list[tuple[str, str]] = field(default_factory=list)
    data: bytes = b""
    trailers: list[tuple[str, str]] = field(default_factory=list)
    reset: int | None = None
    over: bool = False

    def field(self, name: str) -> str | None:
        return next((value for key, value in [*self.headers, *self.trailers] if key == name), None)

    @property
    def code(self) -> Code:
        status = self.field("grpc-status")
        assert status is not None, self
        return Code(int(status))


class Client:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.h2 = H2Connection(
            H2Configuration(validate_outbound_headers=False, normalize_outbound_headers=False, header_encoding="utf-8")
        )
        self.answers: dict[int, Answer] = {}
        self.writer = writer
        self.lost = False
        self._reader = reader
        self._changed = asyncio.Event()

    def begin(self, changed: Mapping[str, str | None] = NOTHING, *, end: bool = False) -> int:
        """Send the headers of a request, with some of its fields changed (None: left out), and return its stream."""
        fields = [(name, value) for name, value in {**ORDINARY, **changed}.items() if value is not None]
        stream: int = self.h2.get_next_available_stream_id()
        self.h2.send_headers(stream, fields, end_stream=end)
        self.answers[stream] = Answer()
        self.flush()
        return stream

    def expect(self, stream: int) -> None:
        """Write down what comes on a stream that is opened by hand."""
        self.answers[stream] = Answer()

    def send(self, stream: int, data: bytes, *, end: bool = False) -> None:
        self.h2.send_data(stream, data, end_stream=end)
        self.flush()

    def flush(self) -> None:
        self.writer.write(self.h2.data_to_send())

    async def call(self, data: bytes, changed: Mapping[str, str | None] = NOTHING) -> Answer:
        stream = self.begin(changed)
        self.send(stream, data, end=True)
        return await self.answer(stream)

    async def answer(self, stream: int) -> Answer:
        """Return what came back, once it is whole."""
        await self.until(lambda: self.answers[stream].over)
        return self.answers[stream]

    async def until(self, holds: Callable[[], object]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not holds():
                assert not self.lost
                self._changed.clear()
                await self._changed.wait()

    async def read(self) -> None:
        """Take what comes, until the connection is closed."""
        try:
            while data := await self._reader.read(65536):
                for event in self.h2.receive_data(data):
                    self._note(event)
                self.flush()
                self._changed.set()
        finally:
            self.lost = True
            self._changed.set()

    def _note(self, event: object) -> None:
        stream = getattr(event, "stream_id", None)
        answer = self.answers.get(stream or 0)
        if answer is None:
            return
        match event:
            case ResponseReceived():
                answer.headers = _texts(event.headers)
            case DataReceived():
                answer.data += event.data or b""
                self.h2.acknowledge_received_data(event.flow_controlled_length or 0, event.stream_id or 0)
            case TrailersReceived():
                answer.trailers = _texts(event.headers)
            case StreamReset():
                answer.reset = event.error_code
                answer.over = True
            case StreamEnded():
                answer.over = True


def _texts(fields: Iterable[tuple[Any, ...]] | None) -> list[tuple[str, str]]:
    return [(str(name), str(value)) for name, value in fields or ()]


@contextlib.asynccontextmanager
async def listening(
    routes: Route | Mapping[str, Route],
    *,
    options: NativeOptions | None = None,
    clock: Clock | None = None,
    compression: str | None = None,
    address: str = "127.0.0.1:0",
) -> AsyncIterator[tuple[NativeListener, str]]:
    """Serve, and yield the listener and its address."""
    listener = NativeListener(clock or SystemClock(), options=options, compression=compression)
    bound = listener.bind(address)
    await listener.start(lambda path: routes if isinstance(routes, Route) else routes[path])
    try:
        yield listener, bound
    finally:
        await listener.stop(0)


@contextlib.asynccontextmanager
async def client_of(address: str, *, window: int | None = None) -> AsyncIterator[Client]:
    """Connect to ``address``; ``window`` is what each stream may be sent before it is read."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    client = Client(reader, writer)
    if window is not None:
        client.h2.local_settings[SettingCodes.INITIAL_WINDOW_SIZE] = window
    client.h2.initiate_connection()
    client.flush()
    reading = asyncio.create_task(client.read())
    try:
        yield client
    finally:
        writer.close()
        reading.cancel()
        await asyncio.wait([reading])
        with contextlib.suppress(OSError):
            await writer.wait_closed()


@contextlib.asynccontextmanager
async def joined(
    serve: Serve, kind: Kind = Kind.UNARY, *, options: NativeOptions | None = None, compression: str | None = None
) -> AsyncIterator[Client]:
    """Serve every path with ``serve``, and yield a client of it."""
    async with (
        listening(Route(kind=kind, serve=serve), options=options, compression=compression) as (_, address),
        client_of(address) as client,
    ):
        yield client
