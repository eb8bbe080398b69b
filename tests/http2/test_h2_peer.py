"""Our connection against the h2 package's: another reading of the same RFC, on both sides."""

from __future__ import annotations

import random
from typing import Any

import h2.config
import h2.connection
import h2.events
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from servicekit.http2.connection import Connection, Role
from servicekit.http2.events import Data, Event, RequestReceived, ResponseReceived, StreamReset, Terminated, Trailers
from servicekit.http2.limits import CLIENT, Limits
from tests.http2.conversation import REQUEST, RESPONSE, TRAILERS, Fields


class Peers:
    """A connection of ours and one of h2, and all that each of them saw."""

    def __init__(self, role: Role, limits: Limits) -> None:
        self.now = 0.0
        self.ours = Connection(role=role, limits=limits, now=0.0)
        config = h2.config.H2Configuration(client_side=role is Role.SERVER, header_encoding=None)
        self.theirs = h2.connection.H2Connection(config)
        self.theirs.initiate_connection()
        self.ours_saw: list[Event] = []
        self.theirs_saw: list[Any] = []
        self.carry()

    def carry(self) -> None:
        """Carry octets there and back until neither side has more to say; both take all content at once."""
        while True:
            said = self.theirs.data_to_send()
            events = self.ours.receive(said, self.now) if said else []
            for event in events:
                assert not isinstance(event, Terminated), event
                if isinstance(event, Data):
                    self.ours.acknowledge(event.stream_id, event.credit)
            self.ours_saw += events
            answered = self.ours.take()
            if not said and not answered:
                return
            self.now += 0.01
            for seen in self.theirs.receive_data(answered) if answered else []:
                if isinstance(seen, h2.events.DataReceived) and seen.flow_controlled_length:
                    self.theirs.acknowledge_received_data(seen.flow_controlled_length, seen.stream_id)
                self.theirs_saw.append(seen)


CALL = st.tuples(
    st.binary(min_size=0, max_size=300),
    st.integers(0, 200_000),
    st.integers(0, 200_000),
    st.booleans(),
    st.integers(0, 60),
)


def path_of(name: bytes) -> Fields:
    return (*REQUEST[:2], (b":path", b"/" + name.hex().encode()), *REQUEST[3:], (b"x-bin", name.hex().encode()))


def ours_of(peers: Peers, stream_id: int) -> tuple[Fields, bytes, Fields]:
    """Return headers, content and trailers as our side saw them."""
    head: Fields = ()
    tail: Fields = ()
    content = b""
    for event in peers.ours_saw:
        if isinstance(event, Terminated) or getattr(event, "stream_id", 0) != stream_id:
            continue
        assert not isinstance(event, StreamReset)
        if isinstance(event, (RequestReceived, ResponseReceived)):
            head = event.headers.regular
        elif isinstance(event, Data):
            content += event.data
        elif isinstance(event, Trailers):
            tail = event.trailers.regular
    return head, content, tail


def theirs_of(peers: Peers, stream_id: int) -> tuple[Fields, bytes, Fields]:
    """Return headers, content and trailers as h2 saw them."""
    head: Fields = ()
    tail: Fields = ()
    content = b""
    for event in peers.theirs_saw:
        if getattr(event, "stream_id", 0) != stream_id:
            continue
        assert not isinstance(event, h2.events.StreamReset)
        if isinstance(event, (h2.events.RequestReceived, h2.events.ResponseReceived)):
            head = tuple((bytes(name), bytes(value)) for name, value in event.headers if not name.startswith(b":"))
        elif isinstance(event, h2.events.DataReceived):
            content += event.data
        elif isinstance(event, h2.events.TrailersReceived):
            tail = tuple((bytes(name), bytes(value)) for name, value in event.headers)
    return head, content, tail


def push(peers: Peers, stream_id: int, content: bytes, *, padding: int) -> None:
    """Send content by h2, as far as its windows let it, and again when they open."""
    while content:
        room = peers.theirs.local_flow_control_window(stream_id)
        size = min(room - padding - 1, peers.theirs.max_outbound_frame_size - padding - 1, len(content))
        if size <= 0:
            peers.carry()
            assert peers.theirs.local_flow_control_window(stream_id) > room, "a window never opened again"
            continue
        peers.theirs.send_data(stream_id, content[:size], pad_length=padding or None)
        content = content[size:]


