"""A server that is asked for more than it can do, on the real wire: most of what it can do, it still does, in time.

Capacity is small and exact: the handler holds one of 8 places for so long. The server is a process of its own (this
file, run); calls are offered at a fixed rate, whatever becomes of them, each with a deadline of 1 s.

In the suite a place is held for 80 ms, and each rate for a few seconds; with SOAK=1 in the environment it is 20 ms and
30 s, which wants a machine that has nothing else to do.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest

from servicekit import Server
from servicekit.middleware import standard
from servicekit.middleware.load_shedding import LoadShedding
from servicekit.telemetry import Telemetry
from servicekit.testing.v1.echo_pb2 import EchoRequest, EchoResponse
from tests.transport.clients import Context, Untyped, echo

SOAK = bool(os.environ.get("SOAK"))
PLACES = 8
HOLDS = 0.02 if SOAK else 0.08
SECONDS = 30.0 if SOAK else 3.0
CAPACITY = PLACES / HOLDS
DEADLINE = 1.0
STARVED = 0.2
"""The share of a phase for which the threads of a process had to wait for the machine: above it, times are its other work's."""
ECHO = "/servicekit.testing.v1.EchoService/Echo"
REQUEST = EchoRequest(text="hello").SerializeToString()


async def serve() -> None:
    """Serve until the input ends, and print the address first."""
    places = asyncio.Semaphore(PLACES)

    async def hold(request: EchoRequest, context: Context) -> EchoResponse:
        async with places:
            await asyncio.sleep(HOLDS)
        return EchoResponse(text=request.text)

    telemetry = Telemetry(log=None)
    server = Server("127.0.0.1:0", middleware=[*standard(telemetry), LoadShedding()], telemetry=telemetry)
    echo(Echo=hold)(server)
    await server.start()
    print(server.addresses[0], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await server.stop(0.0)


@contextlib.asynccontextmanager
async def a_server() -> AsyncIterator[tuple[str, int]]:
    """The address of such a server, and its process."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.system.test_overload",
        cwd=Path(__file__).parents[2],
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin
    assert process.stdout
    try:
        yield (await process.stdout.readline()).decode().strip(), process.pid
    finally:
        process.stdin.close()
        await process.wait()


@dataclass
class Phase:
    """What became of the calls that were offered at one rate."""

    name: str
    rate: float
    seconds: float
    codes: Counter[str] = field(default_factory=Counter)
    served: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    cpu: dict[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def goodput(self) -> float:
        """Calls that were served, a second."""
        return len(self.served) / self.seconds

    @property
    def p99(self) -> float:
        return quantile(self.served, 0.99)

    @property
    def starved(self) -> float:
        """The share of the time for which one of the processes had to wait for the machine."""
        return max(waited for _, waited in self.cpu.values()) / self.seconds

    def __str__(self) -> str:
        cpu = ", ".join(
            f"{who} {run / self.seconds:.0%} + {waited / self.seconds:.0%} waiting"
            for who, (run, waited) in self.cpu.items()
        )
        served, refused = self.served, self.refused
        return (
            f"{self.name:>9}: {self.rate:5.0f}/s offered, {self.goodput:5.1f}/s served ({self.goodput / CAPACITY:4.0%} of C),"
            f" p50 {quantile(served, 0.5) * 1e3:5.1f} p99 {self.p99 * 1e3:5.1f} ms;"
            f" refused {len(refused):4}, p50 {quantile(refused, 0.5) * 1e3:4.1f} ms; {dict(self.codes)};"
            f" CPU: {cpu}"
        )


def quantile(times: list[float], share: float) -> float:
    return sorted(times)[min(len(times) - 1, int(share * len(times)))] if times else 0.0


def cpu_of(pid: int) -> tuple[float, float]:
    """Seconds that a process has run, and seconds that it could have but had to wait, where ``/proc`` tells."""
    run = waited = 0
    with contextlib.suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            fields = (thread / "schedstat").read_text().split()
            run, waited = run + int(fields[0]), waited + int(fields[1])
    return run / 1e9, waited / 1e9


async def offer(channel: grpc.aio.Channel, name: str, rate: float, seconds: float) -> Phase:
    """Begin so many calls a second for so long, whatever becomes of them, and wait for the last."""
    phase = Phase(name, rate, seconds)
    method: Untyped = channel.unary_unary(ECHO)
    tasks = set()

    async def one() -> None:
        begun = time.monotonic()
        try:
            await method(REQUEST, timeout=DEADLINE)
        except grpc.aio.AioRpcError as error:
            phase.refused.append(time.monotonic() - begun)
            told = any(key == "grpc-retry-pushback-ms" for key, _ in error.trailing_metadata() or ())
            phase.codes[error.code().name if told else f"{error.code().name} without pushback"] += 1
        else:
            phase.codes["OK"] += 1
            phase.served.append(time.monotonic() - begun)

    begun = time.monotonic()
    for number in range(int(rate * seconds)):
        pause = begun + number / rate - time.monotonic()
        if pause > 0:
            await asyncio.sleep(pause)
        tasks.add(asyncio.create_task(one()))
    await asyncio.gather(*tasks)
    return phase


@pytest.mark.system
@pytest.mark.timeout(200)
async def test_overload() -> None:
    """Of twice the capacity 80 % of it is served, of four times 70 %, within three times the usual time; then all."""
    phases = []
    async with a_server() as (address, pid), grpc.aio.insecure_channel(address) as channel:
        processes = {"server": pid, "client": os.getpid()}
        for name, times, seconds in (
            ("unloaded", 0.5, 2.0),
            ("2C", 2.0, SECONDS),
            ("4C", 4.0, SECONDS),
            ("after", 0.5, 2.0),
            ("C", 1.0, 2.0),
        ):
            before = {who: cpu_of(process) for who, process in processes.items()}
            phase = await offer(channel, name, times * CAPACITY, seconds)
            for who, process in processes.items():
                run, waited = cpu_of(process)
                phase.cpu[who] = (run - before[who][0], waited - before[who][1])
            phases.append(phase)
    print()
    print(*phases, sep="\n")
    usual, twice, four_times, after, at_capacity = phases
    assert usual.codes.keys() == {"OK"}
    assert at_capacity.goodput >= 0.8 * CAPACITY
    assert twice.goodput >= 0.8 * CAPACITY
    assert four_times.goodput >= 0.7 * CAPACITY
    for phase in (twice, four_times):
        if phase.starved < STARVED:
            assert phase.p99 <= 3 * usual.p99
            assert phase.codes.keys() == {"OK", "UNAVAILABLE"}  # the latter with pushback
    assert after.codes.keys() == {"OK"}


if __name__ == "__main__":
    asyncio.run(serve())
