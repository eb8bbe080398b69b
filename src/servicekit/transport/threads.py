"""Plain functions as servicers: they run in a thread, with a context whose methods do not need awaiting."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import logging
import threading
from typing import TYPE_CHECKING, Any, TypeAlias

import grpc

from servicekit.current import current_call

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
    from concurrent.futures import Executor

    from servicekit.method import Kind

    from .context import Context
    from .served import Served

log = logging.getLogger("servicekit")


def run_plain(function: Callable[..., Any], kind: Kind, threads: Executor | None) -> Callable[[Any, Context], Any]:
    """Return a coroutine function that runs ``function(request, context)`` in a thread of ``threads``.

    A thread cannot be stopped: when the call is cancelled its result is dropped, and what it asks of its context
    raises from then on. While it runs it is counted in the server's ``InFlight.in_threads``.
    """

    async def run(request: Any, context: Context) -> Any:
        loop = asyncio.get_running_loop()
        plain = PlainContext(context, loop)
        given = _Blocking(request, plain) if kind.request_streaming else request
        variables = contextvars.copy_context()
        running = _running()

        def in_thread(function: Callable[..., Any], *arguments: Any) -> asyncio.Future[Any]:
            return loop.run_in_executor(
                threads, functools.partial(variables.run, _guarded, running, function, *arguments)
            )

        try:
            response = await in_thread(function, given, plain)
            if inspect.isawaitable(response):  # a plain wrapper around a coroutine function
                response = await response
            if not kind.response_streaming:
                return response
            if response is None:
                return None
            if hasattr(response, "__aiter__"):
                await context.write_all(response)
            else:
                await _write_each(iter(response), context, in_thread)
        finally:
            plain.finish()
        return None

    return run


_LAST = object()
InThread: TypeAlias = "Callable[..., asyncio.Future[Any]]"


async def _write_each(iterator: Iterator[Any], context: Context, in_thread: InThread) -> None:
    """Write what a plain iterator of the servicer's yields, each step in a thread."""
    close: Any = getattr(iterator, "close", None)
    over = False

    def step() -> Any:
        return _LAST if over else next(iterator, _LAST)

    def close_after(taken: asyncio.Future[Any]) -> object:
        if not taken.cancelled():
            taken.exception()  # looked at, so that asyncio does not log that the call was over: nobody waits for it
        return in_thread(close)

    taking: asyncio.Future[Any] | None = None
    try:
        while True:
            # A step outlives a call that is cancelled: nobody can stop it, nor close a generator that it runs.
            taking = in_thread(step)
            message = await asyncio.shield(taking)
            if message is _LAST:
                return
            await context.write(message)
    finally:
        over = True
        if close is not None and taking is not None:
            if taking.done():
                await asyncio.shield(in_thread(close))  # a cancellation that comes only now must not prevent it
            else:
                taking.add_done_callback(close_after)


def _running() -> set[object]:
    """Return where the server of the call being served counts its plain functions."""
    try:
        served: Served = current_call()._exchange  # type: ignore[assignment]  # noqa: SLF001 - transport made it
    except LookupError:  # a link has detached itself from the call
        return set()
    return served.in_threads


def _guarded(running: set[object], function: Callable[..., Any], *arguments: Any) -> Any:
    this = object()
    running.add(this)
    try:
        return function(*arguments)
    except StopIteration as error:
        # It cannot pass through a future: asyncio refuses to set it, and whoever waits does so for ever.
        message = "a plain function raised StopIteration"
        raise RuntimeError(message) from error
    finally:
        running.discard(this)


class PlainContext:
    """The context of a plain servicer: what grpc's synchronous ServicerContext offers. Used from one thread."""

    def __init__(self, context: Context, loop: asyncio.AbstractEventLoop) -> None:
        """Stand for ``context``, whose coroutines run on ``loop``."""
        self._context = context
        self._loop = loop
        self._thread = threading.get_ident()
        self.over = False
        self.callbacks: list[Callable[[], None]] = []

    def __getattr__(self, name: str) -> Any:
        """Return what needs no waiting (metadata, peer, code, ...) straight from the context."""
        return getattr(self._context, name)

    def wait_for(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Return the coroutine's result, run on the loop. Raises AbortError when the call is over.

        On the loop's own thread nobody may wait for it: there it is returned itself. A coroutine that was behind a
        plain wrapper runs there, and awaits what it is given.
        """
        if self.over:
            coroutine.close()
            message = "the call is over"
            raise grpc.aio.AbortError(message)
        if threading.get_ident() == self._thread:
            return coroutine
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def abort(self, code: Any, details: str = "", trailing_metadata: Any = ()) -> Any:
        """End the call with ``code``; raises AbortError."""
        return self.wait_for(self._context.abort(code, details, trailing_metadata))

    def abort_with_status(self, status: grpc.Status) -> Any:
        """End the call with a status; raises AbortError."""
        return self.wait_for(self._context.abort_with_status(status))

    def send_initial_metadata(self, initial_metadata: Any) -> Any:
        """Send the initial metadata now."""
        return self.wait_for(self._context.send_initial_metadata(initial_metadata))

    def add_callback(self, callback: Callable[[], None]) -> bool:
        """Run ``callback()`` when the servicer is done; returns False, without taking it, when it already is."""
        if self.over:
            return False
        self.callbacks.append(callback)
        return True

    def finish(self) -> None:
        """Run the callbacks: the servicer is done."""
        self.over = True
        for callback in self.callbacks:
            try:
                callback()
            except Exception:
                log.exception("a callback at the end of %r failed", self._context.path[:200])

    def is_active(self) -> bool:
        """Return whether anybody still waits for the answer."""
        return not self.over and not self._context.done()


class _Blocking:
    """A stream of requests as a plain iterator, for a servicer in a thread; async too, for one that was only wrapped."""

    def __init__(self, request: AsyncIterator[Any], context: PlainContext) -> None:
        self._request = request
        self._context = context

    def __aiter__(self) -> AsyncIterator[Any]:
        return self._request

    async def __anext__(self) -> Any:
        return await anext(self._request)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        message = self._context.wait_for(_next(self._request))
        if message is _LAST:
            raise StopIteration
        return message


async def _next(request: AsyncIterator[Any]) -> Any:
    return await anext(request, _LAST)
