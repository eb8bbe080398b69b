"""The transport: messages in, business, messages out. What a request must be is decided in `service`, not here."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing
from typing import Final, TypeAlias

from encryption.errors import Busy, DecryptionFailed, InvalidInput, UnknownKey
from encryption.keys import KeyId, Passphrase, Secret
from encryption.service import EncryptionService
from encryption.v1.encryption_pb2 import (
    DecryptRequest,
    DecryptResponse,
    DecryptStreamRequest,
    DecryptStreamResponse,
    DecryptStreamStart,
    EncryptRequest,
    EncryptResponse,
    EncryptStreamRequest,
    EncryptStreamResponse,
    EncryptStreamStart,
)
from encryption.v1.encryption_pb2_grpc import EncryptionServiceServicer
from servicekit import Code, Error

RETRY_AFTER: Final = 0.5
"""Seconds after which a queue that was full has been worked off: some 20 ms for each passphrase, two at a time."""

StreamRequest: TypeAlias = EncryptStreamRequest | DecryptStreamRequest


def busy(error: Busy) -> Error:
    """Return what Busy means to a client: nothing was begun, come back in a moment."""
    return Error(Code.RESOURCE_EXHAUSTED, str(error), reason="BUSY", retry_after=RETRY_AFTER)


ERRORS: Final[Mapping[type[Exception], Code | Callable[..., Error]]] = {
    InvalidInput: Code.INVALID_ARGUMENT,
    DecryptionFailed: Code.INVALID_ARGUMENT,
    UnknownKey: Code.NOT_FOUND,
    Busy: busy,
}
"""What the exceptions of the business mean to a client. Their texts were written to be sent."""


class EncryptionServicer(EncryptionServiceServicer):
    """Serves the four methods of `encryption.v1.EncryptionService` with `service`, for any number of calls at once."""

    def __init__(self, service: EncryptionService) -> None:
        self._service = service

    async def Encrypt(self, request: EncryptRequest, _context: object) -> EncryptResponse:
        """Seal a text."""
        return EncryptResponse(envelope=await self._service.encrypt(_secret(request), request.text, request.context))

    async def Decrypt(self, request: DecryptRequest, _context: object) -> DecryptResponse:
        """Open an envelope."""
        return DecryptResponse(text=await self._service.decrypt(_secret(request), request.envelope, request.context))

    async def EncryptStream(
        self, requests: AsyncIterator[EncryptStreamRequest], _context: object
    ) -> AsyncGenerator[EncryptStreamResponse, None]:
        """Seal a stream while it comes in."""
        secret, context = await _start(requests)
        # Both are closed here, however the call ends: a generator that nobody closes is left to the garbage collector.
        async with (
            aclosing(_chunks(requests)) as chunks,
            aclosing(self._service.encrypt_stream(secret, chunks, context)) as sealed,
        ):
            async for chunk in sealed:
                yield EncryptStreamResponse(chunk=chunk)

    async def DecryptStream(
        self, requests: AsyncIterator[DecryptStreamRequest], _context: object
    ) -> AsyncGenerator[DecryptStreamResponse, None]:
        """Open a sealed stream while it comes in."""
        secret, context = await _start(requests)
        async with (
            aclosing(_chunks(requests)) as chunks,
            aclosing(self._service.decrypt_stream(secret, chunks, context)) as opened,
        ):
            async for chunk in opened:
                yield DecryptStreamResponse(chunk=chunk)


def _secret(message: EncryptRequest | DecryptRequest | EncryptStreamStart | DecryptStreamStart) -> Secret:
    match message.WhichOneof("secret"):
        case "key":
            return Passphrase(message.key)
        case "key_id":
            return KeyId(message.key_id)
        case _:
            raise InvalidInput("secret is missing: key or key_id is required")


async def _start(requests: AsyncIterator[StreamRequest]) -> tuple[Secret, bytes]:
    """Take the first message of a stream; return secret and context."""
    first = await anext(requests, None)
    if first is None or first.WhichOneof("part") != "start":
        raise InvalidInput("start is missing: it is the first message of a stream")
    return _secret(first.start), first.start.context


async def _chunks(requests: AsyncIterator[StreamRequest]) -> AsyncGenerator[bytes, None]:
    """Yield the chunks of a stream whose first message was taken."""
    async for request in requests:
        match request.WhichOneof("part"):
            case "chunk":
                yield request.chunk
            case "start":
                raise InvalidInput("start came again: it is the first message of a stream, and no other")
            case _:
                raise InvalidInput("part is missing: after its start, each message of a stream has a chunk")
