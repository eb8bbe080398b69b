"""Conformance cases: what is asked and answered — data, metadata, status — for all four kinds of RPC."""

# ruff: noqa: S101 - a case asserts: its module is a test that ships

from __future__ import annotations

import asyncio

from servicekit.errors import By, Code
from servicekit.wire import END, Head, Incoming, Route, Security, Status

from .wire_pair import OK, PATH, Pair, bidi, download, drain, echo, head, refused, unary, upload

PAIRS = (("k", "1"), ("bytes-bin", bytes(range(256))), ("k", "2"), ("empty", ""), ("empty-bin", b""))


def kept(pairs: tuple[tuple[str, str | bytes], ...]) -> list[tuple[str, str | bytes]]:
    """Return what is left of PAIRS among what a transport may have added, by key, in the order of their coming."""
    return [pair for key in ("k", "bytes-bin", "empty", "empty-bin") for pair in pairs if pair[0] == key]


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
    wire = await pair.connect(unary(echo))
    error = await refused(wire.unary(head(), bytes(5 << 20)))
    assert error.code is Code.RESOURCE_EXHAUSTED
    assert (await wire.unary(head(), b"next")).data == b"next"


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
