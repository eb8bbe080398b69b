"""Our chain on a server that somebody already runs, and somebody else's interceptors on ours: both decide on every call."""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import grpc
import pytest

from servicekit import (
    Call,
    Endpoint,
    Kind,
    Message,
    Method,
    client_interceptors,
    connect,
    current_call,
    only,
    server_interceptor,
    standard,
)
from servicekit.testing import pair
from servicekit.testing.pair import Over
from servicekit.testing.v1.echo_pb2 import EchoResponse

from .servers import (
    KINDS,
    NAMES,
    OVER,
    RESPONSES,
    Answer,
    AnyCall,
    Context,
    Continuation,
    Handler,
    Log,
    answered,
    ask,
    method,
    service,
    serving,
)

Grpc = grpc.StatusCode
SERVICE = "servicekit.testing.v1.EchoService"


@contextlib.asynccontextmanager
async def bare(
    register: Callable[[Any], object], *interceptors: grpc.aio.ServerInterceptor
) -> AsyncIterator[grpc.aio.Channel]:
    """Serve with a plain grpc.aio server, and give a channel of ours to it."""
    server = grpc.aio.server(interceptors=interceptors)
    register(server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with connect(f"127.0.0.1:{port}", middleware=[]) as channel:
            yield channel
    finally:
        await server.stop(0)


class Auth(grpc.aio.ServerInterceptor):
    """Lets callers with a token through; refuses all others with one handler, whatever the method's kind."""

    def __init__(self) -> None:
        self.asked = 0

        async def deny(_request: object, context: Context) -> None:
            await context.abort(Grpc.UNAUTHENTICATED, "no token")

        self._deny: Handler = grpc.unary_unary_rpc_method_handler(deny)

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler:
        self.asked += 1
        if ("token", "good") in tuple(handler_call_details.invocation_metadata):
            return await continuation(handler_call_details)
        return self._deny


async def let_in_and_turned_away(channel: grpc.aio.Channel, kind: Kind) -> list[Grpc]:
    good, bad = [("token", "good")], [("token", "bad")]
    return [(await ask(channel, kind, metadata=metadata)).code for metadata in (good, None, bad, good, None)]


DECISIONS = [Grpc.OK, Grpc.UNAUTHENTICATED, Grpc.UNAUTHENTICATED, Grpc.OK, Grpc.UNAUTHENTICATED]


@KINDS
@pytest.mark.parametrize("where", ["inside", "outside"])
async def test_an_interceptor_on_a_bare_server_decides_on_every_call(
    kind: Kind, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Inside of ours or outside of it, one caller with a token does not open the method to those without.

    An interceptor that keeps the handler it was given once bypasses all that stand inside of it.
    """
    log = Log(caplog)
    auth, ours = Auth(), server_interceptor(standard(log.telemetry))
    interceptors = (ours, auth) if where == "inside" else (auth, ours)
    async with bare(serving(kind, method(kind, nothing)), *interceptors) as channel:
        assert await let_in_and_turned_away(channel, kind) == DECISIONS
    assert auth.asked == 5
    logged = [line["code"] for line in log.lines]
    assert logged == ([code.name for code in DECISIONS] if where == "inside" else ["OK", "OK"])


@OVER
@KINDS
async def test_an_interceptor_on_our_server_decides_on_every_call(
    over: Over, kind: Kind, caplog: pytest.LogCaptureFixture
) -> None:
    """``Server(interceptors=…)`` asks them on every call, over any wire, and logs what they decide."""
    log = Log(caplog)
    auth = Auth()
    settings: dict[str, Any] = {"interceptors": [auth], "middleware": standard(log.telemetry)}
    async with pair(serving(kind, method(kind, nothing)), over=over, **settings) as ends:
        assert await let_in_and_turned_away(ends.channel, kind) == DECISIONS
    assert auth.asked == 5
    assert [line["code"] for line in log.lines] == [code.name for code in DECISIONS]


async def nothing(_: object) -> None:
    pass


class Turns(grpc.aio.ServerInterceptor):
    """Gives another handler at every call: the one it was given, one of its own, nothing."""

    def __init__(self) -> None:
        self._turn = 0

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler:
        self._turn += 1
        turn = self._turn
        if turn % 3 == 1:
            return await continuation(handler_call_details)
        if turn % 3 == 0:
            return None

        async def own(_request: object, _context: object) -> Message:
            return EchoResponse(text=f"turn {turn}")

        return grpc.unary_unary_rpc_method_handler(
            own, response_serializer=EchoResponse.SerializeToString, request_deserializer=None
        )


async def echo(_request: object, _context: object) -> EchoResponse:
    return EchoResponse(text="servicer")


def told(answers: Sequence[Answer]) -> list[str]:
    return [answer.messages[0].text if answer.messages else answer.code.name for answer in answers]


TURNS = ["servicer", "turn 2", "UNIMPLEMENTED", "servicer", "turn 5", "UNIMPLEMENTED"]


async def test_another_handler_is_another_handler_on_a_bare_server() -> None:
    """What was composed for a path is used for as long as the same handler comes from inside, and no longer."""
    async with bare(service(Echo=echo), server_interceptor([]), Turns()) as channel:
        assert told([await ask(channel) for _ in TURNS]) == TURNS


@OVER
async def test_another_handler_is_another_handler_on_our_server(over: Over) -> None:
    """An interceptor may change its mind at each call."""
    async with pair(service(Echo=echo), over=over, interceptors=[Turns()]) as ends:
        assert told([await ask(ends.channel) for _ in TURNS]) == TURNS


async def test_a_chain_is_composed_once() -> None:
    """While the handler inside stays the same, links are asked once whether a method is theirs, not at every call."""
    asked: list[str] = []

    def matches(method: Method) -> bool:
        asked.append(method.name)
        return True

    async def link(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        return await next(request, call)

    async with bare(service(Echo=echo), server_interceptor([only(matches, link)])) as channel:
        for _ in range(3):
            await ask(channel)
    assert asked.count("Echo") == 1


async def call_of(channel: grpc.aio.Channel, path: str, data: bytes = b"") -> Answer:
    """Call ``path`` as a unary method, with bytes."""
    begin: Any = channel.unary_unary(path)
    call: AnyCall = begin(data)
    try:
        response = await answered(_awaited(call))
    except grpc.aio.AioRpcError as error:
        return Answer(code=error.code(), details=error.details() or "", error=error)
    return Answer(code=Grpc.OK, messages=[response])


async def _awaited(call: AnyCall) -> Message:
    return await call


async def test_a_bare_server_answers_for_unknown_methods_through_the_chain(caplog: pytest.LogCaptureFixture) -> None:
    """They are logged like any other call, all under one name; grpc.aio answers them where no link can see it."""
    log = Log(caplog)
    async with bare(service(Echo=echo), server_interceptor(standard(log.telemetry))) as channel:
        for path in ("/no.Such/Method", f"/{SERVICE}/Missing"):
            answer = await call_of(channel, path)
            assert (answer.code, answer.details) == (Grpc.UNIMPLEMENTED, "method not found")
    assert [line["method"] for line in log.lines] == ["/unknown/unknown"] * 2
    assert [line["path"] for line in log.lines] == ["/no.Such/Method", f"/{SERVICE}/Missing"]


async def test_a_bare_server_answers_malformed_requests_through_the_chain(caplog: pytest.LogCaptureFixture) -> None:
    """The handlers that we give are without codecs, so the chain sees what grpc's own decoder would answer UNKNOWN."""
    log = Log(caplog)
    async with bare(service(Echo=echo), server_interceptor(standard(log.telemetry))) as channel:
        answer = await call_of(channel, f"/{SERVICE}/Echo", b"\xff\xff")
    assert (answer.code, answer.details) == (Grpc.INVALID_ARGUMENT, "malformed request message")
    assert log.line["code"] == "INVALID_ARGUMENT"


@KINDS
async def test_every_kind_works_on_a_bare_server(kind: Kind) -> None:
    """With the current call at hand, trailing metadata merged, and messages both ways."""

    async def link(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        call.trailers.add("from", "link")
        return await next(request, call)

    async def work(context: Context) -> None:
        assert current_call().method.kind is kind
        context.set_trailing_metadata([("from", "servicer")])

    async with bare(serving(kind, method(kind, work)), server_interceptor([link])) as channel:
        answer = await ask(channel, kind)
    assert (answer.code, answer.messages) == (Grpc.OK, [RESPONSES[kind]()])
    assert answer.trailer("from") == ["link", "servicer"]


class Bytes(grpc.GenericRpcHandler):
    """A handler of bytes, as proxies have it: no service name, no codecs."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Handler:
        if not handler_call_details.method.startswith("/raw."):
            return None

        async def turned(request: bytes, _context: object) -> bytes:
            return request[::-1]

        return grpc.unary_unary_rpc_method_handler(turned)


async def test_handlers_without_codecs_take_bytes_on_a_bare_server() -> None:
    """What is registered for bytes gets bytes, and hooks see their sizes."""
    sizes: list[int] = []

    async def link(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        call.on_received(lambda _, size: sizes.append(size))
        return await next(request, call)

    def register(server: grpc.aio.Server) -> None:
        server.add_generic_rpc_handlers([Bytes()])

    async with bare(register, server_interceptor([link])) as channel:
        assert (await call_of(channel, "/raw.Service/Any", b"abc")).messages == [b"cba"]
    assert sizes == [3]


@OVER
async def test_handlers_without_codecs_take_bytes_on_our_server(over: Over) -> None:
    """A generic handler is asked about every path that nobody registered."""
    async with pair(lambda server: server.add_generic_rpc_handlers([Bytes()]), over=over) as ends:
        assert (await call_of(ends.channel, "/raw.Service/Any", b"abc")).messages == [b"cba"]
        assert (await call_of(ends.channel, "/other.Service/Any", b"abc")).code is Grpc.UNIMPLEMENTED


SECRET = "secret"  # a traceback shows the line that raised, too


class Breaks(grpc.aio.ServerInterceptor):
    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler:
        raise ValueError(SECRET)


@KINDS
async def test_an_interceptor_inside_ours_that_fails_says_nothing(kind: Kind, caplog: pytest.LogCaptureFixture) -> None:
    """On a bare server too, what an interceptor raises while it is asked for the handler stays in the log."""
    log = Log(caplog)
    ours = server_interceptor(standard(log.telemetry))
    async with bare(serving(kind, method(kind, nothing)), ours, Breaks()) as channel:
        answer = await ask(channel, kind)
    assert (answer.code, answer.details) == (Grpc.INTERNAL, "internal error")
    assert "secret" not in answer.text
    assert log.text.count("secret") == 1


class Looks(grpc.aio.ServerInterceptor):
    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler:
        metadata = dict(handler_call_details.invocation_metadata)
        self.seen.append((handler_call_details.method, str(metadata["who"])))
        return await continuation(handler_call_details)


@OVER
async def test_interceptors_see_path_and_metadata_in_their_order(over: Over) -> None:
    """As on grpc.aio: the first is outermost, and each is told what is called and with which metadata."""
    looks = Looks()
    async with pair(service(Echo=echo), over=over, interceptors=[Auth(), looks]) as ends:
        await ask(ends.channel, metadata=[("who", "nobody")])
        await ask(ends.channel, metadata=[("who", "me"), ("token", "good")])
    assert looks.seen == [(f"/{SERVICE}/{NAMES[Kind.UNARY]}", "me")]


@pytest.mark.parametrize("middleware", [None, 5, "standard", nothing])
def test_what_is_no_chain_is_refused(middleware: Any) -> None:  # noqa: ANN401 - that is the test
    """By name and value, on either side."""
    for make in (server_interceptor, client_interceptors):
        with pytest.raises(TypeError, match=re.escape(f"middleware={middleware!r} is no sequence of middleware")):
            make(middleware)


async def test_what_is_no_interceptor_is_refused() -> None:
    """One of our own links among them is a mistake that shows at once."""
    with pytest.raises(TypeError, match="not <function nothing"):
        async with pair(interceptors=[nothing]):
            pass
