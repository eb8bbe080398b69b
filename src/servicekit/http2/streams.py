"""The streams of a connection: those that are open, and enough about the others to answer a late frame."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final

from .states import CLOSED, IDLE, RESET, SKIPPED, STATES

Fields = Sequence[tuple[bytes, bytes]]

_MOST_RESETS: Final = 1000
_MOST_GAPS: Final = 100


class Stream:
    """One open stream. Plain attributes: they are read and written for every frame.

    ``send_window`` is what may be sent on it, ``receive_window`` what the peer may send, ``taken`` the credit that the
    owner gave back and that was not announced yet. ``remaining`` is what its content-length still promises, where
    it is not ``plain``. ``begun``: the response's headers are out (server), or in (client).
    """

    __slots__ = (
        "begun",
        "id",
        "plain",
        "queue",
        "queued",
        "ready",
        "receive_window",
        "remaining",
        "sealed",
        "send_window",
        "state",
        "taken",
        "trailers",
    )

    def __init__(self, stream_id: int, state: int, send_window: int, receive_window: int) -> None:
        self.id = stream_id
        self.state = state
        self.send_window = send_window
        self.receive_window = receive_window
        self.taken = 0
        self.plain = True
        """Nothing speaks against its content: the message has begun, and has no content-length."""
        self.remaining = -1
        self.begun = False
        self.sealed = False
        """Its owner has said all there is to send; it may be queued yet."""
        self.queue: deque[bytes | memoryview] | None = None
        """Content that waits for the windows or for its turn."""
        self.queued = 0
        self.trailers: Fields | bytes | None = None
        """What follows the queue, when it is sealed; None for an END_STREAM on the last of the content."""
        self.ready = False
        """It stands in line for its turn."""

    def __repr__(self) -> str:
        """Return its state and its windows."""
        return (
            f"Stream({self.id}, {STATES[self.state]}, send_window={self.send_window}, "
            f"receive_window={self.receive_window}, queued={self.queued})"
        )


class Streams:
    """Every stream of a connection, by its identifier (RFC 9113, section 5.1.1)."""

    __slots__ = ("_forgotten", "_gaps", "_resets", "highest", "last_id", "open", "opened_at", "own", "parity")

    def __init__(self, *, server: bool, now: float) -> None:
        """Begin with none."""
        self.open: dict[int, Stream] = {}
        self.parity = 0 if server else 1
        """The lowest bit of the streams that this side may open: a server's are even, and it opens none."""
        self.highest = -1
        """The highest stream that the peer has opened: -1 when none."""
        self.own = -1
        """The highest stream that this side has opened: -1 when none."""
        self.last_id: int | None = None
        """The last stream that this side still serves, once it said so in a GOAWAY (section 6.8)."""
        self.opened_at = now
        self._gaps: list[tuple[int, int]] = []  # a deque is 700 octets more, for what hardly ever happens
        self._resets: dict[int, None] = {}
        self._forgotten = 0

    def skip(self, stream_id: int) -> None:
        """Note that the peer opens ``stream_id`` and passes over those between it and the highest before."""
        self._gaps.append((self.highest + 2, stream_id - 2))
        if len(self._gaps) > _MOST_GAPS:
            del self._gaps[0]

    def remember_reset(self, stream_id: int) -> None:
        """Note that this side reset a stream, so that what the peer sent before it knew is ignored."""
        resets = self._resets
        resets[stream_id] = None
        if len(resets) > _MOST_RESETS:
            oldest = next(iter(resets))
            del resets[oldest]
            self._forgotten = max(self._forgotten, oldest)

    def state_of(self, stream_id: int) -> int:
        """Return the state of any stream."""
        stream = self.open.get(stream_id)
        if stream is not None:
            return stream.state
        highest = self.own if stream_id & 1 == self.parity else self.highest
        if stream_id > highest:
            return IDLE
        # Below what was forgotten, nobody knows: patience hurts less than a connection lost.
        if stream_id in self._resets or stream_id <= self._forgotten:
            return RESET
        if any(first <= stream_id <= last for first, last in self._gaps):
            return SKIPPED
        return CLOSED
