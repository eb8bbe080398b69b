"""Conformance cases: what is asked and answered, for all four kinds of RPC."""

# ruff: noqa: S101 - a case asserts: its module is a test that ships

from __future__ import annotations

import asyncio
import contextlib

from servicekit.errors import Code
from servicekit.wire import END, Ended, Incoming, Route, Security

from .wire_pair import (
    OK,
    PATH,
    Pair,
    bidi,
    download,
    drain,
    echo,
    head,
    refused,
    unary,
    upload,
)


async def unary_answers(pair: Pair) -> None:
    """A unary RPC returns the response that the server finished with."""
    wire = await pair.connect(unary(echo))
    assert (await wire.unary(head(), b"hello")).data == b"hello"


async def unary_can_be_opened_as_a_stream(pair: Pair) -> None:
    """``open`` with data is a unary RPC too: its response is the one message, then END."""
    wire = await pair.connect(unary(echo))
    stream = wire.open(head(), b"hello")
    assert await drain(stream) == [b"hello"]
    assert (await stream.ended()).code is Code.OK


async def unary_request_is_read_before_serve_runs(pair: Pair) -> None:
    """A unary request is in ``incoming.data`` when the serving task starts; after it there is only END."""
    seen: list[object] = []

    async def serve(incoming: Incoming) -> None:
        seen.extend([incoming.data, await incoming.receive()])
        await incoming.finish(OK, b"")

    wire = await pair.connect(unary(serve))
    await wire.unary(head(), b"request")
    assert seen == [b"request", END]


async def upload_answers_once(pair: Pair) -> None:
    """A client stream is not read ahead of ``serve``, arrives in order, and is answered by ``finish``."""

    async def serve(incoming: Incoming) -> None:
        assert incoming.data is None
        total = b""
        while (message := await incoming.receive()) is not END:
            total += message
        await incoming.finish(OK, total)

    wire = await pair.connect(upload(serve))
    stream = wire.open(head(), None)
    for part in (b"a", b"b", b"c"):
        await stream.send(part)
    await stream.half_close()
    assert await drain(stream) == [b"abc"]
    assert (await stream.ended()).code is Code.OK


async def download_answers_in_order(pair: Pair) -> None:
    """A server stream is asked with one message and arrives in order."""

    async def serve(incoming: Incoming) -> None:
        assert incoming.data == b"request"
        for number in range(100):
            await incoming.send(b"%d" % number)
        await incoming.finish(OK)

    wire = await pair.connect(download(serve))
    stream = wire.open(head(), b"request")
    assert await drain(stream) == [b"%d" % number for number in range(100)]
    assert (await stream.ended()).code is Code.OK


async def bidi_is_a_conversation(pair: Pair) -> None:
    """With streams both ways, an answer arrives before the next question is sent."""
    wire = await pair.connect(bidi(echo))
    stream = wire.open(head(), None)
    for number in range(20):
        await stream.send(b"%d" % number)
        assert await stream.receive() == b"%d" % number
    await stream.half_close()
    assert await drain(stream) == []
    assert (await stream.ended()).code is Code.OK


async def empty_messages_are_messages(pair: Pair) -> None:
    """A message of no bytes is a message: asked and answered, unary and in streams."""
    wire = await pair.connect({"/t/Unary": unary(echo), "/t/Bidi": bidi(echo)})
    assert (await wire.unary(head("/t/Unary"), b"")).data == b""
    stream = wire.open(head("/t/Bidi"), None)
    for message in (b"", b"x", b""):
        await stream.send(message)
    await stream.half_close()
    assert await drain(stream) == [b"", b"x", b""]


async def large_messages_arrive_whole(pair: Pair) -> None:
    """A message of 1 MiB arrives as it was sent, unary and in streams, larger than any window."""
    data = bytes(range(256)) * 4096
    wire = await pair.connect({"/t/Unary": unary(echo), "/t/Bidi": bidi(echo)})
    assert (await wire.unary(head("/t/Unary"), data)).data == data
    stream = wire.open(head("/t/Bidi"), None)
    sending = asyncio.create_task(stream.send(data))
    assert await stream.receive() == data
    await sending
    await stream.half_close()
    assert await drain(stream) == []


async def a_request_above_the_limit_is_refused(pair: Pair) -> None:
    """A request of more than 4 MiB, the default limit, ends in RESOURCE_EXHAUSTED and hurts no other RPC."""
    served: list[Incoming] = []

    async def serve(incoming: Incoming) -> None:
        served.append(incoming)
        await incoming.finish(OK, b"small")

    wire = await pair.connect(unary(serve))
    error = await refused(wire.unary(head(), bytes(5 << 20)))
    assert error.code is Code.RESOURCE_EXHAUSTED
    assert not served
    assert (await wire.unary(head(), b"")).data == b"small"


