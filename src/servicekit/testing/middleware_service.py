"""What the middleware's conformance cases call: one method of each kind that answers in full view, and its callers."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from servicekit.errors import Code, Error
from servicekit.method import Kind

from .v1.echo_pb2 import (
    AppendRequest,
    AppendResponse,
    ChatRequest,
    ChatResponse,
    EchoRequest,
    EchoResponse,
    ExpandRequest,
    ExpandResponse,
    StoreRequest,
    StoreResponse,
    SumRequest,
    SumResponse,
)
from .v1.echo_pb2_grpc import EchoServiceServicer, EchoServiceStub, add_EchoServiceServicer_to_server

if TYPE_CHECKING:
    import grpc

    from servicekit.metadata import Pairs

AnyCall: TypeAlias = Any
"""A call object of a stub, of any kind."""

Context: TypeAlias = Any
"""A servicer's context: its stubs do not know all that it takes."""

NOTE = "x-conformance-note"
"""What a caller sends here comes back with the headers and with the trailers, beside HEADERS and TRAILERS."""
HEADERS: Pairs = (("x-conformance-header", "h"), ("x-conformance-bin", b"\x00\xff"))
TRAILERS: Pairs = (("x-conformance-trailer", "1"), ("x-conformance-trailer", "2"))

NAMES = {Kind.UNARY: "Echo", Kind.CLIENT_STREAM: "Sum", Kind.SERVER_STREAM: "Expand", Kind.BIDI_STREAM: "Chat"}


def path_of(kind: Kind) -> str:
    """Return the path of the service's method of ``kind``."""
    return f"/servicekit.testing.v1.EchoService/{NAMES[kind]}"


def expected(kind: Kind, words: Sequence[str]) -> list[object]:
    """Return the values of the answer to ``words``."""
    match kind:
        case Kind.UNARY:
            return [words[0]]
        case Kind.SERVER_STREAM:
            return [(words[0], index) for index in range(len(words))]
        case Kind.CLIENT_STREAM:
            return [(sum(map(int, words)), len(words))]
        case Kind.BIDI_STREAM:
            return list(words)


def request(kind: Kind, word: str, count: int = 1) -> object:
    """Return one request message."""
    match kind:
        case Kind.UNARY:
            return EchoRequest(text=word)
        case Kind.SERVER_STREAM:
            return ExpandRequest(text=word, count=count)
        case Kind.CLIENT_STREAM:
            return SumRequest(number=int(word))
        case Kind.BIDI_STREAM:
            return ChatRequest(text=word)


class Service(EchoServiceServicer):
    """Answers ``words``, and does ``work(word)`` half-way: before a unary answer, after the first message of a stream.

    ``late`` has it do that at the end of a request stream instead, ``brief`` has it answer after the first message of one,
    whatever is to come. ``words`` are those that have reached it, ``metadata`` is what came with each call, ``context``
    that of the last one, and ``running`` how many calls it is at work for.
    """

    def __init__(self) -> None:
        """Answer at once."""
        self.work: Callable[[str], Awaitable[object]] | None = None
        self.late = False
        self.brief = False
        self.words: list[str] = []
        self.metadata: list[Pairs] = []
        self.running = 0
        self.context: Context = None

    def register(self, server: grpc.aio.Server) -> None:
        """Add it to a server, anybody's."""
        add_EchoServiceServicer_to_server(self, server)

    async def Echo(self, request: EchoRequest, context: Context) -> EchoResponse:  # noqa: N802 - the proto's name
        """Answer with the text."""
        with _Counted(self):
            await self._begin(context)
            await self._half_way(request.text)
            return EchoResponse(text=request.text)

    async def Expand(self, request: ExpandRequest, context: Context) -> AsyncIterator[ExpandResponse]:  # noqa: N802
        """Answer with the text as often as was asked for."""
        with _Counted(self):
            await self._begin(context)
            for index in range(request.count):
                yield ExpandResponse(text=request.text, index=index)
                if index == 0:
                    await self._half_way(request.text)

    async def Sum(self, request_iterator: AsyncIterator[SumRequest], context: Context) -> SumResponse:  # noqa: N802
        """Answer with the sum."""
        with _Counted(self):
            await self._begin(context)
            total = count = 0
            async for message in request_iterator:
                total, count = total + message.number, count + 1
                if await self._is_enough(str(message.number), first=count == 1):
                    break
            await self._end()
            return SumResponse(total=total, count=count)

    async def Chat(  # noqa: N802
        self, request_iterator: AsyncIterator[ChatRequest], context: Context
    ) -> AsyncIterator[ChatResponse]:
        """Answer each message."""
        with _Counted(self):
            await self._begin(context)
            first = True
            async for message in request_iterator:
                yield ChatResponse(text=message.text)
                if await self._is_enough(message.text, first=first):
                    break
                first = False
            await self._end()

    async def Store(self, request: StoreRequest, context: Context) -> StoreResponse:  # noqa: N802
        """Do nothing: no case calls it."""
        raise NotImplementedError

    async def Append(self, request: AppendRequest, context: Context) -> AppendResponse:  # noqa: N802
        """Do nothing: no case calls it."""
        raise NotImplementedError

    async def _begin(self, context: Context) -> None:
        pairs = tuple((key, value) for key, value in context.invocation_metadata() or ())
        self.metadata.append(pairs)
        self.context = context
        notes = tuple((key, value) for key, value in pairs if key == NOTE)
        context.set_trailing_metadata(TRAILERS + notes)
        await context.send_initial_metadata(HEADERS + notes)

    async def _is_enough(self, word: str, *, first: bool) -> bool:
        if first and not self.late:
            await self._half_way(word)
        else:
            self.words.append(word)
        return self.brief

    async def _end(self) -> None:
        if self.late and self.work is not None:
            await self.work("")

    async def _half_way(self, word: str) -> None:
        self.words.append(word)
        if self.work is not None:
            await self.work(word)


