"""What can go wrong: the canonical codes, and the one exception that crosses layers."""

from __future__ import annotations

import asyncio
import enum
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Sequence

    from google.protobuf.message import Message

M = TypeVar("M", bound="Message")


class Code(enum.IntEnum):
    """The canonical gRPC status codes (google.rpc.Code): OK and the sixteen ways to fail."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class By(enum.Enum):
    """Who ended an RPC."""

    PEER = "peer"  # its status came over the wire
    LOCAL = "local"  # this side's own decision or transport: refused, timed out, never connected
    CALLER = "caller"  # whoever made the call cancelled it


class Error(Exception):
    """Raised when an RPC fails on purpose: a code, a message for the other side, and what it may act on.

    ``message`` crosses the wire, so it never holds what the other side must not see. ``reason`` is a stable
    UPPER_SNAKE_CASE word for programs (google.rpc.ErrorInfo); ``details`` are protobuf messages of any type
    (google.rpc.Status.details); ``retry_after`` is in seconds and tells a client when to come back
    (google.rpc.RetryInfo and ``grpc-retry-pushback-ms``); a negative one says "do not".

    On an error that came out of a call, ``begun`` is False when the peer cannot have started the work, ``by`` says
    who ended it, and ``headers`` and ``trailers`` hold the metadata that came with it. ``refused`` marks one that a link
    on this side raised in the place of a call: nobody else was asked.
    """

    def __init__(  # noqa: PLR0913 - one place where a failure is described; all but two are keywords
        self,
        code: Code,
        message: str = "",
        *,
        reason: str = "",
        details: Sequence[Message] = (),
        retry_after: float | None = None,
        begun: bool = True,
        by: By = By.LOCAL,
        refused: bool = False,
        headers: tuple[tuple[str, str | bytes], ...] = (),
        trailers: tuple[tuple[str, str | bytes], ...] = (),
    ) -> None:
        """Raise ValueError for ``Code.OK``: success is not an error, and a peer would wait for what never comes."""
        code = Code(code)
        if code is Code.OK:
            msg = f"an Error needs a code other than OK (message: {message!r})"
            raise ValueError(msg)
        super().__init__(code, message)
        self.code = code
        self.message = message
        self.reason = reason
        self.details = tuple(details)
        self.retry_after = retry_after
        self.begun = begun
        self.by = by
        self.refused = refused
        self.headers = headers
        self.trailers = trailers

    def detail(self, kind: type[M]) -> M | None:
        """Return the first detail of type ``kind``, or None when there is none."""
        return next((detail for detail in self.details if isinstance(detail, kind)), None)

    def __str__(self) -> str:
        """Return "CODE: message"."""
        return f"{self.code.name}: {self.message}" if self.message else self.code.name

    def __repr__(self) -> str:
        """Return the code, the message and the reason, never the details (they may hold anything)."""
        reason = f", reason={self.reason!r}" if self.reason else ""
        return f"Error({self.code.name}, {self.message!r}{reason})"


def code_of(error: BaseException | None) -> Code:
    """Return the code that an outcome amounts to: None is OK, a cancellation CANCELLED, a stranger INTERNAL.

    Whether a cancellation was a deadline that passed only the call knows: prefer ``call.outcome(error)`` where
    there is one.
    """
    if error is None:
        return Code.OK
    if isinstance(error, Error):
        return error.code
    if isinstance(error, asyncio.CancelledError):
        return Code.CANCELLED
    return Code.INTERNAL
