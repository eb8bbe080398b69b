"""Conformance cases: streams of messages — their order and their ends."""

# ruff: noqa: S101 - a case asserts: its module is a test that ships

from __future__ import annotations

import asyncio

from servicekit.errors import Code
from servicekit.wire import END, Ended, Incoming, Status, Stream

from .wire_pair import (
    OK,
    Pair,
    bidi,
    download,
    drain,
    echo,
    head,
    quit_task,
    settled,
    unary,
    upload,
)


async def order_is_kept_both_ways(pair: Pair) -> None:
    """A thousand messages each way, sent and read at the same time, arrive once each and in order."""
    wire = await pair.connect(bidi(echo))
    stream = wire.open(head(), None)
    words = [b"%d" % number for number in range(1000)]

    async def send() -> None:
        for word in words:
            await stream.send(word)
        await stream.half_close()

    sending = asyncio.create_task(send())
    assert await drain(stream) == words
    await sending


async def half_close_is_the_servers_end(pair: Pair) -> None:
    """After ``half_close`` the server reads what was sent, then END, and END again."""
    seen: list[object] = []

    async def serve(incoming: Incoming) -> None:
        seen.extend([await incoming.receive() for _ in range(4)])
        await incoming.finish(OK)

    wire = await pair.connect(bidi(serve))
    stream = wire.open(head(), None)
    await stream.send(b"1")
    await stream.send(b"2")
    await stream.half_close()
    assert await drain(stream) == []
    assert seen == [b"1", b"2", END, END]


async def half_close_is_idempotent(pair: Pair) -> None:
    """``half_close`` may come again, and after the end of the RPC."""
    wire = await pair.connect(bidi(echo))
    stream = wire.open(head(), None)
    await stream.half_close()
    await stream.half_close()
    assert await drain(stream) == []
    assert (await stream.ended()).code is Code.OK
    await stream.half_close()


async def a_server_answers_after_half_close(pair: Pair) -> None:
    """Half-closed is not closed: the server goes on sending."""

    async def serve(incoming: Incoming) -> None:
        assert await incoming.receive() is END
        for _ in range(3):
            await incoming.send(b"later")
        await incoming.finish(OK)

    wire = await pair.connect(bidi(serve))
    stream = wire.open(head(), None)
    await stream.half_close()
    assert await drain(stream) == [b"later"] * 3


async def a_stream_of_no_messages_is_a_stream(pair: Pair) -> None:
    """Nothing asked, nothing answered, OK."""
    wire = await pair.connect(bidi(echo))
    stream = wire.open(head(), None)
    await stream.half_close()
    assert await drain(stream) == []
    assert (await stream.ended()).code is Code.OK


async def the_clients_end_stays_the_end(pair: Pair) -> None:
    """``receive`` returns END again and again, and so does ``ended()`` its status."""
    wire = await pair.connect(unary(echo))
    stream = wire.open(head(), b"x")
    assert await drain(stream) == [b"x"]
    assert [await stream.receive() for _ in range(3)] == [END] * 3
    assert [(await stream.ended()).code for _ in range(3)] == [Code.OK] * 3


async def ended_waits_for_the_messages(pair: Pair) -> None:
    """``ended()`` of an RPC that the server has finished returns only when its messages were taken."""
    finished = asyncio.Event()

    async def serve(incoming: Incoming) -> None:
        incoming.on_end(finished.set)
        await incoming.send(b"1")
        await incoming.send(b"2")
        await incoming.finish(OK)

    wire = await pair.connect(download(serve))
    stream = wire.open(head(), b"")
    ended = asyncio.create_task(stream.ended())
    await finished.wait()
    await pair.pass_time(0.1)
    assert not ended.done()
    assert await drain(stream) == [b"1", b"2"]
    assert (await ended).code is Code.OK


async def ended_has_many_waiters(pair: Pair) -> None:
    """Any number of tasks wait for the end, and one that is cancelled there changes nothing for the others."""
    release = asyncio.Event()

    async def serve(incoming: Incoming) -> None:
        await release.wait()
        await incoming.finish(Status(code=Code.ABORTED))

    wire = await pair.connect(download(serve))
    stream = wire.open(head(), b"")
    impatient = asyncio.create_task(stream.ended())
    waiters = [asyncio.create_task(stream.ended()) for _ in range(5)]
    await pair.pass_time(0.01)
    assert await settled(impatient)
    release.set()
    assert await stream.receive() is END
    assert [(await waiter).code for waiter in waiters] == [Code.ABORTED] * 5


