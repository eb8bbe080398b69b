"""What an outcome says of the instance that it came from: one function, asked by whoever judges instances."""

from __future__ import annotations

import asyncio
import enum

from .errors import By, Code, Error


class Verdict(enum.Enum):
    """What an outcome is evidence of."""

    SUCCESS = "success"  # the instance works; also when it refused the request for what it asked
    FAILURE = "failure"  # the instance, or the way to it, is broken
    IGNORED = "ignored"  # no evidence either way: it refused on purpose, or it was never asked


_FAILURES = frozenset(
    {
        Code.UNAVAILABLE,
        Code.RESOURCE_EXHAUSTED,
        Code.DEADLINE_EXCEEDED,
        Code.INTERNAL,
        Code.UNKNOWN,
        Code.DATA_LOSS,
        Code.CANCELLED,
    }
)
_ON_PURPOSE = frozenset({Code.UNAVAILABLE, Code.RESOURCE_EXHAUSTED})


def verdict(error: BaseException | None) -> Verdict:
    """Return what ``error`` (None: the call succeeded) says of the instance that was called.

    An answer of UNAVAILABLE or RESOURCE_EXHAUSTED that says when to come back is shedding or draining on purpose, so it
    is ignored, and so is what this side refused by itself, a call that the caller cancelled, and one whose time was over
    before anything was sent. Never a failure: INVALID_ARGUMENT, NOT_FOUND, ALREADY_EXISTS, FAILED_PRECONDITION,
    OUT_OF_RANGE, ABORTED, PERMISSION_DENIED, UNAUTHENTICATED, UNIMPLEMENTED: somebody was there to say so.
    """
    if error is None:
        return Verdict.SUCCESS
    if isinstance(error, asyncio.CancelledError):
        return Verdict.IGNORED
    if not isinstance(error, Error):
        return Verdict.IGNORED  # raised on this side: by a middleware, or by the caller's own iterator
    if error.by is By.CALLER or error.refused:
        return Verdict.IGNORED
    if error.code in _ON_PURPOSE and error.retry_after is not None:
        return Verdict.IGNORED
    if error.code is Code.DEADLINE_EXCEEDED and error.by is By.LOCAL and not error.begun:
        return Verdict.IGNORED  # unlike UNAVAILABLE, which says that it was not to be reached
    return Verdict.FAILURE if error.code in _FAILURES else Verdict.SUCCESS
