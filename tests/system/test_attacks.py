"""Attackers beside a well-behaved client, on the real port of a server in a process of its own.

Whatever they do, the good client's calls are all served, in time; the server's memory stays under a cap, and the
attackers are gone in the time that each may take. With SOAK=1 in the environment 10,000 idle connections come, else 200.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import json
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import grpc
import pytest

from servicekit.http2.frames import PREFACE, frame
from servicekit.testing.v1.echo_pb2 import EchoRequest, EchoResponse
from tests.http2.conversation import data, headers, reset, setting, update
from tests.security.certificates import Authority
from tests.system.attacked import (
    AGE,
    CAP,
    EVERY,
    FIELDS,
    FIGURES,
    GRACE,
    HELLO,
    MANY,
    Figures,
    expand,
    unary,
    windows,
)
from tests.system.load import ECHO, REQUEST, Process, Stalls, Untyped, a_process, offer, soundly

RATE, SECONDS = 100.0, 3.0
SOON = 1.0
"""Seconds in which one is gone who floods: from the first octet, and the machine has other work."""
MEMORY, PER_CONNECTION = 48.0, 8 / 1024
"""MiB that an attack may cost at most: one of few connections, and each of many."""
IN_TIME = 0.15
STAY = 2.0 + 2 * MANY * EVERY + 1.0 + SOON
"""Seconds until the last of many idle connections has been closed: they come, are waited for, and may be idle."""

ANSWERED = bytes((1, 5, 0))
"""Within the header of a frame: HEADERS, the last of their stream, which is none of the highest."""

Say = Callable[["Attacker"], Awaitable[None]]


class Attacker:
    """A connection whose octets are made by hand."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._loop = asyncio.get_running_loop()

    async def say(self, octets: bytes) -> None:
        await self._loop.sock_sendall(self.sock, octets)

    async def read(self, size: int = 65_536) -> bytes:
        return await self._loop.sock_recv(self.sock, size)

    async def read_all(self) -> None:
        while await self.read():
            pass

    async def flood(self, *batches: bytes, first: bytes = HELLO) -> None:
        """Say ``first``, and then the rest over and over, as fast as it is taken."""
        await self.say(first)
        for octets in itertools.cycle(batches):
            await self.say(octets)
            await asyncio.sleep(0)


async def rapid_reset(attacker: Attacker) -> None:
    await attacker.say(HELLO)
    for first in itertools.count(1, 200):
        ids = range(first, first + 200, 2)
        await attacker.say(b"".join(headers(stream_id, FIELDS) + reset(stream_id) for stream_id in ids))
        await asyncio.sleep(0)


async def many_blocks(attacker: Attacker, block: Callable[[int], bytes], first: bytes = b"") -> None:
    await attacker.say(HELLO + first)
    for stream_id in itertools.count(3, 2):
        await attacker.say(block(stream_id))
        await asyncio.sleep(0)


def overflowing(stream_id: int) -> bytes:
    """Return a header list of 40,000 octets."""
    field = b"\x00\x01x\x7f" + _number(12_000 - 127) + bytes([0x61]) * 12_000
    return frame(1, 0, stream_id, field) + frame(9, 0, stream_id, field) * 2 + frame(9, 4, stream_id, b"\x00\x01y\x01z")


def _number(rest: int) -> bytes:
    octets = bytearray()
    while rest >= 0x80:
        octets.append(rest & 0x7F | 0x80)
        rest >>= 7
    octets.append(rest)
    return bytes(octets)


def bomb(stream_id: int) -> bytes:
    """Return 16 KiB that stand for sixty megabytes: a field of 4,000 octets in the table, asked for again and again."""
    entry = b"\x40\x01x\x7f" + _number(4000 - 127) + b"a" * 4000
    return frame(1, 4, stream_id, entry + b"\xbe" * 12_000)


async def zero_window(attacker: Attacker) -> None:
    await attacker.say(windows(0) + b"".join(expand(2 * at + 1) for at in range(90)))
    await attacker.read_all()


async def tiny_windows(attacker: Attacker) -> None:
    await attacker.say(windows(1) + b"".join(expand(2 * at + 1) for at in range(10)))
    reading = asyncio.create_task(attacker.read_all())
    try:
        while not reading.done():
            await attacker.say(b"".join(update(2 * at + 1, 1) for at in range(10)))
            await asyncio.sleep(0.005)
    finally:
        reading.cancel()
        await asyncio.wait([reading])


async def slow_preface(attacker: Attacker) -> None:
    for at in range(len(PREFACE)):
        await attacker.say(PREFACE[at : at + 1])
        await asyncio.sleep(0.2)


