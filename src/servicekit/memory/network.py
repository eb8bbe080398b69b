"""A namespace of addresses in memory: where both ends of the wire are made."""

from __future__ import annotations

import itertools

from servicekit.clock import Clock, SystemClock

from .addresses import Addresses
from .limits import Limits
from .listener import MemoryListener
from .wire import MemoryWire


class MemoryNetwork:
    """Servers and clients of one process that find each other by name, with no socket between them.

    Everything the seam promises holds (``servicekit.testing.wire_conformance``), on a clock that may be moved: with
    a ``MovableClock`` whole conversations run in virtual time, the same way every time. Belongs to one event loop.
    """

    def __init__(self, clock: Clock | None = None, limits: Limits | None = None) -> None:
        """Begin empty; without a clock, on the real one."""
        self.clock: Clock = SystemClock() if clock is None else clock
        self._limits = Limits() if limits is None else limits
        self._addresses = Addresses()
        self._clients = itertools.count(1)

    def listener(self) -> MemoryListener:
        """Return a new server's end. It binds any name, or ``host:port``, where port 0 is given a number."""
        return MemoryListener(self._addresses, self.clock)

    def wire(self, address: str) -> MemoryWire:
        """Return a new client's end for ``address``; its RPCs come from ``memory:client-N``."""
        return MemoryWire(
            address,
            peer=f"memory:client-{next(self._clients)}",
            addresses=self._addresses,
            clock=self.clock,
            limits=self._limits,
        )
