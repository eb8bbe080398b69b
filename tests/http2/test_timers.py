"""What a connection does as time passes: timeouts, keepalive, idleness, age, and the drain in two phases."""

from __future__ import annotations

import math

import pytest

from servicekit.http2 import frames
from servicekit.http2.connection import Connection, Role
from servicekit.http2.errors import ErrorCode
from servicekit.http2.events import RequestReceived, Terminated
from servicekit.http2.frames import END_HEADERS, PREFACE, TWO_WORDS, frame
from servicekit.http2.hpack_encoder import encode_stateless
from servicekit.http2.limits import CLIENT, Limits
from tests.http2.conversation import (
    REQUEST,
    RESPONSE,
    SETTINGS,
    SETTINGS_ACK,
    TRAILERS,
    Conversation,
    Frame,
    data,
    headers,
)

BLOCK = encode_stateless(REQUEST)
LAST = (1 << 31) - 1


def goaway(last_id: int, code: int = 0, debug: bytes = b"") -> Frame:
    """Return a GOAWAY as it is heard."""
    return Frame(frames.GOAWAY, 0, 0, TWO_WORDS.pack(last_id, code) + debug)


def pong(heard: Frame) -> bytes:
    """Return the acknowledgement of a PING."""
    assert (heard.kind, heard.flags) == (frames.PING, 0)
    return frame(frames.PING, frames.ACK, 0, heard.payload)


def tick(talk: Conversation, now: float) -> list[object]:
    """Let time pass, from one deadline to the next."""
    events: list[object] = []
    while (due := talk.connection.next_tick()) <= now:
        talk.now = max(talk.now, due)
        events += talk.connection.tick(talk.now)
    talk.now = now
    return events + list(talk.connection.tick(now))


def ended(talk: Conversation, now: float) -> ErrorCode:
    """Let time pass until the connection ends, exactly at a time and no sooner."""
    assert tick(talk, now - 0.001) == []
    (event,) = tick(talk, now)
    assert isinstance(event, Terminated)
    return ErrorCode(event.code)


@pytest.mark.parametrize("said", [b"", PREFACE[:10], PREFACE, PREFACE + SETTINGS[:8]])
def test_the_preface_must_come_in_five_seconds(said: bytes) -> None:
    """Who connects and says nothing, or nothing whole, is sent away."""
    talk = Conversation(greet=False)
    talk.say(said)
    assert ended(talk, 5.0) == ErrorCode.PROTOCOL_ERROR


def test_settings_must_be_acknowledged_in_five_seconds() -> None:
    """SETTINGS_TIMEOUT is the code for it (6.5.3)."""
    talk = Conversation(greet=False)
    talk.say(PREFACE, SETTINGS)
    assert ended(talk, 5.0) == ErrorCode.SETTINGS_TIMEOUT


@pytest.mark.parametrize(
    "said",
    [
        frame(frames.HEADERS, END_HEADERS, 1, BLOCK)[:-1],
        frame(frames.HEADERS, END_HEADERS, 1, BLOCK)[:9],
        frame(frames.HEADERS, 0, 1, BLOCK),
        frame(frames.HEADERS, 0, 1, BLOCK[:9]) + frame(frames.CONTINUATION, END_HEADERS, 1, BLOCK[9:])[:-1],
    ],
)
def test_a_header_block_must_be_whole_in_five_seconds(said: bytes) -> None:
    """However it comes in pieces, and however often a piece comes."""
    talk = Conversation()
    talk.now = 10.0
    for octet in range(len(said)):
        talk.now += 0.001
        talk.say(said[octet : octet + 1])
    start = 10.0 + (0.004 if said[3] == frames.HEADERS else 0)
    assert tick(talk, start + 4.9) == []
    (event,) = tick(talk, start + 5.2)
    assert isinstance(event, Terminated)


