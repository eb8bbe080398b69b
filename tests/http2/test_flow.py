"""Flow control, RFC 9113, sections 5.2 and 6.9: no credit is lost or invented, ever."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from servicekit.http2 import frames
from servicekit.http2.connection import Connection
from servicekit.http2.errors import ErrorCode, Misuse
from servicekit.http2.events import Data
from servicekit.http2.frames import WORD, frame
from servicekit.http2.limits import Limits
from servicekit.http2.settings import Setting
from servicekit.http2.windows import Bandwidth
from tests.http2.conversation import (
    RESPONSE,
    SETTINGS_ACK,
    TRAILERS,
    Conversation,
    Frame,
    data,
    headers,
    reset,
    setting,
    update,
)

FLOW = ErrorCode.FLOW_CONTROL_ERROR


def contents(heard: list[Frame]) -> list[tuple[int, int]]:
    """Return stream and size of each DATA frame."""
    return [(one.stream_id, len(one.payload)) for one in heard if one.kind == frames.DATA]


def updates(heard: list[Frame]) -> dict[int, int]:
    """Return the sum of the updates for each stream."""
    found: dict[int, int] = {}
    for one in heard:
        if one.kind == frames.WINDOW_UPDATE:
            found[one.stream_id] = found.get(one.stream_id, 0) + WORD.unpack(one.payload)[0]
    return found


# What we receive


def test_more_than_a_streams_window_is_its_fault() -> None:
    """A stream may send what it was allowed, and not an octet more (6.9.1)."""
    talk = Conversation()
    talk.say(headers(1), headers(3), *[data(1, bytes(16_384))] * 4)
    assert talk.refused_by(1, data(1)) == FLOW
    assert talk.connection.streams == 1


def size_of(event: object) -> int:
    return event.credit if isinstance(event, Data) else 0


SMALL = st.builds(data, st.sampled_from([1, 1, 1, 3]), st.sampled_from([b"\x01xx", bytes(1000), bytes(1024)]))
LAST = st.sampled_from([data(1, end=True), data(3, end=True)])
ODD = st.one_of(
    st.builds(
        frame,
        st.just(frames.DATA),
        st.sampled_from([0, frames.END_STREAM, frames.PADDED, 0x40]),
        st.sampled_from([1, 3, 5, 9, 0, (1 << 31) + 1]),
        st.sampled_from([b"\x01xx", b"", bytes(1025), bytes(2_000)]),
    ),
    st.sampled_from([reset(1), headers(1, TRAILERS, end=True), frame(frames.PING, 0, 0, b"12345678"), headers(7)]),
)
SAID = st.lists(st.sampled_from([SMALL] * 8 + [LAST, ODD]).flatmap(lambda kind: kind), max_size=20)


def made_of(talk: Conversation, reads: list[bytes]) -> tuple[object, ...]:
    """Return what a connection makes of ``reads``: content put together, everything else as it comes."""
    told: list[object] = []
    for event in [event for read in reads for event in talk.say(read)]:
        last = told[-1] if told else None
        if isinstance(event, Data) and isinstance(last, Data) and last.stream_id == event.stream_id:
            assert not last.end_stream
            told[-1] = Data(
                event.stream_id, last.data + event.data, last.credit + event.credit, end_stream=event.end_stream
            )
        else:
            told.append(event if isinstance(event, Data) else (type(event), getattr(event, "stream_id", None)))
    connection = talk.connection
    windows = [(stream.id, stream.state, stream.receive_window) for stream in connection._streams.open.values()]
    return told, talk.hear(), windows, connection._credit.window, connection._credit.lent


@settings(max_examples=500, deadline=None)
@given(SAID, st.integers(60, 64), st.floats(0, 1))
def test_it_does_not_matter_what_comes_in_one_read(said: list[bytes], spent: int, cut: float) -> None:
    """Small frames that come together are one event: of the same content, and at the same price, as one by one."""
    talks = Conversation(), Conversation()
    for talk in talks:
        talk.say(headers(1), headers(3), headers(5), *[data(1, bytes(1000))] * spent)
        talk.hear()
    octets = b"".join(said)
    middle = int(cut * len(octets))
    assert made_of(talks[0], [octets[:middle], octets[middle:]]) == made_of(talks[1], said)


def test_a_run_of_small_frames_keeps_to_the_connections_window() -> None:
    """What is more than its window ends the connection, also in the middle of a run (6.9.1)."""
    for more in (1024, 1025):
        talk = Conversation()
        streams = range(1, 33, 2)
        talk.say(*map(headers, streams))
        for stream in streams:
            talk.say(*[data(stream, bytes(16_384))] * 3, data(stream, bytes(16_384 - 128)))  # 16 * 128 are left
        assert sum(map(size_of, talk.say(data(1, bytes(128)), data(3, bytes(128)), headers(33)))) == 256
        run = [data(33, bytes(256))] * 3
        if more == 1024:
            assert sum(map(size_of, talk.say(*run, data(33, bytes(1024))))) == 3 * 256 + 1024
        else:
            assert talk.ended_by(*run, data(33, bytes(1024)), data(33)) == FLOW


def test_small_frames_that_come_together_are_one_event() -> None:
    """An event for each would cost as much as all else about a small message. Some KiB at most: credit must come back."""
    talk = Conversation()
    talk.say(headers(1))
    assert [size_of(event) for event in talk.say(*[data(1, bytes(1000))] * 20)] == [9000, 9000, 2000]
    assert [size_of(event) for event in talk.say(data(1), *[data(1, bytes(1025))] * 2)] == [1, 1025, 1025]
    talk = Conversation()
    talk.say(headers(1))
    assert talk.say(*[data(1, b"ab")] * 100, data(1, b"c", end=True)) == [
        Data(1, b"ab" * 100 + b"c", 201, end_stream=True)
    ]


@pytest.mark.parametrize("last", [data(33), data(33, end=True), frame(frames.DATA, frames.PADDED, 33, b"\x00x")])
def test_more_than_the_connections_window_ends_it(last: bytes) -> None:
    """All streams together may send what the connection was allowed (6.9.1)."""
    talk = Conversation()
    for number in range(1, 33, 2):
        talk.say(headers(number), *[data(number, bytes(16_384))] * 4)
    assert talk.ended_by(headers(33), last) == FLOW


def test_credit_is_given_back_for_what_was_taken_half_a_window_at_a_time() -> None:
    """Whoever takes nothing is sent no more than a window; whoever takes all causes few updates."""
    talk = Conversation()
    talk.say(headers(1), *[data(1, bytes(8192))] * 8)
    assert updates(talk.hear()) == {}
    talk.connection.acknowledge(1, 32_767)
    assert updates(talk.hear()) == {}
    talk.connection.acknowledge(1, 1)
    assert updates(talk.hear()) == {1: 32_768}
    talk.say(*[data(1, bytes(8192))] * 4)
    assert talk.refused_by(1, data(1)) == FLOW


def test_a_stream_whose_peer_has_said_all_gets_no_credit() -> None:
    """Nobody would use it; the connection's goes on (6.9)."""
    talk = Conversation()
    talk.say(headers(1), *[data(1, bytes(16_384))] * 3, data(1, bytes(16_384), end=True))
    talk.connection.acknowledge(1, 65_536)
    assert updates(talk.hear()) == {}
    assert talk.connection._credit.taken == 65_536


