"""Receiving flow control: what the peer may send, what of it is given back and when, and when windows grow.

A peer's window is its credit (RFC 9113, section 5.2). It is given back only for what the owner has taken, so whoever
takes nothing is sent no more than a window; and half a window at a time, so that updates are few.
"""

from __future__ import annotations

from .settings import DEFAULT_WINDOW

_EARLY_SAMPLES = 10


class Credit:
    """The connection's receive window. At any time ``window + lent + taken == size``: no credit is lost or invented.

    ``window`` is what the peer may still send, ``lent`` what the owner was handed and has not given back, ``taken``
    what it has given back and the peer was not told yet. ``stream_size`` is the window that a new stream gets.
    ``granted - window`` is what has ever come.
    """

    __slots__ = ("granted", "lent", "size", "stream_size", "taken", "window")

    def __init__(self, size: int, stream_size: int) -> None:
        """Begin with the whole window; the caller announces what exceeds the default."""
        self.size = size
        self.window = size
        self.granted = size
        self.lent = 0
        self.taken = 0
        # The peer may use the default until it has acknowledged less.
        self.stream_size = max(stream_size, DEFAULT_WINDOW)

    def due(self) -> int:
        """Return the increment to announce now: 0 until half of the window was taken."""
        taken = self.taken
        if taken * 2 < self.size:
            return 0
        self.taken = 0
        self.window += taken
        self.granted += taken
        return taken

    def grow(self, increment: int) -> None:
        """Make the window larger; the caller announces it."""
        self.size += increment
        self.window += increment
        self.granted += increment


class Bandwidth:
    """How much the path holds: the most that came within one round trip.

    The estimator of grpc-go (internal/transport/bdp_estimator.go, after https://grpc.io/blog/grpc-go-perf-improvements):
    octets are counted from a PING to its acknowledgement; where two thirds of the window came in that time, and faster
    than ever, the window is twice what came. Unlike it, no PING is sent before a part of a window has come, so that
    small calls never cause one.
    """

    __slots__ = ("_asked_at", "_before", "_best", "_limit", "_round_trip", "_samples", "_start", "_window")

    def __init__(self, window: int, limit: int) -> None:
        """Begin with a window, in octets, that may grow to ``limit``."""
        self._window = window
        self._limit = limit
        self._asked_at: float | None = None
        self._before = 0
        self._start = 0
        self._samples = 0
        self._round_trip = 0.0
        self._best = 0.0

    def count(self, received: int, now: float) -> bool:
        """Take note of all octets that have ever come. Returns whether to send a PING now."""
        if self._asked_at is not None or self._window >= self._limit:
            return False
        if (received - self._start) * 4 < self._window:
            self._before = received
            return False
        self._start = self._before  # what came just now is the first of the round trip
        self._asked_at = now
        return True

    def acknowledged(self, received: int, now: float) -> int:
        """Return by how much the windows are to grow, now that the PING came back."""
        if self._asked_at is None:
            return 0
        sample = received - self._start
        self._start = self._before = received
        took = max(now - self._asked_at, 1e-6)
        self._asked_at = None
        self._samples += 1
        weight = 1 / self._samples if self._samples < _EARLY_SAMPLES else 0.9
        self._round_trip += (took - self._round_trip) * weight
        bandwidth = sample / (self._round_trip * 1.5)
        if bandwidth < self._best or sample * 3 < self._window * 2:
            return 0
        self._best = bandwidth
        grown = min(self._limit, max(self._window, 2 * sample))
        change, self._window = grown - self._window, grown
        return change
