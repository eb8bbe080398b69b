"""The forms that a servicer's method may have: all of them work, and all of them know which call they serve."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import gc
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from servicekit import Call, Endpoint, Kind, Message, current_call
from servicekit.testing import pair
from servicekit.testing.pair import Over
from servicekit.testing.v1.echo_pb2 import (
    ChatRequest,
    ChatResponse,
    EchoRequest,
    EchoResponse,
    ExpandRequest,
    ExpandResponse,
    SumRequest,
    SumResponse,
)
from servicekit.testing.v1.echo_pb2_grpc import EchoServiceStub

from .servers import KINDS, OVER, STREAMS, Context, answer_of, answered, ask, health_of, method, service, serving, until

Grpc = grpc.StatusCode
SENT: dict[Kind, list[Any]] = {
    Kind.UNARY: [EchoRequest(text="a")],
    Kind.CLIENT_STREAM: [SumRequest(number=1), SumRequest(number=2)],
    Kind.SERVER_STREAM: [ExpandRequest(text="a", count=2)],
    Kind.BIDI_STREAM: [ChatRequest(text="a"), ChatRequest(text="b")],
}
EXPECTED: dict[Kind, list[Any]] = {
    Kind.UNARY: [EchoResponse(text="a")],
    Kind.CLIENT_STREAM: [SumResponse(total=3, count=2)],
    Kind.SERVER_STREAM: [ExpandResponse(text="a"), ExpandResponse(text="a", index=1)],
    Kind.BIDI_STREAM: [ChatResponse(text="a"), ChatResponse(text="b")],
}

local: contextvars.ContextVar[str] = contextvars.ContextVar("local", default="unset")


async def setting(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
    local.set("by a link")
    return await next(request, call)


def here(context: Context) -> None:
    """Assert that whoever runs this serves a call, and has what the links have set."""
    call = current_call()
    assert call.method.service == "servicekit.testing.v1.EchoService"
    assert dict(context.invocation_metadata())["key"] == "value"
    assert local.get() == "by a link"


class Coroutines:
    """Coroutine functions; streams are read by iterating, and written with ``context.write``."""

    async def unary(self, request: EchoRequest, context: Context) -> EchoResponse:
        here(context)
        return EchoResponse(text=request.text)

    async def client_stream(self, request: AsyncIterator[SumRequest], context: Context) -> SumResponse:
        here(context)
        numbers = [message.number async for message in request]
        return SumResponse(total=sum(numbers), count=len(numbers))

    async def server_stream(self, request: ExpandRequest, context: Context) -> None:
        for index in range(request.count):
            here(context)
            await context.write(ExpandResponse(text=request.text, index=index))

    async def bidi_stream(self, request: AsyncIterator[ChatRequest], context: Context) -> None:
        async for message in request:
            here(context)
            await context.write(ChatResponse(text=message.text))


class ReadersAndWriters(Coroutines):
    """Coroutine functions that use ``context.read`` and ``context.write``."""

    async def client_stream(self, request: AsyncIterator[SumRequest], context: Context) -> SumResponse:
        here(context)
        numbers = []
        while (message := await context.read()) is not grpc.aio.EOF:
            numbers.append(message.number)
        assert await context.read() is grpc.aio.EOF  # and again
        return SumResponse(total=sum(numbers), count=len(numbers))

    async def bidi_stream(self, request: AsyncIterator[ChatRequest], context: Context) -> None:
        while (message := await context.read()) is not grpc.aio.EOF:
            here(context)
            await context.write(ChatResponse(text=message.text))


class Mixed(Coroutines):
    """Both ways of reading in one method: each message comes once."""

    async def client_stream(self, request: AsyncIterator[SumRequest], context: Context) -> SumResponse:
        here(context)
        first = await context.read()
        numbers = [first.number]
        async for message in request:
            numbers.append(message.number)
            break
        numbers.extend([message.number async for message in request])
        return SumResponse(total=sum(numbers), count=len(numbers))


class Generators(Coroutines):
    """Async generators."""

    async def server_stream(self, request: ExpandRequest, context: Context) -> AsyncIterator[ExpandResponse]:  # type: ignore[override]
        for index in range(request.count):
            here(context)
            yield ExpandResponse(text=request.text, index=index)

    async def bidi_stream(self, request: AsyncIterator[ChatRequest], context: Context) -> AsyncIterator[ChatResponse]:  # type: ignore[override]
        async for message in request:
            here(context)
            yield ChatResponse(text=message.text)


class Plain:
    """Plain functions and generators: they run in a thread, and read a plain iterator."""

    def unary(self, request: EchoRequest, context: Context) -> EchoResponse:
        self.elsewhere(context)
        return EchoResponse(text=request.text)

    def client_stream(self, request: Iterator[SumRequest], context: Context) -> SumResponse:
        self.elsewhere(context)
        numbers = [message.number for message in request]
        return SumResponse(total=sum(numbers), count=len(numbers))

    def server_stream(self, request: ExpandRequest, context: Context) -> Iterator[ExpandResponse]:
        for index in range(request.count):
            self.elsewhere(context)
            yield ExpandResponse(text=request.text, index=index)

    def bidi_stream(self, request: Iterator[ChatRequest], context: Context) -> Iterator[ChatResponse]:
        for message in request:
            self.elsewhere(context)
            yield ChatResponse(text=message.text)

    def elsewhere(self, context: Context) -> None:
        here(context)
        assert threading.current_thread() is not threading.main_thread()


class Lists(Plain):
    """Plain functions that return their messages in a list."""

    def server_stream(self, request: ExpandRequest, context: Context) -> Message:
        self.elsewhere(context)
        return [ExpandResponse(text=request.text, index=index) for index in range(request.count)]

    def bidi_stream(self, request: Iterator[ChatRequest], context: Context) -> Message:
        self.elsewhere(context)
        return [ChatResponse(text=message.text) for message in request]


class Holding:
    """An object whose ``__call__`` is what ``function`` is; grpc.aio takes an async one for a plain function."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function