def test_what_is_dropped_is_given_back_to_the_connection() -> None:
    """Content for a stream that was reset counts, and nobody will ever take it (5.1, 6.9)."""
    talk = Conversation()
    talk.say(headers(1))
    talk.connection.reset(1)
    talk.hear()
    assert [talk.say(data(1, bytes(16_384))) for _ in range(32)] == [[]] * 32
    assert updates(talk.hear()) == {0: 1 << 19}


def test_credit_of_a_stream_that_ended_is_the_connections() -> None:
    """What the owner takes late is given back all the same."""
    talk = Conversation()
    for number in range(1, 17, 2):
        talk.say(headers(number), *[data(number, bytes(16_384))] * 4, reset(number))
    talk.connection.acknowledge(1, 1 << 19)
    assert updates(talk.hear()) == {0: 1 << 19}


def test_nobody_gives_back_more_than_was_lent() -> None:
    """Credit is not invented: giving back twice is found at once."""
    talk = Conversation()
    talk.say(headers(1), data(1, bytes(100)))
    talk.connection.acknowledge(1, 60)
    with pytest.raises(Misuse, match="41 octets of credit, of 40"):
        talk.connection.acknowledge(1, 41)
    with pytest.raises(Misuse):
        talk.connection.acknowledge(1, -1)
    talk.connection.acknowledge(1, 40)


