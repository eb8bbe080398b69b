"""A client that knows nothing of us, plain grpcio with a retry policy of its own, comes back when we say so, if at all."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import math
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import grpc
import pytest

from servicekit import Call, Code, Endpoint, Error, Message, Middleware
from servicekit.middleware import Bulkhead, Faults, LoadShedding, RateLimit
from servicekit.testing import pair
from servicekit.testing.v1.echo_pb2 import EchoRequest, EchoResponse
from tests.system.load import ECHO, REQUEST, Stalls, Untyped
from tests.transport.clients import Context, echo

pytestmark = pytest.mark.system

OWN = 0.01
"""Seconds for which the client's own policy would wait."""

LATE = 0.3
"""Seconds that another attempt may come late, on a machine that does nothing else."""

POLICY = json.dumps(
    {
        "methodConfig": [
            {
                "name": [{}],
                "retryPolicy": {
                    "maxAttempts": 4,
                    "initialBackoff": f"{OWN}s",
                    "maxBackoff": f"{OWN}s",
                    "backoffMultiplier": 1,
                    "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED"],
                },
            }
        ]
    }
)


@dataclass
class Attempts:
    """A link: when each attempt came, which one the client says it is, and when it was asked to come back."""

    came: list[float] = field(default_factory=list)
    numbers: list[str | bytes | None] = field(default_factory=list)
    asked: list[float | None] = field(default_factory=list)
    refused: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))

    async def __call__(self, request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        self.came.append(time.monotonic())
        self.numbers.append(call.metadata.get("grpc-previous-rpc-attempts"))
        number = len(self.asked)
        self.asked.append(None)
        try:
            return await next(request, call)
        except Error as error:
            self.asked[number] = error.retry_after
            self.refused.release()
            raise

    def waited(self) -> list[float]:
        """Return the seconds between two attempts, each."""
        return [later - earlier for earlier, later in itertools.pairwise(self.came)]


@contextlib.asynccontextmanager
async def plain(target: str, *options: tuple[str, str]) -> AsyncIterator[Untyped]:
    """The method, over a channel of nothing but grpcio."""
    settings = [("grpc.service_config", POLICY), *options]
    async with grpc.aio.insecure_channel(target, options=settings) as channel:
        await channel.channel_ready()
        yield channel.unary_unary(ECHO)


@dataclass
class Held:
    """A servicer whose first call waits, and whose others do not."""

    begun: asyncio.Event = field(default_factory=asyncio.Event)
    release: asyncio.Event = field(default_factory=asyncio.Event)

    async def echo(self, request: EchoRequest, context: Context) -> EchoResponse:
        if not self.begun.is_set():
            self.begun.set()
            await self.release.wait()
        return EchoResponse(text=request.text)


def obeyed(attempts: Attempts, stalls: Stalls, *, first: int) -> None:
    """Assert that the attempts from the ``first`` on are those of one call, and that each came when it was asked to."""
    assert attempts.numbers[first:] == [None, *(str(n) for n in range(1, len(attempts.numbers) - first))]
    late = LATE + stalls.lost if stalls.sound else math.inf
    for waited, asked in zip(attempts.waited()[first:], attempts.asked[first:], strict=False):
        print(f"\nasked for {(asked or 0.0) * 1e3:.0f} ms, came after {waited * 1e3:.0f} ms")
        assert asked is not None
        assert asked - 0.001 <= waited <= asked + late  # whole milliseconds go over the wire


async def test_a_rate_limit_is_waited_for() -> None:
    """The client comes back when there is a token, which is what it was told, and is served at the second attempt."""
    attempts, stalls = Attempts(), Stalls(0.02)
    async with (
        pair(echo(), over="socket", middleware=[attempts, RateLimit(per_second=2, burst=1)]) as ends,
        plain(ends.server.addresses[0]) as method,
        stalls.watching(),
    ):
        await method(REQUEST, timeout=5)
        await method(REQUEST, timeout=5)
    assert len(attempts.came) == 3
    assert attempts.asked[1] is not None
    assert attempts.asked[1] > 10 * OWN
    obeyed(attempts, stalls, first=1)


@pytest.mark.parametrize(
    "full",
    [Bulkhead(concurrency=1, retry_after=0.4), LoadShedding(initial=1, least=1, most=1, retry_after=0.4)],
    ids=["bulkhead", "load shedding"],
)
async def test_a_full_server_is_waited_for(full: Middleware) -> None:
    """Each further attempt comes after what this one was told; once there is room again, it is served."""
    attempts, stalls, held = Attempts(), Stalls(0.02), Held()
    async with (
        pair(echo(Echo=held.echo), over="socket", middleware=[attempts, full]) as ends,
        plain(ends.server.addresses[0]) as method,
        stalls.watching(),
    ):
        first = method(REQUEST, timeout=5)
        await held.begun.wait()
        second = asyncio.ensure_future(served(method(REQUEST, timeout=5)))
        for _ in range(2):
            await attempts.refused.acquire()
        held.release.set()
        await first
        assert await second
    assert len(attempts.came) == 4
    obeyed(attempts, stalls, first=1)


async def served(call: Untyped) -> bool:
    """Whether a call is served."""
    await call
    return True


async def test_no_means_no() -> None:
    """Told not to come back, it does not, though its policy has three more attempts; and the caller sees the refusal."""
    attempts = Attempts()
    no = Faults(abort=Error(Code.UNAVAILABLE, "not again", retry_after=-1))
    async with (
        pair(echo(), over="socket", middleware=[attempts, no]) as ends,
        plain(ends.server.addresses[0]) as method,
    ):
        with pytest.raises(grpc.aio.AioRpcError, match="not again") as caught:
            await method(REQUEST, timeout=5)
        await asyncio.sleep(LATE)
    assert len(attempts.came) == 1
    assert dict(caught.value.trailing_metadata() or ())["grpc-retry-pushback-ms"] == "-1"


async def test_without_pushback_it_does_as_it_likes() -> None:
    """All its attempts at once: else the rest of this would prove nothing."""
    attempts, stalls = Attempts(), Stalls(0.02)
    async with (
        pair(echo(), over="socket", middleware=[attempts, Faults(abort=Code.UNAVAILABLE)]) as ends,
        plain(ends.server.addresses[0]) as method,
        stalls.watching(),
    ):
        with pytest.raises(grpc.aio.AioRpcError, match="injected fault"):
            await method(REQUEST, timeout=5)
    assert len(attempts.came) == 4
    assert not stalls.sound or max(attempts.waited()) < LATE + stalls.lost


async def test_a_server_that_goes_sends_it_elsewhere() -> None:
    """What is under way when the grace is over says nothing of when to come back: another server takes it at once."""
    held = Held()
    async with (
        pair(echo(Echo=held.echo), over="socket") as one,
        pair(echo(Echo=held.echo), over="socket") as two,
        plain(
            f"ipv4:{one.server.addresses[0]},{two.server.addresses[0]}", ("grpc.lb_policy_name", "round_robin")
        ) as method,
    ):
        call = asyncio.ensure_future(served(method(REQUEST, timeout=5)))
        await held.begun.wait()
        going = next(ends.server for ends in (one, two) if ends.server.in_flight)
        await going.stop(0.0)
        assert await call
