"""Load on a server, from h2load where it is installed, else from a client process of our own."""

from __future__ import annotations

import asyncio
import re
import shutil
import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from .echo import MESSAGES, STREAM, UNARY
from .stats import quantile

if TYPE_CHECKING:
    from .worker import Worker


@dataclass(frozen=True, slots=True)
class Shape:
    """What is asked for: calls to ``path``, ``streams`` of them at once over each of ``connections``."""

    path: str
    streaming: bool = False
    connections: int = 4
    streams: int = 16

    @property
    def units(self) -> int:
        """How many units of work one call is: a stream is measured by its messages."""
        return MESSAGES if self.streaming else 1


@dataclass(frozen=True, slots=True)
class Loaded:
    """How it went, seen from the load's side. Times are in seconds; ``used`` is CPU, 0 where it is not known."""

    calls: int
    seconds: float
    p50: float
    p99: float
    used: float = 0.0


class Load(Protocol):
    """What makes calls. ``name`` is what the table calls it."""

    def name(self, shape: Shape) -> str:
        """Return what makes the calls, and how many at once."""

    async def run(self, port: int, shape: Shape, calls: int) -> Loaded:
        """Make ``calls`` calls and return when all have been answered. Raises RuntimeError when one was not."""


class Generator:
    """Load from one of our own client processes: one connection, all streams on it."""

    def __init__(self, worker: Worker, label: str) -> None:
        """Use ``worker``, a running ``tests.bench.clients``."""
        self._worker = worker
        self._label = label

    def name(self, shape: Shape) -> str:
        """Return what makes the calls, and how many at once."""
        return f"{self._label}, {shape.connections * shape.streams} at once"

    async def run(self, port: int, shape: Shape, calls: int) -> Loaded:
        """Make ``calls`` calls; the client checks each answer."""
        result = await self._worker.ask(
            port=port,
            path=shape.path,
            streaming=shape.streaming,
            calls=calls,
            at_once=shape.connections * shape.streams,
        )
        return Loaded(calls, result["seconds"], result["p50"], result["p99"], result["used"])


class H2load:
    """Load from nghttp2's h2load, which costs a few microseconds a call: the server is what limits."""

    def name(self, shape: Shape) -> str:
        """Return what makes the calls, and how many at once."""
        return f"h2load -c{shape.connections} -m{shape.streams}"

    async def run(self, port: int, shape: Shape, calls: int) -> Loaded:
        """Make ``calls`` calls. HTTP knows nothing of grpc-status, so the bytes that came back are what is checked."""
        with tempfile.NamedTemporaryFile() as body, tempfile.NamedTemporaryFile() as log:
            body.write(_framed((STREAM if shape.streaming else UNARY).SerializeToString()))
            body.flush()
            process = await asyncio.create_subprocess_exec(
                "h2load",
                f"--requests={calls}",
                f"--clients={min(shape.connections, calls)}",
                f"--max-concurrent-streams={shape.streams}",
                f"--data={body.name}",
                "--header=content-type: application/grpc",
                "--header=te: trailers",
                f"--log-file={log.name}",
                f"http://127.0.0.1:{port}{shape.path}",
                stdout=asyncio.subprocess.PIPE,
            )
            printed, _ = await process.communicate()
            latencies = sorted(int(line.split()[2]) / 1e6 for line in log)
        return _read(printed.decode(), latencies, calls, least=calls * shape.units * (len(UNARY.payload) + 5))


def h2load() -> H2load | None:
    """Return the load that h2load makes, or None where it is not installed."""
    return H2load() if shutil.which("h2load") else None


def _framed(message: bytes) -> bytes:
    return b"\0" + len(message).to_bytes(4, "big") + message


def _read(printed: str, latencies: list[float], calls: int, least: int) -> Loaded:
    finished = re.search(r"finished in ([\d.]+)(us|ms|s),", printed)
    succeeded = re.search(r"(\d+) succeeded", printed)
    data = re.search(r"\((\d+)\) data", printed)
    if finished is None or succeeded is None or data is None:
        msg = f"h2load printed something else:\n{printed}"
        raise RuntimeError(msg)
    if int(succeeded[1]) != calls or int(data[1]) < least:
        msg = f"of {calls} calls with {least} bytes of answers:\n{printed}"
        raise RuntimeError(msg)
    seconds = float(finished[1]) * {"us": 1e-6, "ms": 1e-3, "s": 1.0}[finished[2]]
    return Loaded(calls, seconds, quantile(latencies, 0.5), quantile(latencies, 0.99))