def test_a_window_below_the_default_holds_from_its_acknowledgement() -> None:
    """Until the peer knows, it may use the default (6.9.2); what it used more is owed."""
    talk = Conversation(limits=Limits(stream_window=1000), greet=False)
    talk.say(frames.PREFACE, frame(frames.SETTINGS, 0, 0), headers(1), headers(3), data(1, bytes(10_000)))
    talk.say(SETTINGS_ACK)
    assert not talk.connection.closed
    talk.connection.acknowledge(1, 10_000)
    assert updates(talk.hear())[1] == 10_000
    (content,) = talk.say(data(1, bytes(1000)))
    assert isinstance(content, Data)
    assert talk.refused_by(1, data(1)) == FLOW
    assert talk.refused_by(3, data(3, bytes(1001))) == FLOW
    talk.say(headers(5))
    assert talk.refused_by(5, data(5, bytes(1001))) == FLOW


# What we send


def test_content_waits_for_its_windows() -> None:
    """No more is sent than both windows let through (6.9.1), and the trailers wait behind it."""
    talk = Conversation()
    talk.say(headers(1, end=True))
    talk.connection.send_headers(1, RESPONSE)
    assert not talk.connection.send_data(1, bytes(100_000))
    assert not talk.connection.send_headers(1, TRAILERS, end_stream=True)
    assert sum(size for _, size in contents(talk.hear())) == 65_535
    talk.say(update(1, 50_000))
    assert contents(talk.hear()) == []
    talk.say(update(0, 20_000))
    assert sum(size for _, size in contents(talk.hear())) == 20_000
    talk.say(update(0, 20_000))
    heard = talk.hear()
    assert sum(size for _, size in contents(heard)) == 14_465
    assert (heard[-1].kind, heard[-1].flags & 1) == (frames.HEADERS, 1)
    assert talk.connection.drained() == [1]
    assert (talk.connection.streams, talk.connection.pending) == (0, 0)


def test_streams_take_turns() -> None:
    """A frame each: a large response does not hold up the others."""
    talk = Conversation()
    talk.say(update(0, 1 << 20), *(headers(number, end=True) for number in (1, 3, 5)))
    for number in (1, 3, 5):
        talk.connection.send_headers(number, RESPONSE)
        talk.connection.send_data(number, bytes(60_000), end_stream=True)
    assert [stream for stream, _ in contents(talk.hear())] == [1, 3, 5] * 4


def test_whoever_has_much_to_say_does_not_go_first() -> None:
    """Only so much is framed ahead of its turn, however wide the windows are."""
    talk = Conversation()
    talk.say(
        setting(Setting.INITIAL_WINDOW_SIZE, 1 << 20), update(0, 1 << 20), headers(1, end=True), headers(3, end=True)
    )
    for number in (1, 3):
        talk.connection.send_headers(number, RESPONSE)
    for _ in range(40):
        talk.connection.send_data(1, bytes(16_000))
    talk.connection.send_data(3, b"x", end_stream=True)
    order = [stream for stream, _ in contents(talk.hear())]
    assert order.index(3) == 5
    assert len(order) == 41


