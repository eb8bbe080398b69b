"""A native server in a process of its own that tells of itself, and what attackers say to it.

Its limits that take minutes are shortened: 1 s for what is 5, 20 or 120 s by default, 2 s for an idle connection.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import time
from pathlib import Path
from typing import TypedDict

from servicekit import Server, Telemetry
from servicekit.clock import SystemClock
from servicekit.http2.frames import PREFACE, frame
from servicekit.http2.limits import Limits
from servicekit.native.options import NativeOptions
from servicekit.native.protocol import ClientLine
from servicekit.native.server import NativeListener
from servicekit.native.tls import Certificates, TlsCredentials
from servicekit.testing.v1.echo_pb2 import EchoRequest, EchoResponse, ExpandRequest
from tests.http2.conversation import SETTINGS_ACK, data, headers, setting, update
from tests.system.load import SOAK, Stalls, quantile, until_told
from tests.transport.clients import Context, echo

CAP = 10_000 if SOAK else 200
"""Connections at once."""

MANY, EVERY = CAP + 20, 0.001
"""Connections that come, and the seconds between two of them."""

AGE, GRACE = 3.0, 1.0
"""Of a connection to a server that is told to be ``aged``."""

FIGURES = "figures"
"""What a server is asked for to tell of itself."""

FIELDS = (
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":path", b"/servicekit.testing.v1.EchoService/Expand"),
    (b":authority", b"here"),
    (b"te", b"trailers"),
    (b"content-type", b"application/grpc"),
)
LARGE = ExpandRequest(text="x" * 10_000, count=1000).SerializeToString()
HELLO = PREFACE + frame(4, 0, 0, b"") + SETTINGS_ACK


class Figures(TypedDict):
    """What a server tells: memory in MiB at its peak, CPU seconds of the loop's thread that callbacks of connections took."""

    connections: int
    refused: int
    cut_off: int
    memory: float
    callbacks: int
    p999: float
    longest: float


def unary(stream_id: int) -> bytes:
    """Return a request for a small answer."""
    message = EchoRequest(text="hello").SerializeToString()
    fields = [(name, value.replace(b"Expand", b"Echo")) for name, value in FIELDS]
    return headers(stream_id, fields) + data(stream_id, _framed(message), end=True)


def expand(stream_id: int) -> bytes:
    """Return a request for ten megabytes of answers."""
    return headers(stream_id, FIELDS) + data(stream_id, _framed(LARGE), end=True)


def windows(initial: int) -> bytes:
    """Return a greeting that gives each stream so much of a window, and the connection all that there is."""
    return PREFACE + setting(4, initial) + SETTINGS_ACK + update(0, (1 << 31) - 1 - 0xFFFF)


def _framed(message: bytes) -> bytes:
    return b"\0" + len(message).to_bytes(4, "big") + message


def memory() -> float:
    """Return the most that this process has ever had of the machine's memory, in MiB."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:")) / 1024


async def serve(*words: str) -> None:
    """Serve until the input ends.

    ``words`` may hold "aged", "patient" with idle connections till all of them have come, "raised" for the cap on
    connections, "timed", and "tls" with the files of a key and a chain.
    """
    took: list[float] = []
    handle = ClientLine.buffer_updated

    def timed(self: ClientLine, nbytes: int) -> None:
        begun = time.thread_time()
        handle(self, nbytes)
        took.append(time.thread_time() - begun)

    if "timed" in words:
        ClientLine.buffer_updated = timed  # type: ignore[method-assign]
    patient = "patient" in words
    limits = Limits(
        preface_timeout=1.0,
        settings_timeout=1.0,
        header_timeout=1.0,
        stall_timeout=1.0,
        idle_timeout=2.0 + (MANY * EVERY if patient else 0.0),
        drain_timeout=1.0,
        keepalive_time=60.0 if patient else 1.0,
        keepalive_timeout=1.0,
        max_age=AGE if "aged" in words else None,
        age_grace=GRACE,
    )
    clock = SystemClock()
    listener = NativeListener(
        clock, options=NativeOptions(connections=CAP + 100 * ("raised" in words), handshake=1.0, http2=limits)
    )

    async def tell(request: EchoRequest, context: Context) -> EchoResponse:
        if request.text != FIGURES:
            return EchoResponse(text=request.text)
        figures = Figures(
            connections=listener.connections,
            refused=listener.refused,
            cut_off=listener.cut_off,
            memory=memory(),
            callbacks=len(took),
            p999=quantile(took, 0.999),
            longest=max(took, default=0.0),
        )
        return EchoResponse(text=json.dumps(figures))

    credentials = None
    if "tls" in words:
        key, chain = (Path(word).read_bytes() for word in words[-2:])  # noqa: ASYNC240 - nobody is served yet
        credentials = TlsCredentials(certificates=Certificates(key=key, chain=chain))
    server = Server(
        "127.0.0.1:0", middleware=[], telemetry=Telemetry(log=None), wire=listener, credentials=credentials, clock=clock
    )
    echo(Echo=tell)(server)
    await server.start()
    gc.collect()
    gc.freeze()  # as a service that is told to be quick does: one collection of all that was imported takes 30 ms
    await until_told(Stalls(0.02), server.addresses[0])
    await server.stop(0.0)


if __name__ == "__main__":
    asyncio.run(serve(*sys.argv[1:]))