@settings(max_examples=25, deadline=None)
@given(calls=st.lists(CALL, min_size=1, max_size=6), stream_window=st.sampled_from([100, 65_535, 65_536]))
def test_h2_calls_our_server(calls: list[tuple[bytes, int, int, bool, int]], stream_window: int) -> None:
    """What h2 says, our server hears, and the other way round, whatever the sizes, windows and padding."""
    window = max(1000, stream_window)
    peers = Peers(Role.SERVER, Limits(stream_window=window, max_stream_window=1 << 20, min_ping_interval=0.0))
    for number, (name, up, down, trailing, padding) in enumerate(calls):
        stream_id = 2 * number + 1
        peers.theirs.send_headers(stream_id, path_of(name))
        push(peers, stream_id, b"u" * up, padding=padding)
        if trailing:
            peers.theirs.send_headers(stream_id, TRAILERS, end_stream=True)
        else:
            peers.theirs.end_stream(stream_id)
        peers.carry()
        peers.ours.send_headers(stream_id, (*RESPONSE, (b"x-bin", name.hex().encode())))
        peers.ours.send_data(stream_id, b"d" * down)
        peers.ours.send_headers(stream_id, TRAILERS, end_stream=True)
        peers.carry()
        assert ours_of(peers, stream_id) == (
            path_of(name)[4:],
            b"u" * up,
            TRAILERS if trailing else (),
        )
        assert theirs_of(peers, stream_id) == (
            (*RESPONSE[1:], (b"x-bin", name.hex().encode())),
            b"d" * down,
            TRAILERS,
        )
    assert (peers.ours.streams, peers.ours.pending) == (0, 0)


@settings(max_examples=25, deadline=None)
@given(calls=st.lists(CALL, min_size=1, max_size=6))
def test_our_client_calls_h2(calls: list[tuple[bytes, int, int, bool, int]]) -> None:
    """The same, the other way round."""
    peers = Peers(Role.CLIENT, CLIENT)
    for name, up, down, trailing, padding in calls:
        stream_id = peers.ours.open(path_of(name))
        peers.ours.send_data(stream_id, b"u" * up, end_stream=not trailing)
        if trailing:
            peers.ours.send_headers(stream_id, TRAILERS, end_stream=True)
        peers.carry()
        peers.theirs.send_headers(stream_id, RESPONSE)
        push(peers, stream_id, b"d" * down, padding=padding)
        peers.theirs.send_headers(stream_id, TRAILERS, end_stream=True)
        peers.carry()
        assert theirs_of(peers, stream_id) == (path_of(name)[4:], b"u" * up, TRAILERS if trailing else ())
        assert ours_of(peers, stream_id) == (RESPONSE[1:], b"d" * down, TRAILERS)
    assert (peers.ours.streams, peers.ours.pending) == (0, 0)


@pytest.mark.parametrize("seed", range(4))
def test_many_streams_at_once_with_h2(seed: int) -> None:
    """Streams that share the connection's window all come to their end, resets in between."""
    chance = random.Random(seed)
    peers = Peers(Role.SERVER, Limits())
    alive = {}
    for number in range(1, 101, 2):
        peers.theirs.send_headers(number, REQUEST, end_stream=True)
        alive[number] = chance.randrange(0, 60_000)
    said = peers.theirs.data_to_send()
    peers.ours.receive(said, 0.0)
    for number, size in alive.items():
        peers.ours.send_headers(number, RESPONSE)
        peers.ours.send_data(number, bytes(size), end_stream=True)
    for number in chance.sample(sorted(alive), 10):
        if chance.random() < 0.5:
            peers.ours.reset(number)
        else:
            peers.theirs.reset_stream(number)
        del alive[number]
    peers.carry()
    for number, size in alive.items():
        assert theirs_of(peers, number)[1] == bytes(size)
    assert (peers.ours.streams, peers.ours.pending) == (0, 0)