def test_a_whole_answer_waits_for_its_windows_too() -> None:
    """What does not fit is queued, by whatever command it was said, and nothing is told to be out before it is."""
    talk = Conversation()
    talk.say(headers(1, end=True), headers(3, end=True), headers(5, end=True))
    talk.connection.send_headers(1, RESPONSE)
    talk.connection.send_data(1, bytes(16_384 * 3))
    talk.connection.send_data(1, bytes(16_000))
    talk.hear()
    assert not talk.connection.respond(3, b"\x88", bytes(1000), b"\x88")
    assert not talk.connection.respond(5, b"\x88", bytes(10), b"\x88")
    assert contents(talk.hear()) == [(3, 383)]
    talk.say(update(0, 1000))
    assert contents(talk.hear()) == [(5, 10), (3, 617)]
    assert talk.connection.drained() == [5, 3]


def test_small_answers_pass_a_large_one_that_waits_for_its_own_window() -> None:
    """A stream whose window is closed holds up nobody (5.2)."""
    talk = Conversation()
    talk.say(setting(Setting.INITIAL_WINDOW_SIZE, 100), headers(1, end=True), headers(3, end=True))
    talk.connection.send_headers(1, RESPONSE)
    talk.connection.send_data(1, bytes(1000), end_stream=True)
    talk.connection.respond(3, b"\x88", b"x", b"\x88")
    assert contents(talk.hear()) == [(1, 100), (3, 1)] or contents(talk.hear()) == [(3, 1), (1, 100)]


def test_a_change_of_the_initial_window_moves_all_windows_even_below_zero() -> None:
    """What is open is adjusted, and a window below zero must be filled before it opens (6.9.2)."""
    talk = Conversation()
    talk.say(headers(1, end=True))
    talk.connection.send_headers(1, RESPONSE)
    talk.connection.send_data(1, bytes(2000))
    assert contents(talk.hear()) == [(1, 2000)]
    talk.say(setting(Setting.INITIAL_WINDOW_SIZE, 1000))
    talk.connection.send_data(1, b"x" * 500)
    talk.say(update(1, 1000))
    assert contents(talk.hear()) == []
    talk.say(update(1, 1))
    assert contents(talk.hear()) == [(1, 1)]
    talk.say(setting(Setting.INITIAL_WINDOW_SIZE, 1300))
    assert contents(talk.hear()) == [(1, 300)]


def test_settings_that_push_a_window_over_the_top_end_the_connection() -> None:
    """No window may be larger than 2^31-1 (6.9.2)."""
    talk = Conversation()
    talk.say(headers(1, end=True), update(1, (1 << 31) - 1 - 65_535))
    assert talk.ended_by(setting(Setting.INITIAL_WINDOW_SIZE, 65_536)) == FLOW


def test_an_end_without_content_needs_no_window() -> None:
    """END_STREAM on nothing, and trailers, are free (6.9)."""
    talk = Conversation()
    talk.say(setting(Setting.INITIAL_WINDOW_SIZE, 0), headers(1, end=True), headers(3, end=True))
    talk.connection.send_headers(1, RESPONSE)
    assert talk.connection.send_data(1, b"", end_stream=True)
    talk.connection.send_headers(3, RESPONSE)
    assert talk.connection.send_headers(3, TRAILERS, end_stream=True)
    assert [(one.kind, one.stream_id, one.flags & 1) for one in talk.hear() if one.stream_id] == [
        (frames.HEADERS, 1, 0),
        (frames.DATA, 1, 1),
        (frames.HEADERS, 3, 0),
        (frames.HEADERS, 3, 1),
    ]


def test_a_sender_is_told_to_wait_and_to_go_on() -> None:
    """False means: wait until drained names the stream, once."""
    talk = Conversation()
    talk.say(headers(1, end=True))
    talk.connection.send_headers(1, RESPONSE)
    talk.connection.send_data(1, bytes(65_535))
    talk.hear()
    assert talk.connection.send_data(1, bytes(65_536))
    assert not talk.connection.send_data(1, b"x")
    talk.hear()
    assert talk.connection.drained() == ()
    talk.say(update(0, 1 << 20), update(1, 1 << 20))
    talk.hear()
    assert talk.connection.drained() == [1]
    assert talk.connection.drained() == ()


