"""What a frame may look like: RFC 9113, sections 3.4, 4 and 6."""

from __future__ import annotations

import pytest

from servicekit.http2 import frames
from servicekit.http2.errors import ErrorCode
from servicekit.http2.events import Data, GoawayReceived, PingAcknowledged, RequestReceived, SettingsReceived
from servicekit.http2.frames import END_HEADERS, END_STREAM, PADDED, PREFACE, PRIORITISED, TWO_WORDS, WORD, frame
from servicekit.http2.hpack_encoder import encode_stateless
from servicekit.http2.limits import Limits
from servicekit.http2.settings import Setting
from tests.http2.conversation import (
    REQUEST,
    RESPONSE,
    SETTINGS,
    SETTINGS_ACK,
    Conversation,
    Frame,
    data,
    headers,
    reset,
    setting,
    update,
)

BLOCK = encode_stateless(REQUEST)
SIZE, PROTOCOL = ErrorCode.FRAME_SIZE_ERROR, ErrorCode.PROTOCOL_ERROR


def test_a_server_speaks_first_and_says_what_it_allows() -> None:
    """The preface of a server is its SETTINGS (3.4); the connection's window is raised by WINDOW_UPDATE (6.9.2)."""
    talk = Conversation(greet=False)
    settings, window = talk.hear()
    assert settings.kind == frames.SETTINGS
    pairs = {
        int.from_bytes(settings.payload[at : at + 2], "big"): int.from_bytes(settings.payload[at + 2 : at + 6], "big")
        for at in range(0, len(settings.payload), 6)
    }
    assert pairs == {1: 4096, 3: 100, 4: 65536, 5: 16384, 6: 16384}
    assert window == Frame(frames.WINDOW_UPDATE, 0, 0, WORD.pack((1 << 20) - 65535))


