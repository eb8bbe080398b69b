"""The calls under way on one server, counted until the wire says that each has ended.

A handler that has returned is no proof that its reply is out: a server that drained on that lost replies.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from servicekit.call import Call
    from servicekit.errors import Error
    from servicekit.method import Method


class InFlight:
    """Who is being served. Calls to auxiliary services (health's Watch never ends by itself) are kept apart.

    So is what threads are at work on: nobody can stop a plain function, and it may well outlive its call.
    """

    __slots__ = ("_auxiliary", "_calls", "_going", "_idle", "in_threads")

    def __init__(self) -> None:
        """Begin with nobody."""
        self._calls: set[Call] = set()
        self._auxiliary: set[Call] = set()
        self._going: Error | None = None
        self._idle: asyncio.Event | None = None
        self.in_threads: set[object] = set()
        """One for each plain function that runs now. Added to and discarded from in its thread, each in one step."""

    def __len__(self) -> int:
        """Return how many calls are under way, auxiliary ones not counted."""
        return len(self._calls)

    def counting(self, method: Method) -> Callable[[Call], None]:
        """Return what counts a call of ``method`` when it begins; it goes by ``leave``."""
        if method.auxiliary:
            return self._begin_auxiliary
        return self._calls.add

    def _begin_auxiliary(self, call: Call) -> None:
        self._auxiliary.add(call)
        if self._going is not None and call.method.kind.response_streaming:
            call.end(self._going)  # a Watch would go on for ever, and a drain wait for it

    def leave(self, call: Call) -> None:
        """Count ``call`` no longer: the wire has ended it."""
        (self._auxiliary if call.method.auxiliary else self._calls).discard(call)
        if self._idle is not None and not self._calls:
            self._idle.set()

    async def idle(self) -> None:
        """Return once no call is under way, auxiliary ones not counted."""
        while self._calls:
            if self._idle is None or self._idle.is_set():
                self._idle = asyncio.Event()
            await self._idle.wait()

    def end(self, error: Error) -> None:
        """End every call under way, of either sort, with ``error``."""
        for call in [*self._calls, *self._auxiliary]:
            call.end(error)

    def end_auxiliary(self, error: Error) -> None:
        """End the calls to auxiliary services with ``error``, and streams of theirs that begin from now on."""
        self._going = error
        for call in list(self._auxiliary):
            call.end(error)

    def __repr__(self) -> str:
        """Return how many of each sort there are."""
        return f"<InFlight: {len(self._calls)}, auxiliary: {len(self._auxiliary)}>"
