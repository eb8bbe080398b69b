"""One call, as a plan that a client and a servicer keep to, and all that both of them see of it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import grpc

from servicekit import Kind

Untyped: TypeAlias = Any
"""What grpc leaves untyped."""

Pairs: TypeAlias = tuple[tuple[str, "str | bytes"], ...]
Shape: TypeAlias = Literal["coroutine", "generator", "context", "plain"]
Stage: TypeAlias = Literal["never", "before", "after"]
"""When something is done: before the requests are read, or after."""

PATIENCE = 5.0
SERVICE = "differ.v1.Differ"
SHAPES: dict[Kind, tuple[Shape, ...]] = {
    Kind.UNARY: ("coroutine", "plain"),
    Kind.CLIENT_STREAM: ("coroutine", "context", "plain"),
    Kind.SERVER_STREAM: ("generator", "context", "plain"),
    Kind.BIDI_STREAM: ("generator", "context", "plain"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """How the servicer ends the call: it returns, aborts, returns having set a code, raises, or hangs."""

    by: Literal["return", "abort", "code", "raise", "hang"] = "return"
    code: grpc.StatusCode = grpc.StatusCode.ABORTED
    details: str = ""
    trailers: Pairs = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What both sides do.

    ``take`` is how many requests the servicer reads; None means all, to their end. ``half_close`` says whether the client
    closes its half with its last message or only when the servicer has begun to answer. A servicer that hangs is ended
    by ``cancel`` or by a deadline of ``timeout`` seconds.
    """

    kind: Kind = Kind.UNARY
    shape: Shape = "coroutine"
    requests: tuple[bytes, ...] = (b"",)
    responses: tuple[bytes, ...] = (b"",)
    take: int | None = None
    half_close: Literal["early", "late"] = "early"
    metadata: Pairs = ()
    headers: Pairs = ()
    headers_sent: Stage = "never"
    trailers: Pairs = ()
    compression: grpc.Compression | None = None
    answered_with: grpc.Compression | None = None
    timeout: float | None = None
    cancel: bool = False
    end: End = End()


@dataclass(slots=True)
class Seen:
    """What the servicer saw."""

    metadata: list[tuple[str, str | bytes]] = field(default_factory=list)
    peer: str = ""
    timed: bool = False
    requests: list[bytes] = field(default_factory=list)
    cancelled: bool = False
    calls: int = 0


@dataclass(slots=True, kw_only=True)
class Outcome:
    """All that can be seen of a call, from both of its ends."""

    code: grpc.StatusCode
    details: str
    messages: list[bytes]
    headers: list[tuple[str, str | bytes]]
    trailers: list[tuple[str, str | bytes]]
    seen: Seen


class Servicer:
    """Keeps to ``plan``, and writes down what it sees; made for one call at a time."""

    def __init__(self) -> None:
        """Have no plan yet."""
        self.renew(Plan())

    def renew(self, plan: Plan) -> None:
        self.plan = plan
        self.seen = Seen()
        self.hanging = asyncio.Event()
        self.read = asyncio.Event()
        self.left = asyncio.Event()

    def handler(self) -> grpc.GenericRpcHandler:
        make: dict[Kind, Callable[..., Untyped]] = {
            Kind.UNARY: grpc.unary_unary_rpc_method_handler,
            Kind.CLIENT_STREAM: grpc.stream_unary_rpc_method_handler,
            Kind.SERVER_STREAM: grpc.unary_stream_rpc_method_handler,
            Kind.BIDI_STREAM: grpc.stream_stream_rpc_method_handler,
        }
        handlers = {
            f"{kind.name}-{shape}": make[kind](self._method(kind, shape)) for kind in Kind for shape in SHAPES[kind]
        }
        return grpc.method_handlers_generic_handler(SERVICE, handlers)

    def _method(self, kind: Kind, shape: Shape) -> Callable[..., Any]:
        if shape == "plain":
            return self._plain_stream if kind.response_streaming else self._plain
        if shape == "generator":
            return self._generator
        return self._writing if kind.response_streaming else self._returning

    def _begin(self, context: Untyped) -> None:
        self.seen.calls += 1
        self.seen.metadata = [(key, value) for key, value in context.invocation_metadata()]
        self.seen.peer = context.peer().rpartition(":")[0]
        self.seen.timed = context.time_remaining() is not None
        if self.plan.answered_with is not None:
            context.set_compression(self.plan.answered_with)
        if self.plan.trailers:
            context.set_trailing_metadata(self.plan.trailers)

    # As it is written for asyncio

    async def _start(self, request: Untyped, context: Untyped) -> None:
        plan = self.plan
        self._begin(context)
        if plan.headers_sent == "before":
            await context.send_initial_metadata(plan.headers)
        if not plan.kind.request_streaming:
            self.seen.requests.append(request)
        elif plan.take is None or plan.take > 0:
            await (self._read(context) if plan.shape == "context" else self._iterate(request))
        self.read.set()
        if plan.headers_sent == "after":
            await context.send_initial_metadata(plan.headers)

    async def _read(self, context: Untyped) -> None:
        while (message := await context.read()) is not grpc.aio.EOF:
            self.seen.requests.append(message)
            if len(self.seen.requests) == self.plan.take:
                break

    async def _iterate(self, request: AsyncIterator[bytes]) -> None:
        async for message in request:
            self.seen.requests.append(message)
            if len(self.seen.requests) == self.plan.take:
                break

    async def _finish(self, context: Untyped) -> None:
        end = self.plan.end
        if end.by == "hang":
            self.hanging.set()
            await asyncio.Event().wait()
        elif end.by == "abort":
            await context.abort(end.code, end.details, end.trailers)
        elif end.by == "code":
            context.set_code(end.code)
            context.set_details(end.details)
        elif end.by == "raise":
            raise LookupError(end.details)

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        seen, left = self.seen, self.left
        try:
            yield
        except asyncio.CancelledError:
            seen.cancelled = True
            raise
        finally:
            left.set()

    async def _returning(self, request: Untyped, context: Untyped) -> bytes:
        with self._watched():
            await self._start(request, context)
            await self._finish(context)
            return self.plan.responses[0]

    async def _writing(self, request: Untyped, context: Untyped) -> None:
        with self._watched():
            await self._start(request, context)
            for message in self.plan.responses:
                await context.write(message)
            await self._finish(context)

    async def _generator(self, request: Untyped, context: Untyped) -> AsyncIterator[bytes]:
        with self._watched():
            await self._start(request, context)
            for message in self.plan.responses:
                yield message
            await self._finish(context)

    # As it is written for threads

    def _start_plain(self, request: Untyped, context: Untyped) -> None:
        plan = self.plan
        self._begin(context)
        if plan.headers_sent == "before":
            context.send_initial_metadata(plan.headers)
        if not plan.kind.request_streaming:
            self.seen.requests.append(request)
        elif plan.take is None or plan.take > 0:
            for message in request:
                self.seen.requests.append(message)
                if len(self.seen.requests) == plan.take:
                    break
        if plan.headers_sent == "after":
            context.send_initial_metadata(plan.headers)

    def _finish_plain(self, context: Untyped) -> None:
        end = self.plan.end
        if end.by == "abort":
            context.set_trailing_metadata(end.trailers)
            context.abort(end.code, end.details)
        elif end.by == "code":
            context.set_code(end.code)
            context.set_details(end.details)
        elif end.by == "raise":
            raise LookupError(end.details)

    def _plain(self, request: Untyped, context: Untyped) -> bytes:
        self._start_plain(request, context)
        self._finish_plain(context)
        return self.plan.responses[0]

    def _plain_stream(self, request: Untyped, context: Untyped) -> Iterator[bytes]:
        self._start_plain(request, context)
        yield from self.plan.responses
        self._finish_plain(context)


