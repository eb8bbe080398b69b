"""From ``write()`` to an iterator: a hand-over of one message at a time."""

from __future__ import annotations

import asyncio
from typing import Any


class Writes:
    """What ``write()`` was given and nobody has sent yet, one message at a time: an iterator that loses nothing."""

    __slots__ = ("_closed", "_finished", "_more", "_sent", "_slot")

    def __init__(self) -> None:
        """Begin empty."""
        self._slot: list[Any] = []
        self._finished = False
        self._closed = False
        self._sent: asyncio.Future[None] | None = None  # of the message that is being sent
        self._more: asyncio.Future[None] | None = None  # what the taker waits for

    async def put(self, message: object) -> bool:
        """Hand over a message; returns True when the taker comes for the next one, False when the call is over.

        Raises InvalidStateError after ``finish``.
        """
        if self._finished:
            why = "the RPC was half-closed by done_writing()"
            raise asyncio.InvalidStateError(why)
        if self._closed:
            return False
        self._sent = asyncio.get_running_loop().create_future()
        self._slot.append(message)
        self._wake()
        try:
            await self._sent
        except asyncio.CancelledError:
            self._slot.clear()  # a message that was not taken is not sent after all
            raise
        return not self._closed

    def finish(self) -> None:
        """Let the iteration end after what was put."""
        self._finished = True
        self._wake()

    def close(self) -> None:
        """Release whoever waits: the call is over."""
        self._closed = True
        if self._sent is not None and not self._sent.done():
            self._sent.set_result(None)

    def _wake(self) -> None:
        if self._more is not None and not self._more.done():
            self._more.set_result(None)

    def __aiter__(self) -> Writes:
        """Return itself."""
        return self

    async def __anext__(self) -> Any:
        """Return the next message; asking for it says that the one before is on its way."""
        if self._sent is not None and not self._slot and not self._sent.done():
            self._sent.set_result(None)
        while not self._slot:
            if self._finished:
                raise StopAsyncIteration
            self._more = asyncio.get_running_loop().create_future()
            await self._more
        return self._slot.pop()
