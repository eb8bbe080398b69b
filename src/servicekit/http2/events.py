"""What a connection tells its owner about the bytes that came in.

Each is a plain slotted class and not a frozen one: several are made for every call, and a frozen one costs twice as
much to make. Nobody changes an event.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from .headers import RequestFields, ResponseFields, TrailerFields


@dataclass(slots=True)
class RequestReceived:
    """A peer opened a stream; its fields are valid by RFC 9113, section 8.3.1. Seen by servers only.

    ``headers`` may be shared by requests whose header block was the same, so what is worked out from it can be kept in
    ``headers.memo``. After ``end_stream`` no data and no trailers follow.
    """

    stream_id: int
    headers: RequestFields
    end_stream: bool


@dataclass(slots=True)
class ResponseReceived:
    """The final response to a request of ours began (RFC 9113, section 8.1). Seen by clients only.

    Interim responses (1xx) are dropped. After ``end_stream`` no data and no trailers follow: it is all there is.
    """

    stream_id: int
    headers: ResponseFields
    end_stream: bool


@dataclass(slots=True)
class Data:
    """A part of a request's or response's content, in order: of one frame, or of several small ones that came together.

    ``credit`` is what it took of the flow-control windows, padding included. It must be given back exactly once by
    ``Connection.acknowledge``, when the data has been taken, also where the stream has ended in the meantime.
    """

    stream_id: int
    data: bytes
    credit: int
    end_stream: bool


@dataclass(slots=True)
class Trailers:
    """The fields after the content; nothing follows on the stream (RFC 9113, section 8.1)."""

    stream_id: int
    trailers: TrailerFields


@dataclass(slots=True)
class StreamReset:
    """A stream ended before its time; nothing follows on it, and what was queued for it is dropped.

    ``by_peer`` tells who reset it: the peer, or this side because the peer broke a rule. A reset that the owner asked
    for (``Connection.reset``) is not told back. ``untouched`` says that the peer certainly has not begun to work on
    the request: it refused the stream, or went away before it (RFC 9113, section 8.7).
    """

    stream_id: int
    code: int
    by_peer: bool
    reason: str = ""
    untouched: bool = False


@dataclass(slots=True)
class SettingsReceived:
    """The peer's settings changed and are in force, and acknowledged (RFC 9113, section 6.5)."""

    settings: dict[int, int]


@dataclass(slots=True)
class PingAcknowledged:
    """A PING that the owner sent came back (RFC 9113, section 6.7). The peer's own pings are answered unseen."""

    payload: bytes


@dataclass(slots=True)
class GoawayReceived:
    """The peer takes no more streams (RFC 9113, section 6.8). Those above ``last_id`` were reset, untouched, before."""

    last_id: int
    code: int
    debug: bytes


@dataclass(slots=True)
class Terminated:
    """The connection is over, and every stream that was open on it.

    What ``take`` still gives is to be written, then the transport is to be closed. It is the last event.
    """

    code: int
    reason: str


Event: TypeAlias = (
    RequestReceived
    | ResponseReceived
    | Data
    | Trailers
    | StreamReset
    | SettingsReceived
    | PingAcknowledged
    | GoawayReceived
    | Terminated
)