class AsyncCallable(Holding):
    async def __call__(self, request: Message, context: Context) -> Message:
        return await self.function(request, context)


class GeneratorCallable(Holding):
    async def __call__(self, request: Message, context: Context) -> AsyncIterator[Any]:
        async for message in self.function(request, context):
            yield message


class PlainCallable(Holding):
    def __call__(self, request: Message, context: Context) -> Message:
        return self.function(request, context)


def objects(function: Callable[..., Any], kind: Kind) -> Callable[..., Any]:
    return GeneratorCallable(function) if kind.response_streaming else AsyncCallable(function)


def plain_objects(function: Callable[..., Any], _kind: Kind) -> Callable[..., Any]:
    return PlainCallable(function)  # its function is async all the same


def partials(function: Callable[..., Any], kind: Kind) -> Callable[..., Any]:
    if kind.response_streaming:

        async def many(extra: str, request: Message, context: Context) -> AsyncIterator[Any]:
            assert extra == "extra"
            async for message in function(request, context):
                yield message

        return functools.partial(many, "extra")

    async def one(extra: str, request: Message, context: Context) -> Message:
        assert extra == "extra"
        return await function(request, context)

    return functools.partial(one, "extra")


def partial_objects(function: Callable[..., Any], kind: Kind) -> Callable[..., Any]:
    return functools.partial(objects(function, kind))


def decorated(function: Callable[..., Any], kind: Kind) -> Callable[..., Any]:
    if kind.response_streaming:

        @functools.wraps(function)
        async def many(request: Message, context: Context) -> AsyncIterator[Any]:
            async for message in function(request, context):
                yield message

        return many

    @functools.wraps(function)
    async def one(request: Message, context: Context) -> Message:
        return await function(request, context)

    return one


def plainly_decorated(function: Callable[..., Any], _kind: Kind) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(request: Message, context: Context) -> Message:
        return function(request, context)

    return wrapper


def static(function: Callable[..., Any], _kind: Kind) -> Callable[..., Any]:
    class Holder:
        method = staticmethod(function)

    return Holder().method


def as_it_is(function: Callable[..., Any], _kind: Kind) -> Callable[..., Any]:
    return function