async def a_cancelled_receive_is_not_the_end(pair: Pair) -> None:
    """A ``receive`` that the caller cancelled was cancelled; the next one returns the next message."""
    asked = asyncio.Event()

    async def serve(incoming: Incoming) -> None:
        await asked.wait()
        await incoming.send(b"late")
        await incoming.finish(OK)

    wire = await pair.connect(download(serve))
    stream = wire.open(head(), b"")
    for _ in range(3):
        reading = asyncio.create_task(stream.receive())
        await pair.pass_time(0.01)
        assert await settled(reading)
    asked.set()
    assert await drain(stream) == [b"late"]
    assert (await stream.ended()).code is Code.OK


async def a_cancelled_receive_loses_nothing(pair: Pair) -> None:
    """However often the client gives up reading, and at whatever moment, every message is read once, in order."""
    words = [b"%d" % number for number in range(200)]

    async def serve(incoming: Incoming) -> None:
        for number, word in enumerate(words):
            await incoming.send(word)
            if number % 3 == 0:
                await asyncio.sleep(0)
        await incoming.finish(OK)

    wire = await pair.connect(download(serve))
    stream = wire.open(head(), b"")
    seen: list[bytes] = []
    for attempt in range(400):
        reading = asyncio.create_task(stream.receive())
        for _ in range(attempt % 5):
            await asyncio.sleep(0)
        if not await settled(reading) and (message := reading.result()) is not END:
            seen.append(message)
    assert seen + await drain(stream) == words
    assert (await stream.ended()).code is Code.OK


async def a_cancelled_receive_loses_nothing_on_the_server(pair: Pair) -> None:
    """However often the server gives up reading, every message is read once, in order, and END only at the end."""
    words = [b"%d" % number for number in range(200)]
    seen: list[object] = []

    async def serve(incoming: Incoming) -> None:
        attempt = 0
        while END not in seen:
            attempt += 1
            reading = asyncio.create_task(incoming.receive())
            for _ in range(attempt % 5):
                await asyncio.sleep(0)
            if not await settled(reading):
                seen.append(reading.result())
        await incoming.finish(OK, b"")

    wire = await pair.connect(upload(serve))
    stream = wire.open(head(), None)
    for number, word in enumerate(words):
        await stream.send(word)
        if number % 3 == 0:
            await asyncio.sleep(0)
    await stream.half_close()
    assert await drain(stream) == [b""]
    assert seen == [*words, END]


async def a_server_waiting_in_vain_is_not_at_the_end(pair: Pair) -> None:
    """A time limit around the server's ``receive`` takes nothing from the stream, and does not end it."""
    gave_up, seen = asyncio.Event(), []

    async def serve(incoming: Incoming) -> None:
        reading = asyncio.create_task(incoming.receive())
        await asyncio.sleep(0)
        await quit_task(reading)
        gave_up.set()
        while (message := await incoming.receive()) is not END:
            seen.append(message)
        await incoming.finish(OK, b"")

    wire = await pair.connect(upload(serve))
    stream = wire.open(head(), None)
    await gave_up.wait()
    for word in (b"1", b"2", b"3"):
        await stream.send(word)
    await stream.half_close()
    assert await drain(stream) == [b""]
    assert seen == [b"1", b"2", b"3"]


async def sending_after_the_end_raises_ended(pair: Pair) -> None:
    """Once the client has seen the end, ``send`` raises Ended each time."""

    async def serve(incoming: Incoming) -> None:
        await incoming.finish(OK)

    wire = await pair.connect(bidi(serve))
    stream = wire.open(head(), None)
    assert await drain(stream) == []
    await stream.ended()
    assert await _raises_ended(stream)
    assert await _raises_ended(stream)


async def _raises_ended(stream: Stream) -> bool:
    try:
        await stream.send(b"late")
    except Ended:
        return True
    return False
