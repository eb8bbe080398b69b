"""Waiting for something to change, by any number of tasks, each of which may give up at any time."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio


class Bell:
    """All who wait look again when it rings. A hand-over to one of them would be lost if just that one was cancelled."""

    __slots__ = ("_loop", "_waiting")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin with nobody."""
        self._loop = loop
        self._waiting: list[asyncio.Future[None]] = []

    def __bool__(self) -> bool:
        """Return whether somebody waits."""
        return bool(self._waiting)

    async def wait(self) -> None:
        """Return when it rings next."""
        waiting = self._loop.create_future()
        self._waiting.append(waiting)
        try:
            await waiting
        finally:
            self._waiting.remove(waiting)

    def ring(self) -> None:
        """Wake everybody who waits."""
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_result(None)
