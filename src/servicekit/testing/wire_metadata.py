"""Conformance cases: what travels beside the messages — headers, trailers, status."""

# ruff: noqa: S101 - a case asserts: its module is a test that ships

from __future__ import annotations

import asyncio

from servicekit.errors import By, Code
from servicekit.wire import END, Head, Incoming, Status

from .wire_pair import (
    OK,
    PATH,
    Pair,
    download,
    drain,
    echo,
    head,
    refused,
    unary,
)

PAIRS = (("k", "1"), ("bytes-bin", bytes(range(256))), ("k", "2"), ("empty", ""), ("empty-bin", b""))


def kept(pairs: tuple[tuple[str, str | bytes], ...]) -> list[tuple[str, str | bytes]]:
    """Return what is left of PAIRS among what a transport may have added, by key, in the order of their coming."""
    return [pair for key in ("k", "bytes-bin", "empty", "empty-bin") for pair in pairs if pair[0] == key]


async def the_head_reaches_the_server(pair: Pair) -> None:
    """The server's head holds the path, some peer and the metadata: text and bytes, duplicates in their order."""
    seen: list[Head] = []

    async def serve(incoming: Incoming) -> None:
        seen.append(incoming.head)
        await incoming.finish(OK, b"")

    wire = await pair.connect(unary(serve))
    await wire.unary(Head(path=PATH, metadata=PAIRS), b"")
    assert seen[0].path == PATH
    assert seen[0].peer != ""
    assert kept(seen[0].metadata) == kept(PAIRS)


async def response_metadata_reaches_a_unary_caller(pair: Pair) -> None:
    """A Reply brings the headers and the trailers: text and bytes, duplicates in their order."""

    async def serve(incoming: Incoming) -> None:
        incoming.send_headers(PAIRS)
        await incoming.finish(Status(trailers=PAIRS), b"")

    wire = await pair.connect(unary(serve))
    reply = await wire.unary(head(), b"")
    assert kept(reply.headers) == kept(PAIRS)
    assert kept(reply.trailers) == kept(PAIRS)


async def response_metadata_reaches_a_streaming_caller(pair: Pair) -> None:
    """A Stream brings the headers, and with the status the trailers."""

    async def serve(incoming: Incoming) -> None:
        incoming.send_headers(PAIRS)
        await incoming.send(b"message")
        await incoming.finish(Status(trailers=PAIRS))

    wire = await pair.connect(download(serve))
    stream = wire.open(head(), b"")
    assert kept(await stream.headers()) == kept(PAIRS)
    assert await drain(stream) == [b"message"]
    status = await stream.ended()
    assert (status.code, status.by) == (Code.OK, By.PEER)
    assert kept(status.trailers) == kept(PAIRS)
    assert kept(await stream.headers()) == kept(PAIRS)


async def headers_are_sent_at_once(pair: Pair) -> None:
    """Headers arrive while the server has nothing else to say."""
    read = asyncio.Event()

    async def serve(incoming: Incoming) -> None:
        incoming.send_headers((("k", "early"),))
        await read.wait()
        await incoming.finish(OK)

    wire = await pair.connect(download(serve))
    stream = wire.open(head(), b"")
    assert ("k", "early") in await stream.headers()
    read.set()
    assert await drain(stream) == []


async def headers_come_with_the_first_message(pair: Pair) -> None:
    """``headers()`` returns when a message came and none were sent: nobody waits for the RPC's end."""
    read = asyncio.Event()

    async def serve(incoming: Incoming) -> None:
        await incoming.send(b"message")
        await read.wait()
        await incoming.finish(OK)

    wire = await pair.connect(download(serve))
    stream = wire.open(head(), b"")
    assert kept(await stream.headers()) == []
    read.set()
    assert await drain(stream) == [b"message"]


async def headers_come_before_a_unary_response(pair: Pair) -> None:
    """``headers()`` may be asked before the one response is taken."""
    wire = await pair.connect(unary(echo))
    stream = wire.open(head(), b"message")
    assert kept(await stream.headers()) == []
    assert await drain(stream) == [b"message"]


