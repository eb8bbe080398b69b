"""Whoever is refused is told when to come back, in the words that any gRPC client obeys: pushback, and RetryInfo."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import pytest
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status

from servicekit.endpoint import Middleware
from servicekit.errors import Code, Error
from servicekit.middleware import (
    AdaptiveThrottle,
    ApiKeyAuth,
    Authorize,
    Bulkhead,
    CircuitBreaker,
    Credentials,
    JwtAuth,
    LoadShedding,
    RateLimit,
    Token,
    hash_key,
)
from servicekit.testing import pair
from servicekit.testing.pair import Over, Pair
from servicekit.testing.v1.echo_pb2 import EchoRequest, EchoResponse
from servicekit.transport.call_error import CallError
from tests.transport.clients import echo, stub_of

Untyped: TypeAlias = Any

OVER: list[Over] = ["memory", "socket"]


class Broken:
    """A store that cannot be asked, and a policy that fails."""

    def check(self, *, per_second: float, burst: int) -> None:
        pass

    async def take(self, key: str, *, per_second: float, burst: int) -> float:
        raise OSError

    async def load_policy(self) -> None:
        raise OSError

    async def enforce(self, *question: object) -> bool:
        raise OSError


@dataclass(frozen=True)
class Case:
    """Links that refuse the call that comes while others are ``held``, or after some that have failed."""

    links: Callable[[], Sequence[Middleware]]
    code: Code
    held: int = 0
    fails: bool = False
    timeout: float | None = None


RESOURCE_EXHAUSTED, UNAVAILABLE = Code.RESOURCE_EXHAUSTED, Code.UNAVAILABLE
CASES = {
    "rate limit": Case(lambda: [RateLimit(per_second=0.1, burst=1)], RESOURCE_EXHAUSTED, held=1),
    "rate limit that waits": Case(
        lambda: [RateLimit(per_second=0.1, burst=1, wait=True)], RESOURCE_EXHAUSTED, held=1, timeout=5.0
    ),
    "rate limit that fails closed": Case(
        lambda: [RateLimit(per_second=1, store=Broken(), fail_open=False)], UNAVAILABLE
    ),
    "bulkhead": Case(lambda: [Bulkhead(concurrency=1)], RESOURCE_EXHAUSTED, held=1),
    "load shedding": Case(lambda: [LoadShedding(initial=1, least=1, most=1)], UNAVAILABLE, held=1),
    "circuit breaker": Case(lambda: [CircuitBreaker(calls=1)], UNAVAILABLE, fails=True),
    "keys that cannot be fetched": Case(
        lambda: [JwtAuth(jwks_url="http://127.0.0.1:1/", issuer="i", audience="a")], UNAVAILABLE
    ),
    "policy that cannot be asked": Case(
        lambda: [ApiKeyAuth({"a": hash_key("k" * 40)}), Authorize(enforcer=Broken(), question=lambda *_: ["a"])],
        UNAVAILABLE,
    ),
}


@asynccontextmanager
async def serving(
    over: Over, middleware: Sequence[Middleware] = (), client: Sequence[Middleware] = ()
) -> AsyncIterator[tuple[Pair, asyncio.Semaphore, asyncio.Event]]:
    """A pair whose Echo fails or waits when asked to; what counts those who wait, and what lets them go."""
    arrived, go = asyncio.Semaphore(0), asyncio.Event()

    async def answer(request: EchoRequest, _: object) -> EchoResponse:
        if request.text == "fail":
            raise Error(Code.INTERNAL, "broken")
        if request.text == "hold":
            arrived.release()
            await go.wait()
        return EchoResponse(text=request.text)

    async with pair(echo(Echo=answer), over=over, middleware=middleware, client=client) as ends:
        yield ends, arrived, go


async def refused(stub: Untyped, case: Case, arrived: asyncio.Semaphore, go: asyncio.Event) -> CallError:
    held = [asyncio.ensure_future(call(stub, "hold")) for _ in range(case.held)]
    for _ in held:
        await arrived.acquire()
    shown = [("authorization", "Bearer eyJhbGciOiJSUzI1NiIsImtpZCI6ImEifQ.e30.AAAA"), ("x-api-key", "k" * 40)]
    request = EchoRequest(text="fail" if case.fails else "hi")
    error: CallError | None = None
    while error is None or error.error.code is Code.INTERNAL:  # one throws dice
        with pytest.raises(CallError) as caught:
            await stub.Echo(request, timeout=case.timeout, metadata=shown)
        error = caught.value
    go.set()
    await asyncio.gather(*held)
    return error


async def call(stub: Untyped, text: str) -> object:
    return await stub.Echo(EchoRequest(text=text))


def told(error: CallError) -> tuple[int, float]:
    """The pushback in milliseconds and RetryInfo in seconds, as they came over the wire."""
    trailers = dict(tuple(each) for each in error.trailing_metadata())
    (info,) = [
        each for each in Status.FromString(trailers["grpc-status-details-bin"]).details if each.Is(RetryInfo.DESCRIPTOR)
    ]
    retry = RetryInfo()
    info.Unpack(retry)
    return int(trailers["grpc-retry-pushback-ms"]), retry.retry_delay.ToNanoseconds() / 1e9


@pytest.mark.parametrize("over", OVER)
@pytest.mark.parametrize("name", CASES)
async def test_a_refusal_of_a_server_tells_when_to_come_back(name: str, over: Over) -> None:
    """Every link that turns a call away for now says for how long, twice over the wire, and so it is read back."""
    case = CASES[name]
    async with serving(over, middleware=case.links()) as (ends, arrived, go):
        error = await refused(stub_of(ends.channel), case, arrived, go)
    assert error.error.code is case.code
    pushback, retry = told(error)
    assert 0 < pushback <= 20_000
    assert retry == pytest.approx(pushback / 1000, abs=0.002)
    assert error.retry_after == pytest.approx(pushback / 1000)


@pytest.mark.parametrize("over", OVER)
async def test_a_call_that_is_abandoned_at_the_end_is_told_too(over: Over) -> None:
    """What a server that goes cannot finish may be asked again soon, of another one."""
    async with serving(over) as (ends, arrived, _):
        running = asyncio.ensure_future(call(stub_of(ends.channel), "hold"))
        await arrived.acquire()
        stopping = asyncio.ensure_future(ends.server.stop(0.0))
        with pytest.raises(CallError) as caught:
            await running
        while ends.movable is not None and not stopping.done():
            await ends.clock.advance(1.0)
        await stopping
    assert caught.value.error.code is UNAVAILABLE
    assert told(caught.value) == (100, 0.1)


def no_token() -> Token:
    raise OSError


LOCAL = {
    **{name: CASES[name] for name in ("rate limit", "bulkhead", "circuit breaker")},
    "adaptive throttle": Case(lambda: [AdaptiveThrottle()], UNAVAILABLE, fails=True),
    "credentials": Case(lambda: [Credentials(no_token)], UNAVAILABLE),
}


@pytest.mark.parametrize("over", OVER)
@pytest.mark.parametrize("name", LOCAL)
async def test_a_refusal_of_a_client_tells_it_too(name: str, over: Over) -> None:
    """The caller reads it off the error as if it had come over the wire; nothing was sent."""
    case = LOCAL[name]
    async with serving(over, client=case.links()) as (ends, arrived, go):
        error = await refused(stub_of(ends.channel), case, arrived, go)
    assert (error.error.code, error.error.refused, error.error.begun) == (case.code, True, False)
    assert error.retry_after is not None
    assert 0 < error.retry_after <= 20
