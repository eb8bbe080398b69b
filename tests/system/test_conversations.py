"""A few hundred conversations of every kind in which both sides do what they like, from a fixed seed, on every wire.

Each side may stop, fail, leave, be slow or be cancelled at any point. What comes of a single one is not looked at, but
that it ends: nothing hangs, nothing raises what it does not promise, and nothing is left behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections import Counter
from collections.abc import AsyncIterator, Iterator

import grpc
import pytest

from servicekit import Code, Drain, Error, Server, Telemetry, connect
from servicekit.endpoint import Message
from servicekit.memory import MemoryNetwork
from servicekit.testing import no_leaks
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
from tests.transport.clients import Context, Untyped, both, echo, stub_of

pytestmark = pytest.mark.system

CLIENTS, EACH = 10, 40
PATIENCE = 15.0
"""Seconds after which a conversation hangs: what they want takes some milliseconds, on a loaded machine some hundreds."""

BIG = 200_000
"""Bytes of a message that does not fit into a window."""


def _unexpected(record: logging.LogRecord) -> bool:
    return "error_id" not in record.msg


@pytest.fixture(autouse=True)
def _a_log_of_what_is_not_expected() -> Iterator[None]:
    log = logging.getLogger("servicekit")
    log.addFilter(_unexpected)
    yield
    log.removeFilter(_unexpected)


class MineError(Exception):
    """What the caller's own iterator raises."""


