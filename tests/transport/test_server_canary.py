"""No text of an exception crosses the wire, wherever it was raised; all of it is in the log, once."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import grpc
import pytest

from servicekit import (
    Call,
    CallError,
    Code,
    Endpoint,
    Error,
    Kind,
    Message,
    Middleware,
    Server,
    connect,
    server_interceptor,
    standard,
)
from servicekit.testing import pair
from servicekit.testing.pair import Over
from servicekit.testing.v1.echo_pb2 import EchoRequest, EchoResponse
from servicekit.testing.v1.echo_pb2_grpc import EchoServiceStub

from .servers import (
    KINDS,
    NAMES,
    OVER,
    REQUESTS,
    RESPONSES,
    STREAMS,
    Answer,
    Context,
    Continuation,
    Handler,
    Log,
    Work,
    ask,
    method,
    service,
    serving,
    until,
)

SECRET = "hunter2-" + "canary"
CHAINS = pytest.mark.parametrize("chain", ["standard", "bare"])


def chain_of(chain: str, log: Log) -> list[Middleware]:
    return standard(log.telemetry) if chain == "standard" else []


def unseen(answer: Answer, code: grpc.StatusCode = grpc.StatusCode.INTERNAL) -> None:
    """Assert that the client was told of ``code``, with a reference, and never of the reason."""
    assert (answer.code, answer.details) == (code, "internal error")
    assert len(answer.trailer("x-error-id")) == 1
    assert SECRET not in answer.text


async def fails(_: object) -> None:
    raise ValueError(SECRET)


class Guarded:
    """A resource whose release fails."""

    async def __aenter__(self) -> None:
        return None

    async def __aexit__(self, *_: object) -> None:
        raise OSError(SECRET)


async def releases(_: object) -> None:
    async with Guarded():
        pass


async def groups(_: object) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(fails(None))


async def passes_on(_: object) -> None:
    raise CallError(Error(Code.NOT_FOUND, SECRET, trailers=(("secret", SECRET),)))


@OVER
@KINDS
@pytest.mark.parametrize(
    ("chain", "work"), [("bare", fails), *(("standard", work) for work in (fails, releases, groups, passes_on))]
)
async def test_what_a_servicer_raises(
    over: Over, kind: Kind, chain: str, work: Work, caplog: pytest.LogCaptureFixture
) -> None:
    """Raised in a handler, at the exit of a context manager, in a task of a group, or by a call to somebody else."""
    log = Log(caplog)
    async with pair(serving(kind, method(kind, work)), over=over, middleware=chain_of(chain, log)) as ends:
        answer = await ask(ends.channel, kind)
    unseen(answer)
    assert log.text.count(SECRET) >= 1
    assert log.text.count("Traceback (most recent call last)") >= 1
    assert log.text.count(str(answer.trailer("x-error-id")[0])) == 1
    if work in {fails, releases}:  # the others' own exceptions say it more than once
        assert log.text.count(SECRET) == 1


@OVER
@STREAMS
@CHAINS
async def test_what_a_generator_raises_after_a_message(
    over: Over, kind: Kind, chain: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A stream that has begun ends no other way."""
    log = Log(caplog)
    async with pair(serving(kind, method(kind, fails, first=1)), over=over, middleware=chain_of(chain, log)) as ends:
        answer = await ask(ends.channel, kind)
    assert len(answer.messages) == 1
    unseen(answer)
    assert log.text.count(SECRET) == 1