def test_all_senders_wait_while_too_much_waits() -> None:
    """What is buffered on one connection is bounded, however many streams it has."""
    talk = Conversation(limits=Limits(output=100_000))
    talk.say(headers(1, end=True), headers(3, end=True))
    talk.connection.send_headers(1, RESPONSE)
    talk.connection.send_headers(3, RESPONSE)
    assert not talk.connection.send_data(1, bytes(150_000))
    assert not talk.connection.send_data(3, b"x")
    talk.say(update(0, 1 << 20), update(1, 1 << 20))
    talk.hear()
    assert sorted(talk.connection.drained()) == [1, 3]


def test_what_is_reset_is_not_sent() -> None:
    """A reset drops what is queued, and frees its place in line (5.4.2)."""
    talk = Conversation()
    talk.say(headers(1, end=True), headers(3, end=True))
    for number in (1, 3):
        talk.connection.send_headers(number, RESPONSE)
        talk.connection.send_data(number, bytes(100_000))
    talk.connection.reset(1)
    talk.say(reset(3))
    assert contents(talk.hear()) == []
    assert (talk.connection.pending, talk.connection.drained()) == (0, ())


def test_taking_a_little_at_a_time_sends_the_same() -> None:
    """``limit`` says when to stop cutting frames, never what to cut off."""
    talk = Conversation()
    talk.say(update(0, 1 << 20), headers(1, end=True))
    talk.connection.send_headers(1, RESPONSE)
    talk.connection.send_data(1, bytes(60_000), end_stream=True)
    pieces = []
    while piece := talk.connection.take(20_000):
        pieces.append(len(piece))
    assert len(pieces) == 2
    assert sum(pieces) == pytest.approx(60_000, abs=100)


# How windows grow


def test_windows_grow_where_the_path_holds_more() -> None:
    """Two thirds of a window in one round trip, and the window is too small: it doubles what came (grpc-go's rule)."""
    path = Bandwidth(65_536, 1 << 20)
    assert not path.count(16_383, now=0.0)
    assert path.count(16_384, now=0.0)
    assert not path.count(60_000, now=0.05)
    assert path.acknowledged(66_383, now=0.1) == 2 * 50_000 - 65_536
    assert path.acknowledged(70_000, now=0.2) == 0


def test_windows_stay_where_the_path_is_slow_and_stop_at_their_limit() -> None:
    """Less than two thirds, or slower than before, is no reason to grow; the limit is the limit."""
    path = Bandwidth(65_536, 100_000)
    assert path.count(20_000, now=0.0)
    assert path.acknowledged(30_000, now=0.1) == 0
    assert path.count(90_000, now=1.0)
    assert path.acknowledged(95_000, now=1.1) == 100_000 - 65_536
    assert not path.count(1 << 20, now=2.0)
    slower = Bandwidth(65_536, 1 << 20)
    assert slower.count(60_000, now=0.0)
    assert slower.acknowledged(60_000, now=0.01) == 120_000 - 65_536
    assert slower.count(160_000, now=1.0)
    assert slower.acknowledged(160_000, now=2.0) == 0


