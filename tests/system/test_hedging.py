"""The tail of one instance is not the tail of the service: three servers, one of which is slow now and then.

Reached as core does it, ``ipv4:a,b,c`` with round_robin. With SOAK=1 in the environment calls come for 30 s, else for
4 s.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import random

import pytest

from servicekit import Middleware, connect
from servicekit.middleware import Hedge
from servicekit.testing import pair
from servicekit.testing.v1.echo_pb2 import EchoRequest, EchoResponse
from tests.system.load import SOAK, Phase, Stalls, Untyped, offer, quantile, soundly
from tests.transport.clients import Context, echo, stub_of

SECONDS = 30.0 if SOAK else 4.0
RATE = 200.0
SLOW, ONE_IN = 0.5, 20
WARM = 1.0
USUAL = 0.005, 0.015


class Instance:
    """A servicer that takes ``USUAL`` seconds, and of the ``slow`` one every so many-th call 500 ms more."""

    def __init__(self, *, slow: bool) -> None:
        self.slow = slow
        self.calls = 0
        self.random = random.Random(7)

    async def echo(self, request: EchoRequest, context: Context) -> EchoResponse:
        self.calls += 1
        late = SLOW if self.slow and self.calls % ONE_IN == 0 else 0.0
        await asyncio.sleep(self.random.uniform(*USUAL) + late)
        return EchoResponse(text=request.text)


async def measured(name: str, middleware: list[Middleware]) -> tuple[Phase, float]:
    """Return the calls through ``middleware``, and how many requests there were for each."""
    instances = [Instance(slow=True), Instance(slow=False), Instance(slow=False)]
    stalls = Stalls(0.005)
    async with contextlib.AsyncExitStack() as stack:
        addresses = []
        for instance in instances:
            ends = await stack.enter_async_context(pair(echo(Echo=instance.echo), over="socket"))
            addresses.append(ends.server.addresses[0])
        target = "ipv4:" + ",".join(addresses)
        options = [("grpc.lb_policy_name", "round_robin")]
        channel = await stack.enter_async_context(connect(target, middleware=middleware, options=options))
        await stack.enter_async_context(stalls.watching())
        stub, calls = stub_of(channel), 0

        def call() -> Untyped:
            nonlocal calls
            calls += 1
            return stub.Echo(EchoRequest(text="a"), timeout=2.0)

        await offer(call, "warming up", RATE, WARM)
        phase = await soundly(functools.partial(offer, call, name, RATE, SECONDS), stalls, settling=0.05)
    assert min(instance.calls for instance in instances) >= calls // 4
    return phase, sum(instance.calls for instance in instances) / calls


@pytest.mark.system
@pytest.mark.timeout(300)
async def test_the_tail_is_cut() -> None:
    """One of three servers is slow by 500 ms on 5 % of its calls: p99 from 500 ms to < 60 ms, with <= 5 % more requests."""
    without, _ = await measured("not hedged", [])
    hedged, requests = await measured("hedged", [Hedge()])
    print(f"\n{without}\n{hedged}; {requests - 1:.1%} more requests")
    assert requests <= 1.05
    assert quantile([call.seconds for call in without.calls], 0.99) >= SLOW
    if hedged.sound:
        assert hedged.codes.keys() == {"OK"}
        assert hedged.quantile(0.99) < 0.06
