"""Conformance cases: flow — what happens when one side is slow, gives up, or never stops."""

# ruff: noqa: S101 - a case asserts: its module is a test that ships

from __future__ import annotations

import asyncio

from servicekit.errors import Code
from servicekit.wire import END, Ended, Incoming, Status, Stream

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
    quit_task,
    settled,
    unary,
    upload,
)

CHUNK = bytes(64 * 1024)
MANY = 512  # chunks: 32 MiB, more than any wire may hold for one slow reader
TURN = 256  # messages after which the loop has its turn


async def a_slow_server_holds_the_client(pair: Pair) -> None:
    """While the server does not read, ``send`` waits before 32 MiB are on their way; then all arrive."""
    read = asyncio.Event()
    sizes: list[int] = []

    async def serve(incoming: Incoming) -> None:
        await read.wait()
        while (message := await incoming.receive()) is not END:
            sizes.append(len(message))
        await incoming.finish(OK, b"")

    wire = await pair.connect(upload(serve))
    stream = wire.open(head(), None)
    sent: list[int] = []
    sending = asyncio.create_task(_send_many(stream, sent))
    await pair.quiet(lambda: len(sent))
    assert 0 < len(sent) < MANY
    read.set()
    await sending
    await stream.half_close()
    assert await drain(stream) == [b""]
    assert sizes == [len(CHUNK)] * MANY


async def a_slow_client_holds_the_server(pair: Pair) -> None:
    """While the client does not read, the server's ``send`` waits before 32 MiB are on their way; then all arrive."""
    sent: list[int] = []

    async def serve(incoming: Incoming) -> None:
        for number in range(MANY):
            await incoming.send(CHUNK)
            sent.append(number)
        await incoming.finish(OK)

    wire = await pair.connect(download(serve))
    stream = wire.open(head(), b"")
    assert await stream.receive() == CHUNK
    await pair.quiet(lambda: len(sent))
    assert 0 < len(sent) < MANY
    assert len(await drain(stream)) == MANY - 1
    assert len(sent) == MANY


async def a_stuck_stream_does_not_hold_its_neighbours(pair: Pair) -> None:
    """While one stream waits for a reader, other RPCs of the same wire are served."""
    stuck = Watched(linger)
    wire = await pair.connect({"/t/Stuck": upload(stuck), "/t/Free": unary(echo)})
    stream = wire.open(head("/t/Stuck"), None)
    sent: list[int] = []
    sending = asyncio.create_task(_send_many(stream, sent))
    await pair.quiet(lambda: len(sent))
    assert (await wire.unary(head("/t/Free"), b"x" * 100_000)).data == b"x" * 100_000
    await quit_task(sending)
    stream.cancel()
    await stuck.cancelled.wait()


async def a_cancelled_send_leaves_the_stream_usable(pair: Pair) -> None:
    """Of a ``send`` that was cancelled the message arrived or not; those before and after it arrive in order."""
    read, seen = asyncio.Event(), []

    async def serve(incoming: Incoming) -> None:
        await read.wait()
        while (message := await incoming.receive()) is not END:
            seen.append(message[:8])
        await incoming.finish(OK, b"")

    wire = await pair.connect(upload(serve))
    stream = wire.open(head(), None)
    sent: list[int] = []
    sending = asyncio.create_task(_send_many(stream, sent))
    await pair.quiet(lambda: len(sent))
    assert await settled(sending)
    read.set()
    await stream.send(_numbered(MANY))
    await stream.half_close()
    assert await drain(stream) == [b""]
    numbers = [int(start) for start in seen]
    assert numbers in ([*sent, MANY], [*sent, len(sent), MANY])


async def a_cancelled_send_leaves_the_server_usable(pair: Pair) -> None:
    """A server's ``send`` that was cancelled is no end either: the next ones arrive after it."""
    sent: list[int] = []
    stuck, resume = asyncio.Event(), asyncio.Event()

    async def serve(incoming: Incoming) -> None:
        sending = asyncio.create_task(_send_many(incoming, sent))
        await stuck.wait()
        assert await settled(sending)
        resume.set()
        await incoming.send(_numbered(MANY))
        await incoming.finish(OK)

    wire = await pair.connect(download(serve))
    stream = wire.open(head(), b"")
    await pair.quiet(lambda: len(sent))
    stuck.set()
    await resume.wait()
    numbers = [int(message[:8]) for message in await drain(stream)]
    assert (await stream.ended()).code is Code.OK
    assert numbers in ([*sent, MANY], [*sent, len(sent), MANY])


