"""What a failed call raises in its caller: grpc.aio's exception, with what went wrong as data."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import grpc

from .status import GRPC_CODES

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from servicekit.errors import CallReport, Error

M = TypeVar("M", bound="Message")


class CallError(grpc.aio.AioRpcError):
    """Raised when a call fails, whether or not it reached the wire. ``except grpc.aio.AioRpcError`` catches it.

    ``error`` is the failure as every layer below saw it; ``reason``, ``retry_after`` (seconds, or None) and
    ``detail(BadRequest)`` read from it what the server said beyond code and message, and ``report`` what became of
    every attempt. It can be copied and pickled.
    """

    def __init__(self, error: Error, *, inherited: bool = False) -> None:
        """Tell of ``error``; ``inherited`` says that the deadline came from a call being served."""
        super().__init__(
            GRPC_CODES[error.code],
            grpc.aio.Metadata(*error.headers),
            grpc.aio.Metadata(*error.trailers),
            error.message,
            f"{error.code.name} by {error.by.value}: {error.message}",
        )
        self.error = error
        self.inherited = inherited
        self.__cause__ = error.__cause__

    @property
    def reason(self) -> str:
        """The server's word for what is wrong, for programs to act on, or ""."""
        return self.error.reason

    @property
    def retry_after(self) -> float | None:
        """When the server wants to be asked again, in seconds, or None."""
        return self.error.retry_after

    @property
    def report(self) -> CallReport | None:
        """What became of the call: every attempt and why it failed, what links decided, and where the time went."""
        return self.error.report

    def detail(self, kind: type[M]) -> M | None:
        """Return the first error detail of type ``kind``, or None."""
        return self.error.detail(kind)

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle by the error: grpc's own form would lose it."""
        return (type(self), (self.error,), {"inherited": self.inherited})
