"""Mixed load that never goes well: at its end nothing is left, of tasks, deadlines, bytes held or credit lent."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import h2.exceptions
import pytest

from servicekit.method import Kind
from servicekit.native.options import NativeOptions
from servicekit.native.protocol import ClientLine
from servicekit.native.server import NativeListener
from servicekit.testing import no_leaks
from servicekit.wire import END, Incoming, Route

from .ground import OK, Client, client_of, framed, listening


async def work(incoming: Incoming) -> None:
    """Read, wait, write and finish in an order that the first message says."""
    source = random.Random(len(incoming.head.metadata))
    messages = 0
    if incoming.data is None:
        while (message := await incoming.receive()) is not END:
            messages += 1
            if source.random() < 0.3:
                await asyncio.sleep(source.random() * 0.01)
            if message[:1] == b"q":
                break
    for _ in range(source.randrange(5)):
        await incoming.send(bytes(source.choice([0, 10, 100_000])))
    if source.random() < 0.2:
        raise ValueError
    await incoming.finish(OK)


ROUTES = {
    f"/{kind.value}/x": Route(kind=kind, serve=work)
    for kind in (Kind.SERVER_STREAM, Kind.CLIENT_STREAM, Kind.BIDI_STREAM)
}


async def misbehave(client: Client, source: random.Random) -> None:
    """One call, which may be cut off at any moment in any way."""
    changed: dict[str, str | None] = {":path": source.choice(list(ROUTES))}
    if source.random() < 0.5:
        changed["grpc-timeout"] = f"{source.randrange(1, 60)}m"
    if source.random() < 0.1:
        changed["te"] = None
    try:
        stream = client.begin(changed)
        for _ in range(source.randrange(4)):
            data = framed(bytes(source.choice([1, 1000, 20_000])))
            client.send(stream, data[: source.choice([len(data), len(data), 3, 500])])
            await asyncio.sleep(source.random() * 0.005)
        ending = source.random()
        if ending < 0.6:
            client.send(stream, framed(b"q"), end=True)
        if ending > 0.4:
            await asyncio.sleep(source.random() * 0.02)
            client.h2.reset_stream(stream)
            client.flush()
        else:
            await client.until(lambda: client.answers[stream].over)
    except (h2.exceptions.ProtocolError, AssertionError):
        pass  # the server ended it first


async def visit(address: str, seed: int) -> None:
    """One connection with some calls, which may vanish under them."""
    source = random.Random(seed)
    async with client_of(address, window=source.choice([None, 0, 500])) as client:
        calls = [asyncio.create_task(misbehave(client, source)) for _ in range(source.randrange(1, 12))]
        if source.random() < 0.3:
            await asyncio.sleep(source.random() * 0.03)
            client.writer.transport.abort()
        else:
            await asyncio.wait(calls, timeout=0.3)
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)


async def settled(listener: NativeListener, lines: list[Any]) -> None:
    """Return once every connection is gone."""
    async with asyncio.timeout(10):
        while listener.connections or listener._shared.serving:  # noqa: ASYNC110 - of anything, not of what sets an event
            await asyncio.sleep(0.01)


async def test_nothing_is_left(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Cancelled, reset, out of time, cut off in a message, vanished: whatever happened, it is over."""
    caplog.set_level("CRITICAL")
    lines: list[ClientLine] = []
    made = ClientLine.connection_made

    def noting(self: ClientLine, transport: asyncio.Transport) -> None:
        made(self, transport)
        lines.append(self)

    monkeypatch.setattr(ClientLine, "connection_made", noting)
    async with no_leaks():
        async with listening(ROUTES, options=NativeOptions(received=50_000)) as (listener, address):
            for start in range(0, 120, 12):
                await asyncio.gather(*(visit(address, seed) for seed in range(start, start + 12)))
            await settled(listener, lines)
            assert len(listener._shared.wheel) == 0
        assert len(lines) == 120
        for line in lines:
            assert (line.held, line.credit, line._calls, line._ending, line._ended) == (0, 0, {}, {}, [])
            assert line.http2._credit.lent == 0
