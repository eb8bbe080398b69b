"""The states of a stream, RFC 9113, section 5.1: each frame in each state, as the wire shows it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from servicekit.http2 import frames, states
from servicekit.http2.errors import ErrorCode
from servicekit.http2.events import Data, Event, RequestReceived, StreamReset, Terminated, Trailers
from servicekit.http2.frames import WORD
from tests.http2.conversation import RESPONSE, TRAILERS, Conversation, data, headers, reset, update


def idle() -> Conversation:
    return Conversation()


def opened() -> Conversation:
    talk = Conversation()
    talk.say(headers(1))
    return talk


def half_closed_remote() -> Conversation:
    talk = Conversation()
    talk.say(headers(1, end=True))
    return talk


def closed() -> Conversation:
    talk = half_closed_remote()
    talk.connection.send_headers(1, RESPONSE, end_stream=True)
    talk.hear()
    return talk


def closed_by_peer() -> Conversation:
    talk = opened()
    talk.say(reset(1))
    return talk


def closed_by_reset() -> Conversation:
    talk = opened()
    talk.connection.reset(1)
    talk.hear()
    return talk


def skipped() -> Conversation:
    talk = Conversation()
    talk.say(headers(3))
    return talk


STATES = {
    "idle": idle,
    "open": opened,
    "half-closed (remote)": half_closed_remote,
    "closed": closed,
    "closed by peer": closed_by_peer,
    "reset": closed_by_reset,
    "skipped": skipped,
}
FRAMES = {
    "received HEADERS": headers(1),
    "received HEADERS, END_STREAM": headers(1, end=True),
    "received DATA": data(1),
    "received DATA, END_STREAM": data(1, end=True),
    "received RST_STREAM": reset(1),
    "received WINDOW_UPDATE": update(1, 10),
}
COLUMNS = {
    "idle": states.IDLE,
    "open": states.OPEN,
    "half-closed (remote)": states.HALF_REMOTE,
    "closed": states.CLOSED,
    "closed by peer": states.CLOSED,
    "reset": states.RESET,
    "skipped": states.SKIPPED,
}


def seen(talk: Conversation, octets: bytes) -> str:
    """Return what came of a frame on stream 1, in a word."""
    events = talk.say(octets)
    if events and isinstance(events[-1], Terminated):
        return f"connection {ErrorCode(events[-1].code).name}"
    resets = [heard for heard in talk.hear() if heard.kind == frames.RST_STREAM]
    if resets:
        return f"stream {ErrorCode(WORD.unpack(resets[0].payload)[0]).name}"
    return ", ".join(type(event).__name__ for event in events) or "nothing"


EXPECTED = {
    "idle": {
        "received HEADERS": "RequestReceived",
        "received HEADERS, END_STREAM": "RequestReceived",
        "received DATA": "connection PROTOCOL_ERROR",
        "received DATA, END_STREAM": "connection PROTOCOL_ERROR",
        "received RST_STREAM": "connection PROTOCOL_ERROR",
        "received WINDOW_UPDATE": "connection PROTOCOL_ERROR",
    },
    "open": {
        "received HEADERS": "stream PROTOCOL_ERROR",  # fields within the content: malformed, 8.1
        "received HEADERS, END_STREAM": "stream PROTOCOL_ERROR",  # pseudo-header fields in trailers: malformed, 8.1
        "received DATA": "Data",
        "received DATA, END_STREAM": "Data",
        "received RST_STREAM": "StreamReset",
        "received WINDOW_UPDATE": "nothing",
    },
    "half-closed (remote)": {
        "received HEADERS": "stream STREAM_CLOSED",
        "received HEADERS, END_STREAM": "stream STREAM_CLOSED",
        "received DATA": "stream STREAM_CLOSED",
        "received DATA, END_STREAM": "stream STREAM_CLOSED",
        "received RST_STREAM": "StreamReset",
        "received WINDOW_UPDATE": "nothing",
    },
    "closed": {
        "received HEADERS": "connection STREAM_CLOSED",
        "received HEADERS, END_STREAM": "connection STREAM_CLOSED",
        "received DATA": "stream STREAM_CLOSED",
        "received DATA, END_STREAM": "stream STREAM_CLOSED",
        "received RST_STREAM": "nothing",
        "received WINDOW_UPDATE": "nothing",
    },
    "reset": dict.fromkeys(FRAMES, "nothing"),
    "skipped": {
        "received HEADERS": "connection PROTOCOL_ERROR",
        "received HEADERS, END_STREAM": "connection PROTOCOL_ERROR",
        "received DATA": "stream STREAM_CLOSED",
        "received DATA, END_STREAM": "stream STREAM_CLOSED",
        "received RST_STREAM": "nothing",
        "received WINDOW_UPDATE": "nothing",
    },
}
EXPECTED["closed by peer"] = EXPECTED["closed"]


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("state", STATES)
def test_each_frame_in_each_state(state: str, frame: str) -> None:
    """What a frame does depends on the state of its stream, and never on luck (5.1, 5.1.1)."""
    assert seen(STATES[state](), FRAMES[frame]) == EXPECTED[state][frame]


VERDICTS = {
    states.IGNORE: "nothing",
    states.STREAM_ERROR: "stream STREAM_CLOSED",
    states.CLOSED_ERROR: "connection STREAM_CLOSED",
    states.PROTOCOL: "connection PROTOCOL_ERROR",
}


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("state", STATES)
def test_the_table_is_what_is_done(state: str, frame: str) -> None:
    """Whoever reads the table knows what is done: a verdict in it is what the wire shows."""
    after = states.NEXT[frame][COLUMNS[state]]
    if after < 0:
        assert EXPECTED[state][frame] == VERDICTS[after]
    else:
        assert EXPECTED[state][frame] in {
            "RequestReceived", "Data", "StreamReset", "nothing", "stream PROTOCOL_ERROR",
        }  # fmt: skip


def test_the_table_has_a_column_for_each_state() -> None:
    """Each frame has an answer in each state."""
    assert {len(row) for row in states.NEXT.values()} == {len(states.STATES)}


@pytest.mark.parametrize(
    ("act", "told"),
    [
        (lambda talk: talk.say(headers(1, TRAILERS, end=True)), [Trailers]),
        (lambda talk: talk.say(data(1), data(1, end=True)), [Data]),
        (lambda talk: talk.say(reset(1)), [StreamReset]),
    ],
)
def test_a_request_ends_in_one_of_three_ways(act: Callable[[Conversation], list[Event]], told: list[type]) -> None:
    """Trailers, END_STREAM or a reset; after each, its own stream takes nothing more (8.1)."""
    talk = opened()
    assert [type(event) for event in act(talk)] == told
    assert seen(talk, data(1)) == "stream STREAM_CLOSED"


def test_an_answered_stream_leaves_nothing_behind() -> None:
    """A stream is out of the table as soon as both sides have ended it."""
    talk = Conversation()
    for number in range(1, 2001, 2):
        (received,) = talk.say(headers(number, end=True))
        assert isinstance(received, RequestReceived)
        assert talk.connection.streams == 1
        talk.connection.respond(number, b"\x88", b"x", b"\x88")
        assert talk.connection.streams == 0


def test_an_early_end_asks_for_no_more_of_the_request() -> None:
    """A server that has answered before the request ended resets without an error, and ignores the rest (8.1)."""
    talk = opened()
    talk.connection.send_headers(1, RESPONSE)
    talk.connection.send_headers(1, TRAILERS, end_stream=True)
    kinds = [(heard.kind, heard.payload) for heard in talk.hear()]
    assert kinds[-1] == (frames.RST_STREAM, WORD.pack(ErrorCode.NO_ERROR))
    assert talk.connection.streams == 0
    assert seen(talk, data(1)) == "nothing"
    talk.alive()


def test_late_frames_are_ignored_however_many_streams_were_reset() -> None:
    """What is forgotten is never held against the peer (5.1)."""
    talk = Conversation()
    for number in range(1, 4001, 2):
        talk.say(headers(number))
        talk.connection.reset(number)
    talk.hear()
    assert seen(talk, data(1)) == "nothing"
    assert seen(talk, headers(1)) == "nothing"


@pytest.mark.parametrize("stream_id", [0, 2])
def test_a_client_opens_odd_streams_only(stream_id: int) -> None:
    """Even identifiers are the server's, and 0 is the connection's (5.1.1)."""
    assert Conversation().ended_by(headers(stream_id)) == ErrorCode.PROTOCOL_ERROR


def test_more_streams_than_allowed_are_refused() -> None:
    """The excess is refused, and may be tried again; the others go on (5.1.2)."""
    talk = Conversation()
    talk.say(*(headers(number) for number in range(1, 201, 2)))
    assert talk.connection.streams == 100
    assert talk.refused_by(201, headers(201)) == ErrorCode.REFUSED_STREAM
    talk.say(reset(1))
    assert [type(event) for event in talk.say(headers(203))] == [RequestReceived]
