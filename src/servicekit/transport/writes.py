"""From ``write()`` to an iterator: a hand-over of one message at a time."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any


class Writes:
    """What ``write()`` was given and nobody has sent yet, in order: an iterator that loses nothing."""

    __slots__ = ("_closed", "_finished", "_more", "_refusing", "_sending", "_waiting")

    def __init__(self) -> None:
        """Begin empty."""
        self._waiting: deque[tuple[Any, asyncio.Future[None]]] = deque()
        self._sending: asyncio.Future[None] | None = None  # of the message that was taken last
        self._more: asyncio.Future[None] | None = None  # what the taker waits for
        self._finished = False
        self._closed = False
        self._refusing = False

    async def put(self, message: object) -> bool:
        """Hand over a message; returns True when the taker comes for the next one, False when nobody will.

        One that is cancelled here before it was taken is not sent after all. Raises InvalidStateError after ``finish``.
        """
        if self._finished:
            why = "the RPC was half-closed by done_writing()"
            raise asyncio.InvalidStateError(why)
        if self._closed or self._refusing:
            return False
        sent: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((message, sent))
        self._wake()
        await sent
        return not self._closed and not self._refusing

    def finish(self) -> None:
        """Let the iteration end after what was put."""
        self._finished = True
        self._wake()

    def close(self) -> None:
        """Release whoever waits: the call is over."""
        self._closed = True
        self._let_go()

    def refuse(self) -> None:
        """Release whoever waits, and take nothing until somebody comes for a message again, as another attempt does."""
        self._refusing = True
        self._let_go()

    def _let_go(self) -> None:
        self._release()
        while self._waiting:
            _, self._sending = self._waiting.popleft()
            self._release()

    def _release(self) -> None:
        if self._sending is not None and not self._sending.done():
            self._sending.set_result(None)
        self._sending = None

    def _wake(self) -> None:
        if self._more is not None and not self._more.done():
            self._more.set_result(None)

    def __aiter__(self) -> Writes:
        """Return itself."""
        return self

    async def __anext__(self) -> Any:
        """Return the next message; asking for it says that the one before is on its way."""
        self._refusing = False
        self._release()
        while True:
            while self._waiting:
                message, sent = self._waiting.popleft()
                if not sent.cancelled():
                    self._sending = sent
                    return message
            if self._finished:
                raise StopAsyncIteration
            self._more = asyncio.get_running_loop().create_future()
            await self._more
