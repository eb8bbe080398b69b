"""Core operations that outlive whoever waits for them.

grpc.aio cancels the RPC when a write is cancelled, and loses the message when a read is: each await hands the
cancellation on to core. Here the waiter is cancelled and the operation stays, to be waited for again. A task for each
operation with ``asyncio.shield`` around it would do the same, at the price of a task, two futures and one more turn
of the loop for every message.
"""

from __future__ import annotations

import asyncio
import sys
import types
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import grpc

from servicekit.wire import Ended

if TYPE_CHECKING:
    import contextvars
    from collections.abc import Callable, Coroutine, Generator

T = TypeVar("T")


class Kept(Generic[T]):
    """A coroutine that is stepped by whoever awaits it, and goes on from where it was at the next await.

    Any number of tasks may await it, at once or after one another: all get its result. Cancelling one of them changes
    nothing for the coroutine.
    """

    __slots__ = ("_coroutine", "_error", "_future", "_over", "_result")
    _result: T

    def __init__(self, coroutine: Coroutine[Any, Any, T]) -> None:
        """Take a coroutine that nobody else awaits; it begins at the first ``advance`` or await."""
        self._coroutine: Coroutine[Any, Any, T] | None = coroutine
        self._future: asyncio.Future[Any] | None = None
        self._error: BaseException | None = None
        self._over = False

    def advance(self) -> bool:
        """Go on as far as is possible without waiting, and return whether the end was reached."""
        coroutine = self._coroutine
        if coroutine is None:
            return True
        if self._future is not None and not self._future.done():
            return False
        try:
            future = coroutine.send(None)
        except StopIteration as stop:
            self._result = stop.value
        except grpc.aio.BaseError as error:
            self._over = True
            error.__traceback__ = None  # its future keeps it, and frames hold the future: a circle, were they kept too
        except BaseException as error:  # noqa: BLE001 - handed to whoever awaits
            self._error = error
        else:
            if future is None:  # a bare yield: wait for the next turn
                future = asyncio.get_running_loop().create_future()
                asyncio.get_running_loop().call_soon(_resolve, future)
            future._asyncio_future_blocking = False  # noqa: SLF001 - asyncio's word for "you were awaited" (Task does so)
            self._future = future
            return False
        self._coroutine = self._future = None
        return True

    def __await__(self) -> Generator[Any, Any, T]:
        """Return the coroutine's result or raise what it raised; Ended when core did, or it was dropped. Cancel-safe."""
        if self._future is None and self._coroutine is not None and sys.exc_info()[1] is not None:
            self._begin_apart(self._coroutine)
        while not self.advance():
            future = self._future
            assert future is not None  # noqa: S101 - it waits for something
            waiter = _Waiter(future)
            try:
                yield waiter
            except BaseException:
                if waiter.cancelled or not future.done():
                    raise
        if self._over:
            raise Ended
        if self._error is not None:
            raise self._error
        return self._result

    def _begin_apart(self, coroutine: Coroutine[Any, Any, T]) -> None:
        # A coroutine of core's keeps the exception that is being handled where it begins, if only by a caller of its
        # caller. This one may outlive that by far, and the frames of the exception, which hold whoever waits here.
        if isinstance(coroutine, types.CoroutineType):  # Python's own, of an interceptor: it may ask for its task
            return
        loop = asyncio.get_running_loop()
        self._future = begun = loop.create_future()
        loop.call_soon(self._begin, begun)

    def _begin(self, begun: asyncio.Future[None]) -> None:
        if self._future is begun:  # it was not dropped
            self._future = None
            if not self.advance() and self._future is not None:
                self._future.add_done_callback(_looked_at)  # whoever waited may have left
            _resolve(begun)

    def drop(self) -> None:
        """Forget the operation, whose RPC is over: who still waits for it is told so by Ended. Idempotent."""
        coroutine, future = self._coroutine, self._future
        if coroutine is not None:
            self._over = True
        self._coroutine = self._future = None
        if future is not None and not future.cancel():
            _looked_at(future)
        # It may be closed just now, by the collector, which goes through what it has found in any order.
        if coroutine is not None and not coroutine.cr_running:  # type: ignore[attr-defined]  # Python's and Cython's have it
            coroutine.close()


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _looked_at(future: asyncio.Future[Any]) -> None:
    # asyncio logs an exception that nobody has asked for.
    if not future.cancelled():
        future.exception()


class _Waiter:
    """Stands between a task and a future, so that cancelling the task leaves the future alone.

    This is asyncio's documented duck type of a future (``asyncio.isfuture``): the task calls ``add_done_callback`` to
    be woken, directly by the future, and ``cancel`` when it is cancelled.
    """

    __slots__ = ("_asyncio_future_blocking", "_context", "_future", "_wakeup", "cancelled")

    def __init__(self, future: asyncio.Future[Any]) -> None:
        self._future = future
        self._asyncio_future_blocking = True
        self.cancelled = False

    def get_loop(self) -> asyncio.AbstractEventLoop:
        return self._future.get_loop()

    def add_done_callback(self, wakeup: Callable[[Any], object], *, context: contextvars.Context | None = None) -> None:
        self._wakeup = wakeup
        self._context = context
        self._future.add_done_callback(wakeup, context=context)

    def cancel(self, msg: object = None) -> bool:
        # As Future.cancel: True once, and then the task is woken; False when it is about to be woken anyway, and then
        # the task raises CancelledError by itself.
        del msg
        if self.cancelled or self._future.done():
            self.cancelled = True
            return False
        self.cancelled = True
        self._future.remove_done_callback(self._wakeup)
        self._future.add_done_callback(_looked_at)  # the collector may be the next to find it
        self._future.get_loop().call_soon(self._wakeup, self, context=self._context)
        del self._wakeup, self._context  # which hold the task, whose exception will hold this
        return True

    def result(self) -> None:
        raise asyncio.CancelledError
