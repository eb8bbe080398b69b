"""One RPC between two ends in memory: all that both of them touch, and every way it can end.

The server's part is over at ``finish`` or when it is reset; the client's when it has taken all that the server sent,
in order and its status last. An end that no status came for (cancelled, deadline, reset) is one for both at once, and
what was under way is dropped, as a real transport drops it.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable

from servicekit.clock import Clock, Timer
from servicekit.errors import By, Code
from servicekit.metadata import Pairs
from servicekit.wire import END, Ended, Head, Received, Status

from .limits import Limits
from .pipe import Pipe


class Exchange:
    """One RPC. ``on_settled`` is told when it has ended for the client."""

    def __init__(self, head: Head, *, clock: Clock, limits: Limits, on_settled: Callable[[Exchange], None]) -> None:
        """Begin with ``head`` as the server will see it; its deadline counts from here."""
        self.head = head
        self.headers: Pairs = ()
        self.peer = ""
        self.over = False  # for the server
        self.begun = False
        self._limits = limits
        self._requests = Pipe(limits, clock)
        self._responses = Pipe(limits, clock)
        self._half_closed = False
        self._headers_sent = False
        self._headers_known = asyncio.Event()
        self._final: Status | None = None  # the server's word, which the client reads after the messages
        self._status: Status | None = None
        self._settled = asyncio.Event()
        self._on_settled = on_settled
        self._on_end: list[tuple[Callable[[], None], contextvars.Context]] = []
        self._serving: asyncio.Task[None] | None = None
        self._timer: Timer | None = None
        if head.deadline is not None:
            if head.deadline <= clock.time():
                self._expire()
            else:
                self._timer = clock.call_at(head.deadline, self._expire)

    @property
    def settled(self) -> bool:
        """Whether it has ended for the client."""
        return self._status is not None

    # The client's part

    async def ask(self, data: bytes) -> None:
        """Send a request message; see ``Stream.send``."""
        if self._half_closed:
            raise RuntimeError(f"{self.head.path}: a message was sent after half_close()")
        if self.over:
            raise Ended
        if self._acceptable(data):
            await self._requests.put(data)

    def ask_once(self, data: bytes) -> None:
        """Send the only request message, which needs no room, and half-close."""
        if self._acceptable(data):
            self._requests.push(data)
        self.half_close()

    def half_close(self) -> None:
        """Say that no more requests will come."""
        self._half_closed = True
        self._requests.close()

    async def response(self) -> Received:
        """Return the next response message; see ``Stream.receive``."""
        message = await self._responses.take()
        self._read_status()
        return message

    async def response_headers(self) -> Pairs:
        """Return the headers once they are there, or will never be."""
        await self._headers_known.wait()
        return self.headers

    async def status(self) -> Status:
        """Return how it ended; see ``Stream.ended``."""
        await self._settled.wait()
        assert self._status is not None  # noqa: S101 - set just before the event
        return self._status

    # The server's part

    def served_by(self, task: asyncio.Task[None]) -> None:
        """Take note of the task that is to be cancelled when this is reset."""
        self._serving = task

    async def request(self) -> Received:
        """Return the next request message; see ``Incoming.receive``. Raises Ended when the RPC broke before its end."""
        message = await self._requests.take()
        if message is END and self._requests.broken:
            raise Ended
        return message

    def send_headers(self, metadata: Pairs) -> None:
        """Send the initial metadata; see ``Incoming.send_headers``."""
        if self.over:
            return
        if self._headers_sent:
            raise RuntimeError(f"{self.head.path}: the initial metadata was sent before")
        self._headers_sent = True
        self.headers = tuple(metadata)
        self._headers_known.set()

    async def answer(self, data: bytes) -> None:
        """Send a response message; see ``Incoming.send``."""
        if self.over:
            raise Ended
        if not self._headers_sent:
            self.send_headers(())
        if len(data) > self._limits.message:
            self.fail(Code.RESOURCE_EXHAUSTED, self._too_large(data))
        else:
            await self._responses.put(data)

    def finish(self, status: Status, data: bytes | None = None) -> None:
        """End it with the server's word; the first one counts."""
        if self.over:
            return
        if data is not None and len(data) > self._limits.message:
            self.fail(Code.RESOURCE_EXHAUSTED, self._too_large(data))
            return
        if data is not None:
            self._responses.push(data)
        self._responses.close()
        self._final = status
        self._end_for_server()
        self._read_status()

    def on_end(self, callback: Callable[[], None]) -> None:
        """Run ``callback`` when it is over for the server, in the context of who asked; soon, if it is over already."""
        if self.over:
            asyncio.get_running_loop().call_soon(callback)
        else:
            self._on_end.append((callback, contextvars.copy_context()))

    def stop_serving(self) -> None:
        """Cancel the task that serves it."""
        if self._serving is not None:
            self._serving.cancel()

    # The ends that no status came for

    def fail(self, code: Code, message: str, by: By = By.LOCAL) -> None:
        """End it for both sides at once, and drop what was not taken; harmless when the client's part is over."""
        if self.settled:
            return
        self._responses.break_off()
        self._settle(Status(code=code, message=message, begun=self.begun, by=by))
        if not self.over:
            self._end_for_server()
            self.stop_serving()

    def _expire(self) -> None:
        self.fail(Code.DEADLINE_EXCEEDED, "deadline exceeded")

    def _acceptable(self, data: bytes) -> bool:
        if len(data) <= self._limits.message:
            return True
        self.finish(Status(code=Code.RESOURCE_EXHAUSTED, message=self._too_large(data)))
        self.stop_serving()
        return False

    def _too_large(self, data: bytes) -> str:
        return f"received a message of {len(data)} bytes, more than {self._limits.message}"

    def _read_status(self) -> None:
        if self._final is not None and self._responses.empty and not self.settled:
            self._settle(self._final)

    def _settle(self, status: Status) -> None:
        self._status = status
        if self._timer is not None:
            self._timer.cancel()
        self._headers_known.set()
        self._settled.set()
        self._on_settled(self)

    def _end_for_server(self) -> None:
        self.over = True
        self._headers_known.set()
        self._requests.break_off()
        # Soon and in its own context: the client that cancels must not run the server's code in the middle of its own.
        for callback, context in self._on_end:
            asyncio.get_running_loop().call_soon(callback, context=context)
