"""A deadline is one for all who work for a call: three real servers in a row, of which the last would take 10 s.

With SOAK=1 in the environment it is 200 calls, else 10.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import defaultdict

import grpc
import pytest

from servicekit import Telemetry, connect
from servicekit.middleware import standard, standard_client
from servicekit.testing import pair
from servicekit.testing.v1.echo_pb2 import EchoRequest, EchoResponse
from servicekit.transport.channel import Channel
from tests.system.load import SOAK, Stalls
from tests.transport.clients import Context, echo, stub_of

CALLS = 200 if SOAK else 10
DEADLINE = 0.3
SEEN = 0.4
OVER = 0.5


class Link:
    """A servicer that passes every call on, or works for 10 s; ``ended`` is when each call was cancelled."""

    def __init__(self, name: str, ended: dict[str, list[float]], following: Channel | None) -> None:
        self.name = name
        self.ended = ended
        self.following = following

    async def echo(self, request: EchoRequest, context: Context) -> EchoResponse:
        try:
            if self.following is None:
                await asyncio.sleep(10)
                return EchoResponse()
            response: EchoResponse = await stub_of(self.following).Echo(request)
        except (asyncio.CancelledError, grpc.aio.AioRpcError):
            self.ended[self.name].append(time.monotonic())
            raise
        else:
            return response


@pytest.mark.system
@pytest.mark.timeout(200)
async def test_all_see_the_end() -> None:
    """300 ms at the first of three: all see the end by 400 ms, and at 500 ms there is no task left of the call."""
    ended: dict[str, list[float]] = defaultdict(list)
    latest: dict[str, float] = defaultdict(float)
    telemetry, stalls = Telemetry(log=None), Stalls(0.01)
    async with contextlib.AsyncExitStack() as stack:
        channel: Channel | None = None
        address, servers = "", []
        for name in "CBA":
            link = Link(name, ended, channel)
            ends = await stack.enter_async_context(
                pair(echo(Echo=link.echo), over="socket", middleware=standard(telemetry), telemetry=telemetry)
            )
            servers.append(ends.server)
            address = ends.server.addresses[0]
            channel = await stack.enter_async_context(connect(address, middleware=standard_client(telemetry)))
        plain = await stack.enter_async_context(grpc.aio.insecure_channel(address))
        await plain.channel_ready()
        await stack.enter_async_context(stalls.watching())
        for number in range(CALLS + 1):
            before, begun = asyncio.all_tasks(), time.monotonic()
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub_of(plain).Echo(EchoRequest(), timeout=DEADLINE)
            assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            latest["client"] = max(latest["client"], time.monotonic() - begun)
            await asyncio.sleep(begun + OVER - time.monotonic())
            if number == 0:  # the first one had to connect
                latest.clear()
                continue
            lost = sum(end - begin for begin, end in stalls.seen if end > begun)
            if lost < 0.01:
                left = [
                    task for task in asyncio.all_tasks() - before if "_request_call" not in repr(task)
                ]  # waits for others
                assert not left
                assert [server.in_flight for server in servers] == [0, 0, 0]
            for name in "ABC":
                assert len(ended[name]) == number + 1
                latest[name] = max(latest[name], ended[name][-1] - begun - lost)
    print(f"\n{CALLS} calls with {DEADLINE * 1e3:.0f} ms; the latest end seen, in ms: ", end="")
    print(", ".join(f"{name} {seconds * 1e3:.0f}" for name, seconds in sorted(latest.items())), end="")
    print(f"; starved for {stalls.starved:.0%}{'' if stalls.sound else ': NOT JUDGED'}")
    for name in "ABC":
        assert not stalls.sound or latest[name] <= SEEN