async def a_response_above_the_limit_is_refused(pair: Pair) -> None:
    """A response of more than 4 MiB, the default limit, ends in RESOURCE_EXHAUSTED and hurts no other RPC."""

    async def serve(incoming: Incoming) -> None:
        await incoming.finish(OK, bytes(5 << 20) if incoming.data == b"large" else b"small")

    wire = await pair.connect(unary(serve))
    error = await refused(wire.unary(head(), b"large"))
    assert error.code is Code.RESOURCE_EXHAUSTED
    assert (await wire.unary(head(), b"")).data == b"small"


async def an_unknown_path_is_asked_of_route(pair: Pair) -> None:
    """``route`` is asked once for each RPC, with its path, also for those that nobody registered."""
    asked: list[str] = []

    def route(path: str) -> Route:
        asked.append(path)
        return unary(echo)

    wire = await pair.connect(route)
    await wire.unary(head(PATH), b"")
    await wire.unary(head("/nobody/Knows"), b"")
    await wire.unary(head(PATH), b"")
    assert asked == [PATH, "/nobody/Knows", PATH]


async def an_ok_without_a_response_is_an_error(pair: Pair) -> None:
    """A unary RPC that ends OK without a message has failed: INTERNAL, or UNIMPLEMENTED as gRPC's status table says."""

    async def serve(incoming: Incoming) -> None:
        await incoming.finish(OK)

    wire = await pair.connect(unary(serve))
    assert (await refused(wire.unary(head(), b""))).code in {Code.INTERNAL, Code.UNIMPLEMENTED}


async def a_unary_request_without_a_message_is_refused(pair: Pair) -> None:
    """Half-closed without a message: INTERNAL, or UNIMPLEMENTED as gRPC's status table says; ``serve`` never runs."""
    served: list[Incoming] = []

    async def serve(incoming: Incoming) -> None:
        served.append(incoming)
        await incoming.finish(OK, b"")

    wire = await pair.connect(unary(serve))
    stream = wire.open(head(), None)
    await stream.half_close()
    assert await drain(stream) == []
    assert (await stream.ended()).code in {Code.INTERNAL, Code.UNIMPLEMENTED}
    assert not served


async def a_unary_request_of_two_messages_is_refused(pair: Pair) -> None:
    """Two messages before the half-close: INTERNAL, or UNIMPLEMENTED as gRPC's status table says."""
    wire = await pair.connect(unary(echo))
    stream = wire.open(head(), None)
    await stream.send(b"1")
    with contextlib.suppress(Ended):
        await stream.send(b"2")
    await stream.half_close()
    assert await drain(stream) == []
    assert (await stream.ended()).code in {Code.INTERNAL, Code.UNIMPLEMENTED}


async def compression_changes_nothing_for_the_reader(pair: Pair) -> None:
    """Messages arrive as they were sent, whatever ``compress`` was told."""

    async def serve(incoming: Incoming) -> None:
        for encoding in ("gzip", None, "deflate"):
            incoming.compress(encoding)
            await incoming.send(b"z" * 10_000)
        await incoming.finish(OK)

    wire = await pair.connect(download(serve))
    assert await drain(wire.open(head(), b"")) == [b"z" * 10_000] * 3


async def security_can_be_asked(pair: Pair) -> None:
    """What is known of the peer is a Security, also where nothing is known."""
    seen: list[object] = []

    async def serve(incoming: Incoming) -> None:
        seen.append(incoming.security())
        await incoming.finish(OK, b"")

    wire = await pair.connect(unary(serve))
    await wire.unary(head(), b"")
    assert isinstance(seen[0], Security)


async def fifty_calls_at_once_do_not_mix(pair: Pair) -> None:
    """RPCs of one wire run at the same time, and each has its own answer."""
    wire = await pair.connect({"/t/Unary": unary(echo), "/t/Bidi": bidi(echo)})

    async def talk(number: int) -> None:
        words = [b"%d.%d" % (number, part) for part in range(5)]
        assert (await wire.unary(head("/t/Unary"), words[0])).data == words[0]
        stream = wire.open(head("/t/Bidi"), None)
        for word in words:
            await stream.send(word)
        await stream.half_close()
        assert await drain(stream) == words
        assert (await stream.ended()).code is Code.OK

    await asyncio.gather(*(talk(number) for number in range(50)))