def test_growth_is_announced_and_holds() -> None:
    """New SETTINGS for the streams, an update for the connection, and both are honoured at once (6.9.2)."""
    talk = Conversation()
    talk.say(headers(1), data(1, bytes(16_384)))
    (ping,) = talk.hear()
    talk.now = 0.01
    talk.say(*[data(1, bytes(16_384))] * 3, frame(frames.PING, frames.ACK, 0, ping.payload))
    settings, window = talk.hear()
    assert settings.payload == b"\x00\x04" + (2 * 65_536).to_bytes(4, "big")
    assert window == Frame(frames.WINDOW_UPDATE, 0, 0, WORD.pack(65_536))
    talk.say(SETTINGS_ACK, *[data(1, bytes(16_384))] * 4)
    assert talk.refused_by(1, data(1)) == FLOW
    for number in range(3, 19, 2):  # with what is above, all of the connection's window but 16,383 octets
        talk.say(headers(number), *[data(number, bytes(16_384))] * (8 if number < 17 else 3))
    assert not talk.connection.closed
    account(talk.connection)
    assert talk.ended_by(data(17, bytes(16_384))) == FLOW


# The account of all credit


def account(connection: Connection) -> None:
    """Assert that the connection's credit adds up."""
    credit = connection._credit
    assert credit.window + credit.lent + credit.taken == credit.size
    assert min(credit.window, credit.lent, credit.taken) >= 0


class CreditMachine(RuleBasedStateMachine):
    """A peer that keeps count of both sides' windows, and streams that come, talk and go at random."""

    def __init__(self) -> None:
        super().__init__()
        self.talk = Conversation(
            limits=Limits(connection_window=70_000, stream_window=66_000, max_stream_window=66_000)
        )
        self.next = 1
        self.window = 70_000  # what the peer may send us
        self.windows: dict[int, int] = {}
        self.lent: list[tuple[int, int]] = []
        self.ours = 65_535  # what we may send the peer
        self.our_windows: dict[int, int] = {}
        self.initial = 65_535
        self.promised: dict[int, int] = {}
        self.sent: dict[int, int] = {}

    def _hear(self) -> None:
        for one in self.talk.hear():
            if one.kind == frames.WINDOW_UPDATE:
                increment = WORD.unpack(one.payload)[0]
                if one.stream_id:
                    if one.stream_id in self.windows:
                        self.windows[one.stream_id] += increment
                else:
                    self.window += increment
            elif one.kind == frames.DATA:
                self.ours -= len(one.payload)
                self.our_windows[one.stream_id] -= len(one.payload)
                self.sent[one.stream_id] += len(one.payload)
                assert self.ours >= 0
                assert not one.payload or self.our_windows[one.stream_id] >= 0
        self.talk.connection.drained()

    @rule()
    def opens(self) -> None:
        if len(self.windows) < 8:
            self.talk.say(headers(self.next))
            self.talk.connection.send_headers(self.next, RESPONSE)
            self.windows[self.next] = 66_000
            self.our_windows[self.next] = self.initial
            self.sent[self.next] = self.promised[self.next] = 0
            self.next += 2
            self._hear()

    @precondition(lambda self: self.windows)
    @rule(which=st.integers(0, 7), size=st.integers(1, 16_384), padding=st.integers(0, 255))
    def sends(self, which: int, size: int, padding: int) -> None:
        stream_id = sorted(self.windows)[which % len(self.windows)]
        size = min(size, self.window, self.windows[stream_id])
        if size <= 0:
            return
        if 0 < padding < size:
            said = frame(frames.DATA, frames.PADDED, stream_id, bytes([padding]) + bytes(size - 1))
        else:
            said = data(stream_id, bytes(size))
        (event,) = self.talk.say(said)
        assert isinstance(event, Data)
        assert event.credit == size
        self.lent.append((stream_id, size))
        self.window -= size
        self.windows[stream_id] -= size
        self._hear()

    @precondition(lambda self: self.lent)
    @rule(which=st.integers(0, 1000))
    def takes(self, which: int) -> None:
        self.talk.connection.acknowledge(*self.lent.pop(which % len(self.lent)))
        self._hear()

    @precondition(lambda self: self.windows)
    @rule(which=st.integers(0, 7), by_peer=st.booleans(), late=st.integers(0, 1000))
    def resets(self, which: int, by_peer: bool, late: int) -> None:  # noqa: FBT001 - hypothesis draws it
        stream_id = sorted(self.windows)[which % len(self.windows)]
        del self.windows[stream_id], self.our_windows[stream_id], self.promised[stream_id], self.sent[stream_id]
        if by_peer:
            self.talk.now += 1.0
            self.talk.say(reset(stream_id))
        else:
            self.talk.connection.reset(stream_id)
            late = min(late, self.window)
            if late:
                assert self.talk.say(data(stream_id, bytes(late))) == []
                self.window -= late
        self._hear()

    @precondition(lambda self: self.promised)
    @rule(which=st.integers(0, 7), size=st.integers(0, 50_000))
    def answers(self, which: int, size: int) -> None:
        stream_id = sorted(self.promised)[which % len(self.promised)]
        self.talk.connection.send_data(stream_id, bytes(size))
        self.promised[stream_id] += size
        self._hear()

    @precondition(lambda self: self.our_windows)
    @rule(which=st.integers(0, 8), size=st.integers(1, 100_000))
    def allows(self, which: int, size: int) -> None:
        self.talk.now += 0.1
        if which < len(self.our_windows):
            stream_id = sorted(self.our_windows)[which]
            self.our_windows[stream_id] += size
            self.talk.say(update(stream_id, size))
        else:
            self.ours += size
            self.talk.say(update(0, size))
        self._hear()

    @rule(size=st.integers(0, 200_000))
    def resizes(self, size: int) -> None:
        self.talk.now += 0.1
        for stream_id in self.our_windows:
            self.our_windows[stream_id] += size - self.initial
        self.initial = size
        self.talk.say(setting(Setting.INITIAL_WINDOW_SIZE, size))
        self._hear()

    @invariant()
    def adds_up(self) -> None:
        connection = self.talk.connection
        assert not connection.closed
        account(connection)
        credit = connection._credit
        assert credit.window == self.window
        assert credit.lent == sum(size for _, size in self.lent)
        for stream_id, stream in connection._open.items():
            lent = sum(size for owner, size in self.lent if owner == stream_id)
            assert stream.receive_window == self.windows[stream_id]
            assert stream.receive_window + lent + stream.taken == 66_000
            assert stream.send_window == self.our_windows[stream_id]
            assert self.sent[stream_id] + stream.queued == self.promised[stream_id]
            # Nothing waits that could go: what is queued waits for a window.
            assert not stream.queued or stream.send_window <= 0 or connection._output.window <= 0
        assert connection._output.window == self.ours
        assert connection._output.queued == sum(stream.queued for stream in connection._open.values())
        assert set(connection._open) == set(self.windows)


