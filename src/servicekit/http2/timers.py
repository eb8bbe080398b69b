"""When a connection's patience ends: one deadline for each thing that may take too long."""

from __future__ import annotations

import enum
import math

from .limits import Limits


class Timer(enum.Enum):
    """What is waited for."""

    PREFACE = "preface"
    SETTINGS = "acknowledgement of SETTINGS"
    HEADERS = "rest of a header block"
    KEEPALIVE = "a word from the peer"
    PING = "acknowledgement of a keepalive PING"
    STALL = "the peer's reading"
    IDLE = "a stream"
    AGE = "maximal age"
    DRAIN = "acknowledgement of the drain's PING"
    GRACE = "end of the drain"


THE_PEERS = (Timer.PREFACE, Timer.SETTINGS, Timer.HEADERS, Timer.KEEPALIVE, Timer.PING)
"""Those that only reading can stop: they rest while the owner does not read."""


_SPANS = {
    Timer.PREFACE: "preface_timeout",
    Timer.SETTINGS: "settings_timeout",
    Timer.HEADERS: "header_timeout",
    Timer.KEEPALIVE: "keepalive_time",
    Timer.PING: "keepalive_timeout",
    Timer.STALL: "stall_timeout",
    Timer.IDLE: "idle_timeout",
    Timer.DRAIN: "drain_timeout",
}
"""How long each lasts, in the limits. The age is each connection's own, and a grace is each drain's."""


class Timers:
    """The deadlines that run, by what they wait for. Deciding what follows is the caller's."""

    __slots__ = ("_age", "_at", "_limits", "_next", "_paused", "heard")

    def __init__(self, limits: Limits, now: float, chance: float) -> None:
        """Take how long each lasts. ``chance``, in [0, 1), moves the age by up to a tenth either way."""
        self._limits = limits
        age = limits.max_age
        self._age = None if age is None else age * (0.9 + 0.2 * chance)
        self._at: dict[Timer, float] = {}
        self._next: float | None = math.inf  # None: to be found anew
        self._paused = False
        self.heard = now
        """When the peer last said anything."""

    def start(self, timer: Timer, since: float, span: float | None = None) -> None:
        """Begin to wait, anew if it was waited for already; for ``span`` seconds, if not for as long as always."""
        if span is None:
            span = self._age if timer is Timer.AGE else getattr(self._limits, _SPANS[timer])
        if span is not None:
            self._at[timer] = since + span
            self._next = None

    def stop(self, timer: Timer) -> None:
        """Wait no more."""
        if self._at.pop(timer, None) is not None:
            self._next = None

    def stop_all(self) -> None:
        """Wait for nothing any more."""
        self._at.clear()
        self._next = None

    def runs(self, timer: Timer) -> bool:
        """Return whether this is waited for."""
        return timer in self._at

    def due(self, now: float) -> list[Timer]:
        """Return what has taken too long, the longest overdue first, and wait for it no more."""
        if self.next() > now:
            return []
        due = sorted((timer for timer in self._running() if self._at[timer] <= now), key=self._at.__getitem__)
        for timer in due:
            del self._at[timer]
        self._next = None
        return due

    def next(self) -> float:
        """Return when the first of them ends: ``inf`` when none runs. Cheap to ask after every read."""
        if self._next is None:
            self._next = min((self._at[timer] for timer in self._running()), default=math.inf)
        return self._next

    def _running(self) -> list[Timer]:
        return [timer for timer in self._at if not (self._paused and timer in THE_PEERS)]

    def pause(self, now: float) -> None:
        """Let the peer's deadlines rest, and wait for it to read."""
        if not self._paused:
            self._paused = True
            self._next = None
            self.start(Timer.STALL, now)

    def resume(self, now: float) -> None:
        """Begin the peer's deadlines anew."""
        if self._paused:
            self._paused = False
            self._next = None
            self.stop(Timer.STALL)
            for timer in THE_PEERS:
                if timer in self._at:
                    self.start(timer, now)
