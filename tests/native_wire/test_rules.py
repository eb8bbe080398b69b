"""gRPC's rules on the wire, asked by hand: what is answered on the stream that broke one, and that its neighbours live."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
from collections.abc import AsyncIterator

import pytest

from servicekit.errors import Code
from servicekit.method import Kind
from servicekit.native.options import NativeOptions
from servicekit.testing import no_leaks
from servicekit.wire import END, Ended, Incoming, Route, Status

from .ground import OK, Answer, Client, client_of, echo, framed, joined, listening

UPLOADS = [Kind.CLIENT_STREAM, Kind.BIDI_STREAM]
UNARY = [Kind.UNARY, Kind.SERVER_STREAM]


@pytest.fixture(autouse=True)
async def _nothing_is_left() -> AsyncIterator[None]:
    async with no_leaks():
        yield


async def well(client: Client) -> None:
    """The connection serves on."""
    answer = await client.call(framed(b"well"))
    assert (answer.code, answer.data) == (Code.OK, framed(b"well"))


async def refuse(incoming: Incoming) -> None:
    raise AssertionError(f"{incoming} was served")


async def test_an_answer_has_the_fields_of_grpc() -> None:
    """Headers with status 200 and the content type, the message, and a status in the trailers."""
    async with joined(echo) as client:
        answer = await client.call(framed(b"hello"))
        assert answer == Answer(
            headers=[(":status", "200"), ("content-type", "application/grpc")],
            data=framed(b"hello"),
            trailers=[("grpc-status", "0")],
            over=True,
        )


@pytest.mark.parametrize(
    ("changed", "status"),
    [({"content-type": "text/html"}, "415"), ({"content-type": None}, "415"), ({":method": "GET"}, "405")],
)
async def test_what_is_no_grpc_gets_an_http_status(changed: dict[str, str | None], status: str) -> None:
    """415 and 405, without a grpc-status, and nobody is asked for the route."""
    async with joined(refuse) as client:
        answer = await client.call(framed(b""), changed)
        assert (answer.field(":status"), answer.field("grpc-status")) == (status, None)


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({"grpc-timeout": "soon"}, Code.INTERNAL),
        ({"k-bin": "***"}, Code.INTERNAL),
        ({"te": None}, Code.INTERNAL),
        ({"grpc-encoding": "snappy"}, Code.UNIMPLEMENTED),
    ],
)
async def test_a_bad_head_is_answered_on_its_stream(changed: dict[str, str | None], code: Code) -> None:
    """Trailers only, before anybody is served, while the request is still on its way; the next call is served."""
    async with joined(echo) as client:
        stream = client.begin(changed)
        answer = await client.answer(stream)
        assert (answer.field(":status"), answer.code) == ("200", code)
        if code is Code.UNIMPLEMENTED:
            assert answer.field("grpc-accept-encoding") == "identity,deflate,gzip"
        await well(client)


@pytest.mark.parametrize("kind", UNARY)
@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", Code.UNIMPLEMENTED),
        (framed(b"1") + framed(b"2"), Code.UNIMPLEMENTED),
        (framed(b"1234")[:7], Code.INTERNAL),
        (framed(b"1")[:3], Code.INTERNAL),
        (framed(b"1") + b"\0", Code.INTERNAL),
        (framed(b"1", flag=1), Code.INTERNAL),
        (framed(b"1", flag=2), Code.INTERNAL),
        (b"\0" + (1001).to_bytes(4, "big") + bytes(1001), Code.RESOURCE_EXHAUSTED),
    ],
)
async def test_a_bad_single_request_is_answered(kind: Kind, data: bytes, code: Code) -> None:
    """None, two, one that was cut off, one that is no message, one too large: nobody serves it."""
    async with joined(refuse, kind, options=NativeOptions(received=1000)) as client:
        assert (await client.call(data)).code is code


async def test_a_second_message_is_answered_at_once() -> None:
    """Nobody waits for the half-close to say that there were too many."""
    async with joined(refuse) as client:
        stream = client.begin()
        client.send(stream, framed(b"1") + framed(b"2"))
        assert (await client.answer(stream)).code is Code.UNIMPLEMENTED


async def test_a_half_close_without_content_ends_the_request() -> None:
    """The end of a request may come in a frame of its own, or with the headers."""
    async with joined(echo) as client:
        stream = client.begin()
        client.send(stream, framed(b"1"))
        client.send(stream, b"", end=True)
        assert (await client.answer(stream)).data == framed(b"1")
        assert (await client.answer(client.begin(end=True))).code is Code.UNIMPLEMENTED


@pytest.mark.parametrize("kind", UPLOADS)
@pytest.mark.parametrize(
    ("data", "code"),
    [
        (framed(b"1234")[:7], Code.INTERNAL),
        (framed(b"1", flag=1), Code.INTERNAL),
        (b"\0" + (1001).to_bytes(4, "big"), Code.RESOURCE_EXHAUSTED),
    ],
)
async def test_a_bad_stream_of_requests_ends_the_call(kind: Kind, data: bytes, code: Code) -> None:
    """The client is told at once, and who serves it is cancelled."""
    ends: list[type[BaseException]] = []
    left, started = asyncio.Event(), asyncio.Event()

    async def serve(incoming: Incoming) -> None:
        started.set()
        try:
            while await incoming.receive() is not END:
                pass
            await incoming.finish(OK, b"")
        except BaseException as error:
            ends.append(type(error))
            left.set()
            raise

    async with joined(serve, kind, options=NativeOptions(received=1000)) as client:
        stream = client.begin()
        client.send(stream, framed(b"good"))
        await started.wait()
        client.send(stream, data, end=code is Code.INTERNAL)
        assert (await client.answer(stream)).code is code
        await left.wait()
        assert set(ends) <= {asyncio.CancelledError, Ended}


async def test_what_is_compressed_is_unpacked() -> None:
    """A message may be compressed or not, each by itself; the response is plain unless somebody wants otherwise."""
    async with joined(echo, Kind.BIDI_STREAM) as client:
        data = framed(gzip.compress(b"a" * 100), flag=1) + framed(b"b")
        answer = await client.call(data, {"grpc-encoding": "gzip"})
        assert answer.data == framed(b"a" * 100) + framed(b"b")


@pytest.mark.parametrize("kind", [Kind.UNARY, Kind.BIDI_STREAM])
async def test_a_server_compresses_for_who_understands_it(kind: Kind) -> None:
    """With the encoding in the headers; for who has not said that it knows it, nothing is."""
    async with joined(echo, kind, compression="gzip") as client:
        answer = await client.call(framed(b"a" * 100), {"grpc-accept-encoding": "identity,gzip"})
        assert answer.field("grpc-encoding") == "gzip"
        assert answer.data[0] == 1
        assert gzip.decompress(answer.data[5:]) == b"a" * 100
        answer = await client.call(framed(b"a" * 100))
        assert (answer.field("grpc-encoding"), answer.data) == (None, framed(b"a" * 100))


async def test_a_bomb_hurts_nobody() -> None:
    """A message that would be too large when unpacked is RESOURCE_EXHAUSTED."""
    async with joined(echo, options=NativeOptions(received=1000)) as client:
        answer = await client.call(framed(gzip.compress(bytes(100_000)), flag=1), {"grpc-encoding": "gzip"})
        assert answer.code is Code.RESOURCE_EXHAUSTED
        await well(client)


async def test_the_deadline_is_kept_by_the_server_alone() -> None:
    """A client that does not watch its own deadline is told at it, and who serves the call is cancelled."""
    cancelled = asyncio.Event()

    async def serve(_: Incoming) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async with joined(serve) as client:
        answer = await client.call(framed(b""), {"grpc-timeout": "50m"})
        assert answer.code is Code.DEADLINE_EXCEEDED
        await cancelled.wait()
        stream = client.begin({"grpc-timeout": "50m"})  # also where the request never comes
        assert (await client.answer(stream)).code is Code.DEADLINE_EXCEEDED


async def test_requests_that_are_not_whole_do_not_fill_the_memory() -> None:
    """What one connection holds of them is limited: the stream that adds too much is RESOURCE_EXHAUSTED."""
    async with joined(echo, options=NativeOptions(received=10_000, buffered=10_000)) as client:
        streams = [client.begin() for _ in range(4)]
        for stream in streams:
            client.send(stream, framed(bytes(9000))[:8000])
        await client.until(lambda: any(client.answers[stream].over for stream in streams))
        refused = [stream for stream in streams if client.answers[stream].over]
        assert all(client.answers[stream].code is Code.RESOURCE_EXHAUSTED for stream in refused)
        for stream in streams:
            if stream not in refused:
                client.send(stream, bytes(1005), end=True)
                assert (await client.answer(stream)).code is Code.OK
        await well(client)


async def test_a_client_that_sends_trailers_has_half_closed() -> None:
    """Trailers of a request end it; what is in them is nobody's business."""
    async with joined(echo) as client:
        stream = client.begin()
        client.send(stream, framed(b"1"))
        client.h2.send_headers(stream, [("x", "y")], end_stream=True)
        client.flush()
        assert (await client.answer(stream)).data == framed(b"1")


async def test_a_status_in_a_response_is_percent_encoded() -> None:
    """So that it is any text."""

    async def serve(incoming: Incoming) -> None:
        await incoming.finish(Status(code=Code.ABORTED, message="50 % ä"))

    async with joined(serve) as client:
        answer = await client.call(framed(b""))
        assert (answer.code, answer.field("grpc-message")) == (Code.ABORTED, "50 %25 %C3%A4")


async def test_too_many_connections_are_closed_at_once() -> None:
    """The excess is accepted, closed and counted; who is there stays."""
    async with (
        listening(Route(kind=Kind.UNARY, serve=echo), options=NativeOptions(connections=1)) as (listener, address),
        client_of(address) as client,
    ):
        await well(client)
        host, _, port = address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        writer.close()
        assert listener.refused == 1
        await well(client)