Hold = Callable[[Callable[..., Any], Kind], Callable[..., Any]]
FORMS: list[tuple[type, Hold]] = [
    (Coroutines, as_it_is),
    (ReadersAndWriters, as_it_is),
    (Mixed, as_it_is),
    (Generators, as_it_is),
    (Plain, as_it_is),
    (Lists, as_it_is),
    (Generators, objects),
    (Generators, plain_objects),
    (Generators, partials),
    (Generators, partial_objects),
    (Generators, decorated),
    (Generators, plainly_decorated),
    (Generators, static),
    (Plain, plain_objects),
]


@OVER
@KINDS
@pytest.mark.parametrize(("forms", "held"), FORMS, ids=[f"{forms.__name__}-{held.__name__}" for forms, held in FORMS])
async def test_every_form_works_and_knows_its_call(over: Over, kind: Kind, forms: type, held: Hold) -> None:
    """Called as it is written, with the current call and the context of the chain at hand, in threads as well."""
    function = held(getattr(forms(), kind.value), kind)
    async with pair(serving(kind, function), over=over, middleware=[setting]) as ends:
        answer = await ask(ends.channel, kind, SENT[kind], metadata=[("key", "value")])
    assert (answer.code, answer.messages) == (Grpc.OK, EXPECTED[kind])


@OVER
@KINDS
async def test_an_empty_stream_is_one(over: Over, kind: Kind) -> None:
    """No requests, or no responses, is a conversation too."""
    sent = [] if kind.request_streaming else SENT[kind]
    async with pair(serving(kind, getattr(Plain(), kind.value)), over=over, middleware=[setting]) as ends:
        if kind is Kind.SERVER_STREAM:
            sent = [ExpandRequest(count=0)]
        answer = await ask(ends.channel, kind, sent, metadata=[("key", "value")])
    assert answer.code is Grpc.OK
    assert answer.messages == {Kind.UNARY: EXPECTED[kind], Kind.CLIENT_STREAM: [SumResponse()]}.get(kind, [])


def test_outside_of_a_call_there_is_no_current_one() -> None:
    """``current_call()`` says so, and where it works."""
    with pytest.raises(LookupError, match="works inside a servicer"):
        current_call()


@OVER
async def test_a_call_is_not_left_behind(over: Over) -> None:
    """The client's own task does not find itself in the server's call, nor the next call in the one before."""
    calls: list[Call] = []

    async def echo(_request: object, _context: object) -> EchoResponse:
        calls.append(current_call())
        return EchoResponse()

    async with pair(service(Echo=echo), over=over) as ends:
        await ask(ends.channel)
        await ask(ends.channel)
        with pytest.raises(LookupError):
            current_call()
    assert calls[0] is not calls[1]


@OVER
async def test_somebody_elses_reader_and_writer_works(over: Over) -> None:
    """The health service's own ``Watch`` writes through its context, and goes on until its client leaves."""
    async with pair(service(), over=over) as ends:
        stub = health_of(ends.channel)
        watch = stub.Watch(HealthCheckRequest(service="servicekit.testing.v1.EchoService"))
        assert (await answered(watch.read())).status == HealthCheckResponse.SERVING
        assert ends.server.health is not None
        await ends.server.health.set("servicekit.testing.v1.EchoService", serving=False)
        assert (await answered(watch.read())).status == HealthCheckResponse.NOT_SERVING
        assert (await stub.Check(HealthCheckRequest())).status == HealthCheckResponse.SERVING
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Check(HealthCheckRequest(service="nobody"))
        assert caught.value.code() is Grpc.NOT_FOUND
        watch.cancel()
        await until(lambda: not ends.server._serving.in_flight._auxiliary)


# Plain functions have the context of grpc's synchronous server.


@OVER
async def test_a_plain_function_has_the_plain_context(over: Over) -> None:
    """What grpc's own synchronous servicers call does not need awaiting."""
    ended = threading.Event()

    def plain(request: EchoRequest, context: Context) -> EchoResponse:
        assert context.is_active()
        assert 0.0 < context.time_remaining() < 20.0
        assert context.peer()
        context.send_initial_metadata((("initial", "1"),))
        context.set_trailing_metadata((("trailing", "2"),))
        assert context.add_callback(ended.set)
        return EchoResponse(text=request.text)

    async with pair(service(Echo=plain), over=over) as ends:
        answer = await ask(ends.channel, timeout=10.0)
        assert ended.is_set()
    assert (answer.header("initial"), answer.trailer("trailing")) == (["1"], ["2"])


