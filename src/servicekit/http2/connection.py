"""One HTTP/2 connection without I/O: octets in, events out; commands in, octets out (RFC 9113)."""

from __future__ import annotations

import enum
from collections.abc import Sequence

from . import frames
from .control import Control
from .errors import ConnectionFault, ErrorCode, Misuse
from .events import Event
from .frames import END_HEADERS, END_STREAM, FRAME_HEADER, rst_stream, window_update
from .inbound import Inbound
from .lifetime import Lifetime
from .limits import SERVER, Limits
from .output import PIECE
from .parts import Parts
from .settings import MOST_WINDOW
from .states import CLOSED, HALF_LOCAL, HALF_REMOTE, IDLE, OPEN
from .streams import Fields, Stream


class Role(enum.Enum):
    """Which side of the connection this is."""

    SERVER = "server"
    CLIENT = "client"


class Connection:
    """One side of an HTTP/2 connection. It does no I/O, reads no clock and is never called back.

    Its owner drives it: what comes in goes to ``receive``, the events are handled with commands, and then all there is
    is written: ``while octets := connection.take(): write(octets)``, at once after ``receive``, commands and ``tick``,
    unless writes are paused. After that, ``drained`` names the streams on which a sender may go on.
    ``tick`` is to be called at the latest at ``next_tick()``, sooner does no harm; once a second is enough.

    A command on a stream that has ended in the meantime does nothing: the event that tells so is under way. A command
    that no peer's act explains (data before headers, anything after the end) raises Misuse. ``now`` is in seconds,
    monotonic. Nothing here is safe to call from two threads at once.
    """

    __slots__ = (
        "_control",
        "_credit",
        "_inbound",
        "_lifetime",
        "_open",
        "_output",
        "_server",
        "_streams",
        "_timers",
    )

    def __init__(self, *, role: Role, limits: Limits = SERVER, now: float, chance: float = 0.5) -> None:
        """Begin: the preface and SETTINGS wait to be taken. ``chance``, in [0, 1), spreads the maximal age."""
        parts = Parts(server=role is Role.SERVER, limits=limits, now=now, chance=chance)
        self._server = parts.server
        self._streams = parts.streams
        self._open = parts.streams.open
        self._output = parts.output
        self._credit = parts.credit
        self._timers = parts.timers
        self._control = Control(parts, now)
        self._inbound = Inbound(parts, self._control)
        self._lifetime = Lifetime(parts, self._control, now)

    @property
    def closed(self) -> bool:
        """Whether it is over: what ``take`` still gives is to be written, and the transport to be closed.

        It turns true with a Terminated event, by ``close``, and in ``take``, when a drain has nothing left to wait for.
        """
        return self._lifetime.closed

    @property
    def draining(self) -> bool:
        """Whether it will be over when the streams that are open have ended."""
        return self._lifetime.draining

    # Octets and time

    def receive(self, data: bytes, now: float) -> list[Event]:
        """Return what the octets say, in order. Never raises for what a peer may send.

        A connection error queues a GOAWAY and ends in a Terminated event, after which everything is ignored.
        """
        events: list[Event] = []
        lifetime = self._lifetime
        if lifetime.closed:
            return events
        self._timers.heard = now
        try:
            self._inbound.parse(data, now, events)
            if lifetime.draining:
                lifetime.go_on_draining(events)
        except ConnectionFault as fault:
            lifetime.end(fault.code, fault.reason, events)
        return events

    def take(self, limit: int = PIECE) -> bytes:
        """Return what is to be written now, b"" when that is nothing.

        DATA is cut here, each stream one frame at a time in turn, until there are about ``limit`` octets.
        """
        octets = self._output.take(limit)
        if self._streams.last_id is not None and not self._open and not self.closed:
            self._lifetime.over()
        return octets

    def drained(self) -> Sequence[int]:
        """Return the streams, once each, for which a command returned False and that moved on: call it after take.

        On them more is welcome, or, where the stream was ended, the end is out. Those that were reset are not named.
        """
        return self._output.take_drained()

    def next_tick(self) -> float:
        """Return the time at which tick is next needed: ``inf`` when never."""
        return self._timers.next()

    def pause(self, now: float) -> None:
        """Say that the owner stopped reading (for instance because writes are paused): the peer's deadlines rest."""
        self._timers.pause(now)

    def resume(self, now: float) -> None:
        """Say that the owner reads again: the peer's deadlines begin anew."""
        self._timers.resume(now)

    def tick(self, now: float) -> list[Event]:
        """Do what time demands: end what is overdue, ask a silent peer, drain an old or idle connection."""
        events: list[Event] = []
        self._lifetime.tick(now, events)
        return events

    # Commands on a stream

    def respond(self, stream_id: int, headers: bytes, data: bytes, trailers: bytes) -> bool:
        """Send the whole response to a request in one go: the blocks are of ``encode_stateless``.

        What does not fit the windows is queued. Returns whether all is out; if not, ``drained`` names the stream when
        it is, but nobody needs to wait for that. ``data`` of b"" sends no DATA frame. Raises Misuse when the response
        has begun.
        """
        stream = self._open.get(stream_id)
        if stream is None:
            self._gone(stream_id)
            return True
        output = self._output
        size = len(data)
        if (
            stream.state == HALF_REMOTE
            and not stream.begun
            and 0 < size <= stream.send_window
            and size <= output.window
            and size <= output.max_frame_size
            and len(headers) <= _SHORT
            and len(trailers) <= _SHORT
            and not output.line
            and not output.updates_owed
        ):
            output.window -= size
            output.data_frames += 1
            output.size += size + len(headers) + len(trailers) + 27
            output.chunks += (
                _pack(len(headers) << 8 | frames.HEADERS, END_HEADERS, stream_id),
                headers,
                _pack(size << 8, 0, stream_id),
                data,
                _pack(len(trailers) << 8 | frames.HEADERS, _LAST_HEADERS, stream_id),
                trailers,
            )
            stream.state = CLOSED
            del self._open[stream_id]
            return True
        self.send_headers(stream_id, headers)
        if data:
            self.send_data(stream_id, data)
        return self.send_headers(stream_id, trailers, end_stream=True)

    def send_headers(self, stream_id: int, fields: Fields | bytes, *, end_stream: bool = False) -> bool:
        """Send a response's headers, or, once they are out and with ``end_stream``, trailers, behind all queued data.

        ``bytes`` are a block that was encoded before, by ``encode_stateless``. Where a server ends its response before
        the request has ended, RST_STREAM(NO_ERROR) follows, and the stream is closed (RFC 9113, section 8.1).
        Returns whether all is out; if not, ``drained`` names the stream when it is.
        """
        stream = self._to_send(stream_id)
        if stream is None:
            return True
        if self._server and not stream.begun:
            stream.begun = True
            self._output.headers(stream_id, fields, END_STREAM if end_stream else 0)
            if end_stream:
                stream.sealed = True
                self._output.data_frames += 1  # it earns as content does: grpc core updates the window of every call
                self._output.ended(stream)
            return True
        if not end_stream:
            raise Misuse(f"headers twice on stream {stream_id}")
        stream.sealed = True
        stream.trailers = fields
        return self._output.data(stream, b"")

    def send_data(self, stream_id: int, data: bytes | memoryview, *, end_stream: bool = False) -> bool:
        """Queue content. Returns False when enough is waiting: go on after ``drained`` has named the stream.

        With ``end_stream`` it returns whether all is out, as ``send_headers`` does.
        """
        stream = self._to_send(stream_id)
        if stream is None:
            return True
        if self._server and not stream.begun:
            raise Misuse(f"data before the headers on stream {stream_id}")
        stream.sealed = end_stream
        return self._output.data(stream, data)

    def _to_send(self, stream_id: int) -> Stream | None:
        """Return a stream that can be sent on, or None for one that is gone."""
        stream = self._open.get(stream_id)
        if stream is None:
            self._gone(stream_id)
        elif stream.sealed:
            raise Misuse(f"stream {stream_id} was ended before")
        return stream

    def _gone(self, stream_id: int) -> None:
        if self._streams.state_of(stream_id) == IDLE:
            raise Misuse(f"there is no stream {stream_id}")

    def reset(self, stream_id: int, code: int = ErrorCode.CANCEL) -> None:
        """End a stream at once; what is queued for it is dropped. Harmless on one that has ended."""
        stream = self._open.get(stream_id)
        if stream is None:
            self._gone(stream_id)
            return
        self._output.forget(stream)
        self._streams.remember_reset(stream_id)
        self._output.write(rst_stream(stream_id, code))

    def acknowledge(self, stream_id: int, credit: int) -> None:
        """Give back credit of Data events, once it is taken; also for streams that have ended. Cheap to call often.

        For streams whose peer has said all, it may be given back in one sum, on any of them or on stream 0.
        Raises Misuse for more than was ever given out.
        """
        account = self._credit
        if not 0 <= credit <= account.lent:
            raise Misuse(f"{credit} octets of credit, of {account.lent} that are lent")
        account.lent -= credit
        account.taken += credit
        if account.taken * 2 >= account.size and not self.closed:
            self._output.write(window_update(0, account.due()))
        stream = self._open.get(stream_id)
        if stream is None or stream.state == HALF_REMOTE:
            return
        stream.taken += credit
        if stream.taken * 2 >= account.stream_size:
            self._output.write(window_update(stream_id, stream.taken))
            stream.receive_window += stream.taken
            stream.taken = 0

    # Commands on the connection

    @property
    def streams(self) -> int:
        """How many streams are open."""
        return len(self._open)

    @property
    def pending(self) -> int:
        """How many octets wait to be taken, about."""
        return self._output.size + self._output.queued

    @property
    def may_open(self) -> int:
        """How many more requests a client may open now: by the peer's MAX_CONCURRENT_STREAMS; 0 while draining."""
        control = self._control
        if self._server or self.closed or self.draining or control.peer_last_id is not None:
            return 0
        if self._streams.own + 2 > MOST_WINDOW:  # 5.1.1: identifiers are used up
            return 0
        return max(0, control.peer_max_streams - len(self._open))

    def open(self, fields: Fields | bytes, *, end_stream: bool = False) -> int:
        """Send a request (clients) and return its stream's id. Raises Misuse when ``may_open`` is 0."""
        if not self.may_open:
            raise Misuse("no stream may be opened now")
        streams = self._streams
        streams.own = stream_id = streams.own + 2
        state = HALF_LOCAL if end_stream else OPEN
        stream = Stream(stream_id, state, self._output.initial_window, self._credit.stream_size)
        stream.sealed = end_stream
        stream.plain = False
        self._open[stream_id] = stream
        self._output.headers(stream_id, fields, END_STREAM if end_stream else 0)
        return stream_id

    def ping(self, payload: bytes) -> None:
        """Send a PING of 8 octets, the first of which is not 0xFF; a PingAcknowledged brings it back."""
        if len(payload) != 8 or payload[0] == 0xFF:  # RFC 9113, 6.7
            raise Misuse("a PING has 8 octets, and those that begin with 0xFF are taken")
        if not self.closed:
            self._control.send_ping(payload)

    def drain(self, now: float, *, grace: float | None = None) -> None:
        """End gracefully: GOAWAY(2^31-1), one round trip, GOAWAY(the real last id), the open streams, Terminated.

        A stream that comes later is refused, untouched. After ``grace`` seconds, if given, the rest is cut off.
        """
        self._lifetime.drain(now, grace=grace)

    def close(self, code: int = ErrorCode.NO_ERROR, message: bytes = b"") -> None:
        """End at once: GOAWAY, and every open stream is gone. There is no event: the owner knows."""
        self._lifetime.close(code, message)


_pack = FRAME_HEADER.pack
_LAST_HEADERS = END_HEADERS | END_STREAM
_SHORT = 16_384
"""Every peer takes frames of this size."""
