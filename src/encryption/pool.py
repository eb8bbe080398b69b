"""The few threads in which passphrases are stretched, behind a bulkhead: each takes some 20 ms and 19 MiB."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from encryption.errors import Busy

T = TypeVar("T")


class KdfPool:
    """`threads` run, at most `queue` wait, the next is refused. Both are checked here: ValueError names a wrong one."""

    def __init__(self, *, threads: int, queue: int) -> None:
        if threads < 1:
            raise ValueError(f"threads must be at least 1, not {threads}")
        if queue < 0:
            raise ValueError(f"queue must not be negative, not {queue}")
        self._threads = threads
        self._queue = queue
        self._held = 0
        self._lock = threading.Lock()
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="kdf")

    async def run(self, work: Callable[[], T]) -> T:
        """Return what `work` returns, called in a thread; raises what it raises, and Busy at once if there is no place.

        A caller that is cancelled while it waits gives up its place. Once its work runs, the place is held until the
        thread has finished: a thread cannot be stopped, so callers who cancel make no room for more work.
        """
        with self._lock:
            if self._held >= self._threads + self._queue:
                raise Busy
            self._held += 1
        try:
            future = self._executor.submit(work)
        except BaseException:
            self._leave()
            raise
        # Called once, when it has finished or was cancelled before it began, and before the caller wakes.
        future.add_done_callback(self._leave)
        return await asyncio.wrap_future(future)

    async def close(self) -> None:
        """Return when all work that was accepted is done. Work that comes later is refused with RuntimeError."""
        await asyncio.to_thread(self._executor.shutdown)

    def _leave(self, _: Future[T] | None = None) -> None:
        with self._lock:
            self._held -= 1

    def __repr__(self) -> str:
        return f"KdfPool(threads={self._threads}, queue={self._queue}, held={self._held})"
