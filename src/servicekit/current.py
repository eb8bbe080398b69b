"""Which call is being served by the running task: what a servicer asks for, and what its own calls inherit from."""

from __future__ import annotations

import asyncio
import contextvars
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from typing import Any

    from .call import Call

_current: contextvars.ContextVar[Call | None] = contextvars.ContextVar("servicekit_call", default=None)


def current_call() -> Call:
    """Return the call being served by the running task. Raises LookupError outside of one."""
    call = _current.get()
    if call is None:
        msg = "no call is being served here: current_call() works inside a servicer and what it awaits"
        raise LookupError(msg)
    return call


def parent_call() -> Call | None:
    """Return the served call that an outgoing one belongs to, or None: outside of one, or when it is over."""
    call = _current.get()
    return None if call is None or call.over else call


def running_task() -> asyncio.Task[Any] | None:
    """Return the running task, or None outside of one: timers run in none."""
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None


def enter(call: Call) -> None:
    """Make ``call`` what ``current_call()`` returns for the rest of the running task, which is the call's own."""
    _current.set(call)


def entered(call: Call) -> bool:
    """Return whether ``call`` is what ``current_call()`` returns here."""
    return _current.get() is call


class serving:  # noqa: N801 - used as a function is; a generator in its place costs every call two microseconds
    """Make ``call`` what ``current_call()`` returns inside the block."""

    __slots__ = ("_call", "_token")
    _token: contextvars.Token[Call | None]

    def __init__(self, call: Call | None) -> None:
        """Take the call, or None for no call at all."""
        self._call = call

    def __enter__(self) -> None:
        """Begin."""
        self._token = _current.set(self._call)

    def __exit__(self, *_: object) -> None:
        """Make it again what it was before."""
        _current.reset(self._token)


def detached() -> AbstractContextManager[None]:
    """Return a context manager in which work belongs to no call.

    Tasks started inside it inherit neither deadline nor request id, so they may outlive the call they came from.
    """
    return serving(None)
