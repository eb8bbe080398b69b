"""What runs on a server: the RPCs that core has begun, and the tasks that serve them."""

from __future__ import annotations

import asyncio


class Tasks(set[asyncio.Task[None]]):
    """The serving tasks that run. ``cancelled`` holds those among them that were told to end.

    ``task.cancelling()`` does not tell: up to Python 3.12 a TaskGroup that fails leaves its own cancellation counted.
    """

    def __init__(self) -> None:
        """Begin with none."""
        super().__init__()
        self.cancelled: set[asyncio.Task[None]] = set()

    def cancel(self, task: asyncio.Task[None]) -> None:
        """Tell a task to end, once: what cleans up after the first time is not to be disturbed."""
        if task not in self.cancelled and not task.done():
            self.cancelled.add(task)
            task.add_done_callback(self.cancelled.discard)
            task.cancel()


class Tally:
    """How many RPCs of one server have begun and not ended. Counted in place: a call per call would cost one more."""

    __slots__ = ("count", "idle")

    def __init__(self) -> None:
        """Begin with none."""
        self.count = 0
        self.idle: asyncio.Future[None] | None = None  # done when there are none, if anybody waits for that

    def leave(self) -> None:
        """Count one less."""
        self.count -= 1
        if not self.count and self.idle is not None:
            if not self.idle.done():
                self.idle.set_result(None)
            self.idle = None
