"""The forms that a servicer's method may have, each turned into one: a coroutine that is done when the call is.

grpc.aio takes a coroutine function, an async generator function, a coroutine that uses ``context.read`` and
``context.write``, and a plain function or generator, which runs in a thread. All of them work here, and so does an
object whose ``__call__`` is one of these.
"""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any, TypeAlias

from .threads import run_plain

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from concurrent.futures import Executor

    from servicekit.method import Kind

    from .context import Context

Behaviour: TypeAlias = "Callable[[Any, Context], Awaitable[Any]]"
"""``async (request, context) -> response``; for a streaming response None, the messages having gone to the context."""


def behaviour(function: Callable[..., Any], kind: Kind, threads: Executor | None) -> Behaviour:
    """Return the one form for ``function``; ``threads`` is where plain functions run (None: the loop's default)."""
    shape = _unwrapped(function)
    if inspect.isasyncgenfunction(shape):
        return _generator(function) if kind.response_streaming else _last_of(function)
    if inspect.iscoroutinefunction(shape):
        return function
    return run_plain(function, kind, threads)


def _unwrapped(function: Callable[..., Any]) -> Callable[..., Any]:
    while isinstance(function, functools.partial):
        function = function.func
    if inspect.isroutine(function) or inspect.isclass(function):
        return function
    return type(function).__call__  # an object: grpc.aio takes one with an async __call__ for a plain function


def _generator(function: Callable[..., Any]) -> Behaviour:
    async def produce(request: Any, context: Context) -> None:
        await context.write_all(function(request, context))

    return produce


def _last_of(function: Callable[..., Any]) -> Behaviour:
    async def refuse(_request: Any, _context: Context) -> Any:
        msg = f"{function!r} is an async generator, but its method has one response"
        raise TypeError(msg)

    return refuse