@OVER
@KINDS
@pytest.mark.parametrize("swallow", [False, True])
async def test_a_plain_function_may_abort(over: Over, kind: Kind, swallow: object) -> None:
    """``abort`` raises in the thread and ends the call, swallowed or not."""

    def plain(_request: object, context: Context) -> Message:
        try:
            context.abort(Grpc.NOT_FOUND, "gone")
        except Exception:
            if not swallow:
                raise

    async with pair(serving(kind, plain), over=over) as ends:
        answer = await ask(ends.channel, kind)
    assert (answer.code, answer.details) == (Grpc.NOT_FOUND, "gone")


@OVER
async def test_a_plain_generator_is_closed_with_its_call(over: Over) -> None:
    """When the client goes, its clean-up runs, in a thread: nothing of a plain servicer blocks the loop."""
    closed: list[bool] = []
    begun = asyncio.Event()
    loop = asyncio.get_running_loop()

    def expand(_request: ExpandRequest, _context: object) -> Iterator[ExpandResponse]:
        try:
            loop.call_soon_threadsafe(begun.set)
            while True:
                yield ExpandResponse(payload=bytes(60_000))
        finally:
            closed.append(threading.current_thread() is not threading.main_thread())

    async with pair(service(Expand=expand), over=over) as ends:
        call = EchoServiceStub(ends.channel).Expand(ExpandRequest())
        await answered(begun.wait())
        call.cancel()
        await until(lambda: closed)
    assert closed == [True]


@OVER
async def test_a_plain_reader_is_let_go_with_its_call(over: Over) -> None:
    """A thread that waits for a request is not kept when the client leaves; what it asks for then raises."""
    raised: list[BaseException] = []
    begun = asyncio.Event()
    loop = asyncio.get_running_loop()

    def total(request: Iterator[SumRequest], context: Context) -> SumResponse:
        loop.call_soon_threadsafe(begun.set)
        try:
            for _ in request:
                pass
        except BaseException as error:
            raised.append(error)
            assert not context.is_active()
            raise
        return SumResponse()

    async with pair(service(Sum=total), over=over) as ends:
        call = EchoServiceStub(ends.channel).Sum()
        await answered(begun.wait())
        call.cancel()
        await until(lambda: raised)
    assert isinstance(raised[0], Exception)


@OVER
async def test_a_plain_generator_that_still_reads_when_its_client_goes_leaves_no_noise(over: Over) -> None:
    """Its step fails when nobody waits for it any more: asyncio would log an exception that was never retrieved."""
    noise: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: noise.append(context))
    begun = asyncio.Event()
    threads = ThreadPoolExecutor(1)

    def chat(request: Iterator[ChatRequest], _context: object) -> Iterator[ChatResponse]:
        loop.call_soon_threadsafe(begun.set)
        for _ in request:
            yield ChatResponse()

    async with pair(service(Chat=chat), over=over, threads=threads) as ends:
        call = EchoServiceStub(ends.channel).Chat()
        await answered(begun.wait())
        call.cancel()
        await until(lambda: not ends.server.in_flight)
    await loop.run_in_executor(threads, threading.get_ident)  # after the step that was under way
    await asyncio.sleep(0)
    gc.collect()
    assert noise == []
    threads.shutdown()


@OVER
async def test_plain_functions_run_where_they_are_told_to(over: Over) -> None:
    """``threads`` is the pool of all plain functions, and of nothing else."""
    names: list[str] = []

    def plain(_request: object, _context: object) -> EchoResponse:
        names.append(threading.current_thread().name)
        return EchoResponse()

    with ThreadPoolExecutor(1, thread_name_prefix="ours") as threads:
        async with pair(service(Echo=plain), over=over, threads=threads) as ends:
            await ask(ends.channel)
    assert names == ["ours_0"]


