"""The client's side: our client against our server in memory, and against servers that break the rules."""

from __future__ import annotations

import random

import pytest

from servicekit.http2 import frames
from servicekit.http2.connection import Connection, Role
from servicekit.http2.errors import ErrorCode, Misuse
from servicekit.http2.events import (
    Data,
    Event,
    GoawayReceived,
    RequestReceived,
    ResponseReceived,
    StreamReset,
    Terminated,
    Trailers,
)
from servicekit.http2.frames import END_HEADERS, PREFACE, TWO_WORDS, frame
from servicekit.http2.hpack_encoder import encode_stateless
from servicekit.http2.limits import CLIENT, Limits
from servicekit.http2.settings import Setting
from tests.http2.conversation import (
    REQUEST,
    RESPONSE,
    SETTINGS,
    TRAILERS,
    Conversation,
    Fields,
    data,
    headers,
    reset,
    setting,
)


def client(limits: Limits = CLIENT) -> Conversation:
    return Conversation(Role.CLIENT, limits=limits)


def test_a_client_greets_first_and_forbids_push() -> None:
    """Preface, SETTINGS with ENABLE_PUSH 0 (3.4, 8.4)."""
    connection = Connection(role=Role.CLIENT, limits=CLIENT, now=0.0)
    said = connection.take()
    assert said.startswith(PREFACE)
    assert b"\x00\x02\x00\x00\x00\x00" in said


def test_a_call_there_and_back() -> None:
    """A request, its response, its trailers; and both sides are empty again."""
    talk = client()
    assert talk.connection.open(REQUEST) == 1
    assert talk.connection.send_data(1, b"hello", end_stream=True)
    request, content = talk.hear()
    assert talk.fields(request) == REQUEST
    assert (content.payload, content.flags) == (b"hello", 1)
    response, answer, trailers = talk.say(headers(1, RESPONSE), data(1, b"world"), headers(1, TRAILERS, end=True))
    assert isinstance(response, ResponseReceived)
    assert (response.headers.status, response.headers.regular) == (200, RESPONSE[1:])
    assert answer == Data(1, b"world", 5, end_stream=False)
    assert isinstance(trailers, Trailers)
    assert trailers.trailers.regular == TRAILERS
    assert talk.connection.streams == 0


def test_a_response_of_trailers_only() -> None:
    """Fields with END_STREAM are all there is (8.1)."""
    talk = client()
    talk.connection.open(REQUEST, end_stream=True)
    (response,) = talk.say(headers(1, RESPONSE, end=True))
    assert isinstance(response, ResponseReceived)
    assert response.end_stream
    assert talk.connection.streams == 0


def test_interim_responses_are_dropped() -> None:
    """100 and 103 come before the response, and are not it (8.1)."""
    talk = client()
    talk.connection.open(REQUEST, end_stream=True)
    assert talk.say(headers(1, ((b":status", b"103"), (b"link", b"x")))) == []
    assert [type(event) for event in talk.say(headers(1, RESPONSE))] == [ResponseReceived]


@pytest.mark.parametrize(
    "said",
    [
        data(1),
        headers(1, ((b":status", b"100"),), end=True),
        headers(1, ((b":status", b"101"),)),
        headers(1, ((b":status", b"2x0"),)),
        headers(1, ((b":status", b"20"),)),
        headers(1, TRAILERS),
        headers(1, REQUEST),
        headers(1, RESPONSE) + headers(1, TRAILERS),
        headers(1, RESPONSE) + headers(1, RESPONSE, end=True),
        headers(1, (*RESPONSE, (b"content-length", b"1"))) + data(1, b"xx"),
        headers(1, (*RESPONSE, (b"content-length", b"1"))) + data(1, b"", end=True),
        headers(1, (*RESPONSE, (b"content-length", b"1"))) + headers(1, TRAILERS, end=True),
    ],
)
def test_a_malformed_response_is_a_stream_error(said: bytes) -> None:
    """It costs its stream, and no other (8.1.1)."""
    talk = client()
    talk.connection.open(REQUEST)
    talk.hear()
    assert talk.refused_by(1, said) == ErrorCode.PROTOCOL_ERROR


