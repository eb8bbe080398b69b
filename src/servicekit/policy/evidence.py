"""What one call is evidence of, told as soon as it is known."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeAlias

from servicekit.call import Call, Side, deadline_error
from servicekit.endpoint import Endpoint, Message
from servicekit.errors import Code, Error

Tell: TypeAlias = Callable[[BaseException | None], None]


async def observed(request: Message, call: Call, next: Endpoint, tell: Tell) -> Message:  # noqa: A002 - the term
    """Run ``next`` and ``tell`` how it went: None for success, else the error, a passed deadline as DEADLINE_EXCEEDED.

    A deadline that has passed before any attempt was made, in a link further in, was not begun. A stream of responses may
    last for days, so its first message is told as a success; should it fail afterwards, that is told too. Everything else
    is told once, and always, also when the call is cancelled.
    """
    first: _First | None = None
    if call.method.kind.response_streaming:
        first = _First(tell)
        (call.on_received if call.side is Side.CLIENT else call.on_sent)(first)
    try:
        response = await next(request, call)
    except BaseException as error:
        late = isinstance(error, asyncio.CancelledError) and call.outcome(error) is Code.DEADLINE_EXCEEDED
        tell(_late(call) if late else error)
        raise
    if first is None or not first.told:
        tell(None)
    return response


def _late(call: Call) -> Error:
    error = deadline_error()
    error.begun = call.used
    return error


class _First:
    __slots__ = ("_tell", "told")

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self.told = False

    def __call__(self, _message: object, _size: int) -> None:
        if not self.told:
            self.told = True
            self._tell(None)
