"""From any exception to the Error that leaves: what was not raised on purpose never shows its text.

The recovery middleware and the transport's outermost edge both decide with this, so that an exception means the same
wherever it is caught.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Mapping
from typing import TypeAlias

from .errors import Code, Error
from .metadata import Pairs

ERROR_ID = "x-error-id"
"""The trailing metadata that names an unexpected failure, to the client and in the log."""

# What such a function takes is the key's own class, which no Callable[[...], Error] in a Mapping can say.
Rule: TypeAlias = Code | Callable[..., Error]
"""What an exception becomes: a code, with the exception's text as message, or a function that returns the Error."""


class ErrorMapping:
    """Which exceptions of the business mean which code. An exception's most specific mapped class decides.

    A Code takes ``str(exception)`` as the message, so map to one only what was written for the other side to read.
    Raises TypeError or ValueError for what is no mapping from exception classes to codes or functions, naming it.
    """

    __slots__ = ("rules",)
    rules: Mapping[type[Exception], Rule]

    def __init__(self, rules: Mapping[type[Exception], Rule] | ErrorMapping | None = None) -> None:
        """Take the rules, or those of another mapping, as they are now."""
        if isinstance(rules, ErrorMapping):
            rules = rules.rules
        elif rules is not None and not isinstance(rules, Mapping):
            msg = f"errors={rules!r} is no mapping from exception classes to codes"
            raise TypeError(msg)
        self.rules = dict(rules or {})
        for kind, rule in self.rules.items():
            _check(kind, rule)

    def find(self, exception: BaseException) -> Error | None:
        """Return what ``exception`` means by itself or by a rule, with the exception as its cause; None for a stranger.

        An Error means itself. A group, as a TaskGroup raises, means what its first exception does, provided that all
        the others mean an Error of the same code; else it is a stranger, and so is an exception whose rule fails.
        """
        if isinstance(exception, Error):
            return exception
        for kind in type(exception).__mro__:
            rule = self.rules.get(kind)
            if rule is not None:
                return _applied(rule, exception)
        if isinstance(exception, BaseExceptionGroup):
            return self._agreed(exception)
        return None

    def _agreed(self, group: BaseExceptionGroup) -> Error | None:
        errors = [self.find(exception) for exception in group.exceptions]
        first = errors[0]
        if first is None or any(error is None or error.code is not first.code for error in errors):
            return None
        return first

    def __repr__(self) -> str:
        """Return the rules."""
        rules = (
            f"{kind.__qualname__}: {rule.name if isinstance(rule, Code) else getattr(rule, '__qualname__', rule)}"
            for kind, rule in self.rules.items()
        )
        return f"ErrorMapping({', '.join(rules)})"


def to_error(exception: BaseException, mapping: ErrorMapping) -> Error:
    """Return the Error that leaves for ``exception``. Never raises, and never shows a text that was not meant to leave.

    In this order: an Error is itself; what ``mapping`` knows is what it says; a CancelledError is CANCELLED (whether
    it was a deadline only ``call.outcome`` knows); anything else is ``unexpected``.
    """
    error = mapping.find(exception)
    if error is not None:
        return error
    if isinstance(exception, asyncio.CancelledError):
        return Error(Code.CANCELLED, "cancelled")
    return unexpected(exception)


def unexpected(exception: BaseException) -> Error:
    """Return INTERNAL, "internal error", with a fresh id in its trailers; ``exception`` is its cause, for the log."""
    error = Error(Code.INTERNAL, "internal error", trailers=((ERROR_ID, secrets.token_hex(8)),))
    error.__cause__ = exception
    return error


def error_id(trailers: Pairs) -> str | None:
    """Return the id that ``unexpected`` gave, or None."""
    # By parts: what a servicer gives for trailers may be no pairs.
    pairs = (pair for pair in trailers if isinstance(pair, tuple) and len(pair) == 2)  # noqa: PLR2004 - key and value
    return next((value for key, value in pairs if key == ERROR_ID and isinstance(value, str)), None)


def _applied(rule: Rule, exception: BaseException) -> Error | None:
    # Both are the user's code, run on the way out of a failed call: what they raise must not take its place.
    try:
        error = Error(rule, str(exception)) if isinstance(rule, Code) else rule(exception)
    except Exception:  # noqa: BLE001 - any failure here makes the exception a stranger
        return None
    if not isinstance(error, Error):
        return None
    if error.__cause__ is None:
        error.__cause__ = exception
    return error


def _check(kind: type[Exception], rule: Rule) -> None:
    if not isinstance(kind, type) or not issubclass(kind, Exception):
        msg = f"errors: {kind!r} is no class of Exception"
        raise TypeError(msg)
    if issubclass(kind, Error):
        msg = f"errors: {kind.__qualname__} is an Error and passes as it is"
        raise TypeError(msg)
    if isinstance(rule, Code):
        if rule is Code.OK:
            msg = f"errors: {kind.__qualname__} cannot mean OK"
            raise ValueError(msg)
        if kind is Exception:
            msg = (
                f"errors: Exception: {rule.name} would tell the other side the text of every bug; map your own classes"
            )
            raise ValueError(msg)
    elif not callable(rule):
        msg = f"errors: {kind.__qualname__} is mapped to {rule!r}, which is neither a Code nor a function to an Error"
        raise TypeError(msg)
