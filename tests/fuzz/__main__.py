"""``make fuzz``: whatever a peer may say, for SECONDS, led by the branches that it took; prints how many there were.

Each conversation is one input: the first octet says to whom (a server, a client, gRPC's messages, a request's fields)
and how it is cut into reads. What raises, hangs for 10 s or breaks a promise ends the run, with the input in a file.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["servicekit.http2", "servicekit.native"]):
    from servicekit.errors import Error
    from servicekit.http2.connection import Connection, Role
    from servicekit.http2.events import Data, Event, RequestReceived, Terminated
    from servicekit.http2.frames import PREFACE
    from servicekit.http2.limits import CLIENT, SERVER
    from servicekit.native.heads import Opening
    from servicekit.native.messages import Messages

from tests.http2.conversation import REQUEST, RESPONSE, SETTINGS, SETTINGS_ACK, TRAILERS
from tests.http2.test_fuzz import ON_A_STREAM, ON_THE_CONNECTION, TO_OPEN, on

LIMIT = 4096
HANG = 10
LEAST = 2
NAMES = ("server", "client", "messages", "head")


class Said:
    """How many conversations there were, by whom they were with, and since when."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.begun = time.monotonic()

    def tell(self) -> None:
        print(
            f"\n{self.counts.total():,} conversations in {time.monotonic() - self.begun:.0f} s: {dict(self.counts)}",
            flush=True,
        )


SAID = Said()


def answer(one: Connection, event: Event) -> None:
    """Do what a server does about an event."""
    if isinstance(event, Terminated):
        assert one.closed
    elif isinstance(event, Data):
        one.acknowledge(event.stream_id, event.credit)
    elif isinstance(event, RequestReceived):
        Opening.of(event.headers)
        one.send_headers(event.stream_id, RESPONSE)
        one.send_data(event.stream_id, bytes(100))
        one.send_headers(event.stream_id, TRAILERS, end_stream=True)


def connection(said: bytes, size: int, *, server: bool) -> None:
    """Let one side hear ``said`` in reads of ``size``, and answer everything that it can."""
    one = Connection(role=Role.SERVER if server else Role.CLIENT, limits=SERVER if server else CLIENT, now=0.0)
    one.receive((PREFACE if server else b"") + SETTINGS + SETTINGS_ACK, 0.0)
    if not server:
        for _ in range(3):
            one.open(REQUEST)
            one.take()
    over, now = False, 0.0
    for at in range(0, len(said), size):
        now += 0.01
        for event in one.receive(said[at : at + size], now):
            assert not over, f"{event} after the end"
            over = isinstance(event, Terminated)
            answer(one, event)
        while one.take():
            pass
        one.drained()
        assert one.streams <= SERVER.max_concurrent_streams
    one.tick(now + 1)
    one.drain(now + 1)
    while one.take():
        pass
    one.tick(now + 1e4)
    one.tick(now + 2e4)
    one.close()
    assert one.closed
    assert one._credit.lent == 0


def messages(said: bytes, size: int) -> None:
    """Cut anything into messages: the sum of what came out is never more than what went in, unless compressed."""
    for encoding in ("identity", "gzip"):
        parser, out = Messages(LIMIT, encoding), 0
        try:
            for at in range(0, len(said), size):
                for message in parser.feed(said[at : at + size]):
                    assert len(message) <= LIMIT
                    out += len(message)
                assert parser.held <= LIMIT + 5
        except Error:
            continue
        assert encoding != "identity" or out <= len(said)


def head(said: bytes) -> None:
    """Read anything as a request's fields: either it holds, or it is refused."""
    names = (b"content-type", b"te", b"grpc-timeout", b"grpc-encoding", b"grpc-accept-encoding", b"a", b"a-bin")
    fields = [(b"content-type", b"application/grpc"), (b"te", b"trailers")]
    for part in said.split(b"\n"):
        fields.append((names[part[0] % len(names)] if part else b"x", part[1:]))  # noqa: PERF401 - the first two stay
    opening = Opening(b"POST", said[:20], fields)
    assert opening.timeout is None or opening.timeout >= 0


def converse(given: bytes) -> None:
    """Say one input."""
    if len(given) < LEAST:
        return
    name, said = NAMES[given[0] % 4], given[1:]
    size = (1, 7, 100, 1 << 20)[given[0] // 4 % 4]
    SAID.counts[name] += 1
    if name == "messages":
        messages(said, size)
    elif name == "head":
        head(said)
    else:
        connection(said, size, server=name == "server")
    if not SAID.counts.total() % 20_000:
        SAID.tell()


def seeds(folder: Path) -> None:
    """Write what makes sense, to begin with."""
    opened = b"".join(on(2 * at + 1, one) for at, one in enumerate(TO_OPEN[:3]))
    for at, one in enumerate([*ON_A_STREAM, *ON_THE_CONNECTION, *TO_OPEN]):
        for to in (0, 1, 12, 13):
            (folder / f"{at}-{to}").write_bytes(bytes([to]) + (opened if to % 4 == 0 else b"") + one[:4000])
    (folder / "messages").write_bytes(b"\x02\0\0\0\0\5hello" + b"\1\0\0\0\5hello")
    (folder / "head").write_bytes(b"\x03\x02100m\n\x03gzip\n\x06AAAA,BB")


def main() -> None:
    seconds = int(sys.argv[1]) if len(sys.argv) > 1 else 3600
    with tempfile.TemporaryDirectory() as folder:
        seeds(Path(folder))
        arguments = [f"-max_total_time={seconds}", f"-timeout={HANG}", "-max_len=8192", "-artifact_prefix=fuzz-"]
        atheris.Setup([sys.argv[0], *arguments, folder], converse)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
