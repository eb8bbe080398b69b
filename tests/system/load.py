"""Calls at a fixed rate and what became of them, and the moments in which the machine did not let a process run.

A test with numbers is about the program, and the machine may have other work. Each process that takes part watches its
own loop: one that is late, and not because of what the process itself has computed, was not let run. Calls that were
under way in such a moment, or right after it, are counted but not judged. Where threads had to wait for a core for much
of the time (as Linux counts it), nothing is.
"""

from __future__ import annotations

import asyncio
import bisect
import contextlib
import os
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import grpc

from servicekit.testing.v1.echo_pb2 import EchoRequest

Untyped: TypeAlias = Any
"""What grpc leaves untyped."""

ECHO = "/servicekit.testing.v1.EchoService/Echo"
REQUEST = EchoRequest(text="hello").SerializeToString()
"""A method without a stub, and what it is sent: so a call costs the one who offers it least."""

ENOUGH = 50
"""Calls that there must be at least to say anything of their times."""

SOAK = bool(os.environ.get("SOAK"))
"""Whether the tests are run at full size, which wants a machine that has nothing else to do."""

STARVED = 0.2
"""The share of a phase for which the threads of a process may have waited for a core, if it is to say anything."""


@dataclass
class Stalls:
    """The times (begin, end), on the machine's monotonic clock, in which a process was stalled for more than ``over``."""

    over: float
    seen: list[tuple[float, float]] = field(default_factory=list)
    starved: float = 0.0

    @property
    def lost(self) -> float:
        """Seconds of all stalls together."""
        return sum(end - begin for begin, end in self.seen)

    @property
    def sound(self) -> bool:
        """Whether the machine has left this process enough of the watched time to say anything."""
        return self.starved < STARVED

    async def watch(self, tell: Callable[[float, float], None] | None = None) -> None:
        """Watch the running loop until cancelled."""
        every = self.over / 4
        while True:
            begun, worked = time.monotonic(), time.process_time()
            await asyncio.sleep(every)
            now = time.monotonic()
            if now - begun - every - (time.process_time() - worked) > self.over:
                self.seen.append((begun, now))
                if tell:
                    tell(begun, now)

    @contextlib.asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Watch the running loop, and how long this process waits for a core, for as long as the block lasts."""
        task = asyncio.create_task(self.watch())
        begun, before = time.monotonic(), waited(os.getpid())
        try:
            yield
        finally:
            self.starved = (waited(os.getpid()) - before) / (time.monotonic() - begun)
            task.cancel()
            await asyncio.wait([task])


@dataclass(frozen=True, slots=True)
class Made:
    """A call that has ended, in ``code`` or in that and " without pushback"."""

    begun: float
    ended: float
    code: str

    @property
    def seconds(self) -> float:
        return self.ended - self.begun


@dataclass
class Phase:
    """What became of the calls that were offered at one rate."""

    name: str
    rate: float
    seconds: float
    begun: float = field(default_factory=time.monotonic)
    calls: list[Made] = field(default_factory=list)
    stalls: list[tuple[float, float]] = field(default_factory=list)
    settling: float = 0.0
    starved: float | None = None

    def without(self, stalls: list[tuple[float, float]], after: float) -> None:
        """Judge no call that was under way in one of ``stalls``, or for ``after`` seconds after it."""
        until = self.begun + self.seconds
        self.stalls = sorted((begin, end) for begin, end in stalls if begin < until and end > self.begun)
        self.settling = after

    @property
    def codes(self) -> Counter[str]:
        """Of all calls."""
        return Counter(call.code for call in self.calls)

    @property
    def judged(self) -> list[Made]:
        """The calls that no stall had to do with."""
        return [
            call
            for call in self.calls
            if not any(begin < call.ended and call.begun < end + self.settling for begin, end in self.stalls)
        ]

    @property
    def served(self) -> list[Made]:
        """The judged calls that were served."""
        return [call for call in self.judged if call.code == "OK"]

    @property
    def sound(self) -> bool:
        """Whether the machine has left enough of it to say anything."""
        return len(self.served) >= ENOUGH and self.starved is not None and self.starved < STARVED

    @property
    def lost(self) -> float:
        """The share of the time that the machine had for others."""
        lost, until = 0.0, self.begun
        for begin, end in self.stalls:
            lost, until = lost + max(0.0, end - max(begin, until)), max(until, end)
        return min(1.0, lost / self.seconds)

    def goodput(self) -> float:
        """Calls that were served, a second."""
        return self.codes["OK"] / self.seconds

    def quantile(self, share: float) -> float:
        """The time in which such a share of the judged calls that were served had ended."""
        return quantile([call.seconds for call in self.served], share)

    def __str__(self) -> str:
        text = (
            f"{self.name:>12}: {self.rate:5.0f}/s offered, {self.goodput():6.1f}/s served,"
            f" p50 {self.quantile(0.5) * 1e3:6.1f} p99 {self.quantile(0.99) * 1e3:6.1f} ms; {dict(self.codes)}"
        )
        if self.starved is None:
            return text
        judged = f"{len(self.judged)} calls judged" if self.sound else "NOT JUDGED"
        return f"{text}; stalled for {self.lost:.0%}, starved for {self.starved:.0%}: {judged}"


def quantile(times: list[float], share: float) -> float:
    """Return what such a share of ``times`` is below; 0 when there are none."""
    return sorted(times)[min(len(times) - 1, int(share * len(times)))] if times else 0.0


def most_within(times: list[float], width: float) -> int:
    """Return how many of ``times``, sorted, lie at most in any window of ``width``."""
    return max((bisect.bisect_right(times, begin + width) - place for place, begin in enumerate(times)), default=0)


async def offer(call: Callable[[], Awaitable[object]], name: str, rate: float, seconds: float) -> Phase:
    """Begin so many calls a second for so long, whatever becomes of them, and wait for the last."""
    phase = Phase(name, rate, seconds)

    async def one() -> None:
        code, begun = "OK", time.monotonic()
        try:
            await call()
        except grpc.aio.AioRpcError as error:
            told = any(key == "grpc-retry-pushback-ms" for key, _ in error.trailing_metadata() or ())
            code = error.code().name if told else f"{error.code().name} without pushback"
        phase.calls.append(Made(begun, time.monotonic(), code))

    tasks = set()
    for number in range(int(rate * seconds)):
        pause = phase.begun + number / rate - time.monotonic()
        if pause > 0:
            await asyncio.sleep(pause)
        tasks.add(asyncio.create_task(one()))
    await asyncio.gather(*tasks)
    return phase


def waited(pid: int) -> float:
    """Return for how many seconds the threads of a process had to wait for a core, where ``/proc`` tells."""
    nanoseconds = 0
    with contextlib.suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            nanoseconds += int((thread / "schedstat").read_text().split()[1])
    return nanoseconds / 1e9


async def until_told(stalls: Stalls, address: str) -> None:
    """In a server's process: print the address, then each stall as it happens, until the input ends."""
    print(address, flush=True)
    watch = asyncio.create_task(stalls.watch(lambda begin, end: print(begin, end, flush=True)))
    try:
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    finally:
        watch.cancel()
        await asyncio.wait([watch])