@pytest.mark.parametrize(
    "said",
    [
        headers(1, RESPONSE),
        headers(2, RESPONSE),
        data(1),
        reset(1),
        frame(frames.PUSH_PROMISE, END_HEADERS, 1, bytes(4) + encode_stateless(REQUEST)),
        setting(Setting.ENABLE_PUSH, 1),
    ],
)
def test_a_server_opens_nothing(said: bytes) -> None:
    """On idle streams it may say nothing, and push was forbidden (5.1, 6.6, 6.5.2)."""
    assert client().ended_by(said) == ErrorCode.PROTOCOL_ERROR


def test_no_more_streams_than_the_server_allows() -> None:
    """``may_open`` says how many, and open holds to it (5.1.2)."""
    talk = client()
    talk.say(setting(Setting.MAX_CONCURRENT_STREAMS, 2))
    assert talk.connection.may_open == 2
    talk.connection.open(REQUEST)
    talk.connection.open(REQUEST)
    assert talk.connection.may_open == 0
    with pytest.raises(Misuse):
        talk.connection.open(REQUEST)
    talk.connection.reset(1)
    assert talk.connection.may_open == 1
    assert Conversation().connection.may_open == 0


def test_a_refused_stream_was_not_touched() -> None:
    """It may be tried again: the server says it has not begun (8.7)."""
    talk = client()
    talk.connection.open(REQUEST)
    talk.connection.open(REQUEST)
    refused, cancelled = talk.say(reset(1, ErrorCode.REFUSED_STREAM), reset(3))
    assert isinstance(refused, StreamReset)
    assert isinstance(cancelled, StreamReset)
    assert (refused.untouched, refused.by_peer) == (True, True)
    assert (cancelled.untouched, cancelled.code) == (False, ErrorCode.CANCEL)


def test_many_resets_by_a_server_are_its_right() -> None:
    """A server that is overloaded refuses much: that ends no connection."""
    talk = client()
    for number in range(1, 2001, 2):
        talk.connection.open(REQUEST)
        talk.say(reset(number, ErrorCode.REFUSED_STREAM))
    assert not talk.connection.closed


def test_what_a_goaway_leaves_out_was_not_touched() -> None:
    """Streams above the last are told first; those below go on; no new ones (6.8)."""
    talk = client()
    for _ in range(3):
        talk.connection.open(REQUEST, end_stream=True)
    assert talk.say(frame(frames.GOAWAY, 0, 0, TWO_WORDS.pack((1 << 31) - 1, 0))) == [
        GoawayReceived((1 << 31) - 1, 0, b"")
    ]
    assert talk.connection.may_open == 0
    fifth, told = talk.say(frame(frames.GOAWAY, 0, 0, TWO_WORDS.pack(3, 0)))
    assert isinstance(fifth, StreamReset)
    assert (fifth.stream_id, fifth.untouched) == (5, True)
    assert told == GoawayReceived(3, 0, b"")
    assert [type(event) for event in talk.say(headers(1, RESPONSE, end=True))] == [ResponseReceived]


def test_a_client_drains_at_once() -> None:
    """It opens no more, and ends with the last of its streams."""
    talk = client()
    talk.connection.open(REQUEST, end_stream=True)
    talk.connection.drain(0.0)
    assert talk.connection.may_open == 0
    events = talk.say(headers(1, RESPONSE, end=True))
    assert [type(event) for event in events] == [ResponseReceived, Terminated]


def test_misuse_is_told_and_sends_nothing() -> None:
    """What no act of the peer explains is a mistake of the caller's."""
    server = Conversation()
    server.say(headers(1))
    with pytest.raises(Misuse):
        server.connection.send_data(1, b"before the headers")
    with pytest.raises(Misuse):
        server.connection.send_headers(3, RESPONSE)
    with pytest.raises(Misuse):
        server.connection.reset(3)
    with pytest.raises(Misuse):
        server.connection.ping(b"short")
    with pytest.raises(Misuse):
        server.connection.open(REQUEST)
    server.connection.send_headers(1, RESPONSE)
    with pytest.raises(Misuse):
        server.connection.send_headers(1, RESPONSE)
    server.say(headers(5, end=True))
    server.connection.send_headers(5, RESPONSE)
    with pytest.raises(Misuse):
        server.connection.respond(5, b"\x88", b"twice", b"\x88")
    server.hear()
    talk = client()
    talk.connection.open(REQUEST, end_stream=True)
    with pytest.raises(Misuse):
        talk.connection.send_data(1, b"after the end")


