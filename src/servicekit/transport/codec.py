"""Messages to bytes and back: the two functions that generated code brings, and what their failures mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from servicekit.errors import Code, Error

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, slots=True)
class Codec:
    """What one method sends and receives, seen from one side. None means that the message already is its bytes."""

    encoder: Callable[[Any], bytes] | None
    decoder: Callable[[bytes], Any] | None

    def encode(self, message: object) -> bytes:
        """Return the message as bytes. Raises whatever the encoder raises: it is this side's mistake."""
        if self.encoder is None:
            return message  # type: ignore[return-value]  # bytes by the method's own word
        return self.encoder(message)

    def decode(self, data: bytes) -> Any:
        """Return the message. Raises whatever the decoder raises: its text may quote the input."""
        return data if self.decoder is None else self.decoder(data)

    def blank(self) -> Any:
        """Return an empty message of the kind that is decoded, or None when the decoder does not tell its class."""
        kind = getattr(self.decoder, "__self__", None)
        return kind() if isinstance(kind, type) else None


def unencodable(request: object, *, begun: bool = True) -> Error:
    """Return the error, seen by the client, of a request that its method cannot send; why is in its cause."""
    error = Error(Code.INVALID_ARGUMENT, f"the request cannot be encoded: {type(request).__name__}", begun=begun)
    error.tells_cause = True
    return error


def malformed_request() -> Error:
    """Return the error of a request that cannot be decoded. The codec's own text, its cause, is for the log."""
    error = Error(Code.INVALID_ARGUMENT, "malformed request message")
    error.tells_cause = True
    return error


def malformed_response() -> Error:
    """Return the error, seen by the client, of a response that cannot be decoded; its cause too is for the log."""
    error = Error(Code.INTERNAL, "malformed response message")
    error.tells_cause = True
    return error


def size_of(message: object) -> int:
    """Return how many bytes a message takes, or 0 for one that does not tell."""
    if isinstance(message, bytes):
        return len(message)
    measure = getattr(message, "ByteSize", None)
    return measure() if measure is not None else 0