@pytest.mark.parametrize("octets", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01", PREFACE[:-1] + b"x", b"p"])
def test_anything_but_the_preface_ends_the_connection_at_once(octets: bytes) -> None:
    """Who does not begin with the preface speaks another protocol (3.4)."""
    assert Conversation(greet=False).ended_by(octets) == PROTOCOL


@pytest.mark.parametrize("first", [data(1), headers(1), SETTINGS_ACK, update(0, 1), frame(0xAA, 0, 0)])
def test_the_first_frame_must_be_settings(first: bytes) -> None:
    """The preface includes SETTINGS (3.4)."""
    assert Conversation(greet=False).ended_by(PREFACE, first) == PROTOCOL


def test_one_octet_at_a_time_says_the_same() -> None:
    """Where reads end is not part of the protocol."""
    talk = Conversation(greet=False)
    said = PREFACE + SETTINGS + SETTINGS_ACK + headers(1) + data(1, b"hello") + data(1, b"", end=True)
    events = [event for at in range(len(said)) for event in talk.say(said[at : at + 1])]
    assert [type(event) for event in events] == [SettingsReceived, RequestReceived, Data, Data]


@pytest.mark.parametrize(
    ("octets", "code"),
    [
        (frame(frames.DATA, 0, 1, bytes(16_385)), SIZE),  # 4.2
        (frame(frames.HEADERS, END_HEADERS, 1, bytes(16_385)), SIZE),  # 4.2
        (frame(0xAA, 0, 0, bytes(16_385)), SIZE),  # 4.2
        (frame(frames.DATA, 0, 0, b"x"), PROTOCOL),  # 6.1
        (frame(frames.HEADERS, END_HEADERS | PADDED, 1, b""), PROTOCOL),  # 6.2
        (frame(frames.HEADERS, END_HEADERS | PADDED, 1, b"\x09" + BLOCK[:8]), PROTOCOL),  # 6.2
        (frame(frames.HEADERS, END_HEADERS | PRIORITISED, 1, bytes(4)), SIZE),  # 6.2
        (frame(frames.PRIORITY, 0, 0, bytes(5)), PROTOCOL),  # 6.3
        (frame(frames.PRIORITY, 0, 1, bytes(4)), SIZE),  # 6.3: on an idle stream, which cannot be reset
        (frame(frames.PRIORITY, 0, 1, b"\0\0\0\1\0"), PROTOCOL),  # RFC 7540, 5.3.1
        (frame(frames.RST_STREAM, 0, 0, bytes(4)), PROTOCOL),  # 6.4
        (headers(1) + frame(frames.RST_STREAM, 0, 1, bytes(3)), SIZE),  # 6.4
        (frame(frames.SETTINGS, 0, 1), PROTOCOL),  # 6.5
        (frame(frames.SETTINGS, 0, 0, bytes(5)), SIZE),  # 6.5
        (frame(frames.SETTINGS, frames.ACK, 0, bytes(6)), SIZE),  # 6.5
        (setting(Setting.ENABLE_PUSH, 2), PROTOCOL),  # 6.5.2
        (setting(Setting.INITIAL_WINDOW_SIZE, 1 << 31), ErrorCode.FLOW_CONTROL_ERROR),  # 6.5.2
        (setting(Setting.MAX_FRAME_SIZE, 16_383), PROTOCOL),  # 6.5.2
        (setting(Setting.MAX_FRAME_SIZE, 1 << 24), PROTOCOL),  # 6.5.2
        (frame(frames.PUSH_PROMISE, END_HEADERS, 1, bytes(4)), PROTOCOL),  # 8.4
        (frame(frames.PING, 0, 1, bytes(8)), PROTOCOL),  # 6.7
        (frame(frames.PING, 0, 0, bytes(7)), SIZE),  # 6.7
        (frame(frames.GOAWAY, 0, 1, bytes(8)), PROTOCOL),  # 6.8
        (frame(frames.GOAWAY, 0, 0, bytes(7)), SIZE),  # 6.8
        (frame(frames.WINDOW_UPDATE, 0, 0, bytes(3)), SIZE),  # 6.9
        (update(0, 0), PROTOCOL),  # 6.9
        (update(0, (1 << 31) - 1), ErrorCode.FLOW_CONTROL_ERROR),  # 6.9.1
        (frame(frames.CONTINUATION, END_HEADERS, 1, BLOCK), PROTOCOL),  # 6.10
        (frame(frames.HEADERS, 0, 1, BLOCK[:5]) + data(1), PROTOCOL),  # 6.10
        (frame(frames.HEADERS, 0, 1, BLOCK[:5]) + frame(0xAA, 0, 0), PROTOCOL),  # 5.5
        (frame(frames.HEADERS, 0, 1, BLOCK[:5]) + frame(frames.CONTINUATION, END_HEADERS, 3, BLOCK[5:]), PROTOCOL),
        (frame(frames.HEADERS, END_HEADERS, 1, b"\xff\xff\xff\xff"), ErrorCode.COMPRESSION_ERROR),  # 4.3
    ],
)
def test_what_ends_the_connection(octets: bytes, code: ErrorCode) -> None:
    """A frame that leaves the state of the connection in doubt ends it, and the GOAWAY says why (5.4.1)."""
    assert Conversation().ended_by(octets) == code


@pytest.mark.parametrize(
    ("octets", "code"),
    [
        (frame(frames.PRIORITY, 0, 1, bytes(4)), SIZE),  # 6.3
        (frame(frames.PRIORITY, 0, 1, b"\0\0\0\1\0"), PROTOCOL),  # RFC 7540, 5.3.1
        (update(1, 0), PROTOCOL),  # 6.9
        (update(1, (1 << 31) - 1), ErrorCode.FLOW_CONTROL_ERROR),  # 6.9.1
    ],
)
def test_what_ends_only_its_stream(octets: bytes, code: ErrorCode) -> None:
    """A stream's fault does not hurt its neighbours (5.4.2)."""
    talk = Conversation()
    talk.say(headers(1), headers(3))
    assert talk.refused_by(1, octets) == code
    assert talk.connection.streams == 1


@pytest.mark.parametrize("flags", [0, 0xFF])
@pytest.mark.parametrize("kind", [0xA, 0xB, 0x10, 0xFF])
def test_unknown_frames_are_ignored(kind: int, flags: int) -> None:
    """An extension that nobody agreed on does nothing (4.1, 5.5)."""
    talk = Conversation()
    assert talk.say(frame(kind, flags, 1, b"whatever")) == []
    talk.alive()


def test_unknown_settings_and_flags_and_the_reserved_bit_are_ignored() -> None:
    """What is not defined is no error (4.1, 6.5.2)."""
    talk = Conversation()
    assert talk.say(setting(0xABCD, 7)) == [SettingsReceived({0xABCD: 7})]
    assert talk.say(frame(frames.PING, 0xFE, 1 << 31, bytes(8))) == []
    assert [heard.kind for heard in talk.hear()] == [frames.SETTINGS, frames.PING]
    received, content = talk.say(
        frame(frames.HEADERS, END_HEADERS | 0xC2, 1 << 31 | 1, BLOCK), frame(frames.DATA, 0xF6, 1 << 31 | 1, b"x")
    )
    assert isinstance(received, RequestReceived)
    assert content == Data(1, b"x", 1, end_stream=False)


def test_a_block_in_pieces_is_one_block() -> None:
    """CONTINUATION continues octets, not fields (4.3)."""
    talk = Conversation()
    events = talk.say(
        frame(frames.HEADERS, END_STREAM, 1, BLOCK[:3]),
        frame(frames.CONTINUATION, 0, 1, b""),
        frame(frames.CONTINUATION, END_HEADERS, 1, BLOCK[3:]),
    )
    (received,) = events
    assert isinstance(received, RequestReceived)
    assert (received.headers.path, received.end_stream) == (b"/a.B/C", True)


def test_padding_and_priority_are_taken_off() -> None:
    """They carry nothing (6.1, 6.2), but padding counts to the windows."""
    talk = Conversation()
    received, content = talk.say(
        frame(frames.HEADERS, END_HEADERS | PADDED | PRIORITISED, 1, b"\x03" + bytes(4) + b"\xff" + BLOCK + bytes(3)),
        frame(frames.DATA, PADDED, 1, b"\x04hello" + bytes(4)),
    )
    assert isinstance(received, RequestReceived)
    assert content == Data(1, b"hello", 10, end_stream=False)


def test_settings_are_acknowledged_and_obeyed() -> None:
    """What the peer allows holds from the acknowledgement on (6.5.3)."""
    talk = Conversation()
    talk.say(setting(Setting.MAX_FRAME_SIZE, 20_000), update(0, 100_000), headers(1, end=True))
    talk.say(setting(Setting.INITIAL_WINDOW_SIZE, 100_000))
    assert [heard[:2] for heard in talk.hear()] == [(frames.SETTINGS, frames.ACK)] * 2
    talk.connection.send_headers(1, RESPONSE)
    talk.connection.send_data(1, bytes(30_000), end_stream=True)
    assert [len(heard.payload) for heard in talk.hear() if heard.kind == frames.DATA] == [20_000, 10_000]


def test_a_smaller_table_is_announced_before_the_next_block() -> None:
    """A block that was encoded before is preceded by the size update that is owed (RFC 7541, 4.2)."""
    talk = Conversation()
    talk.say(setting(Setting.HEADER_TABLE_SIZE, 0), headers(1, end=True), headers(3, end=True))
    talk.hear()
    block = encode_stateless(RESPONSE)
    talk.connection.respond(1, block, b"x", block)
    talk.connection.respond(3, block, b"x", block)
    assert [heard.payload for heard in talk.hear() if heard.kind == frames.HEADERS] == [b"\x20" + block, *[block] * 3]


def test_long_blocks_are_cut_to_the_peers_frame_size() -> None:
    """A block goes on in CONTINUATIONs, the last of which says so (6.10)."""
    talk = Conversation()
    talk.say(headers(1, end=True))
    fields = ((b":status", b"200"), (b"x", b"y" * 40_000))
    talk.connection.send_headers(1, fields, end_stream=True)
    first, second, last = talk.hear()
    assert (first.kind, first.flags) == (frames.HEADERS, END_STREAM)
    assert (second.kind, second.flags) == (frames.CONTINUATION, 0)
    assert (last.kind, last.flags) == (frames.CONTINUATION, END_HEADERS)
    talk.decoder.max_list_size = 1 << 20
    assert talk.decoder.decode(first.payload + second.payload + last.payload).fields == fields


def test_pings_are_answered_and_ours_told() -> None:
    """A PING comes back with its payload (6.7); one that was never sent is no news."""
    talk = Conversation()
    talk.connection.ping(b"abcdefgh")
    assert talk.hear() == [Frame(frames.PING, 0, 0, b"abcdefgh")]
    assert talk.say(frame(frames.PING, frames.ACK, 0, b"hgfedcba")) == []
    assert talk.say(frame(frames.PING, frames.ACK, 0, b"abcdefgh")) == [PingAcknowledged(b"abcdefgh")]
    assert talk.say(frame(frames.PING, frames.ACK, 0, b"abcdefgh")) == []


def test_a_client_that_goes_away_is_told_and_served_to_the_end() -> None:
    """GOAWAY speaks of streams that its receiver opens (6.8): a client's changes nothing for its own."""
    talk = Conversation()
    talk.say(headers(1, end=True))
    assert talk.say(frame(frames.GOAWAY, 0, 0, TWO_WORDS.pack(0, 0) + b"bye")) == [GoawayReceived(0, 0, b"bye")]
    talk.connection.send_headers(1, RESPONSE, end_stream=True)
    assert [heard.kind for heard in talk.hear()] == [frames.HEADERS]


def test_after_its_end_a_connection_says_and_hears_nothing() -> None:
    """Terminated is the last event, and GOAWAY the last frame (5.4.1)."""
    talk = Conversation()
    talk.say(headers(1, end=True))
    talk.ended_by(update(0, 0))
    talk.connection.send_headers(1, RESPONSE, end_stream=True)
    talk.connection.ping(bytes(8))
    talk.connection.close()
    assert talk.say(headers(3), reset(1)) == []
    assert talk.connection.tick(1e9) == []
    assert talk.hear() == []
    assert talk.connection.streams == 0


def test_a_limit_for_frames_may_be_larger() -> None:
    """Frames up to the announced size are taken (4.2)."""
    talk = Conversation(limits=Limits(max_frame_size=32_768))
    talk.say(headers(1))
    (content,) = talk.say(data(1, bytes(32_768)))
    assert isinstance(content, Data)
    assert talk.ended_by(data(1, bytes(32_769))) == SIZE
