"""Where the caller takes its messages from, and who is told when that changes.

Messages do not pass through the chain: the caller takes them straight from the source that is bound, which is the
attempt that may still succeed, or a middleware that answers in the wire's place.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

from servicekit.wire import End

if TYPE_CHECKING:
    from servicekit.metadata import Metadata

Taken: TypeAlias = "Any | Literal[End.END]"


class Source(Protocol):
    """Where the caller's messages come from: an attempt on a wire, or a middleware that answers in its place."""

    on_the_wire: bool
    """Whether this is an attempt that the wire still carries."""

    async def take(self) -> Taken:
        """Return the next message, or END when no more will come from here. Cancel-safe."""

    async def headers(self) -> Metadata:
        """Return the response's initial metadata once it is there."""


class Handover:
    """One source at a time, and the end of the chain: what the caller of a call waits for."""

    # Most calls never set most of these: as defaults of the class they cost a call nothing.
    bound: Source | None = None
    committed = False  # whether the caller has a message
    over = False  # whether the chain has ended
    failure: Exception | None = None  # of the attempt that was unbound last
    _changed: asyncio.Future[None] | None = None

    async def done(self) -> None:
        """Return once the chain has ended. Cancel-safe: waiting for a call is not the call."""
        while not self.over:
            await self.change()

    async def source(self, after: Source | None = None) -> Source | None:
        """Return what is bound, once that is another one than ``after``; None once the chain has ended."""
        while True:
            if self.bound is not None and self.bound is not after:
                return self.bound
            if self.over:
                return None
            await self.change()

    async def change(self) -> None:
        """Return at the next change: something was bound or put in, or the chain has ended. Cancel-safe."""
        if self._changed is None:
            self._changed = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._changed)

    def wake(self) -> None:
        """Let those who wait for a change look again."""
        if self._changed is not None:
            self._changed.set_result(None)
            self._changed = None

    def bind(self, source: Source) -> None:
        """Let the caller take its messages from ``source``."""
        self.bound = source
        self.wake()

    def unbind(self, source: Source, failure: Exception) -> None:
        """Take a failed attempt out of the caller's sight, before its error is raised."""
        self.failure = failure
        if self.bound is source:
            self.bound = None
