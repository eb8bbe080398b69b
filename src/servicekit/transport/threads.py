"""Plain functions as servicers: they run in a thread, with a context whose methods do not need awaiting."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
from typing import TYPE_CHECKING, Any

import grpc

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
    from concurrent.futures import Executor

    from servicekit.call import Kind

    from .context import Context


def run_plain(function: Callable[..., Any], kind: Kind, threads: Executor | None) -> Callable[[Any, Context], Any]:
    """Return a coroutine function that runs ``function(request, context)`` in a thread of ``threads``.

    A thread cannot be stopped: when the call is cancelled its result is dropped, and what it asks of its context
    raises from then on.
    """

    async def run(request: Any, context: Context) -> Any:
        loop = asyncio.get_running_loop()
        plain = PlainContext(context, loop)
        given = _Blocking(request, plain) if kind.request_streaming else request
        in_thread = functools.partial(_in_thread, loop, threads, contextvars.copy_context())
        try:
            response = await in_thread(function, given, plain)
            if inspect.isawaitable(response):  # a plain wrapper around a coroutine function
                response = await response
            if not kind.response_streaming:
                return response
            if response is None:
                return None
            if hasattr(response, "__aiter__"):
                async for message in response:
                    await context.write(message)
                return None
            iterator = iter(response)
            while (message := await in_thread(next, iterator, _LAST)) is not _LAST:
                await context.write(message)
        finally:
            plain.over = True
            for callback in plain.callbacks:
                callback()
        return None

    return run


_LAST = object()


async def _in_thread(
    loop: asyncio.AbstractEventLoop,
    threads: Executor | None,
    context: contextvars.Context,
    function: Callable[..., Any],
    *arguments: Any,
) -> Any:
    # StopIteration cannot pass through a future; next() is always given a default here.
    return await loop.run_in_executor(threads, functools.partial(context.run, function, *arguments))


class PlainContext:
    """The context of a plain servicer: what grpc's synchronous ServicerContext offers. Used from one thread."""

    def __init__(self, context: Context, loop: asyncio.AbstractEventLoop) -> None:
        """Stand for ``context``, whose coroutines run on ``loop``."""
        self._context = context
        self._loop = loop
        self.over = False
        self.callbacks: list[Callable[[], None]] = []

    def __getattr__(self, name: str) -> Any:
        """Return what needs no waiting (metadata, peer, code, ...) straight from the context."""
        return getattr(self._context, name)

    def wait_for(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Return the coroutine's result, run on the loop. Raises AbortError when the call is over."""
        if self.over:
            coroutine.close()
            message = "the call is over"
            raise grpc.aio.AbortError(message)
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def abort(self, code: Any, details: str = "", trailing_metadata: Any = ()) -> None:
        """End the call with ``code``; raises AbortError."""
        self.wait_for(self._context.abort(code, details, trailing_metadata))

    def abort_with_status(self, status: grpc.Status) -> None:
        """End the call with a status; raises AbortError."""
        self.wait_for(self._context.abort_with_status(status))

    def send_initial_metadata(self, initial_metadata: Any) -> None:
        """Send the initial metadata now."""
        self.wait_for(self._context.send_initial_metadata(initial_metadata))

    def add_callback(self, callback: Callable[[], None]) -> bool:
        """Run ``callback()`` when the servicer is done; returns False, without taking it, when it already is."""
        if self.over:
            return False
        self.callbacks.append(callback)
        return True

    def is_active(self) -> bool:
        """Return whether anybody still waits for the answer."""
        return not self.over and not self._context.done()


class _Blocking:
    """A stream of requests as a plain iterator, for a servicer in a thread."""

    def __init__(self, request: AsyncIterator[Any], context: PlainContext) -> None:
        self._request = request
        self._context = context

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        message = self._context.wait_for(_next(self._request))
        if message is _LAST:
            raise StopIteration
        return message


async def _next(request: AsyncIterator[Any]) -> Any:
    return await anext(request, _LAST)
