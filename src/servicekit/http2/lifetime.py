"""How a connection begins, what it does as time passes, and how it ends: at once, or by a drain in two phases."""

from __future__ import annotations

from .control import DRAIN, KEEPALIVE, Control
from .errors import ErrorCode
from .events import Event, Terminated
from .frames import PREFACE, goaway, window_update
from .parts import Parts
from .settings import DEFAULT_WINDOW, MOST_WINDOW, Setting
from .timers import Timer


class Lifetime:
    """The one that knows whether the connection is over."""

    __slots__ = ("_control", "_limits", "_output", "_server", "_streams", "_timers", "closed", "draining")

    def __init__(self, parts: Parts, control: Control, now: float) -> None:
        """Greet, and begin to wait for the peer."""
        self._server = parts.server
        self._limits = parts.limits
        self._streams = parts.streams
        self._output = parts.output
        self._timers = parts.timers
        self._control = control
        self.closed = False
        self.draining = False
        for timer in (Timer.PREFACE, Timer.KEEPALIVE, Timer.IDLE, Timer.AGE):
            self._timers.start(timer, now)
        self._greet(now)

    def _greet(self, now: float) -> None:
        """Send the preface (section 3.4) and as large a connection window as is to be (section 6.9.2)."""
        limits = self._limits
        settings: dict[int, int] = {
            Setting.HEADER_TABLE_SIZE: limits.header_table_size,
            Setting.INITIAL_WINDOW_SIZE: limits.stream_window,
            Setting.MAX_FRAME_SIZE: limits.max_frame_size,
            Setting.MAX_HEADER_LIST_SIZE: limits.max_header_list_size,
        }
        if self._server:
            settings[Setting.MAX_CONCURRENT_STREAMS] = limits.max_concurrent_streams
        else:
            self._output.write(PREFACE)
            settings[Setting.ENABLE_PUSH] = 0
        self._control.send_settings(settings, now)
        if limits.connection_window > DEFAULT_WINDOW:
            self._output.write(window_update(0, limits.connection_window - DEFAULT_WINDOW))

    def tick(self, now: float, events: list[Event]) -> None:
        """Do what time demands: see Connection.tick."""
        for timer in self._timers.due(now):
            if self.closed:
                break
            overdue = _OVERDUE.get(timer)
            if overdue is not None:
                self.end(*overdue, events)
            elif timer is Timer.PING and self._timers.heard + self._limits.keepalive_timeout <= now:
                self.end(ErrorCode.NO_ERROR, "no answer to a keepalive PING", events)
            elif timer is Timer.KEEPALIVE:
                self._keep_alive(now)
            elif timer is Timer.IDLE:
                self._idle(now)
            elif timer is Timer.AGE:
                self.drain(now, grace=self._limits.age_grace)
            elif timer is Timer.DRAIN:
                self._control.drain_answered = True  # or never will be: the streams under way are few, and retried
        if self.draining and not self.closed:
            self.go_on_draining(events)

    def _keep_alive(self, now: float) -> None:
        """Ask a silent peer for a sign of life."""
        heard = self._timers.heard
        span = self._limits.keepalive_time or 0.0
        if heard + span > now:
            self._timers.start(Timer.KEEPALIVE, heard)
            return
        self._timers.start(Timer.KEEPALIVE, now)
        if not self._timers.runs(Timer.PING):
            self._control.send_ping(KEEPALIVE)
            self._timers.start(Timer.PING, now)

    def _idle(self, now: float) -> None:
        """Drain a connection without streams."""
        since = now if self._streams.open else self._streams.opened_at
        if since + (self._limits.idle_timeout or 0.0) > now:
            self._timers.start(Timer.IDLE, since)
        else:
            self.drain(now)

    def go_on_draining(self, events: list[Event]) -> None:
        """Say which stream is the last, once the peer knows that there will be a last one; end when all have ended."""
        streams = self._streams
        if streams.last_id is None and self._control.drain_answered:
            self._timers.stop(Timer.DRAIN)
            streams.last_id = max(streams.highest, 0)
            self._output.write(goaway(streams.last_id, ErrorCode.NO_ERROR))
        if streams.last_id is not None and not streams.open:
            self.over()
            events.append(Terminated(ErrorCode.NO_ERROR, "drained"))

    def end(self, code: ErrorCode, reason: str, events: list[Event]) -> None:
        """End at once, and tell the owner why."""
        self.close(code, reason.encode())
        events.append(Terminated(code, reason))

    def over(self) -> None:
        """Drop everything but what is ready to be written."""
        self.closed = True
        self._timers.stop_all()
        self._output.forget_all()

    def drain(self, now: float, *, grace: float | None = None) -> None:
        """End gracefully: see Connection.drain."""
        if self.closed:
            return
        if grace is not None:
            self._timers.start(Timer.GRACE, now, grace)
        if self.draining:
            return
        self.draining = True
        if self._server:  # 6.8: a client, whose peer opens nothing, has nothing to wait for
            self._output.write(goaway(MOST_WINDOW, ErrorCode.NO_ERROR))
            self._control.send_ping(DRAIN)
            self._timers.start(Timer.DRAIN, now)
        else:
            self._streams.last_id = 0
            self._output.write(goaway(0, ErrorCode.NO_ERROR))

    def close(self, code: int = ErrorCode.NO_ERROR, message: bytes = b"") -> None:
        """End at once: see Connection.close."""
        if self.closed:
            return
        self.over()
        self._output.write(goaway(max(self._streams.highest, 0), code, message))


_OVERDUE = {
    Timer.PREFACE: (ErrorCode.PROTOCOL_ERROR, "no preface in time"),
    Timer.SETTINGS: (ErrorCode.SETTINGS_TIMEOUT, "SETTINGS not acknowledged in time"),
    Timer.HEADERS: (ErrorCode.ENHANCE_YOUR_CALM, "a header block not finished in time"),
    Timer.STALL: (ErrorCode.ENHANCE_YOUR_CALM, "the peer reads nothing"),
    Timer.GRACE: (ErrorCode.NO_ERROR, "the grace of the drain is over"),
}
"""What ends the connection when it is overdue."""