def test_a_busy_connection_may_always_be_in_the_middle_of_a_block() -> None:
    """The time is each block's own: reads that end within one after the other are no slow block."""
    talk = Conversation()
    said = b"".join(headers(number, end=True) for number in range(1, 41, 2))
    size = len(said) // 20
    talk.say(said[: size // 2])
    for number in range(19):
        assert tick(talk, talk.now + 1.0) == []
        talk.say(said[size // 2 + number * size : size // 2 + (number + 1) * size])
    assert not talk.connection.closed


def test_whole_blocks_leave_no_deadline() -> None:
    """Once it is there, nothing is waited for."""
    talk = Conversation(limits=Limits(idle_timeout=None, max_age=None, keepalive_time=None))
    talk.say(headers(1)[:20])
    assert talk.connection.next_tick() == 5.0
    talk.say(headers(1)[20:], frame(frames.HEADERS, 0, 3, BLOCK), frame(frames.CONTINUATION, END_HEADERS, 3))
    assert talk.connection.next_tick() == math.inf


def test_a_silent_peer_is_asked_and_then_given_up() -> None:
    """120 s without a word, then a PING, then 20 s."""
    talk = Conversation()
    talk.say(headers(1))
    assert tick(talk, 119.9) == []
    assert talk.hear() == []
    assert tick(talk, 120.0) == []
    (ping,) = talk.hear()
    talk.now = 130.0
    talk.say(pong(ping))
    assert tick(talk, 249.9) == []
    assert tick(talk, 250.0) == []
    assert len(talk.hear()) == 1
    assert ended(talk, 270.0) == ErrorCode.NO_ERROR


def test_any_word_is_a_sign_of_life() -> None:
    """A peer that sends content is alive, whether or not it answers at once."""
    talk = Conversation()
    talk.say(headers(1))
    tick(talk, 120.0)
    talk.hear()
    talk.now = 121.0
    talk.say(data(1))
    assert tick(talk, 160.0) == []
    assert not talk.connection.closed


def test_the_peer_is_not_blamed_while_nobody_reads() -> None:
    """While the owner does not read, what only reading can show is not waited for; it is afterwards."""
    talk = Conversation(greet=False, limits=Limits(stall_timeout=None))
    talk.connection.pause(1.0)
    talk.connection.pause(2.0)
    assert tick(talk, 200.0) == []
    talk.connection.resume(200.0)
    assert ended(talk, 205.0) == ErrorCode.PROTOCOL_ERROR


def test_a_peer_that_does_not_read_is_given_up() -> None:
    """It keeps the memory of what waits for it: 20 s are enough."""
    talk = Conversation()
    talk.connection.pause(10.0)
    talk.connection.resume(29.0)
    talk.connection.pause(30.0)
    talk.connection.pause(45.0)
    assert ended(talk, 50.0) == ErrorCode.ENHANCE_YOUR_CALM


def test_a_drain_tells_twice_and_waits_for_what_is_open() -> None:
    """GOAWAY(2^31-1), a round trip in which streams still come, GOAWAY(the last), and then the rest (6.8)."""
    talk = Conversation()
    talk.say(headers(1, end=True))
    talk.connection.drain(0.0)
    first, ping = talk.hear()
    assert first == goaway(LAST)
    (received,) = talk.say(headers(3, end=True))
    assert isinstance(received, RequestReceived)
    assert talk.say(pong(ping)) == []
    assert talk.hear() == [goaway(3)]
    assert talk.refused_by(5, headers(5)) == ErrorCode.REFUSED_STREAM
    assert talk.say(data(5, b"late", end=True)) == []
    for number in (1, 3):
        assert not talk.connection.closed
        talk.connection.respond(number, b"\x88", b"x", b"\x88")
        talk.hear()
    assert talk.connection.closed
    assert talk.connection.next_tick() == math.inf


def test_an_idle_drain_ends_with_its_round_trip() -> None:
    """Nothing is open, so nothing is waited for but the peer's knowing."""
    talk = Conversation()
    talk.connection.drain(0.0)
    _, ping = talk.hear()
    assert talk.say(pong(ping)) == [Terminated(ErrorCode.NO_ERROR, "drained")]
    assert talk.hear() == [goaway(0)]
    assert talk.connection.closed


def test_a_drain_does_not_wait_for_a_peer_that_does_not_answer() -> None:
    """After 5 s the second GOAWAY goes out all the same."""
    talk = Conversation()
    talk.connection.drain(0.0)
    talk.hear()
    assert ended(talk, 5.0) == ErrorCode.NO_ERROR
    assert talk.hear() == [goaway(0)]


def test_a_drain_sends_what_is_queued() -> None:
    """A call that has been answered is not lost in the drain: the windows open, and the rest goes out."""
    talk = Conversation()
    talk.say(headers(1, end=True))
    talk.connection.send_headers(1, RESPONSE)
    talk.connection.send_data(1, bytes(100_000))
    talk.connection.send_headers(1, TRAILERS, end_stream=True)
    talk.connection.drain(0.0)
    ping = next(one for one in talk.hear() if one.kind == frames.PING)
    talk.say(pong(ping))
    talk.hear()
    assert not talk.connection.closed
    talk.say(frame(frames.WINDOW_UPDATE, 0, 0, b"\0\1\0\0"), frame(frames.WINDOW_UPDATE, 0, 1, b"\0\1\0\0"))
    heard = talk.hear()
    assert sum(len(one.payload) for one in heard if one.kind == frames.DATA) == 100_000 - 65_535
    assert talk.connection.closed


def test_a_drain_with_grace_ends_when_the_grace_does() -> None:
    """Who does not finish is cut off; a second drain may hurry the first."""
    talk = Conversation()
    talk.say(headers(1))
    talk.connection.drain(0.0)
    _, ping = talk.hear()
    talk.say(pong(ping))
    talk.connection.drain(1.0, grace=9.0)
    assert talk.hear() == [goaway(1)]
    assert ended(talk, 10.0) == ErrorCode.NO_ERROR
    assert talk.connection.streams == 0


def test_an_idle_connection_drains() -> None:
    """Five minutes without a stream; with one open, or one not long ago, it stays."""
    quiet = Limits(keepalive_time=None)
    talk = Conversation(limits=quiet)
    assert tick(talk, 299.9) == []
    talk.say(headers(1, end=True))
    assert tick(talk, 1000.0) == []
    talk.connection.respond(1, b"\x88", b"x", b"\x88")
    talk.hear()
    assert tick(talk, 1180.0) == []
    assert not talk.connection.draining
    tick(talk, 1301.0)
    assert talk.connection.draining


@pytest.mark.parametrize(("chance", "age"), [(0.0, 1620.0), (0.5, 1800.0), (0.75, 1890.0)])
def test_an_old_connection_drains_with_grace(chance: float, age: float) -> None:
    """Half an hour, a tenth more or less, that not all go at once; then 60 s for what is open."""
    limits = Limits(keepalive_time=None, idle_timeout=None)
    talk = Conversation(limits=limits)
    talk.connection = Connection(role=Role.SERVER, limits=limits, now=0.0, chance=chance)
    talk.say(PREFACE, SETTINGS, SETTINGS_ACK, headers(1))
    talk.hear()
    assert tick(talk, age - 0.1) == []
    assert talk.hear() == []
    assert tick(talk, age) == []
    assert talk.hear()[0] == goaway(LAST)
    assert tick(talk, age + 59.9) == []
    assert [type(event) for event in tick(talk, age + 60.0)] == [Terminated]


def test_a_client_waits_for_nothing_but_the_greeting() -> None:
    """Its pool decides how long a connection lives."""
    talk = Conversation(Role.CLIENT, limits=CLIENT)
    assert talk.connection.next_tick() == math.inf
    mute = Conversation(Role.CLIENT, limits=CLIENT, greet=False)
    assert ended(mute, 5.0) == ErrorCode.PROTOCOL_ERROR


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_frame_size": 1},
        {"max_frame_size": 1 << 24},
        {"stream_window": 0},
        {"stream_window": 1 << 21},
        {"connection_window": 1000},
        {"max_concurrent_streams": -1},
    ],
)
def test_limits_that_the_wire_cannot_say_are_refused(wrong: dict[str, int]) -> None:
    """A wrong value fails where it is written."""
    with pytest.raises(ValueError, match=str(*wrong.values())):
        Limits(**wrong)  # type: ignore[arg-type]