class Whims:
    """A servicer, and clients of it, that do what ``chance`` makes them do."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.outcomes: Counter[str] = Counter()
        self.wrong: list[str] = []

    def likely(self, share: float) -> bool:
        return self.chance.random() < share

    def payload(self) -> bytes:
        return bytes(self.chance.choice([0, 100, BIG]))

    async def nap(self) -> None:
        if self.likely(0.4):
            await asyncio.sleep(0)
        elif self.likely(0.6):
            await asyncio.sleep(self.chance.random() * 0.01)

    # The server's side

    async def whim(self, context: Context) -> None:
        whim = self.chance.randrange(40)
        if whim < 2:
            raise ValueError("secret")
        if whim < 4:
            raise Error(Code.NOT_FOUND, "no such thing")
        if whim < 6:
            await context.abort(grpc.StatusCode.ABORTED, "aborted")
        if whim < 7:
            raise asyncio.CancelledError
        if whim < 9:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.002):
                    await asyncio.sleep(1.0)
        if whim < 10:
            with contextlib.suppress(asyncio.CancelledError):  # as careless servicers do
                await asyncio.sleep(0.02)

    async def echo(self, request: Message, context: Context) -> EchoResponse:
        await self.nap()
        await self.whim(context)
        return EchoResponse(payload=self.payload())

    async def expand(self, request: Message, context: Context) -> AsyncIterator[ExpandResponse]:
        for _ in range(self.chance.randrange(6)):
            await self.nap()
            await self.whim(context)
            yield ExpandResponse(payload=self.payload())

    async def sum(self, requests: AsyncIterator[Message], context: Context) -> SumResponse:
        async for _ in requests:
            await self.nap()
            await self.whim(context)
            if self.likely(0.1):
                break
        return SumResponse()

    async def chat(self, requests: AsyncIterator[Message], context: Context) -> None:
        if self.likely(0.4):  # says all it has to say, and leaves
            for _ in range(3):
                await context.write(ChatResponse(payload=self.payload()))
                await self.whim(context)
            return
        async for _ in requests:
            await self.whim(context)
            await context.write(ChatResponse(payload=self.payload()))

    # The client's side

    async def messages(self, kind: type[Message], *, small: bool = False) -> AsyncIterator[Message]:
        for _ in range(self.chance.randrange(5)):
            await self.nap()
            if self.likely(0.02):
                raise MineError
            yield kind(payload=b"" if small else self.payload())

    async def written(self, call: Untyped, messages: AsyncIterator[Message]) -> None:
        async for message in messages:
            await call.write(message)
        if self.likely(0.1):
            call.cancel()
        else:
            await call.done_writing()

    async def read(self, call: Untyped) -> None:
        async for _ in call:
            await self.nap()
            if self.likely(0.05):
                return  # and the call is dropped
            if self.likely(0.05):
                call.cancel()

    async def converse(self, stub: Untyped) -> None:
        timeout = self.chance.choice([None, None, 0.5, 0.01, 0.003])
        match self.chance.randrange(6):
            case 0:
                call = stub.Echo(EchoRequest(), timeout=timeout)
                if self.likely(0.1):
                    await self.nap()
                    call.cancel()
                await call
            case 1:
                await self.read(stub.Expand(ExpandRequest(), timeout=timeout))
            case 2:
                await stub.Sum(self.messages(SumRequest), timeout=timeout)
            case 3:
                call = stub.Sum(timeout=timeout)
                await self.written(call, self.messages(SumRequest))
                await call
            case 4:
                await self.read(stub.Chat(self.messages(ChatRequest), timeout=timeout))
            case _:  # all is written before anything is read: big ones could wait for each other's windows for ever
                call = stub.Chat(timeout=timeout)
                try:
                    await self.written(call, self.messages(ChatRequest, small=True))
                except asyncio.InvalidStateError:
                    self.outcomes["refused"] += 1
                await self.read(call)

    async def client(self, stub: Untyped) -> None:
        for _ in range(EACH):
            conversation = asyncio.ensure_future(self.converse(stub))
            if self.likely(0.15):
                await asyncio.sleep(self.chance.random() * 0.01)
                conversation.cancel()
            _, hanging = await asyncio.wait([conversation], timeout=PATIENCE)
            if hanging:
                self.wrong.append(f"hangs: {conversation!r}")
                conversation.cancel()
                await asyncio.wait([conversation])
            self.note(conversation)

    def note(self, conversation: asyncio.Future[None]) -> None:
        error = None if conversation.cancelled() else conversation.exception()
        if conversation.cancelled():
            self.outcomes["cancelled"] += 1
        elif isinstance(error, grpc.aio.AioRpcError):
            self.outcomes[error.code().name] += 1
        elif error is None or isinstance(error, (MineError, asyncio.InvalidStateError)):
            self.outcomes[type(error).__name__] += 1
        else:
            self.wrong.append(repr(error))


@contextlib.contextmanager
def complaints() -> Iterator[list[str]]:
    """Collect what asyncio has to say of the block: exceptions that nobody saw, callbacks that failed."""
    loop = asyncio.get_running_loop()
    heard: list[str] = []
    loop.set_exception_handler(lambda _, context: heard.append(f"{context['message']}: {context.get('exception')!r}"))
    try:
        yield heard
    finally:
        loop.set_exception_handler(None)


@both
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.timeout(180)
async def test_whatever_both_sides_do(seed: int, over: Over) -> None:
    """Every conversation ends, with what was promised; then nothing is under way, and the server drains at once."""
    whims = Whims(random.Random(seed))
    settings: dict[str, Untyped] = {"telemetry": Telemetry(log=None)}
    network = MemoryNetwork() if over == "memory" else None
    address = "127.0.0.1:0"
    if network is not None:
        settings["wire"], address = network.listener(), "server:0"
    elif over == "native":
        settings["wire"] = "native"
    server = Server(address, drain=Drain(delay=0.0, grace=PATIENCE), **settings)
    echo(Echo=whims.echo, Expand=whims.expand, Sum=whims.sum, Chat=whims.chat)(server)
    left = 0
    with complaints() as heard:
        async with no_leaks(server, patience=5.0):
            await server.start()
            try:
                wire: dict[str, Untyped] = {} if network is None else {"wire": network.wire(server.addresses[0])}
                async with connect(server.addresses[0], telemetry=settings["telemetry"], **wire) as channel:
                    await asyncio.gather(*(whims.client(stub_of(channel)) for _ in range(CLIENTS)))
                    left = await server.drain()
                    assert not channel._under_way
            finally:
                await server.stop(0.0)
    print(f"{over}, seed {seed}: {dict(whims.outcomes)}")
    assert not whims.wrong
    assert not heard
    assert not left
    assert whims.outcomes["NoneType"] > CLIENTS * EACH / 10
