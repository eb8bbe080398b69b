"""What the peer's frames do that carry no message: SETTINGS, PING, GOAWAY, WINDOW_UPDATE, RST_STREAM, PRIORITY."""

from __future__ import annotations

from typing import NoReturn

from . import frames
from .budget import Budget
from .errors import ConnectionFault, ErrorCode, StreamFault
from .events import Event, GoawayReceived, PingAcknowledged, SettingsReceived, StreamReset
from .frames import ACK, STREAM_MASK, TWO_WORDS, WORD, frame, rst_stream
from .parts import Parts
from .settings import DEFAULT_WINDOW, MOST_WINDOW, Setting, pack_settings, parse_settings
from .states import IDLE, PROTOCOL, RECEIVED_RESET, RECEIVED_WINDOW
from .timers import Timer
from .windows import Bandwidth

KEEPALIVE = b"\xffkeepali"
DRAIN = b"\xffdrain.."
ESTIMATE = b"\xffestimat"

_EARNED = 3
"""Control frames that a DATA frame of ours calls for: an update for its stream, one for the connection, and a PING of
those peers that measure the path."""

_MOST_STRIKES = 2


class Control:
    """The control frames of one connection, and the budgets that keep them from costing more than they should."""

    __slots__ = (
        "_asked",
        "_bandwidth",
        "_budget",
        "_credit",
        "_decoder",
        "_earned",
        "_in_force",
        "_limits",
        "_output",
        "_owed_acks",
        "_pinged_at",
        "_refusals",
        "_seen_frames",
        "_server",
        "_streams",
        "_strikes",
        "_timers",
        "drain_answered",
        "peer_last_id",
        "peer_max_streams",
    )

    def __init__(self, parts: Parts, now: float) -> None:
        """Take the parts of the connection that the frames act upon."""
        self._server = parts.server
        self._limits = limits = parts.limits
        self._streams = parts.streams
        self._output = parts.output
        self._credit = parts.credit
        self._timers = parts.timers
        self._decoder = parts.decoder
        self._bandwidth = Bandwidth(limits.stream_window, limits.max_stream_window)
        self._budget = Budget(*limits.control_frames, now)
        self._refusals = Budget(*limits.resets, now)
        self._earned = 0
        self._owed_acks = 0
        self._in_force = False
        self._asked: list[bytes] = []
        self._pinged_at: float | None = None
        self._seen_frames = 0
        self._strikes = 0
        self.drain_answered = False
        self.peer_last_id: int | None = None
        """The last stream that the peer's GOAWAY lets live."""
        self.peer_max_streams = MOST_WINDOW
        """The peer's SETTINGS_MAX_CONCURRENT_STREAMS; without limit until it says one (section 6.5.2)."""

    # What this side sends

    def send_settings(self, settings: dict[int, int], now: float) -> None:
        """Send SETTINGS, to be acknowledged in time."""
        self._output.write(frame(frames.SETTINGS, 0, 0, pack_settings(settings)))
        self._owed_acks += 1
        if not self._timers.runs(Timer.SETTINGS):
            self._timers.start(Timer.SETTINGS, now)

    def send_ping(self, payload: bytes) -> None:
        """Send a PING; what comes back is told by an event, or is this package's own."""
        self._asked.append(payload)
        self._output.write(frame(frames.PING, 0, 0, payload))

    def measure(self, now: float) -> None:
        """Take note of the content that came, and ask for a round trip now and then."""
        if self._bandwidth.count(self._credit.granted - self._credit.window, now):
            self.send_ping(ESTIMATE)

    # What the peer's faults cost

    def refuse(self, fault: StreamFault, now: float, events: list[Event]) -> None:
        """End one stream for the peer's fault; too many of them end the connection."""
        if not self._refusals.spend(now):
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, f"too many refusals, the last: {fault.reason}")
        stream = self._streams.open.get(fault.stream_id)
        if stream is not None:
            self._output.forget(stream)
            events.append(StreamReset(fault.stream_id, fault.code, by_peer=False, reason=fault.reason))
        self._streams.remember_reset(fault.stream_id)
        self._output.answer(rst_stream(fault.stream_id, fault.code))

    def spend(self, now: float) -> None:
        """Let the peer pay for a frame that costs it nothing. What answers our own content is free."""
        if self._earned < self._output.data_frames * _EARNED:
            self._earned += 1
        elif not self._budget.spend(now):
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "too many control frames")

    # What the peer sends

    def handle(  # noqa: PLR0913, PLR0917, C901 - a frame has so many parts, and there are so many frames
        self, kind: int, flags: int, stream_id: int, payload: bytes, now: float, events: list[Event]
    ) -> None:
        """Do what a frame says. Raises ConnectionFault and StreamFault."""
        if kind == frames.WINDOW_UPDATE:
            self.spend(now)
            self._window_update(stream_id, payload)
        elif kind == frames.RST_STREAM:
            self._reset(stream_id, payload, now, events)
        elif kind == frames.PING:
            self._ping(flags, stream_id, payload, now, events)
        elif kind == frames.SETTINGS:
            self.spend(now)
            self._settings(flags, stream_id, payload, events)
        elif kind == frames.PRIORITY:
            self.spend(now)
            if stream_id == 0:
                _protocol_error("PRIORITY on stream 0")  # 6.3
            if len(payload) != 5:  # 6.3
                self.refuse_frame(stream_id, ErrorCode.FRAME_SIZE_ERROR, "PRIORITY of a length other than 5")
            self.check_priority(stream_id, payload)
        elif kind == frames.GOAWAY:
            self.spend(now)
            self._goaway(stream_id, payload, events)
        elif kind == frames.PUSH_PROMISE:
            _protocol_error("PUSH_PROMISE, which was never allowed")  # 6.6, 8.4
        elif kind == frames.CONTINUATION:
            _protocol_error("CONTINUATION without a header block to continue")  # 6.10
        else:
            self.spend(now)  # an unknown type: to be ignored (4.1, 5.5)

    def check_priority(self, stream_id: int, payload: bytes) -> None:
        """A stream cannot depend on itself (RFC 7540, section 5.3.1); else priorities are ignored (RFC 9113, 5.3.2)."""
        if WORD.unpack_from(payload)[0] & STREAM_MASK == stream_id:
            self.refuse_frame(stream_id, ErrorCode.PROTOCOL_ERROR, "a stream that depends on itself")

    def refuse_frame(self, stream_id: int, code: ErrorCode, reason: str) -> NoReturn:
        """Raise a stream error, or a connection error where RST_STREAM must not be sent: on an idle stream (6.4)."""
        if self._streams.state_of(stream_id) == IDLE:
            raise ConnectionFault(code, reason)
        raise StreamFault(stream_id, code, reason)

    def _window_update(self, stream_id: int, payload: bytes) -> None:
        if len(payload) != 4:  # 6.9
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "WINDOW_UPDATE of a length other than 4")
        increment = WORD.unpack(payload)[0] & STREAM_MASK
        if stream_id == 0:
            if not increment:
                _protocol_error("WINDOW_UPDATE by 0 on the connection")  # 6.9
            if not self._output.grow(None, increment):
                raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "a connection window over 2^31-1")  # 6.9.1
            return
        if RECEIVED_WINDOW[self._streams.state_of(stream_id)] == PROTOCOL:
            _protocol_error("WINDOW_UPDATE on an idle stream")  # 5.1
        stream = self._streams.open.get(stream_id)
        if stream is None:
            return
        if not increment:
            raise StreamFault(stream_id, ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE by 0")  # 6.9
        if not self._output.grow(stream, increment):
            raise StreamFault(stream_id, ErrorCode.FLOW_CONTROL_ERROR, "a stream window over 2^31-1")  # 6.9.1

    def _reset(self, stream_id: int, payload: bytes, now: float, events: list[Event]) -> None:
        if len(payload) != 4:  # 6.4
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "RST_STREAM of a length other than 4")
        if RECEIVED_RESET[self._streams.state_of(stream_id)] == PROTOCOL:
            _protocol_error("RST_STREAM on an idle stream")  # 6.4
        # A server that resets many calls of ours has its reasons; a client that does makes us work for nothing.
        if self._server and not self._refusals.spend(now):
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "too many resets")
        stream = self._streams.open.get(stream_id)
        if stream is None:
            self.spend(now)
            return
        self._output.forget(stream)
        code = WORD.unpack(payload)[0]
        untouched = code == ErrorCode.REFUSED_STREAM and not self._server  # 8.7
        events.append(StreamReset(stream_id, code, by_peer=True, reason="reset by the peer", untouched=untouched))

    def _settings(self, flags: int, stream_id: int, payload: bytes, events: list[Event]) -> None:
        if stream_id != 0:
            _protocol_error("SETTINGS on a stream")  # 6.5
        if flags & ACK:
            if payload:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "an acknowledgement of SETTINGS with a payload")
            self._settings_acknowledged()
            return
        settings = parse_settings(payload, from_server=not self._server)
        if Setting.HEADER_TABLE_SIZE in settings:
            self._output.resize_table(settings[Setting.HEADER_TABLE_SIZE])
        if Setting.MAX_FRAME_SIZE in settings:
            self._output.max_frame_size = settings[Setting.MAX_FRAME_SIZE]
        if Setting.MAX_CONCURRENT_STREAMS in settings:
            self.peer_max_streams = settings[Setting.MAX_CONCURRENT_STREAMS]
        window = settings.get(Setting.INITIAL_WINDOW_SIZE)
        if window is not None and not self._output.resize_streams(window):
            raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "SETTINGS push a stream's window over 2^31-1")  # 6.9.2
        self._output.answer(frame(frames.SETTINGS, ACK, 0))
        events.append(SettingsReceived(settings))

    def _settings_acknowledged(self) -> None:
        if not self._owed_acks:
            return
        self._owed_acks -= 1
        if not self._owed_acks:
            self._timers.stop(Timer.SETTINGS)
        if not self._in_force:  # only now does less than the defaults hold for the peer (6.5.3, 6.9.2)
            self._in_force = True
            self._decoder.max_table_size = self._limits.header_table_size
            shrink = max(0, DEFAULT_WINDOW - self._limits.stream_window)
            self._credit.stream_size -= shrink
            for stream in self._streams.open.values():
                stream.receive_window -= shrink

    def _ping(self, flags: int, stream_id: int, payload: bytes, now: float, events: list[Event]) -> None:
        if stream_id != 0:
            _protocol_error("PING on a stream")  # 6.7
        if len(payload) != 8:  # 6.7
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "PING of a length other than 8")
        if not flags & ACK:
            self.spend(now)
            if self._server:
                self._police_ping(now)
            self._output.answer(frame(frames.PING, ACK, 0, payload))
            return
        if payload not in self._asked:
            self.spend(now)
            return
        self._asked.remove(payload)
        if payload == KEEPALIVE:
            self._timers.stop(Timer.PING)
        elif payload == DRAIN:
            self.drain_answered = True
        elif payload == ESTIMATE:
            self._grow_windows(self._bandwidth.acknowledged(self._credit.granted - self._credit.window, now), now)
        else:
            events.append(PingAcknowledged(payload))

    def _police_ping(self, now: float) -> None:
        """Strike a client that pings without need: gRFC A8 and A9 as grpc-go enforces them, with our interval."""
        if self._seen_frames != self._output.data_frames:
            self._seen_frames = self._output.data_frames
            self._strikes = 0
        elif self._pinged_at is not None and now - self._pinged_at < self._limits.min_ping_interval:
            self._strikes += 1
            if self._strikes > _MOST_STRIKES:
                raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "too_many_pings")  # the words clients know
        self._pinged_at = now

    def _grow_windows(self, change: int, now: float) -> None:
        """Let more come at once: on every stream, and as much more on the connection, that none can fill it alone."""
        if not change:
            return
        self._credit.stream_size += change
        self._credit.grow(change)
        for stream in self._streams.open.values():
            stream.receive_window += change
        self.send_settings({Setting.INITIAL_WINDOW_SIZE: self._credit.stream_size}, now)
        self._output.write(frames.window_update(0, change))

    def _goaway(self, stream_id: int, payload: bytes, events: list[Event]) -> None:
        if stream_id != 0:
            _protocol_error("GOAWAY on a stream")  # 6.8
        if len(payload) < TWO_WORDS.size:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "GOAWAY of less than 8 octets")
        last_id, code = TWO_WORDS.unpack_from(payload)
        last_id &= STREAM_MASK
        if self.peer_last_id is not None:
            last_id = min(last_id, self.peer_last_id)
        self.peer_last_id = last_id
        if not self._server:
            for stream in [stream for stream in self._streams.open.values() if stream.id > last_id]:
                self._output.forget(stream)
                events.append(
                    StreamReset(stream.id, code, by_peer=True, reason="the peer went away before", untouched=True)
                )
        events.append(GoawayReceived(last_id, code, payload[TWO_WORDS.size :]))


def _protocol_error(reason: str) -> NoReturn:
    raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, reason)
