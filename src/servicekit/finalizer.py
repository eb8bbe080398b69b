"""What an object's finalizer may do that has something of an event loop to end."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVarTuple

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

Ts = TypeVarTuple("Ts")


def leave_to(loop: asyncio.AbstractEventLoop, callback: Callable[[*Ts], object], *args: *Ts) -> None:
    """Run ``callback(*args)`` in the next turn of ``loop``; never, if it is closed. Safe in any thread.

    For ``__del__``, which runs in any thread and in the middle of anything, and must not handle an exception. Up to
    CPython 3.12 that leaves None in the place of the exception that its caller handles; where this is a coroutine of
    Cython's that just ends, as those of grpc.aio are, Cython takes None for an exception, and the process dies.
    """
    if not loop.is_closed():  # asked first, and not told by a RuntimeError
        loop.call_soon_threadsafe(callback, *args)