class _Counted:
    __slots__ = ("_service",)

    def __init__(self, service: Service) -> None:
        self._service = service

    def __enter__(self) -> None:
        self._service.running += 1

    def __exit__(self, *_: object) -> None:
        self._service.running -= 1


@dataclass(kw_only=True)
class Answer:
    """All that a caller gets to see of one call. ``error`` is ours, where the channel is."""

    code: Code
    message: str = ""
    values: list[object] = field(default_factory=list)
    headers: list[tuple[str, str | bytes]] = field(default_factory=list)
    trailers: list[tuple[str, str | bytes]] = field(default_factory=list)
    error: Error | None = None
    raised: BaseException | None = None


def begin(
    channel: grpc.aio.Channel,
    kind: Kind,
    words: Sequence[str] | None,
    *,
    metadata: Sequence[tuple[str, str | bytes]] = (),
    timeout: float | None = None,
) -> AnyCall:
    """Return the call object of a call that begins now; None for ``words`` leaves a request stream to be written."""
    metadata = tuple(metadata)
    method: Any = getattr(EchoServiceStub(channel), NAMES[kind])
    if kind.request_streaming:
        messages = None if words is None else iter([request(kind, word) for word in words])
        return method(messages, metadata=metadata, timeout=timeout)
    given = words or ("1",)
    return method(request(kind, given[0], len(given)), metadata=metadata, timeout=timeout)


async def answer_of(call: AnyCall, kind: Kind) -> Answer:
    """Return what comes of a call that was begun; a cancelled one is an answer too."""
    values: list[object] = []
    raised: BaseException | None = None
    try:
        if kind.response_streaming:
            async for message in call:
                values.append(value_of(kind, message))  # noqa: PERF401 - what came before a failure stays
        else:
            values.append(value_of(kind, await call))
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if not call.cancelled() or (task is not None and task.cancelling()):
            raise
        raised = error
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # noqa: BLE001 - what else it may be is for the case to judge
        raised = error
    code = await call.code()
    return Answer(
        code=Code(code.value[0]),
        message=await call.details() or "",
        values=values,
        headers=list(await call.initial_metadata() or ()),
        trailers=list(await call.trailing_metadata() or ()),
        error=getattr(raised, "error", None),
        raised=raised,
    )


def value_of(kind: Kind, message: AnyCall) -> object:
    """Return what is to be compared of a response."""
    match kind:
        case Kind.SERVER_STREAM:
            return message.text, message.index
        case Kind.CLIENT_STREAM:
            return message.total, message.count
        case _:
            return message.text


def kept(pairs: Sequence[tuple[str, str | bytes]], of: Sequence[tuple[str, str | bytes]]) -> list[object]:
    """Return those of ``pairs`` whose key ``of`` has: a link may add others."""
    keys = dict.fromkeys(key for key, _ in of)
    return list(itertools.chain.from_iterable([pair for pair in pairs if pair[0] == key] for key in keys))
