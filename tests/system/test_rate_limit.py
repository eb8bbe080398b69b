"""A token bucket is exact, whatever comes over the wire: no window holds more than was promised.

With SOAK=1 in the environment calls come for 30 s, else for 3 s.
"""

from __future__ import annotations

import contextlib
import itertools

import grpc
import pytest

from servicekit import Call, Endpoint, Message, Server, Telemetry
from servicekit.clock import SystemClock
from servicekit.middleware import RateLimit
from tests.system.load import ECHO, REQUEST, SOAK, Stalls, Untyped, offer
from tests.transport.clients import echo

SECONDS = 30.0 if SOAK else 3.0
RATE, BURST, TIMES, CHANNELS = 50.0, 20, 6, 4
ROUNDING = 1e-6


class Noted(SystemClock):
    """Remembers the last time that somebody was told."""

    last = 0.0

    def time(self) -> float:
        self.last = SystemClock.time()
        return self.last


def most(times: list[float]) -> float:
    """Return by how much any window holds more than ``RATE * w``, at most: over all windows, each end one of ``times``."""
    ahead = [number - RATE * at for number, at in enumerate(times)]
    lowest = itertools.accumulate(ahead, min)
    return max(now - low + 1 for now, low in zip(ahead, lowest, strict=True))


@pytest.mark.system
@pytest.mark.timeout(120)
@pytest.mark.parametrize("way", ["refusing", "waiting"])
async def test_no_window_holds_more(way: str) -> None:
    """Accepted in any window w <= rate * w + burst, at six times the rate from four channels; and all that may be, is."""
    clock = Noted()
    accepted: list[float] = []
    stalls = Stalls(0.02)

    async def note(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        accepted.append(clock.last)  # when the token was taken: the loop has done nothing else since
        return await next(request, call)

    limit = RateLimit(per_second=RATE, burst=BURST, wait=way == "waiting")
    server = Server("127.0.0.1:0", middleware=[limit, note], telemetry=Telemetry(log=None), clock=clock)
    echo()(server)
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(server)
        methods: list[Untyped] = []
        for number in range(CHANNELS):  # of their own, not one connection that they share
            options = [("grpc.use_local_subchannel_pool", 1), ("servicekit.number", number)]
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(server.addresses[0], options=options))
            methods.append(channel.unary_unary(ECHO))
        await stack.enter_async_context(stalls.watching())
        turns = itertools.cycle(methods)
        phase = await offer(lambda: next(turns)(REQUEST, timeout=1.0), way, TIMES * RATE, SECONDS)
    passed = accepted[-1] - accepted[0]
    ahead = most(accepted)
    print(
        f"\n{phase}\n{len(accepted)} accepted in {passed:.2f} s; any window w holds {RATE:.0f}/s * w + {ahead:.2f} at most"
    )
    assert ahead <= BURST + ROUNDING
    assert phase.codes.keys() <= {"OK", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED without pushback"}
    if stalls.sound:
        assert len(accepted) >= 0.9 * (RATE * passed + BURST)
        assert phase.codes["OK"] >= 0.8 * len(accepted)  # of those who wait some have their turn just before their end
