"""One side is a Connection of ours; the other is made of octets, and may say whatever it likes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from servicekit.http2 import frames
from servicekit.http2.connection import Connection, Role
from servicekit.http2.errors import ErrorCode
from servicekit.http2.events import Event, StreamReset, Terminated
from servicekit.http2.frames import END_HEADERS, END_STREAM, FRAME_HEADER, PREFACE, TWO_WORDS, WORD, frame
from servicekit.http2.hpack_decoder import HeaderDecoder
from servicekit.http2.hpack_encoder import encode_stateless
from servicekit.http2.limits import Limits

Fields = Sequence[tuple[bytes, bytes]]

REQUEST: Fields = (
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":path", b"/a.B/C"),
    (b":authority", b"here"),
    (b"te", b"trailers"),
)
RESPONSE: Fields = ((b":status", b"200"), (b"content-type", b"application/grpc"))
TRAILERS: Fields = ((b"grpc-status", b"0"),)

SETTINGS = frame(frames.SETTINGS, 0, 0)
SETTINGS_ACK = frame(frames.SETTINGS, frames.ACK, 0)
PING = frame(frames.PING, 0, 0, b"12345678")


class Frame(NamedTuple):
    """A frame as it was heard."""

    kind: int
    flags: int
    stream_id: int
    payload: bytes


def headers(stream_id: int, fields: Fields = REQUEST, *, end: bool = False) -> bytes:
    """Return HEADERS with the whole block."""
    return frame(frames.HEADERS, END_HEADERS | end, stream_id, encode_stateless(fields))


def data(stream_id: int, content: bytes = b"x", *, end: bool = False) -> bytes:
    """Return DATA."""
    return frame(frames.DATA, END_STREAM if end else 0, stream_id, content)


def reset(stream_id: int, code: int = ErrorCode.CANCEL) -> bytes:
    """Return RST_STREAM."""
    return frame(frames.RST_STREAM, 0, stream_id, WORD.pack(code))


def update(stream_id: int, increment: int) -> bytes:
    """Return WINDOW_UPDATE."""
    return frame(frames.WINDOW_UPDATE, 0, stream_id, WORD.pack(increment))


def setting(name: int, value: int) -> bytes:
    """Return SETTINGS with one setting."""
    return frame(frames.SETTINGS, 0, 0, name.to_bytes(2, "big") + value.to_bytes(4, "big"))


def split(octets: bytes) -> list[Frame]:
    """Return the frames of octets, which must be whole frames, with or without a preface."""
    octets = octets.removeprefix(PREFACE)
    found = []
    position = 0
    while position < len(octets):
        word, flags, stream_id = FRAME_HEADER.unpack_from(octets, position)
        start = position + FRAME_HEADER.size
        position = start + (word >> 8)
        assert position <= len(octets), "a frame was cut off"
        found.append(Frame(word & 0xFF, flags, stream_id, octets[start:position]))
    return found


class Conversation:
    """A connection of ours, greeted by its peer unless told otherwise, at time 0."""

    def __init__(
        self, role: Role = Role.SERVER, *, limits: Limits | None = None, greet: bool = True, now: float = 0.0
    ) -> None:
        self.now = now
        self.connection = Connection(role=role, limits=limits or Limits(), now=now)
        self.decoder = HeaderDecoder()
        if greet:
            self.hear()
            self.say((PREFACE if role is Role.SERVER else b"") + SETTINGS + SETTINGS_ACK)
            self.hear()

    def say(self, *octets: bytes) -> list[Event]:
        """Let the peer say something, and return what our side made of it."""
        return self.connection.receive(b"".join(octets), self.now)

    def hear(self) -> list[Frame]:
        """Return what our side says, to the last octet."""
        said = []
        while octets := self.connection.take():
            said.append(octets)
        return split(b"".join(said))

    def fields(self, heard: Frame) -> Fields:
        """Return the fields of HEADERS."""
        return self.decoder.decode(heard.payload).fields

    def ended_by(self, *octets: bytes) -> ErrorCode:
        """Let the peer break a rule, and return the code for which our side ended the connection."""
        events = self.say(*octets)
        terminated = events[-1]
        assert isinstance(terminated, Terminated), events
        last = self.hear()[-1]
        assert last.kind == frames.GOAWAY
        assert TWO_WORDS.unpack_from(last.payload)[1] == terminated.code
        assert self.connection.closed
        return ErrorCode(terminated.code)

    def refused_by(self, stream_id: int, *octets: bytes) -> ErrorCode:
        """Let the peer break a rule, and return the code for which our side reset the stream, and no more than it."""
        events = self.say(*octets)
        assert not self.connection.closed, events
        told = [event for event in events if isinstance(event, StreamReset)]
        assert all(event.stream_id == stream_id and not event.by_peer for event in told), told
        resets = [heard for heard in self.hear() if heard.kind == frames.RST_STREAM]
        assert [heard.stream_id for heard in resets] == [stream_id], resets
        self.alive()
        return ErrorCode(WORD.unpack(resets[0].payload)[0])

    def alive(self) -> None:
        """Assert that the connection still answers."""
        self.say(PING)
        assert self.hear()[-1] == Frame(frames.PING, frames.ACK, 0, b"12345678")
