"""What all connections of one listener share: its limits, its routes, its clock, and who is there."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final, Protocol

from .bell import Bell
from .heap import keep_freed_memory
from .options import READ, NativeOptions
from .wheel import Wheel

if TYPE_CHECKING:
    from collections.abc import Callable

    from servicekit.clock import Clock
    from servicekit.wire import Route

_LOGGER = logging.getLogger(__name__)

_BETWEEN_LINES: Final = 1.0  # seconds: who is attacked by thousands needs one line of it, not thousands


class Member(Protocol):
    """A connection, as its listener knows it."""

    @property
    def busy(self) -> bool:
        """Whether it has RPCs that are not answered."""

    def drain(self) -> None:
        """Tell the client that this server goes; what is under way goes on."""

    def cut(self) -> None:
        """End every RPC that is still under way."""

    def close(self) -> None:
        """Say goodbye, and close once all is written."""

    def abort(self) -> None:
        """Close at once."""


class Working(Protocol):
    """What has a task: an RPC that is served, or a handshake."""

    def cancel(self) -> None:
        """Cancel the task."""


class Shared:
    """Made by a listener, and used by its connections. Belongs to one event loop."""

    def __init__(self, options: NativeOptions, clock: Clock, compression: str | None) -> None:
        """Begin with nobody."""
        self.options = options
        self.clock = clock
        self.compression = compression
        self.loop = asyncio.get_running_loop()
        self.wheel = Wheel(clock)
        self.route: Callable[[str], Route]
        self.stopping = False
        self.over = False
        """The listener has stopped: nobody would end a connection that is made now, as by a slow TLS handshake."""
        self.members: set[Member] = set()
        self.knocking: set[Working] = set()
        """Clients whose handshake is not over."""
        self.serving: set[Working] = set()
        self.refused = 0
        """How many connections were closed at once, because there were too many."""
        self.cut_off = 0
        """How many connections were ended for what their clients did."""
        self.changed = Bell(self.loop)
        """Rings, while the listener stops, when a connection or a serving task is gone, or an RPC is over."""
        # What is read is copied out of it at once, before anybody else reads.
        self.buffer = memoryview(bytearray(READ))
        self._keeps = False
        self._next_line = 0.0
        self._unsaid = 0

    def admit(self, member: Member) -> bool:
        """Let a connection in, and return True, unless there are too many, or the listener is gone."""
        if self.over:
            return False
        if not self._has_room():
            return False
        self.members.add(member)
        return True

    def knock(self, handshake: Working) -> bool:
        """Let a handshake begin, and return True, unless there are too many connections, or the listener is gone."""
        if self.over or not self._has_room():
            return False
        self.knocking.add(handshake)
        return True

    def knocked(self, handshake: Working) -> None:
        """Take note that a handshake is over, one way or the other."""
        self.knocking.discard(handshake)
        if self.stopping:
            self.changed.ring()

    def _has_room(self) -> bool:
        if len(self.members) + len(self.knocking) < self.options.connections:
            return True
        self.refused += 1
        return False

    def accuse(self, peer: str, reason: str) -> None:
        """Take note that a connection is ended for what its client did. Of many in a second, one is written down."""
        self.cut_off += 1
        now = self.clock.time()
        if now < self._next_line:
            self._unsaid += 1
            return
        unsaid = f"; {self._unsaid} more since the last of these lines" if self._unsaid else ""
        _LOGGER.warning("the connection of %s is cut off: %s%s", peer, reason, unsaid)
        self._next_line = now + _BETWEEN_LINES
        self._unsaid = 0

    def lost(self, member: Member) -> None:
        """Take note that a connection is gone."""
        self.members.discard(member)
        if self.stopping:
            self.changed.ring()

    def left(self, served: Working) -> None:
        """Take note that a serving task is done."""
        self.serving.discard(served)
        if self.stopping:
            self.changed.ring()

    def large(self) -> None:
        """Take note that there are large messages."""
        if not self._keeps:
            self._keeps = True
            keep_freed_memory()
