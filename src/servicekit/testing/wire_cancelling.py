"""Conformance cases: the client gives up — by word, by letting go, by vanishing."""

# ruff: noqa: S101 - a case asserts: its module is a test that ships

from __future__ import annotations

import asyncio
import gc

from servicekit.errors import By, Code
from servicekit.wire import END, Ended, Incoming

from .wire_pair import (
    OK,
    Pair,
    Watched,
    bidi,
    download,
    drain,
    echo,
    head,
    linger,
    settled,
    unary,
    upload,
)

CHUNK = bytes(64 * 1024)


async def cancel_ends_both_sides(pair: Pair) -> None:
    """``cancel`` makes the status CANCELLED by the caller, and cancels the serving task."""
    watched = Watched(linger)
    wire = await pair.connect(bidi(watched))
    stream = wire.open(head(), None)
    await watched.started.wait()
    stream.cancel()
    status = await stream.ended()
    assert (status.code, status.by, status.begun) == (Code.CANCELLED, By.CALLER, True)
    await watched.cancelled.wait()


async def nothing_is_read_after_cancel(pair: Pair) -> None:
    """After ``cancel`` there is only END, also where messages had arrived."""

    async def serve(incoming: Incoming) -> None:
        for _ in range(3):
            await incoming.send(b"message")
        await linger(incoming)

    wire = await pair.connect(download(serve))
    stream = wire.open(head(), b"")
    assert await stream.receive() == b"message"
    stream.cancel()
    assert await stream.receive() is END
    assert await stream.receive() is END
    assert (await stream.ended()).code is Code.CANCELLED


async def cancel_is_idempotent(pair: Pair) -> None:
    """``cancel`` may come again and changes nothing then; nor does it after the RPC's own end."""
    watched = Watched(linger)
    wire = await pair.connect({"/t/Linger": bidi(watched), "/t/Echo": unary(echo)})
    stream = wire.open(head("/t/Linger"), None)
    await watched.started.wait()
    for _ in range(3):
        stream.cancel()
    assert (await stream.ended()).code is Code.CANCELLED
    stream = wire.open(head("/t/Echo"), b"x")
    assert await drain(stream) == [b"x"]
    assert (await stream.ended()).code is Code.OK
    stream.cancel()
    assert (await stream.ended()).code is Code.OK


async def cancel_at_once_is_a_cancel(pair: Pair) -> None:
    """A stream may be cancelled before anything happened."""
    wire = await pair.connect(bidi(linger))
    stream = wire.open(head(), None)
    stream.cancel()
    assert await stream.receive() is END
    assert await stream.headers() == ()
    assert (await stream.ended()).code is Code.CANCELLED


async def cancel_wakes_who_waits(pair: Pair) -> None:
    """``cancel`` ends a waiting ``receive`` with END, a ``headers`` with (), and every ``ended`` with the status."""
    watched = Watched(linger)
    wire = await pair.connect(bidi(watched))
    stream = wire.open(head(), None)
    receiving = asyncio.create_task(stream.receive())
    headers = asyncio.create_task(stream.headers())
    ended = asyncio.create_task(stream.ended())
    await watched.started.wait()
    await pair.pass_time(0.01)
    stream.cancel()
    assert await receiving is END
    assert await headers == ()
    assert (await ended).code is Code.CANCELLED


async def cancel_wakes_a_blocked_sender(pair: Pair) -> None:
    """A ``send`` that waits for a slow reader raises Ended when the RPC is cancelled."""
    wire = await pair.connect(upload(linger))
    stream = wire.open(head(), None)
    sent: list[int] = []

    async def send() -> None:
        while True:
            await stream.send(CHUNK)
            sent.append(1)

    sending = asyncio.create_task(send())
    await pair.quiet(lambda: len(sent))
    stream.cancel()
    await asyncio.wait([sending])
    assert isinstance(sending.exception(), Ended)


async def cancelling_a_unary_caller_cancels_the_rpc(pair: Pair) -> None:
    """When the task that waits in ``unary`` is cancelled, it stays cancelled, and so is the serving task."""
    watched = Watched(linger)
    wire = await pair.connect(unary(watched))
    calling = asyncio.create_task(wire.unary(head(), b""))
    await watched.started.wait()
    assert await settled(calling)
    await watched.cancelled.wait()


async def dropping_a_stream_cancels_it(pair: Pair) -> None:
    """A Stream that nobody holds any more is cancelled: its serving task does not live on."""
    watched = Watched(linger)
    wire = await pair.connect(bidi(watched))
    stream = wire.open(head(), None)
    await stream.send(b"x")
    await watched.started.wait()
    del stream
    gc.collect()
    await watched.cancelled.wait()


async def a_broken_request_stream_does_not_end(pair: Pair) -> None:
    """A client that vanishes does not look like one that has half-closed, even to who swallows the cancellation."""
    seen: list[object] = []

    async def serve(incoming: Incoming) -> None:
        try:
            await linger(incoming)
        except asyncio.CancelledError:
            seen.append(await incoming.receive())

    watched = Watched(serve)
    wire = await pair.connect(upload(watched))
    stream = wire.open(head(), None)
    await watched.started.wait()
    stream.cancel()
    await watched.ended.wait()
    await pair.pass_time(0.1)
    assert not seen


async def who_swallows_the_cancellation_talks_to_nobody(pair: Pair) -> None:
    """After a reset ``send`` raises Ended and ``finish`` does nothing; the client's status stays what it was."""
    raised: list[BaseException] = []

    async def serve(incoming: Incoming) -> None:
        try:
            await linger(incoming)
        except asyncio.CancelledError:
            await watched.ended.wait()
            try:
                await incoming.send(b"too late")
            except Ended as error:
                raised.append(error)
            await incoming.finish(OK)

    watched = Watched(serve)
    wire = await pair.connect(bidi(watched))
    stream = wire.open(head(), None)
    await watched.started.wait()
    stream.cancel()
    await watched.left.wait()
    assert len(raised) == 1
    assert await stream.receive() is END
    assert (await stream.ended()).code is Code.CANCELLED