@OVER
@KINDS
@CHAINS
async def test_what_a_plain_function_raises(
    over: Over, kind: Kind, chain: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Raised in a thread."""
    log = Log(caplog)

    def plain(_request: object, _context: object) -> None:
        raise ValueError(SECRET)

    async with pair(serving(kind, plain), over=over, middleware=chain_of(chain, log)) as ends:
        unseen(await ask(ends.channel, kind))
    assert log.text.count(SECRET) == 1


def registered(
    kind: Kind, *, decode: Callable[[bytes], Any] | None = None, encode: Callable[[Any], bytes] | None = None
) -> Callable[[Server], None]:
    """Return what registers a method of ``kind`` with codecs of our own."""
    make: dict[Kind, Any] = {
        Kind.UNARY: grpc.unary_unary_rpc_method_handler,
        Kind.CLIENT_STREAM: grpc.stream_unary_rpc_method_handler,
        Kind.SERVER_STREAM: grpc.unary_stream_rpc_method_handler,
        Kind.BIDI_STREAM: grpc.stream_stream_rpc_method_handler,
    }

    async def one(request: Message, context: Context) -> Message:
        if kind.request_streaming:
            async for _ in request:
                pass
        return RESPONSES[kind]()

    async def many(request: Message, context: Context) -> AsyncIterator[Any]:
        yield await one(request, context)

    handler = make[kind](
        many if kind.response_streaming else one,
        request_deserializer=decode or REQUESTS[kind].FromString,
        response_serializer=encode or RESPONSES[kind].SerializeToString,
    )

    def register(server: Server) -> None:
        server.add_registered_method_handlers("servicekit.testing.v1.EchoService", {NAMES[kind]: handler})

    return register


def breaks(_: object) -> Message:
    raise ValueError(SECRET)


@OVER
@KINDS
@CHAINS
async def test_what_a_serializer_raises(over: Over, kind: Kind, chain: str, caplog: pytest.LogCaptureFixture) -> None:
    """A response that cannot be encoded is INTERNAL, and the chain sees it."""
    log = Log(caplog)
    async with pair(registered(kind, encode=breaks), over=over, middleware=chain_of(chain, log)) as ends:
        unseen(await ask(ends.channel, kind))
    assert log.text.count(SECRET) == 1
    if chain == "standard":
        assert log.line["code"] == "INTERNAL"


@OVER
@KINDS
@CHAINS
async def test_what_a_deserializer_raises(over: Over, kind: Kind, chain: str, caplog: pytest.LogCaptureFixture) -> None:
    """A request that cannot be decoded is the client's mistake: it is told so in our words, never in the decoder's.

    Those are in the access log, once.
    """
    log = Log(caplog)
    async with pair(registered(kind, decode=breaks), over=over, middleware=chain_of(chain, log)) as ends:
        answer = await ask(ends.channel, kind)
    assert (answer.code, answer.details) == (grpc.StatusCode.INVALID_ARGUMENT, "malformed request message")
    assert SECRET not in answer.text
    if chain == "standard":
        assert (log.line["code"], log.line["error_type"]) == ("INVALID_ARGUMENT", "ValueError")
        assert log.line["cause"] == f"ValueError: {SECRET}"
        assert log.text.count(SECRET) == 1


async def before(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
    raise ValueError(SECRET)


async def after(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
    await next(request, call)
    raise ValueError(SECRET)


def hook(_message: object, _size: int) -> None:
    raise ValueError(SECRET)


async def on_received(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
    call.on_received(hook)
    return await next(request, call)


async def on_sent(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
    call.on_sent(hook)
    return await next(request, call)


@OVER
@KINDS
@pytest.mark.parametrize(
    ("chain", "link"), [("bare", after), *(("standard", link) for link in (before, after, on_received, on_sent))]
)
async def test_what_a_middleware_raises(
    over: Over, kind: Kind, chain: str, link: Middleware, caplog: pytest.LogCaptureFixture
) -> None:
    """Raised by a link before or after the servicer, or in a hook; a servicer that swallows it changes nothing."""
    log = Log(caplog)

    async def work(request: Message, context: Context) -> Message:
        with contextlib.suppress(ValueError):
            if kind.request_streaming:
                await context.read()
            if kind.response_streaming:
                await context.write(RESPONSES[kind]())
        return None if kind.response_streaming else RESPONSES[kind]()

    async with pair(serving(kind, work), over=over, middleware=[*chain_of(chain, log), link]) as ends:
        unseen(await ask(ends.channel, kind))
    assert log.text.count(SECRET) == 1


async def in_its_stream(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
    async def messages() -> AsyncIterator[Any]:
        async for _ in request:
            raise ValueError(SECRET)
        yield None

    return await next(messages(), call)


async def at_its_close(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
    async def messages() -> AsyncIterator[Any]:
        try:
            async for message in request:
                yield message
        finally:
            raise ValueError(SECRET)

    return await next(messages(), call)


@OVER
@CHAINS
@pytest.mark.parametrize("kind", [Kind.CLIENT_STREAM, Kind.BIDI_STREAM])
@pytest.mark.parametrize("link", [in_its_stream, at_its_close])
async def test_what_the_stream_of_a_middleware_raises(
    over: Over, kind: Kind, chain: str, link: Middleware, caplog: pytest.LogCaptureFixture
) -> None:
    """Raised by what a link has put around the request messages, while it is read or when it is closed."""
    log = Log(caplog)

    async def reads_one(_request: object, context: Context) -> Message:
        await context.read()
        return None if kind.response_streaming else RESPONSES[kind]()

    async with pair(serving(kind, reads_one), over=over, middleware=[*chain_of(chain, log), link]) as ends:
        unseen(await ask(ends.channel, kind))
    assert log.text.count(SECRET) == 1


@OVER
async def test_the_end_of_a_call_outlasts_the_end_of_its_stream(over: Over) -> None:
    """What a request stream raises when it is closed does not take the place of what the servicer has said."""

    async def missing(_request: object, context: Context) -> None:
        await context.read()
        await context.abort(grpc.StatusCode.NOT_FOUND, "no such number")

    async with pair(service(Sum=missing), over=over, middleware=[at_its_close]) as ends:
        answer = await ask(ends.channel, Kind.CLIENT_STREAM)
    assert (answer.code, answer.details) == (grpc.StatusCode.NOT_FOUND, "no such number")


@OVER
async def test_what_a_link_outside_of_the_log_raises(over: Over, caplog: pytest.LogCaptureFixture) -> None:
    """A failure in the place of one that is logged already is logged too: its reference is another one."""
    log = Log(caplog)

    async def replacing(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        try:
            return await next(request, call)
        except Error:
            raise KeyError(SECRET) from None

    async def work(_: object) -> None:
        raise ValueError("inner")

    chain = [replacing, *standard(log.telemetry)]
    async with pair(serving(Kind.UNARY, method(Kind.UNARY, work)), over=over, middleware=chain) as ends:
        answer = await ask(ends.channel)
    unseen(answer)
    assert log.text.count(str(answer.trailer("x-error-id")[0])) == 1
    assert log.text.count(SECRET) == 1


@OVER
@pytest.mark.parametrize("plain", [False, True])
async def test_what_a_done_callback_raises(over: Over, plain: object, caplog: pytest.LogCaptureFixture) -> None:
    """It is logged once, and keeps neither the client from its answer nor another callback from running."""
    log = Log(caplog)
    seen: list[str] = []

    def breaking(*_: object) -> None:
        raise ValueError(SECRET)

    def add(context: Context) -> None:
        add = context.add_callback if plain else context.add_done_callback
        add(breaking)
        add(lambda *_: seen.append("ran"))

    async def echo(_request: object, context: Context) -> EchoResponse:
        add(context)
        return EchoResponse()

    def plain_echo(_request: object, context: Context) -> EchoResponse:
        add(context)
        return EchoResponse()

    async with pair(service(Echo=plain_echo if plain else echo), over=over) as ends:
        answer = await ask(ends.channel)
        await until(lambda: seen)
    assert answer.code is grpc.StatusCode.OK
    assert seen == ["ran"]
    assert log.text.count(SECRET) == 1


@OVER
async def test_what_a_background_task_raises(over: Over, caplog: pytest.LogCaptureFixture) -> None:
    """A task that the servicer left behind has nothing to do with its answer; asyncio logs it."""
    log = Log(caplog)
    tasks: list[asyncio.Task[None]] = []

    async def echo(_request: object, _context: object) -> EchoResponse:
        tasks.append(asyncio.ensure_future(fails(None)))
        await asyncio.wait(tasks)
        return EchoResponse()

    async with pair(service(Echo=echo), over=over, middleware=standard(log.telemetry)) as ends:
        answer = await ask(ends.channel)
        tasks.clear()
        await until(lambda: "never retrieved" in log.text)
    assert answer.code is grpc.StatusCode.OK
    assert SECRET not in answer.text
    assert log.text.count("never retrieved") == 1


class Asking(grpc.aio.ServerInterceptor):
    """Fails while it is asked for the handler."""

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler:
        raise ValueError(SECRET)


class Answering(grpc.aio.ServerInterceptor):
    """Puts a handler in place that fails."""

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler:
        async def handler(_request: object, _context: object) -> None:
            raise ValueError(SECRET)

        return grpc.unary_unary_rpc_method_handler(handler)


@OVER
@KINDS
@pytest.mark.parametrize(("chain", "interceptor"), [("bare", Answering), ("standard", Asking), ("standard", Answering)])
async def test_what_an_interceptor_raises(
    over: Over, kind: Kind, chain: str, interceptor: type[grpc.aio.ServerInterceptor], caplog: pytest.LogCaptureFixture
) -> None:
    """Somebody else's interceptor runs inside the chain, and fails like a servicer."""
    log = Log(caplog)
    settings: dict[str, Any] = {"interceptors": [interceptor()], "middleware": chain_of(chain, log)}
    async with pair(serving(kind, method(kind, asyncio.sleep)), over=over, **settings) as ends:
        unseen(await ask(ends.channel, kind))
    assert log.text.count(SECRET) == 1


async def bare(interceptors: Sequence[grpc.aio.ServerInterceptor], kind: Kind, work: Work) -> Answer:
    """Return what a client of a bare grpc.aio server gets."""
    server = grpc.aio.server(interceptors=interceptors)
    serving(kind, method(kind, work))(server)  # type: ignore[arg-type]  # any grpc.aio server will do
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with connect(f"127.0.0.1:{port}", middleware=[]) as channel:
            return await ask(channel, kind)
    finally:
        await server.stop(0)


@KINDS
async def test_what_a_servicer_of_a_bare_server_raises(kind: Kind, caplog: pytest.LogCaptureFixture) -> None:
    """Inside our interceptor the same holds on a plain grpc.aio server, which by itself sends UNKNOWN with the text."""
    log = Log(caplog)
    unseen(await bare([server_interceptor(standard(log.telemetry))], kind, fails))
    assert log.text.count(SECRET) == 1


async def test_the_business_says_what_it_means_to_say(caplog: pytest.LogCaptureFixture) -> None:
    """What was raised on purpose arrives as it was said: the canary proves nothing if nothing ever crosses."""
    log = Log(caplog)

    async def work(_: object) -> None:
        raise Error(Code.NOT_FOUND, SECRET)

    async with pair(
        serving(Kind.UNARY, method(Kind.UNARY, work)), over="socket", middleware=standard(log.telemetry)
    ) as ends:
        with pytest.raises(grpc.aio.AioRpcError, match=SECRET):
            await EchoServiceStub(ends.channel).Echo(EchoRequest())
