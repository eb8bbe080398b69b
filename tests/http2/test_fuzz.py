"""Whatever a peer sends: nothing is raised, nothing loops, nothing grows, and it takes no longer than its length."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import pytest

from servicekit.http2.connection import Connection, Role
from servicekit.http2.events import Data, Event, RequestReceived, Terminated, Trailers
from servicekit.http2.frames import PREFACE, frame
from servicekit.http2.hpack_encoder import encode_stateless
from servicekit.http2.limits import CLIENT, SERVER, Limits
from tests.http2.conversation import (
    REQUEST,
    RESPONSE,
    SETTINGS,
    SETTINGS_ACK,
    TRAILERS,
    data,
    headers,
    reset,
    setting,
    split,
    update,
)

BLOCK = encode_stateless(REQUEST)

# What may be said on stream 1: said on another, the identifier is put in its place.
ON_A_STREAM = [
    data(1, b"hello"),
    data(1, b"hello"),
    data(1, bytes(9000)),
    data(1, b""),
    data(1, b"", end=True),
    data(1, b"last", end=True),
    frame(0, 8, 1, b"\x04hello" + bytes(4)),
    headers(1, TRAILERS, end=True),
    headers(1, TRAILERS),
    headers(1, RESPONSE),
    headers(1, RESPONSE),
    headers(1, ((b":status", b"103"),)),
    headers(1, (*RESPONSE, (b"content-length", b"5"))),
    reset(1),
    reset(1, 7),
    update(1, 1),
    update(1, 70_000),
    update(1, 0),
    update(1, (1 << 31) - 1),
    frame(2, 0, 1, bytes(5)),
    frame(2, 0, 1, bytes(4)),
]
TO_OPEN = [
    headers(1),
    headers(1),
    headers(1, end=True),
    headers(1, (*REQUEST, (b"content-length", b"5"))),
    headers(1, (*REQUEST, (b"Bad", b"x"))),
    headers(1, (*REQUEST, (b"x", b"y" * 5000))),
    frame(1, 0x2C, 1, b"\x01" + b"\0\0\0\7\0" + BLOCK + b"\0"),
    frame(1, 0, 1, BLOCK[:7]) + frame(9, 0, 1, b"") + frame(9, 4, 1, BLOCK[7:]),
    frame(1, 4, 1, BLOCK + b"\x40\x01a\x05value"),
    frame(1, 4, 1, BLOCK + b"\x00\x01b\x01c"),
]
ON_THE_CONNECTION = [
    SETTINGS,
    SETTINGS_ACK,
    setting(4, 0),
    setting(4, 100_000),
    setting(1, 0),
    setting(1, 4096),
    setting(5, 20_000),
    setting(3, 1),
    frame(6, 0, 0, bytes(8)),
    frame(6, 1, 0, b"\xffestimat"),
    frame(7, 0, 0, bytes(3) + b"\x09" + bytes(4)),
    update(0, 1),
    update(0, 100_000),
    frame(0xFA, 0xFF, 1, b"extension"),
]


def on(stream_id: int, said: bytes) -> bytes:
    """Return frames as if said on another stream."""
    moved = b""
    while said:
        size = 9 + int.from_bytes(said[:3], "big")
        moved += said[:5] + stream_id.to_bytes(4, "big") + said[9:size]
        said = said[size:]
    return moved


def damaged(one: bytes, chance: random.Random) -> bytes:
    """Return a frame with something wrong about it."""
    kind = chance.randrange(5)
    if kind == 0:
        changed = bytearray(one)
        for _ in range(chance.randrange(1, 4)):
            changed[chance.randrange(len(changed))] = chance.randrange(256)
        return bytes(changed)
    if kind == 1:
        return one[: chance.randrange(len(one))]
    if kind == 2:
        return frame(
            chance.randrange(12), chance.randrange(256), chance.randrange(12), chance.randbytes(chance.randrange(40))
        )
    if kind == 3:
        return chance.randbytes(chance.randrange(60))
    return on(chance.randrange(16), one)


def garbage(chance: random.Random, *, server: bool) -> bytes:
    """Return a conversation of frames most of which make sense, some of which do not, and few that end it."""
    said = []
    highest = -1 if server else 5
    harm = chance.choice((0.0, 0.0, 0.02, 0.3))
    for _ in range(chance.randrange(1, 60)):
        pick = chance.random()
        if pick < 0.3 and server:
            highest += 2 if chance.random() < 0.9 else 6
            one = on(highest, chance.choice(TO_OPEN))
        elif pick < 0.85 and highest > 0:
            newest = highest - 2 * chance.randrange(4) if chance.random() < 0.8 else chance.randrange(1, highest + 1, 2)
            one = on(max(1, newest), chance.choice(ON_A_STREAM))
        else:
            one = chance.choice(ON_THE_CONNECTION)
        said.append(damaged(one, chance) if chance.random() < harm else one)
    return b"".join(said)


def act(connection: Connection, event: Event, chance: random.Random) -> None:
    """Do what an owner might do about an event, at random."""
    if isinstance(event, Data) and chance.random() < 0.8:
        connection.acknowledge(event.stream_id, event.credit)
    if isinstance(event, (RequestReceived, Data, Trailers)) and connection._server:
        stream = connection._open.get(event.stream_id)
        if stream is None or stream.begun or chance.random() < 0.4:
            return
        if chance.random() < 0.5:
            connection.respond(event.stream_id, encode_stateless(RESPONSE), bytes(chance.randrange(90_000)), b"\x88")
        else:
            connection.send_headers(event.stream_id, RESPONSE)
            connection.send_data(event.stream_id, bytes(chance.randrange(90_000)), end_stream=chance.random() < 0.5)
            if chance.random() < 0.2:
                connection.reset(event.stream_id)


def converse(seed: int) -> None:
    """Have one conversation with a peer that makes no sense, and check what must hold in any."""
    chance = random.Random(seed)
    server = chance.random() < 0.7
    connection = Connection(
        role=Role.SERVER if server else Role.CLIENT, limits=SERVER if server else CLIENT, now=0.0, chance=0.5
    )
    greeting = (PREFACE if server else b"") + SETTINGS + SETTINGS_ACK
    said = (greeting if chance.random() < 0.95 else b"") + garbage(chance, server=server)
    heard = b""
    owed = 0
    if not server:
        connection.open(REQUEST, end_stream=chance.random() < 0.5)
        connection.open(REQUEST)
        connection.send_data(connection.open(REQUEST), bytes(100_000), end_stream=True)
        owed = connection.pending
    at = 0
    now = 0.0
    while at < len(said):
        size = chance.choice((1, 3, 9, 40, 1000, 100_000))
        now += chance.choice((0.0, 0.0, 0.001, 1.0))
        events = connection.receive(said[at : at + size], now)
        at += size
        for event in events:
            if isinstance(event, Terminated):
                assert event is events[-1]
                assert connection.closed
            before = connection.pending
            act(connection, event, chance)
            owed += connection.pending - before
        if chance.random() < 0.3:
            events += connection.tick(now)
        if chance.random() < 0.7:
            heard += connection.take(chance.choice((1000, 65_536)))
            connection.drained()
        credit = connection._credit
        if not connection.closed:
            assert credit.window + credit.lent + credit.taken == credit.size
            assert credit.window >= 0
        assert len(connection._open) <= 100
        assert connection._output.queued == sum(stream.queued for stream in connection._open.values())
    while octets := connection.take():
        heard += octets
    split(heard)  # whole frames, to the last
    # Every frame that came asks for one small answer at the most; the rest is what the owner sent.
    assert len(heard) <= 200 + 30 * (len(said) // 9 + 1) + 2 * max(owed, 0) + 400_000 * (owed > 0)


@pytest.mark.parametrize("block", range(4))
def test_nonsense_breaks_nothing(block: int) -> None:
    """A few hundred conversations, the same ones each time."""
    for seed in range(block * 100, block * 100 + 100):
        converse(seed)


@pytest.mark.fuzz
@pytest.mark.timeout(600)
@pytest.mark.parametrize("block", range(10))
def test_nonsense_breaks_nothing_for_long(block: int) -> None:
    """Fifty thousand conversations."""
    for seed in range(10_000 + block * 5000, 15_000 + block * 5000):
        converse(seed)


LARGE = Limits(
    control_frames=(1e9, 1e9), resets=(1e9, 1e9), control_output=1 << 30, min_ping_interval=0.0, continuations=10**6
)
FLOODS: dict[str, Callable[[int], bytes]] = {
    "pings": lambda times: frame(6, 0, 0, bytes(8)) * times,
    "settings": lambda times: setting(4, 1) * times,
    "large settings": lambda times: frame(4, 0, 0, bytes((0, 0xAA, 0, 0, 0, 1)) * 2000) * (times // 100),
    "updates": lambda times: update(0, 1) * times,
    "empty data": lambda times: headers(1) + data(1, b"") * times,
    "late data": lambda times: headers(1, end=True) + data(1, b"x") * times,
    "resets": lambda times: b"".join(headers(2 * at + 1) + reset(2 * at + 1) for at in range(times)),
    "skipped": lambda times: b"".join(headers(10 * at + 1) + reset(10 * at + 1) for at in range(times)),
    "refused": lambda times: b"".join(headers(2 * at + 1, end=True) for at in range(times)),
    "continuations": lambda times: frame(1, 0, 1, b"") + frame(9, 0, 1, b"") * times,
    "unknown": lambda times: frame(0xEE, 0, 0, b"x") * times,
    "half a frame": lambda times: headers(1) + data(1, bytes(16_000))[:-1],
}


def cost(said: bytes, size: int) -> float:
    """Return the CPU time that octets take, the least of a few."""
    best = 1e9
    for _ in range(3):
        connection = Connection(role=Role.SERVER, limits=LARGE, now=0.0)
        connection.receive(PREFACE + SETTINGS + SETTINGS_ACK, 0.0)
        connection.take()
        start = time.process_time()
        for at in range(0, len(said), size):
            connection.receive(said[at : at + size], 0.0)
        best = min(best, time.process_time() - start)
    return best


@pytest.mark.fuzz
@pytest.mark.parametrize("size", [100, 65_536])
@pytest.mark.parametrize("flood", FLOODS)
def test_time_is_linear(flood: str, size: int) -> None:
    """Eight times as much of anything takes eight times as long, or a little more."""
    small, large = FLOODS[flood](1000), FLOODS[flood](8000)
    if len(large) > len(small):
        assert cost(large, size) < 8 * 2.5 * cost(small, size) + 0.002
    else:
        assert cost(large, 1) < 1.0