async def slow_headers(attacker: Attacker) -> None:
    await attacker.say(HELLO + frame(1, 0, 1, b""))
    for at in range(7):
        await attacker.say(frame(9, 0, 1, bytes([at])))
        await asyncio.sleep(0.3)


async def slow_reader(attacker: Attacker) -> None:
    await attacker.say(windows(1 << 24) + b"".join(expand(2 * at + 1) for at in range(20)))
    while await attacker.read(1000):  # noqa: ASYNC110 - it is slow on purpose
        await asyncio.sleep(0.02)


async def never_reading(attacker: Attacker) -> None:
    await attacker.say(windows(1 << 24))
    for at in range(1000):
        await attacker.say(expand(2 * at + 1))
    await asyncio.Event().wait()


async def silent(attacker: Attacker) -> None:
    await attacker.read_all()


async def idle(attacker: Attacker) -> None:
    await attacker.say(HELLO)
    await attacker.read_all()


@dataclass(frozen=True, slots=True)
class Attack:
    """``within`` are the seconds in which the server is rid of it; ``server`` is what it is started with.

    Connections come ``every`` so many seconds: all at once they would keep the good client's own loop busy.
    """

    say: Say
    within: float
    server: tuple[str, ...] = ()
    connections: int = 1
    small_buffer: bool = False
    every: float = 0.0


ATTACKS = {
    "rapid reset": Attack(rapid_reset, SOON),
    "CONTINUATION flood": Attack(
        lambda one: one.flood(frame(9, 0, 1, b"\0" * 1000) * 20, first=HELLO + frame(1, 0, 1, b"")), SOON
    ),
    "SETTINGS flood": Attack(lambda one: one.flood(setting(4, 1) * 1000), SOON),
    "PING flood": Attack(lambda one: one.flood(frame(6, 0, 0, bytes(8)) * 1000), SOON),
    "empty DATA flood": Attack(lambda one: one.flood(data(1, b"") * 1000, first=HELLO + headers(1, FIELDS)), SOON),
    "WINDOW_UPDATE flood": Attack(lambda one: one.flood(update(0, 1) * 1000), SOON),
    "HPACK bomb": Attack(lambda one: many_blocks(one, bomb), SOON),
    "header list overflow": Attack(lambda one: many_blocks(one, overflowing), SOON),
    "zero window": Attack(zero_window, 1.0 + 1.0 + SOON),
    "tiny windows": Attack(tiny_windows, 1.1 * AGE + GRACE + SOON, ("aged",)),
    "slow preface": Attack(slow_preface, 1.0 + SOON),
    "slow headers": Attack(slow_headers, 1.0 + SOON),
    "slow reader": Attack(slow_reader, 1.1 * AGE + GRACE + SOON, ("aged",), small_buffer=True),
    "never reading": Attack(never_reading, 1.0 + 1.0 + SOON, small_buffer=True),
    "idle": Attack(idle, STAY, ("patient",), connections=MANY, every=EVERY),
    "idle, the cap raised": Attack(idle, STAY, ("patient", "raised"), connections=MANY, every=EVERY),
    "silent TLS": Attack(silent, 1.0 + SOON, ("tls",), connections=20),
}


async def attack(one: Attack, address: str, wait: float = 0.0) -> None:
    """Be one attacker, until the server hangs up."""
    await asyncio.sleep(wait)
    host, _, port = address.rpartition(":")
    with socket.socket() as sock:
        sock.settimeout(0.0)
        if one.small_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with contextlib.suppress(OSError):
            await asyncio.get_running_loop().sock_connect(sock, (host, int(port)))
            await one.say(Attacker(sock))


async def tell(channel: grpc.aio.Channel) -> Figures:
    """Ask a server for its figures."""
    ask: Untyped = channel.unary_unary(ECHO)
    told = await ask(EchoRequest(text=FIGURES).SerializeToString(), timeout=10)
    return cast("Figures", json.loads(EchoResponse.FromString(told).text))


@contextlib.asynccontextmanager
async def a_server(words: tuple[str, ...], folder: Path) -> AsyncIterator[tuple[Process, grpc.aio.Channel]]:
    """Run a server, and yield it with a good client's channel to it."""
    credentials = None
    if "tls" in words:
        authority = Authority()
        signed = authority.sign(common="localhost")
        (folder / "key").write_bytes(signed.key)
        (folder / "chain").write_bytes(signed.certificate)
        words = (*words, str(folder / "key"), str(folder / "chain"))
        credentials = grpc.ssl_channel_credentials(authority.certificate)
    options = [("grpc.ssl_target_name_override", "localhost")]
    async with a_process("tests.system.attacked", *words) as process:
        channel = (
            grpc.aio.insecure_channel(process.address)
            if credentials is None
            else grpc.aio.secure_channel(process.address, credentials, options=options)
        )
        async with channel:
            yield process, channel


