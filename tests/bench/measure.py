"""The rounds: every subject of a group once in each, so that what slows the machine slows all of them alike."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from .load import Generator, on_server
from .peers import grpc_go, pygrpc_native
from .worker import Worker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .load import Load
    from .plan import Group, Subject

WARM_UP = 0.3
"""Seconds of load before anything is measured, and from which is told how many calls fill a round."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cores:
    """Which core the process under test has, and which one the rest. None where there is no second one."""

    tested: int | None
    other: int | None

    @classmethod
    def split(cls) -> Cores:
        """Return the last and the first core that this process may use; the first is where interrupts tend to go."""
        usable = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        return cls(tested=usable[-1], other=usable[0]) if len(usable) > 1 else cls(tested=None, other=None)

    def __str__(self) -> str:
        """Return how the processes are pinned, in words."""
        if self.tested is None:
            return "nothing is pinned: there is one core"
        return (
            f"what is measured is pinned to core {self.tested}, the other side to core {self.other} (sched_setaffinity)"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One subject in one round. ``cost`` is seconds of CPU per unit, ``rate`` units per second, the rest is seconds."""

    cost: float
    rate: float
    p50: float
    p99: float


Samples: TypeAlias = dict[str, list[Sample]]
"""A group's samples, by subject; number i of each was taken in round i."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """How everything is measured."""

    rounds: int
    seconds: float
    loop: str
    cores: Cores
    h2load: bool = True  # False: not even where it is installed
    progress: Callable[[str], object] = print

    def absent(self, subject: Subject) -> str:
        """Return why ``subject`` cannot be measured here; nothing when it can."""
        if subject.server == "grpc-go":
            return grpc_go().missing
        if subject.server == "pygrpc-native":
            return pygrpc_native().missing
        if subject.shape.tls and on_server(subject.shape, h2=self.h2load) is None:
            return "only h2load makes load over TLS"
        return ""

    async def run(self, group: Group) -> tuple[Samples, str]:
        """Measure all of ``group``; returns the samples and the name of the load."""
        samples: Samples = {subject.name: [] for subject in group.subjects}
        async with contextlib.AsyncExitStack() as processes:
            processes.enter_context(_pinned(self.cores.other))  # what is started from here is there too: h2load
            setups = [await self._set_up(subject, processes) for subject in group.subjects]
            for setup in setups:
                self.progress(f"{group.name}: warming up {setup.subject.name}")
                await setup.warm_up(self.seconds)
            for number in range(self.rounds):
                first = number % len(setups)  # nobody always follows the same one
                for setup in setups[first:] + setups[:first]:
                    self.progress(f"{group.name}: round {number + 1} of {self.rounds}, {setup.subject.name}")
                    samples[setup.subject.name].append(await setup.sample())
            return samples, setups[0].load.name(setups[0].subject.shape)

    async def _set_up(self, subject: Subject, processes: contextlib.AsyncExitStack) -> _Setup:
        """Start what ``subject`` needs: the process under test on its core, the other one on the other."""
        loop = subject.loop or self.loop
        its_core, on_client = self.cores.tested, self.cores.other
        if subject.client is not None:
            its_core, on_client = on_client, its_core
        server = await processes.enter_async_context(_worker("servers", subject.server, loop, its_core))
        port: int = (await server.ask())["port"]
        load: Load | None = on_server(subject.shape, h2=self.h2load) if subject.client is None else None
        if load is None:
            client = await processes.enter_async_context(_worker("clients", subject.client or "bare", loop, on_client))
            load = Generator(client, "a client process" if subject.client else "a grpc.aio client process")
        return _Setup(subject, server, port, load)


class _Setup:
    """One subject, running."""

    def __init__(self, subject: Subject, server: Worker, port: int, load: Load) -> None:
        self.subject = subject
        self.load = load
        self._server = server
        self._port = port
        self._calls = 64

    async def warm_up(self, seconds: float) -> None:
        """Make calls until enough was seen to tell how many of them take ``seconds``."""
        shape = self.subject.shape
        self._calls = shape.connections * shape.streams
        while True:
            loaded = await self.load.run(self._port, shape, self._calls)
            rate = self._calls / loaded.seconds
            if loaded.seconds >= min(WARM_UP, seconds):
                break
            self._calls *= 3
        self._calls = max(shape.connections * shape.streams, round(rate * seconds))

    async def sample(self) -> Sample:
        """Take one sample. The CPU is the whole process's, user and system, all threads."""
        shape = self.subject.shape
        before = (await self._server.ask())["cpu"]
        loaded = await self.load.run(self._port, shape, self._calls)
        used = (await self._server.ask())["cpu"] - before if self.subject.client is None else loaded.used
        units = loaded.calls * shape.units
        return Sample(cost=used / units, rate=units / loaded.seconds, p50=loaded.p50, p99=loaded.p99)


@contextlib.contextmanager
def _pinned(core: int | None) -> Iterator[None]:
    """Pin this process to ``core``, if there is one to choose, for as long as the block takes."""
    if core is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _worker(module: str, name: str, loop: str, core: int | None) -> Worker:
    return Worker(f"{__package__}.{module}", name, loop, "any" if core is None else str(core))
