"""When asking again is safe, and when it may help: what retrying and hedging have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeAlias

from servicekit.call import Call
from servicekit.endpoint import Endpoint, Message, Only
from servicekit.errors import By, Code, Error
from servicekit.method import Idempotency, Method

from .checked import texts

PREVIOUS = "grpc-previous-rpc-attempts"
"""The request metadata that says how many attempts came before this one (gRFC A6)."""

Marked: TypeAlias = Callable[[Method], bool] | Iterable[str] | None
"""Methods that are safe to repeat beyond those whose proto says so: a predicate, or paths as ``only`` takes them."""


def idempotent(marked: Marked) -> Callable[[Method], bool]:
    """Return whether a method may be asked twice: its proto's ``idempotency_level`` says so, or ``marked`` does.

    Raises ValueError for a path of another form than ``"/pkg.Service/Name"`` or ``"/pkg.Service/*"``, TypeError for what
    is neither paths nor a predicate.
    """
    if marked is None:
        return _declared
    if isinstance(marked, str):
        msg = f"idempotent={marked!r} is one text: give a list of paths, or a predicate on the Method"
        raise TypeError(msg)
    if callable(marked):
        predicate = marked
        return lambda method: _declared(method) or predicate(method)
    paths = [_only(path) for path in texts("idempotent", marked)]
    return lambda method: _declared(method) or any(path.applied(method) is not None for path in paths)


def _only(path: str) -> Only:
    try:
        return Only(path, _pass)
    except ValueError:
        msg = f"idempotent: {path!r} is neither '/pkg.Service/Name' nor '/pkg.Service/*'"
        raise ValueError(msg) from None


def _declared(method: Method) -> bool:
    return method.idempotency is not Idempotency.UNKNOWN


async def _pass(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
    return await next(request, call)


def may_pass(error: Error) -> bool:
    """Return whether ``error`` is one of those that another attempt may not meet.

    UNAVAILABLE; CANCELLED when the server sent it, as one does that is going; RESOURCE_EXHAUSTED when it says when to
    come back. All others are answers, or would only come again.
    """
    if error.code is Code.CANCELLED:
        return error.by is By.PEER
    if error.code is Code.RESOURCE_EXHAUSTED:
        return error.retry_after is not None and error.retry_after >= 0
    return error.code is Code.UNAVAILABLE


def is_repeated(call: Call) -> bool:
    """Return whether ``call`` is made for a served call that is itself a further attempt: one layer retries, not all."""
    if call.parent is None:
        return False
    previous = call.parent.metadata.text(PREVIOUS)
    return previous is not None and previous.isascii() and previous.isdigit() and int(previous) > 0
