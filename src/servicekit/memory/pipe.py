"""One direction of an RPC: messages in order, and a sender that waits for a slow reader."""

from __future__ import annotations

import asyncio
from collections import deque

from servicekit.clock import Clock
from servicekit.wire import END, Ended, Received

from .limits import Limits

_TURN_MESSAGES = 256
_TURN_SECONDS = 0.002


class Pipe:
    """A bounded queue of messages that can be closed (what is in it is still read) or broken (it is dropped)."""

    __slots__ = ("_bytes", "_clock", "_closed", "_limits", "_messages", "_put", "_taken", "_waiting", "broken")

    def __init__(self, limits: Limits, clock: Clock) -> None:
        """Begin empty and open."""
        self._limits = limits
        self._clock = clock
        self._messages: deque[bytes] = deque()
        self._bytes = 0
        self._closed = False
        self._waiting: list[asyncio.Future[None]] = []
        self._put, self._taken = _Turn(clock), _Turn(clock)
        self.broken = False

    @property
    def empty(self) -> bool:
        """Whether all that was put in has been taken."""
        return not self._messages

    def push(self, data: bytes) -> None:
        """Put a message into an open pipe, whatever the window says."""
        self._messages.append(data)
        self._bytes += len(data)
        self._ring()

    async def put(self, data: bytes) -> None:
        """Put a message in once there is room. Raises Ended when the pipe is closed; cancelled, it was not put in."""
        await self._put.give()
        while not self._closed and not self._room(len(data)):
            await self._change()
            self._put.begin()
        if self._closed:
            raise Ended
        self.push(data)

    async def take(self) -> Received:
        """Return the next message, or END when the pipe is closed and empty; cancelled, it took nothing."""
        await self._taken.give()  # before the message leaves the queue: a cancellation here must not lose it
        while not self._messages:
            if self._closed:
                return END
            await self._change()
            self._taken.begin()
        data = self._messages.popleft()
        self._bytes -= len(data)
        self._ring()
        return data

    def close(self) -> None:
        """Let nothing more in; what is there can still be taken."""
        self._closed = True
        self._ring()

    def break_off(self) -> None:
        """Let nothing more in and drop what was not taken. A pipe that was read to its end stays whole."""
        self.broken = self.broken or not (self._closed and self.empty)
        self._messages.clear()
        self._bytes = 0
        self.close()

    def _room(self, size: int) -> bool:
        fits = len(self._messages) < self._limits.messages and self._bytes + size <= self._limits.window
        return fits or not self._messages

    def _ring(self) -> None:
        # All who wait look again. A hand-over to one of them would be lost if just that one was cancelled.
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_result(None)

    async def _change(self) -> None:
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiting)
        try:
            await waiting
        finally:
            self._waiting.remove(waiting)


class _Turn:
    """How long one side has been at work without giving the loop its turn."""

    __slots__ = ("_clock", "_count", "_since")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.begin()

    def begin(self) -> None:
        self._count, self._since = 0, self._clock.time()

    async def give(self) -> None:
        if self._count >= _TURN_MESSAGES or self._clock.time() - self._since > _TURN_SECONDS:
            await asyncio.sleep(0)
            self.begin()
        self._count += 1