@OVER
@KINDS
async def test_a_coroutine_behind_a_plain_wrapper_may_await_its_context(over: Over, kind: Kind) -> None:
    """It runs on the loop, where nothing may block: what it awaits there is awaited, not waited for by a thread."""

    async def work(context: Context) -> None:
        await context.send_initial_metadata([("a", "1")])
        await context.abort(Grpc.NOT_FOUND, "gone")

    async with pair(serving(kind, plainly_decorated(method(kind, work), kind)), over=over) as ends:
        answer = await ask(ends.channel, kind)
    assert (answer.code, answer.details) == (Grpc.NOT_FOUND, "gone")
    if over == "memory" or kind is Kind.UNARY:  # grpc.aio's client may lose them where no message comes
        assert answer.header("a") == ["1"]


@OVER
@STREAMS
async def test_an_async_generator_behind_a_plain_wrapper_is_closed_with_its_call(over: Over, kind: Kind) -> None:
    """A decorator that is no generator itself changes nothing: clean-up runs when the client goes."""
    closed: list[bool] = []
    begun = asyncio.Event()
    response: Any = ExpandResponse if kind is Kind.SERVER_STREAM else ChatResponse

    async def generator(_request: object, _context: object) -> AsyncIterator[Any]:
        call = current_call()
        try:
            begun.set()
            while True:
                yield response(payload=bytes(60_000))
        finally:
            closed.append(current_call() is call)

    async with pair(serving(kind, plainly_decorated(generator, kind)), over=over) as ends:
        stub = EchoServiceStub(ends.channel)
        call = stub.Expand(ExpandRequest()) if kind is Kind.SERVER_STREAM else stub.Chat()
        await answered(begun.wait())
        call.cancel()
        await until(lambda: closed)
    assert closed == [True]


@OVER
async def test_a_generator_for_one_response_is_a_mistake(over: Over) -> None:
    """It is answered, as INTERNAL, and not with the last or the first of its messages."""

    async def generator(_request: object, _context: object) -> AsyncIterator[EchoResponse]:
        yield EchoResponse()

    async with pair(service(Echo=generator), over=over) as ends:
        assert (await ask(ends.channel)).code is Grpc.INTERNAL


@OVER
async def test_a_conversation_goes_both_ways_at_once(over: Over) -> None:
    """Messages are answered as they come, not when the client has half-closed."""
    async with pair(service(Chat=Generators().bidi_stream), over=over, middleware=[setting]) as ends:
        call = EchoServiceStub(ends.channel).Chat(metadata=(("key", "value"),))
        for text in ("a", "b", "c"):
            await call.write(ChatRequest(text=text))
            assert await answered(call.read()) == ChatResponse(text=text)
        await call.done_writing()
        assert (await answered(answer_of(call, Kind.BIDI_STREAM))).code is Grpc.OK


@OVER
@STREAMS
async def test_a_servicer_that_stops_reading_may_answer(over: Over, kind: Kind) -> None:
    """An answer that comes before the last request is the answer: nobody waits for requests that nobody wants."""

    async def early(_request: object, context: Context) -> None:
        await context.abort(Grpc.OUT_OF_RANGE, "enough")

    async def endless() -> AsyncIterator[ChatRequest]:
        while True:
            yield ChatRequest()

    async with pair(serving(kind, early), over=over) as ends:
        sent = endless() if kind.request_streaming else None
        answer = await ask(ends.channel, kind, sent)
    assert (answer.code, answer.details) == (Grpc.OUT_OF_RANGE, "enough")


@OVER
@KINDS
async def test_context_says_what_grpcs_own_says(over: Over, kind: Kind) -> None:
    """Peer, metadata, time and state of the call, as documented for ``grpc.aio.ServicerContext``."""
    seen: list[Any] = []

    async def work(context: Context) -> None:
        seen.append(context)
        is_one: bool = isinstance(context, grpc.aio.ServicerContext)
        assert is_one
        assert ("key", "value") in context.invocation_metadata()
        assert "key" in [entry.key for entry in context.invocation_metadata()]
        assert context.time_remaining() is None
        assert context.peer()
        assert context.peer_identities() is None
        assert context.code() is None
        assert context.details() == ""
        assert context.trailing_metadata() == ()
        assert not context.done()
        assert not context.cancelled()

    async with pair(serving(kind, method(kind, work)), over=over) as ends:
        answer = await ask(ends.channel, kind, metadata=[("key", "value")])
        assert answer.code is Grpc.OK
        await until(seen[0].done)
        assert seen[0].code() is Grpc.OK