async def a_server_may_end_after_a_cancelled_send(pair: Pair) -> None:
    """The status comes after what was sent: a message whose ``send`` was cancelled arrives before it, or not at all."""
    sent: list[int] = []
    stuck, ended = asyncio.Event(), asyncio.Event()

    async def serve(incoming: Incoming) -> None:
        sending = asyncio.create_task(_send_many(incoming, sent))
        await stuck.wait()
        assert await settled(sending)
        await incoming.finish(OK)
        ended.set()

    wire = await pair.connect(download(serve))
    stream = wire.open(head(), b"")
    await pair.quiet(lambda: len(sent))
    stuck.set()
    await ended.wait()
    numbers = [int(message[:8]) for message in await drain(stream)]
    assert (await stream.ended()).code is Code.OK
    assert numbers in (sent, [*sent, len(sent)])


async def a_server_may_end_before_the_client(pair: Pair) -> None:
    """When the server ends early, the client's ``send`` raises Ended, and how it ended is there to read."""
    release = asyncio.Event()

    async def serve(incoming: Incoming) -> None:
        await release.wait()
        await incoming.finish(Status(code=Code.OUT_OF_RANGE, message="enough"))

    wire = await pair.connect(bidi(serve))
    stream = wire.open(head(), None)
    sent: list[int] = []
    sending = asyncio.create_task(_send_many(stream, sent))
    await pair.quiet(lambda: len(sent))
    release.set()
    await asyncio.wait([sending])
    assert isinstance(sending.exception(), Ended)
    assert await drain(stream) == []
    assert (await stream.ended()).code is Code.OUT_OF_RANGE


async def both_sides_may_be_full_at_once(pair: Pair) -> None:
    """With 4 MiB under way in each direction nothing locks up, because reading does not wait for sending."""
    wire = await pair.connect(bidi(echo))
    stream = wire.open(head(), None)

    async def send() -> None:
        for _ in range(64):
            await stream.send(CHUNK)
        await stream.half_close()

    sending = asyncio.create_task(send())
    assert await drain(stream) == [CHUNK] * 64
    await sending


async def small_messages_do_not_starve_the_loop(pair: Pair) -> None:
    """While thousands of small messages flow, other tasks have their turn too: at least once every 256 of them."""
    count = 3000
    wire = await pair.connect(bidi(echo))
    stream = wire.open(head(), None)
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0)
            ticks += 1

    async def send() -> None:
        for _ in range(count):
            await stream.send(b"x")
        await stream.half_close()

    ticking, sending = asyncio.create_task(tick()), asyncio.create_task(send())
    assert len(await drain(stream)) == count
    await sending
    await quit_task(ticking)
    assert ticks >= count // TURN


async def a_backlog_does_not_starve_the_loop(pair: Pair) -> None:
    """Reading what has arrived long ago gives way as well: no more than 256 messages in one go."""
    total, run, longest = 1000, 0, 0

    async def serve(incoming: Incoming) -> None:
        for _ in range(total):
            await incoming.send(b"x")
        await incoming.finish(OK)

    async def tick() -> None:
        nonlocal run
        while True:
            await asyncio.sleep(0)
            run = 0

    wire = await pair.connect(download(serve))
    stream = wire.open(head(), b"")
    await pair.pass_time(0.1)
    ticking = asyncio.create_task(tick())
    await asyncio.sleep(0)
    for _ in range(total):
        assert await stream.receive() == b"x"
        run += 1
        longest = max(longest, run)
    await quit_task(ticking)
    assert longest <= TURN


async def _send_many(side: Stream | Incoming, sent: list[int]) -> None:
    for number in range(MANY):
        await side.send(_numbered(number))
        sent.append(number)


def _numbered(number: int) -> bytes:
    return b"%08d" % number + CHUNK[8:]
