"""What a client may send that makes no sense: bytes that are no message, methods that nobody has, paths by the thousand."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import tracemalloc
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest

from servicekit import Call, Code, Endpoint, Kind, Message, standard
from servicekit.testing import pair
from servicekit.testing.pair import Over
from servicekit.testing.v1.echo_pb2 import (
    ChatRequest,
    EchoRequest,
    EchoResponse,
    ExpandRequest,
    SumRequest,
    SumResponse,
)
from servicekit.wire import Route

from .servers import (
    KINDS,
    NAMES,
    OVER,
    RESPONSES,
    STREAMS,
    Answer,
    Context,
    Handler,
    Log,
    answer_of,
    answered,
    ask,
    passing,
    service,
    serving,
    until,
)

Grpc = grpc.StatusCode
SERVICE = "servicekit.testing.v1.EchoService"
GARBAGE = b"\xff\xff\xff secret"


def raw(channel: grpc.aio.Channel, kind: Kind, path: str, *data: bytes) -> Message:
    """Begin a call of ``path`` as ``kind``, sending these bytes."""
    make: Any = {
        Kind.UNARY: channel.unary_unary,
        Kind.CLIENT_STREAM: channel.stream_unary,
        Kind.SERVER_STREAM: channel.unary_stream,
        Kind.BIDI_STREAM: channel.stream_stream,
    }[kind]
    return make(path)(list(data) if kind.request_streaming else data[0])


async def sent(channel: grpc.aio.Channel, kind: Kind, path: str, *data: bytes) -> Answer:
    return await answered(answer_of(raw(channel, kind, path, *data), kind))


def path_of(kind: Kind) -> str:
    return f"/{SERVICE}/{NAMES[kind]}"


async def reads_all(request: Message, context: Context, kind: Kind) -> Message:
    if kind.request_streaming:
        async for _ in request:
            pass
    return None if kind.response_streaming else RESPONSES[kind]()


class Observer:
    """A link that writes down which requests and which outcomes pass."""

    def __init__(self) -> None:
        self.requests: list[Any] = []
        self.outcomes: list[Code] = []

    async def __call__(self, request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        self.requests.append(request)
        try:
            response = await next(request, call)
        except BaseException as error:
            self.outcomes.append(call.outcome(error))
            raise
        self.outcomes.append(Code.OK)
        return response


@OVER
@KINDS
async def test_bytes_that_are_no_message_are_the_clients_mistake(
    over: Over, kind: Kind, caplog: pytest.LogCaptureFixture
) -> None:
    """They are INVALID_ARGUMENT, in words that quote nothing, and the chain logs and counts the call once.

    grpc.aio answers UNKNOWN with the decoder's text, and no interceptor hears of it.
    """
    log, observer, ran = Log(caplog), Observer(), []

    async def work(request: Message, context: Context) -> Message:
        ran.append(request)
        return await reads_all(request, context, kind)

    chain = [*standard(log.telemetry), observer]
    async with pair(serving(kind, work), over=over, middleware=chain) as ends:
        answer = await sent(ends.channel, kind, path_of(kind), GARBAGE)
    assert (answer.code, answer.details) == (Grpc.INVALID_ARGUMENT, "malformed request message")
    assert "secret" not in answer.text
    assert observer.outcomes == [Code.INVALID_ARGUMENT]
    assert log.line["code"] == "INVALID_ARGUMENT"
    assert len(ran) == kind.request_streaming  # only a stream is begun before its messages are there


@OVER
@pytest.mark.parametrize("kind", [Kind.UNARY, Kind.SERVER_STREAM])
async def test_the_chain_gets_a_blank_for_a_request_that_is_none(over: Over, kind: Kind) -> None:
    """A link that looks at the request finds an empty message of the right type, and not None or bytes."""
    observer = Observer()

    async def never(_request: object, _context: object) -> None:
        raise AssertionError

    async with pair(serving(kind, never), over=over, middleware=[observer]) as ends:
        await sent(ends.channel, kind, path_of(kind), GARBAGE)
    assert observer.requests == [EchoRequest() if kind is Kind.UNARY else ExpandRequest()]


@OVER
@pytest.mark.parametrize("kind", [Kind.CLIENT_STREAM, Kind.BIDI_STREAM])
async def test_a_malformed_message_in_a_stream_cannot_be_swallowed(over: Over, kind: Kind) -> None:
    """A servicer that catches it and goes on does not turn it into an answer with the wrong sum."""
    good: bytes = (SumRequest(number=1) if kind is Kind.CLIENT_STREAM else ChatRequest(text="a")).SerializeToString()

    async def total(request: Message, context: Context) -> Message:
        count = 0
        while True:
            try:
                message = await context.read()
            except Exception:  # noqa: BLE001 - a servicer's own broad except
                continue
            if message is grpc.aio.EOF:
                return None if kind.response_streaming else SumResponse(count=count)
            count += 1

    async with pair(serving(kind, total), over=over) as ends:
        answer = await passing(ends, 1.0, sent(ends.channel, kind, path_of(kind), good, GARBAGE, good))
    assert (answer.code, answer.details) == (Grpc.INVALID_ARGUMENT, "malformed request message")


@OVER
@KINDS
async def test_a_response_of_another_type_is_our_mistake(
    over: Over, kind: Kind, caplog: pytest.LogCaptureFixture
) -> None:
    """A servicer that answers what cannot be encoded is INTERNAL, and the chain sees it; its content is nowhere."""
    log, observer = Log(caplog), Observer()
    given = "a secret"  # by name: a traceback has the lines of the source

    async def work(_request: object, context: Context) -> Message:
        if kind.response_streaming:
            await context.write(given)
        return given

    chain = [*standard(log.telemetry), observer]
    async with pair(serving(kind, work), over=over, middleware=chain) as ends:
        answer = await ask(ends.channel, kind)
    assert (answer.code, answer.details) == (Grpc.INTERNAL, "internal error")
    assert observer.outcomes == [Code.INTERNAL]
    assert log.line["code"] == "INTERNAL"
    assert "cannot be encoded: str" in log.text
    assert "secret" not in log.text


@OVER
@STREAMS
async def test_a_response_of_another_type_cannot_be_swallowed(over: Over, kind: Kind) -> None:
    """Neither is a message that could not be sent left out of a stream that then looks whole."""

    async def work(_request: object, context: Context) -> None:
        for message in (RESPONSES[kind](), object(), RESPONSES[kind]()):
            with contextlib.suppress(Exception):
                await context.write(message)

    async with pair(serving(kind, work), over=over) as ends:
        answer = await ask(ends.channel, kind)
    assert answer.code is Grpc.INTERNAL
    assert answer.messages == [RESPONSES[kind]()]


@OVER
async def test_a_link_that_answers_with_nonsense_is_our_mistake(over: Over, caplog: pytest.LogCaptureFixture) -> None:
    """What a middleware puts in the response's place is encoded outside of it, and answered all the same."""
    log = Log(caplog)

    async def link(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        return "nonsense"

    async with pair(service(), over=over, middleware=[link]) as ends:
        answer = await ask(ends.channel)
    assert (answer.code, answer.details) == (Grpc.INTERNAL, "internal error")
    assert log.text.count("failed, error_id") == 1


@OVER
@pytest.mark.parametrize(
    "path",
    ["/no.such.Service/Method", f"/{SERVICE}/Missing", "/a/b/c", "//", "/", "/x\ty/z\x7f\x1b[2J" + "long" * 100],
)
async def test_a_method_that_is_not_there_runs_the_chain(
    over: Over, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It is UNIMPLEMENTED, logged under one name for all of them, with the path escaped and cut.

    On grpc.aio no interceptor sees it.
    """
    log = Log(caplog)
    async with pair(service(), over=over, middleware=standard(log.telemetry)) as ends:
        try:
            answer = await sent(ends.channel, Kind.UNARY, path, b"")
        except Exception:  # noqa: BLE001 - core refuses to send it
            pytest.skip("the wire does not carry this path")
        if not log.lines:
            pytest.skip("the wire does not carry this path")
    assert (answer.code, answer.details) == (Grpc.UNIMPLEMENTED, "method not found")
    line = log.line
    assert (line["method"], line["code"], line["level"]) == ("/unknown/unknown", "UNIMPLEMENTED", "info")
    assert line["path"].isprintable()
    assert len(line["path"]) <= 200


@OVER
@KINDS
@pytest.mark.parametrize("asked", list(Kind))
async def test_a_method_of_another_kind_is_answered(over: Over, kind: Kind, asked: Kind) -> None:
    """A client that takes a method for one of another kind is not left waiting, whatever it is told."""

    async def work(request: Message, context: Context) -> Message:
        return await reads_all(request, context, kind)

    async with pair(serving(kind, work), over=over) as ends:
        answer = await sent(ends.channel, asked, path_of(kind), b"")
    assert isinstance(answer.code, Grpc)
    if answer.code is Grpc.OK:
        assert None not in answer.messages
    if asked is kind:
        assert answer.code is Grpc.OK


@OVER
async def test_a_handler_without_a_function_is_refused_when_it_is_registered(over: Over) -> None:
    """A handler that says one kind and holds another's function shows at once, not at the first call."""

    class Hollow(grpc.RpcMethodHandler):  # type: ignore[type-arg]  # generic in its stubs only
        request_streaming = True
        response_streaming = False
        request_deserializer = None
        response_serializer = None
        unary_unary = unary_stream = stream_unary = stream_stream = None

    with pytest.raises(TypeError, match="no function for its kind"):
        async with pair(
            lambda server: server.add_registered_method_handlers("a.B", {"C": Hollow()}),
            over=over,
        ):
            pass


class Everything(grpc.GenericRpcHandler):
    """Takes any path, with a handler made for it: the worst case for whoever remembers paths."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Handler:
        if not handler_call_details.method.startswith("/any."):
            return None

        async def echo(request: bytes, _context: object) -> bytes:
            return request

        return grpc.unary_unary_rpc_method_handler(echo)


async def echo(request: EchoRequest, _context: object) -> EchoResponse:
    return EchoResponse(text=request.text)


@pytest.mark.parametrize("prefix", ["/no.", "/any."])
async def test_ten_thousand_paths_do_not_fill_the_memory(prefix: str) -> None:
    """Whoever asks for random paths makes no server remember them all, also where a generic handler takes any."""
    many: Callable[[], str] = lambda: f"{prefix}{os.urandom(8).hex()}/{os.urandom(8).hex()}"  # noqa: E731 - short
    async with pair(service(Echo=echo), lambda server: server.add_generic_rpc_handlers([Everything()])) as ends:
        router = ends.server._router
        routes: set[Route] = set()

        def flood(count: int) -> None:
            for _ in range(count):
                route = router.route(many())
                if prefix == "/no.":
                    routes.add(route)

        flood(10_000)  # what is kept, is kept now
        gc.collect()
        tracemalloc.start()
        flood(500)
        gc.collect()
        grown, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert grown < 100_000
        assert len(routes) == (prefix == "/no.")
        assert (await ask(ends.channel)).code is Grpc.OK


@OVER
@KINDS
async def test_a_method_that_is_not_there_is_answered_as_any_kind(over: Over, kind: Kind) -> None:
    """Nobody knows what kind it would be: the answer does not wait for messages."""

    async def open_end() -> AsyncIterator[bytes]:
        yield b""
        await asyncio.Event().wait()

    async with pair(service(), over=over) as ends:
        make: Any = ends.channel.stream_stream if kind.response_streaming else ends.channel.stream_unary
        call = make("/no.Such/Method")(open_end()) if kind.request_streaming else None
        call = raw(ends.channel, kind, "/no.Such/Method", b"") if call is None else call
        answer = await answered(answer_of(call, kind))
    assert answer.code is Grpc.UNIMPLEMENTED


@OVER
async def test_a_server_that_was_asked_for_nonsense_still_serves(over: Over) -> None:
    """Hundreds of unknown methods later every method is what it was."""
    async with pair(service(Echo=echo), over=over) as ends:
        for number in range(200):
            answer = await sent(ends.channel, Kind.UNARY, f"/no.Such{number}/Method", b"")
            assert answer.code is Grpc.UNIMPLEMENTED
        answer = await ask(ends.channel, requests=[EchoRequest(text="still here")])
        await until(lambda: not ends.server.in_flight)
    assert answer.messages == [EchoResponse(text="still here")]
