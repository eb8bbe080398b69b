"""Nothing unmapped passes above this link, so observers outside it see what the client gets."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import ClassVar

from servicekit.call import Call
from servicekit.endpoint import FORGOTTEN, Endpoint, Message, check_answer
from servicekit.errors import Error
from servicekit.mapping import ErrorMapping, Rule, to_error


class Recovery:
    """Turns every exception from inside into an Error.

    Default: no rules. An Error passes as it is; an exception whose class, or the nearest of its base classes, is in
    ``errors`` becomes that code with its own text, or the Error that the rule returns; all others, also out of a rule
    that fails, become INTERNAL, "internal error", with a fresh id in the trailing metadata ``x-error-id``. The text
    stays in ``__cause__``, for the log. A group of exceptions is what all in it agree on, else INTERNAL. A
    cancellation and what ends the process pass untouched.

    For the server: on a client it would also hide what the caller's own request iterator raised.
    """

    keeps_messages: ClassVar[bool] = True
    recovers: ClassVar[bool] = True

    __slots__ = ("errors",)

    def __init__(self, errors: Mapping[type[Exception], Rule] | ErrorMapping | None = None) -> None:
        """Raise TypeError or ValueError for a rule that maps no exception class, or maps it to no error."""
        self.errors = ErrorMapping(errors)

    async def __call__(self, request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        """Run the call; raise an Error for whatever it raises."""
        try:
            response = await next(request, call)
            if isinstance(response, FORGOTTEN):
                check_answer(response, call)
        except (Error, asyncio.CancelledError, KeyboardInterrupt, SystemExit, GeneratorExit):
            raise
        except BaseException as exception:
            if isinstance(exception, BaseExceptionGroup) and exception.subgroup((KeyboardInterrupt, SystemExit)):
                raise
            error = to_error(exception, self.errors)
            # Its cause is set already. An Error out of a group keeps its own: the group as its cause would be a circle.
            raise error from error.__cause__
        return response

    def __repr__(self) -> str:
        """Return the rules."""
        return f"Recovery({self.errors!r})"