async def outcome(channel: grpc.aio.Channel, servicer: Servicer, plan: Plan) -> Outcome:
    """Make one call as ``plan`` says, and return what was seen; AssertionError when it hangs."""
    servicer.renew(plan)
    try:
        async with asyncio.timeout(PATIENCE):
            return await _outcome(channel, servicer, plan)
    except TimeoutError:
        raise AssertionError(f"the client was left hanging: {plan}") from None


async def _outcome(channel: grpc.aio.Channel, servicer: Servicer, plan: Plan) -> Outcome:
    call = _begin(channel, servicer, plan)
    messages: list[bytes] = []
    taking = asyncio.ensure_future(_take(call, plan, messages))
    if plan.end.by == "hang" and plan.cancel:
        # All that was sent before is there when the call is cancelled, or it would be a race.
        await servicer.hanging.wait()
        if plan.headers and plan.headers_sent != "never" and plan.kind is not Kind.UNARY:
            await call.initial_metadata()  # the client tells of none, and of those of a unary call, with the response
        if not plan.kind.response_streaming or not plan.responses:
            call.cancel()
    await taking
    if plan.end.by == "hang" and servicer.seen.calls:  # a deadline may pass before
        await servicer.left.wait()
    return Outcome(
        code=await call.code(),
        details=await call.details() or "",
        messages=messages,
        headers=[(key, value) for key, value in await call.initial_metadata() or ()],
        trailers=[(key, value) for key, value in await call.trailing_metadata() or ()],
        seen=servicer.seen,
    )


def _begin(channel: Untyped, servicer: Servicer, plan: Plan) -> Untyped:
    path = f"/{SERVICE}/{plan.kind.name}-{plan.shape}"
    settings: Untyped = {"timeout": plan.timeout, "metadata": plan.metadata, "compression": plan.compression}
    if plan.kind is Kind.UNARY:
        return channel.unary_unary(path)(plan.requests[0], **settings)
    if plan.kind is Kind.SERVER_STREAM:
        return channel.unary_stream(path)(plan.requests[0], **settings)
    sent = _sent(plan.requests, servicer.read if plan.half_close == "late" else None)
    if plan.kind is Kind.CLIENT_STREAM:
        return channel.stream_unary(path)(sent, **settings)
    return channel.stream_stream(path)(sent, **settings)


async def _sent(messages: Sequence[bytes], until: asyncio.Event | None) -> AsyncIterator[bytes]:
    for message in messages:
        yield message
    if until is not None:
        await until.wait()


async def _take(call: Untyped, plan: Plan, messages: list[bytes]) -> None:
    with contextlib.suppress(grpc.aio.AioRpcError, asyncio.CancelledError):
        if not plan.kind.response_streaming:
            messages.append(await call)
            return
        async for message in call:
            messages.append(message)
            if plan.cancel and len(messages) == len(plan.responses):
                call.cancel()
