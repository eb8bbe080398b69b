"""How a request comes in: one message that is read before anybody runs, or a stream of them that waits to be read."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Final

from servicekit.errors import Code, Error
from servicekit.wire import END, Ended, Received, Status

from .bell import Bell
from .incoming import NativeIncoming
from .messages import PREFIX, Messages
from .options import KIB

if TYPE_CHECKING:
    from servicekit.wire import Route

    from .heads import Opening
    from .line import Line

_TURN_MESSAGES: Final = 256
_LOOK_MESSAGES: Final = 16
_TURN_SECONDS: Final = 0.002
_GIVE_BACK: Final = 8 * KIB  # of credit at a time, while there are messages to take: no window is near to that small


class OneRequest(NativeIncoming):
    """An RPC that asks with one message. It is served once that is whole and nothing follows it."""

    _messages: Messages | None = None

    def feed(self, data: bytes, credit: int, *, end: bool) -> None:
        """Take content. The message is the wire's own to read, so its credit goes back at once."""
        line = self._line
        if end:
            line.credit += credit  # nothing more comes on the stream: only the connection's window is to be opened
        elif credit:
            line.http2.acknowledge(self.stream_id, credit)
        if end and self._messages is None and data[:1] == b"\0":
            # What nearly every call is: one frame with the one message.
            length = int.from_bytes(data[1:PREFIX], "big")
            if length + PREFIX == len(data) and length <= self._shared.options.received:
                self.data = data[PREFIX:]
                self.start()
                return
        try:
            self._gather(data, end=end)
        except Error as error:
            self.end(Status(code=error.code, message=error.message))

    def _gather(self, data: bytes, *, end: bool) -> None:
        if self._messages is None:
            self._messages = Messages(self._shared.options.received, self._opening.encoding)
        messages = self._messages
        found = messages.feed(data)
        if len(found) + (self.data is not None) > 1:
            raise Error(Code.UNIMPLEMENTED, _COUNT.format("too many"))
        if found:
            self.data = found[0]
        if self.data is not None and messages.held >= PREFIX:
            raise Error(Code.UNIMPLEMENTED, _COUNT.format("too many"))
        if not end:
            held = messages.held + len(self.data or b"")
            self._line.hold(held - self._held)
            self._held = held
            return
        if messages.held:
            raise Error(Code.INTERNAL, _CUT)
        if self.data is None:
            raise Error(Code.UNIMPLEMENTED, _COUNT.format("no"))
        self._line.held -= self._held
        self._held = 0
        self._messages = None
        self.start()

    async def receive(self) -> Received:
        """Return END: the one message is in ``data``. Raises Ended when the RPC is over."""
        if self.over:
            raise Ended
        return END


_COUNT: Final = "{} messages for a unary request"  # doc/statuscodes.md of gRPC: "Request cardinality violation"
_CUT: Final = "the request ended in the middle of a message"


class ManyRequests(NativeIncoming):
    """An RPC that asks with a stream of messages. It is served at once, and reads them as it likes.

    Credit for what it has not taken is kept back: a client that sends faster than it is read has to wait.
    """

    _owed = 0  # credit of what was taken, or is not whole
    _closed = False
    # Messages; behind those that came at once, the credit that they give back. None while there are none: many calls
    # are open for long with nothing to read, and an empty deque is a good part of what they keep.
    _waiting: deque[bytes | int] | None = None
    _taken = 0
    _turned = 0.0

    def __init__(self, line: Line, stream_id: int, opening: Opening, route: Route) -> None:
        """Begin without messages."""
        super().__init__(line, stream_id, opening, route)
        self._messages = Messages(line.shared.options.received, opening.encoding)
        self._arrived = Bell(line.shared.loop)
        self._taken = 0
        self._owed = 0
        self._waiting = None

    def feed(self, data: bytes, credit: int, *, end: bool) -> None:
        """Take content."""
        try:
            found = self._messages.feed(data)
            held = self._messages.held
            if end and held:
                raise Error(Code.INTERNAL, _CUT)  # noqa: TRY301 - it ends the RPC, as whatever else is wrong here
            if held or self._held:
                self._line.hold(held - self._held)
                self._held = held
        except Error as error:
            self._line.http2.acknowledge(self.stream_id, credit)
            self.end(Status(code=error.code, message=error.message))
            return
        credit += self._owed
        if found:
            if self._waiting is None:
                self._waiting = deque()
            self._waiting.extend(found)
            self._waiting.append(credit)
            self._owed = 0
        elif self._arrived:  # somebody waits for what is not whole: let the rest of it come
            self._owed = 0
            if credit:
                self._line.http2.acknowledge(self.stream_id, credit)
        else:
            self._owed = credit
        if end:
            self._closed = True
        if found or end:
            self._arrived.ring()

    async def receive(self) -> Received:
        """Return the next message, or END. Cancelled, it took nothing. Raises Ended when the RPC is over."""
        self._taken += 1
        if not self._taken % _LOOK_MESSAGES:
            await self._give_turn()
        while self._waiting is None:
            if self.over:
                raise Ended
            if self._closed:
                return END
            if self._owed:
                owed, self._owed = self._owed, 0
                self._line.http2.acknowledge(self.stream_id, owed)
                self._line.wake()
            await self._arrived.wait()
        if self.over:
            raise Ended
        waiting = self._waiting
        message, behind = waiting.popleft(), waiting[0]
        assert isinstance(message, bytes)  # noqa: S101 - a batch begins with one
        if isinstance(behind, int):
            waiting.popleft()
            self._give_back(behind)
        return message

    def _give_back(self, credit: int) -> None:
        """Take note that a batch has been taken, and give back its credit when it is the last, or it has become much."""
        if not self._waiting:
            self._waiting = None
        owed = self._owed + credit
        if owed and (self._waiting is None or owed >= _GIVE_BACK):
            self._owed = 0
            self._line.http2.acknowledge(self.stream_id, owed)
            self._line.wake()
        else:
            self._owed = owed

    async def _give_turn(self) -> None:
        now = self._shared.clock.time()
        if not self._taken % _TURN_MESSAGES or now - self._turned > _TURN_SECONDS:
            await asyncio.sleep(0)
            now = self._shared.clock.time()
        self._turned = now

    def _close(self) -> None:
        super()._close()
        owed = self._owed + sum(one for one in self._waiting or () if isinstance(one, int))
        self._owed = 0
        self._waiting = None
        if owed:
            self._line.http2.acknowledge(self.stream_id, owed)
        self._arrived.ring()