class Pair:
    """Our client and our server, and a path between them that cuts octets where it likes."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.client = Connection(role=Role.CLIENT, limits=CLIENT, now=0.0)
        self.server = Connection(role=Role.SERVER, now=0.0)
        self.seen: dict[str, list[Event]] = {"client": [], "server": []}

    def carry(self) -> None:
        """Carry octets there and back until neither side has more to say."""
        moved = True
        while moved:
            moved = False
            for origin, target, name in (
                (self.client, self.server, "server"),
                (self.server, self.client, "client"),
            ):
                while octets := origin.take(self.random.choice((100, 20_000, 65_536))):
                    moved = True
                    at = 0
                    while at < len(octets):
                        size = self.random.choice((1, 8, 9, 100, 5000, 70_000))
                        for event in target.receive(octets[at : at + size], 0.0):
                            if isinstance(event, Data):
                                target.acknowledge(event.stream_id, event.credit)
                            self.seen[name].append(event)
                        at += size

    def messages(self, name: str) -> dict[int, list[object]]:
        """Return what one side saw of each stream, content joined."""
        found: dict[int, list[object]] = {}
        for event in self.seen[name]:
            if isinstance(event, RequestReceived):
                found[event.stream_id] = [event.headers.path, b""]
            elif isinstance(event, ResponseReceived):
                found[event.stream_id] = [event.headers.status, b""]
            elif isinstance(event, Data):
                content = found[event.stream_id][1]
                assert isinstance(content, bytes)
                found[event.stream_id][1] = content + event.data
            elif isinstance(event, Trailers):
                found[event.stream_id].append(event.trailers.regular)
        return found


def request_to(number: int) -> Fields:
    return (*REQUEST[:2], (b":path", b"/%d" % number), *REQUEST[3:], (b"x-id", b"%d" % (number * 7919)))


@pytest.mark.parametrize("seed", range(6))
def test_where_reads_end_changes_nothing(seed: int) -> None:
    """However the octets are cut, both sides see the same messages, to the last octet."""
    pair = Pair(seed)
    sizes = [0, 1, 100, 16_384, 16_385, 65_535, 65_536, 200_000]
    for number, size in enumerate(sizes):
        stream_id = pair.client.open(request_to(number))
        pair.client.send_data(stream_id, b"a" * size)
        pair.client.send_headers(stream_id, TRAILERS, end_stream=True)
    pair.carry()
    for number, size in enumerate(reversed(sizes)):
        stream_id = 2 * number + 1
        pair.server.send_headers(stream_id, RESPONSE)
        pair.server.send_data(stream_id, b"b" * size)
        pair.server.send_headers(stream_id, (*TRAILERS, (b"x-id", b"%d" % number)), end_stream=True)
    pair.carry()
    assert pair.messages("server") == {
        2 * number + 1: [b"/%d" % number, b"a" * size, TRAILERS] for number, size in enumerate(sizes)
    }
    assert pair.messages("client") == {
        2 * number + 1: [200, b"b" * size, (*TRAILERS, (b"x-id", b"%d" % number))]
        for number, size in enumerate(reversed(sizes))
    }
    for side in (pair.client, pair.server):
        assert (side.streams, side.pending, side.closed) == (0, 0, False)


def test_a_path_that_holds_more_gets_larger_windows() -> None:
    """Both sides agree on windows that grew in mid-stream, and no octet is lost over it."""
    pair = Pair(0)
    for _ in range(20):
        stream_id = pair.client.open(REQUEST)
        pair.client.send_data(stream_id, bytes(1 << 20), end_stream=True)
        pair.carry()
        pair.server.respond(stream_id, encode_stateless(RESPONSE), b"x", encode_stateless(TRAILERS))
        pair.carry()
    assert pair.server._credit.stream_size > 1 << 16
    assert pair.server._credit.stream_size <= 1 << 20
    assert (pair.client.streams, pair.server.streams) == (0, 0)


def test_settings_must_come_first_from_a_server_too() -> None:
    """A server's preface is SETTINGS (3.4)."""
    talk = Conversation(Role.CLIENT, limits=CLIENT, greet=False)
    assert talk.ended_by(b"HTTP/1.1 400 Bad Request\r\n\r\n") in {
        ErrorCode.PROTOCOL_ERROR,
        ErrorCode.FRAME_SIZE_ERROR,
    }
    good = Conversation(Role.CLIENT, limits=CLIENT, greet=False)
    good.say(SETTINGS)
    assert not good.connection.closed
