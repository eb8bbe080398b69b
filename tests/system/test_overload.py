"""A server that is asked for more than it can do, on the real wire: most of what it can do, it still does, in time.

Capacity is small and exact: the handler holds one of 8 places for so long. The server is a process of its own (this
file, run); calls are offered at a fixed rate, whatever becomes of them, each with a deadline of 1 s.

In the suite a place is held for 80 ms, and each rate for a few seconds; with SOAK=1 in the environment it is 20 ms and
30 s, which wants a machine that has nothing else to do. With WIRE=native it is served over that wire, for which two cores
are enough at full size.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import os

import grpc
import pytest

from servicekit import Server
from servicekit.middleware import standard
from servicekit.middleware.load_shedding import LoadShedding
from servicekit.telemetry import Telemetry
from servicekit.testing.v1.echo_pb2 import EchoRequest, EchoResponse
from tests.system.load import ECHO, REQUEST, SOAK, Stalls, Untyped, a_process, offer, soundly, until_told
from tests.transport.clients import Context, echo

PLACES = 8
HOLDS = 0.02 if SOAK else 0.08
SECONDS = 30.0 if SOAK else 3.0
CAPACITY = PLACES / HOLDS
DEADLINE = 1.0


async def serve() -> None:
    """Serve until the input ends, and print the address first."""
    places = asyncio.Semaphore(PLACES)

    async def hold(request: EchoRequest, context: Context) -> EchoResponse:
        async with places:
            await asyncio.sleep(HOLDS)
        return EchoResponse(text=request.text)

    telemetry = Telemetry(log=None)
    links = [link for link in standard(telemetry) if not isinstance(link, LoadShedding)]
    wire = os.environ.get("WIRE", "grpcio")
    server = Server("127.0.0.1:0", middleware=[*links, LoadShedding()], telemetry=telemetry, wire=wire)
    echo(Echo=hold)(server)
    await server.start()
    gc.collect()
    gc.freeze()  # as a service that is told to be quick does: one collection of all that was imported takes 30 ms
    await until_told(Stalls(HOLDS / 4), server.addresses[0])
    await server.stop(0.0)


@pytest.mark.system
@pytest.mark.timeout(600)
async def test_overload() -> None:
    """Of twice the capacity 80 % of it is served, of four times 70 %, within three times the usual time; then all."""
    phases = []
    stalls = Stalls(HOLDS / 4)
    async with (
        a_process("tests.system.test_overload") as process,
        grpc.aio.insecure_channel(process.address) as channel,
        stalls.watching(),
    ):
        method: Untyped = channel.unary_unary(ECHO)

        def call() -> Untyped:
            return method(REQUEST, timeout=DEADLINE)

        for name, times, seconds in (
            ("unloaded", 0.5, 2.0),
            ("2C", 2.0, SECONDS),
            ("4C", 4.0, SECONDS),
            ("after", 0.5, 2.0),
            ("C", 1.0, 2.0),
        ):
            offering = functools.partial(offer, call, name, times * CAPACITY, seconds)
            phases.append(await soundly(offering, stalls, process, settling=3 * HOLDS))
    print()
    print(*phases, sep="\n")
    usual, twice, four_times, after, at_capacity = phases
    for phase in (usual, after):
        assert not phase.sound or {call.code for call in phase.judged} == {"OK"}
    for phase, share in ((at_capacity, 0.8), (twice, 0.8), (four_times, 0.7)):
        assert not phase.sound or phase.goodput() >= share * (1 - phase.lost) * CAPACITY
    for phase in (twice, four_times):
        if phase.sound and usual.sound:
            assert phase.quantile(0.99) <= 3 * usual.quantile(0.99)
            assert {call.code for call in phase.judged} == {"OK", "UNAVAILABLE"}  # the latter with pushback
    if after.sound and usual.sound:
        assert after.quantile(0.99) <= 2 * usual.quantile(0.99)


if __name__ == "__main__":
    asyncio.run(serve())
