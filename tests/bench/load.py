"""Load on a server, from h2load where it is installed, else from a client process of our own."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from servicekit.testing.v1.echo_pb2 import EchoRequest

from .echo import CHAT, LINE, MESSAGES, NUMBER, STREAM, SUM, UNARY
from .peers import grpc_go
from .stats import quantile

if TYPE_CHECKING:
    from pathlib import Path

    from .worker import Worker


_PREFIX: Final = 5  # bytes before each message


@dataclass(frozen=True, slots=True)
class Shape:
    """What is asked for: calls to ``path``, ``streams`` of them at once over each of ``connections``.

    ``streaming`` are responses, ``uploading`` requests. ``fresh`` calls bring a traceparent, a request id and a deadline
    of their own, as calls in production do. ``payload`` is what an Echo carries beside its text.
    """

    path: str
    streaming: bool = False
    connections: int = 4
    streams: int = 16
    uploading: bool = False
    fresh: bool = False
    tls: bool = False
    payload: int = len(UNARY.payload)

    @property
    def units(self) -> int:
        """How many units of work one call is: a stream is measured by its messages."""
        return MESSAGES if self.streaming or self.uploading else 1

    @property
    def request(self) -> bytes:
        """One message of a request."""
        if self.path == SUM:
            return NUMBER.SerializeToString()
        if self.path == CHAT:
            return LINE.SerializeToString()
        if self.streaming:
            return STREAM.SerializeToString()
        return EchoRequest(text=UNARY.text, payload=bytes(self.payload)).SerializeToString()

    @property
    def least(self) -> int:
        """The fewest bytes of content that can be an answer."""
        if self.path == SUM:
            return _PREFIX + 1
        one = len(self.request) if self.path == CHAT else self.payload
        return (MESSAGES if self.streaming else 1) * (one + _PREFIX)


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
            uploading=shape.uploading,
            fresh=shape.fresh,
            payload=shape.payload,
            calls=calls,
            at_once=shape.connections * shape.streams,
        )
        return Loaded(calls, result["seconds"], result["p50"], result["p99"], result["used"])


class H2load:
    """Load from nghttp2's h2load, which costs a few microseconds a call: the server is what limits."""

    def name(self, shape: Shape) -> str:
        """Return what makes the calls, and how many at once."""
        how = ", all messages of a stream in large frames" if shape.uploading else ""
        return f"h2load -c{shape.connections} -m{shape.streams}{how}"

    async def run(self, port: int, shape: Shape, calls: int) -> Loaded:
        """Make ``calls`` calls. HTTP knows nothing of grpc-status, so the bytes that came back are what is checked."""
        with tempfile.NamedTemporaryFile() as body, tempfile.NamedTemporaryFile() as log:
            body.write(_framed(shape.request) * (MESSAGES if shape.uploading else 1))
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
                f"{'https' if shape.tls else 'http'}://127.0.0.1:{port}{shape.path}",
                stdout=asyncio.subprocess.PIPE,
            )
            printed, _ = await process.communicate()
            latencies = sorted(int(line.split()[2]) / 1e6 for line in log)
        return _read(printed.decode(), latencies, calls, least=calls * shape.least)


class GrpcGo:
    """Load from grpc-go's client: what a service meets in production, its flow control and header tables included."""

    def __init__(self, program: Path) -> None:
        """Use ``program``, which was built of ``go/``."""
        self._program = program

    def name(self, shape: Shape) -> str:
        """Return what makes the calls, and how many at once."""
        fresh = ", fresh trace, request id and deadline in every call" if shape.fresh else ""
        return f"grpc-go client, -c{shape.connections} -m{shape.streams}{fresh}"

    async def run(self, port: int, shape: Shape, calls: int) -> Loaded:
        """Make ``calls`` calls; the client checks each answer."""
        with tempfile.NamedTemporaryFile() as body:
            body.write(shape.request)
            body.flush()
            process = await asyncio.create_subprocess_exec(
                self._program,
                "load",
                f"-port={port}",
                f"-path={shape.path}",
                f"-calls={calls}",
                f"-connections={shape.connections}",
                f"-streams={shape.streams}",
                f"-body={body.name}",
                f"-fresh={'true' if shape.fresh else 'false'}",
                f"-messages={MESSAGES if shape.uploading else 0}",
                f"-answers={MESSAGES if shape.streaming else 0}",
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
            printed, said = await process.communicate()
        if process.returncode:
            msg = f"of {calls} calls: {said.decode()}"
            raise RuntimeError(msg)
        result = json.loads(printed)
        return Loaded(calls, result["seconds"], result["p50"], result["p99"])


def on_server(shape: Shape, *, h2: bool = True) -> Load | None:
    """Return the load that says most about a server, or None where it can only come from a process of our own.

    h2load is the cheapest, but says the same in every call, and sends a stream's messages in one piece.
    """
    if shape.fresh or shape.uploading:
        go = grpc_go()
        if go.path is not None:
            return GrpcGo(go.path)
        if shape.fresh:
            return None
    return h2load() if h2 else None


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