@dataclass
class Process:
    """A server in a process of its own."""

    address: str
    pid: int
    seen: list[tuple[float, float]] = field(default_factory=list)


@contextlib.asynccontextmanager
async def a_process(module: str, *arguments: str) -> AsyncIterator[Process]:
    """Run ``module``, which ends with ``until_told``, for as long as the block lasts."""
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        module,
        *arguments,
        cwd=Path(__file__).parents[2],
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert child.stdin
    assert child.stdout
    output = child.stdout
    process = Process((await output.readline()).decode().strip(), child.pid)

    async def read() -> None:
        async for line in output:
            begin, end = line.split()
            process.seen.append((float(begin), float(end)))

    reading = asyncio.create_task(read())
    try:
        yield process
    finally:
        child.stdin.close()
        await child.wait()
        await reading


async def soundly(
    offering: Callable[[], Awaitable[Phase]],
    stalls: Stalls,
    *others: Process,
    settling: float,
    rounds: int = 1 if SOAK else 3,
) -> Phase:
    """Return the first phase that says something of this process and ``others``, or else the last of ``rounds``."""
    pids = [os.getpid(), *(process.pid for process in others)]
    seen = [stalls.seen, *(process.seen for process in others)]
    while True:
        before = [waited(pid) for pid in pids]
        phase = await offering()
        phase.without([stall for party in seen for stall in party], settling)
        phase.starved = max(waited(pid) - was for pid, was in zip(pids, before, strict=True)) / phase.seconds
        rounds -= 1
        if phase.sound or not rounds:
            return phase