async def until_alone(
    channel: grpc.aio.Channel, before: Figures, attackers: list[asyncio.Task[None]]
) -> tuple[float, float]:
    """Return when nobody but the good client was left, and the most memory until then, in MiB more than before.

    ``attackers`` are those that notice their end.
    """
    most = 0.0
    while True:
        figures = await tell(channel)
        most = max(most, figures["memory"] - before["memory"])
        if figures["connections"] <= 1 and all(task.done() for task in attackers):
            return time.monotonic(), most
        await asyncio.sleep(0.02)


@pytest.mark.system
@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", ATTACKS)
async def test_an_attack(name: str, tmp_path: Path) -> None:
    """The good client is served without an error, p99 < 150 ms, memory stays capped, and the attackers are gone in time."""
    one = ATTACKS[name]
    stalls = Stalls(0.02)
    async with a_server(one.server, tmp_path) as (process, channel), stalls.watching():
        method: Untyped = channel.unary_unary(ECHO)
        call = functools.partial(method, REQUEST, timeout=5.0)
        await call(wait_for_ready=True)
        before = await tell(channel)
        good = asyncio.create_task(
            soundly(
                functools.partial(offer, call, name, RATE, SECONDS + one.connections * one.every),
                stalls,
                process,
                settling=0.1,
                rounds=1,
            )
        )
        begun = time.monotonic()
        attackers = [asyncio.create_task(attack(one, process.address, n * one.every)) for n in range(one.connections)]
        try:
            await asyncio.sleep(0.1)  # it is under way: an attack that is over sooner was no harm
            async with asyncio.timeout(one.within + 20):
                gone, most = await until_alone(channel, before, [] if one.small_buffer else attackers)
            phase = await good
            after = await tell(channel)
        finally:
            for task in (*attackers, good):
                task.cancel()
            await asyncio.wait([*attackers, good])
    took = gone - begun
    memory = max(MEMORY, one.connections * PER_CONNECTION)
    print(
        f"\n{phase}\n{name}: gone in {took:.2f} of {one.within:.1f} s, memory +{most:.1f} of {memory:.0f} MiB,"
        f" {after['cut_off']} cut off, {after['refused']} refused"
    )
    assert phase.codes.keys() == {"OK"}
    assert not any(task.exception() for task in attackers if not task.cancelled())
    assert most < memory
    if phase.sound:
        assert took < one.within
        assert phase.quantile(0.99) < IN_TIME
    if name == "idle":
        assert after["refused"] >= one.connections - CAP
    elif "raised" in one.server:
        assert after["refused"] == 0


async def as_fast_as_it_can(attacker: Attacker) -> None:
    """Have as many calls under way as the server allows, always, and send the next when one is answered."""
    await attacker.say(windows(1 << 24))
    free, first, rest = 90, 1, b""
    while True:
        if free:
            ids = range(first, first + 2 * free, 2)
            first += 2 * free
            await attacker.say(b"".join(unary(stream_id) for stream_id in ids))
        if not (octets := await attacker.read()):
            return
        free = (rest + octets).count(ANSWERED)
        rest = octets[1 - len(ANSWERED) :]


@pytest.mark.system
@pytest.mark.timeout(120)
async def test_one_that_sends_as_fast_as_it_can(tmp_path: Path) -> None:
    """No callback takes more than 5 ms of CPU time (p99.9), and a second connection has its share."""
    stalls = Stalls(0.02)
    async with a_server(("timed",), tmp_path) as (process, channel), stalls.watching():
        method: Untyped = channel.unary_unary(ECHO)
        call = functools.partial(method, REQUEST, timeout=10.0)
        await call(wait_for_ready=True)
        greedy = asyncio.create_task(attack(Attack(as_fast_as_it_can, 0), process.address))
        try:
            offering = functools.partial(offer, call, "beside", RATE, 3 * SECONDS)
            phase = await soundly(offering, stalls, process, settling=0.1, rounds=1)
            figures = await tell(channel)
        finally:
            greedy.cancel()
            await asyncio.wait([greedy])
    print(
        f"\n{phase}\n{figures['callbacks']} callbacks, p99.9 {figures['p999'] * 1e3:.2f} ms,"
        f" longest {figures['longest'] * 1e3:.2f} ms of CPU; {figures['connections']} connected at the end"
    )
    assert figures["connections"] == 2  # nobody was cut off
    assert phase.codes.keys() == {"OK"}
    if phase.sound:
        assert figures["p999"] < 0.005
        assert phase.quantile(0.99) < IN_TIME
