"""The answer of a middleware in the wire's place: messages that never were on it, for the caller all the same."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from servicekit.wire import END

from .codec import size_of

if TYPE_CHECKING:
    from servicekit.call import Call
    from servicekit.metadata import Metadata

    from .handover import Handover, Taken


class LocalAnswer:
    """The messages of a middleware that answers in the wire's place, handed over one by one."""

    __slots__ = ("_handover", "_slot", "_taken", "call")

    on_the_wire = False

    def __init__(self, call: Call, handover: Handover) -> None:
        """Answer ``call`` through ``handover``, to which this is bound by who makes it."""
        self.call = call
        self._handover = handover
        self._slot: list[Any] = []
        self._taken = asyncio.Event()

    async def put(self, message: object) -> None:
        """Hand a message over; returns when the caller has taken it. Raises the call's failure if it has one by then."""
        self._slot.append(message)
        self._taken.clear()
        self._handover.wake()
        try:
            await self._taken.wait()
        except asyncio.CancelledError:
            self._slot.clear()
            raise
        if self.call.failure is not None:
            raise self.call.failure

    async def take(self) -> Taken:
        """Return the next message once it is there; END when another source is bound, or the chain has ended."""
        while not self._slot:
            if self._handover.over or self._handover.bound is not self:
                return END
            await self._handover.change()
        message = self._slot.pop()
        self._taken.set()
        try:
            self.call.received(message, size_of(message))
        except Exception:  # noqa: BLE001 - it is the call's failure now, and comes to the caller through the chain
            return END
        self._handover.committed = True
        return message

    async def headers(self) -> Metadata:
        """Return what the middleware has set."""
        return self.call.headers