def test_a_window_may_turn_negative_while_its_stream_stands_in_line() -> None:
    """RFC 9113, 6.9.2: SETTINGS may take away more than there is left, and then nothing goes out until it is back."""
    talk = Conversation()
    for stream_id in (1, 3):
        talk.say(headers(stream_id))
        talk.connection.send_headers(stream_id, RESPONSE)
    talk.connection.send_data(1, bytes(60_000))
    talk.hear()
    talk.connection.send_data(3, bytes(20_000))
    talk.hear()  # 5,535 octets of it: all that the connection's window takes
    talk.say(setting(Setting.INITIAL_WINDOW_SIZE, 0))
    talk.say(update(0, 100_000))
    assert [one for one in talk.hear() if one.kind == frames.DATA] == []
    talk.say(update(3, 5_536))
    assert [len(one.payload) for one in talk.hear() if one.kind == frames.DATA] == [1]


def test_no_credit_is_lost_or_invented() -> None:
    """Whatever streams come and go: both sides count the same windows, and all credit is somewhere."""
    run_state_machine_as_test(CreditMachine, settings=settings(max_examples=15, stateful_step_count=40, deadline=None))


@pytest.mark.fuzz
@pytest.mark.timeout(600)
def test_no_credit_is_lost_or_invented_for_long() -> None:
    """As above, five hundred times."""
    run_state_machine_as_test(CreditMachine, settings=settings(max_examples=500, stateful_step_count=50, deadline=None))