async def an_rpc_that_ends_without_headers_has_none(pair: Pair) -> None:
    """An RPC that is refused at once (trailers only) has ``()`` for headers, its trailers in the status."""

    async def serve(incoming: Incoming) -> None:
        await incoming.finish(Status(code=Code.PERMISSION_DENIED, message="no", trailers=(("k", "v"),)))

    wire = await pair.connect(download(serve))
    stream = wire.open(head(), b"")
    assert await stream.headers() == ()
    assert await stream.receive() is END
    status = await stream.ended()
    assert (status.code, status.message) == (Code.PERMISSION_DENIED, "no")
    assert ("k", "v") in status.trailers


async def headers_are_sent_once(pair: Pair) -> None:
    """The second ``send_headers`` raises RuntimeError, and the first one's metadata is what arrives."""
    raised: list[BaseException] = []

    async def serve(incoming: Incoming) -> None:
        incoming.send_headers((("k", "first"),))
        try:
            incoming.send_headers((("k", "second"),))
        except RuntimeError as error:
            raised.append(error)
        await incoming.finish(OK, b"")

    wire = await pair.connect(unary(serve))
    reply = await wire.unary(head(), b"")
    assert [value for key, value in reply.headers if key == "k"] == ["first"]
    assert len(raised) == 1


async def an_error_carries_its_status(pair: Pair) -> None:
    """A status other than OK is raised by ``unary`` as Error: code, message, headers, trailers, begun, by the peer."""

    async def serve(incoming: Incoming) -> None:
        incoming.send_headers((("h", "1"),))
        await incoming.finish(Status(code=Code.NOT_FOUND, message="no such thing", trailers=(("t", "2"),)))

    wire = await pair.connect(unary(serve))
    error = await refused(wire.unary(head(), b""))
    assert (error.code, error.message, error.by, error.begun) == (Code.NOT_FOUND, "no such thing", By.PEER, True)
    assert ("h", "1") in error.headers
    assert ("t", "2") in error.trailers


async def every_code_arrives(pair: Pair) -> None:
    """Each of the sixteen codes arrives as what it is, as the peer's word."""

    async def serve(incoming: Incoming) -> None:
        assert incoming.data is not None
        await incoming.finish(Status(code=Code(int(incoming.data))))

    wire = await pair.connect(unary(serve))
    for code in Code:
        if code is not Code.OK:
            error = await refused(wire.unary(head(), b"%d" % code))
            assert (error.code, error.by) == (code, By.PEER)


async def a_status_message_is_any_text(pair: Pair) -> None:
    """A status message arrives as it was written: beyond ASCII, with percent signs and line ends."""
    text = "100 % größer %41 \u2713 \U0001f600\nsecond line\ttab"

    async def serve(incoming: Incoming) -> None:
        await incoming.finish(Status(code=Code.ABORTED, message=text))

    wire = await pair.connect(unary(serve))
    assert (await refused(wire.unary(head(), b""))).message == text


async def messages_before_an_error_arrive(pair: Pair) -> None:
    """What the server sent before its error is read before it: the status is the last word, whatever its code."""
    finished = asyncio.Event()

    async def serve(incoming: Incoming) -> None:
        incoming.on_end(finished.set)
        for number in range(3):
            await incoming.send(b"%d" % number)
        await incoming.finish(Status(code=Code.DATA_LOSS, message="the rest is gone"))

    wire = await pair.connect(download(serve))
    stream = wire.open(head(), b"")
    await finished.wait()
    assert await drain(stream) == [b"0", b"1", b"2"]
    assert (await stream.ended()).code is Code.DATA_LOSS


async def a_unary_error_drops_its_message(pair: Pair) -> None:
    """A unary RPC that sent a message and then failed has failed."""

    async def serve(incoming: Incoming) -> None:
        await incoming.finish(Status(code=Code.ABORTED), b"half an answer")

    wire = await pair.connect(unary(serve))
    assert (await refused(wire.unary(head(), b""))).code is Code.ABORTED
