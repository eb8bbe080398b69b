"""A client of the reference service, for people to look at: it calls all four methods and says what came of it.

It calls the server at ADDRESS (127.0.0.1:50051 unless set), with its log on standard error, and exits with 1 when
anything fails.
"""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from typing import Final

from encryption.v1.encryption_pb2 import (
    DecryptRequest,
    DecryptStreamRequest,
    DecryptStreamStart,
    EncryptRequest,
    EncryptStreamRequest,
    EncryptStreamStart,
)
from encryption.v1.encryption_pb2_grpc import EncryptionServiceStub
from servicekit import CallError, Code, Error, Telemetry, connect

PASSPHRASE: Final = "correct horse battery staple"  # noqa: S105 - everybody knows this one
CONTEXT: Final = b"letters/1"
TEXT: Final = "Meet me at noon, under the clock"
CHUNKS: Final = tuple(bytes([number]) * 40_000 for number in range(3))
PATIENCE: Final = 5.0
"""Seconds for each call, connecting included: who does not answer in time is not there."""


async def main() -> None:
    """Call the service. Raises SystemExit with one line when it fails."""
    address = os.environ.get("ADDRESS", "127.0.0.1:50051")
    async with connect(address, telemetry=Telemetry(stream=sys.stderr)) as channel:
        stub = EncryptionServiceStub(channel)
        _say(f"Calling encryption.v1.EncryptionService at {address}")
        try:
            await there_and_back(stub)
            await stream_there_and_back(stub)
        except CallError as error:
            raise SystemExit(f"demo: {_reason(address, error.error)}") from None
        _say("\nAll of it came back.")


async def there_and_back(stub: EncryptionServiceStub) -> None:
    """Encrypt a text and decrypt it again."""
    _say(f"\nA text:    {TEXT}")
    sealed = await stub.Encrypt(EncryptRequest(key=PASSPHRASE, text=TEXT, context=CONTEXT), timeout=PATIENCE)
    _say(f"encrypted: {_short(sealed.envelope)}")
    request = DecryptRequest(key=PASSPHRASE, envelope=sealed.envelope, context=CONTEXT)
    opened = await stub.Decrypt(request, timeout=PATIENCE)
    _say(f"decrypted: {opened.text}, {_same(TEXT, opened.text)}")


async def stream_there_and_back(stub: EncryptionServiceStub) -> None:
    """Encrypt a stream and decrypt it again, chunk by chunk."""

    async def plain() -> AsyncIterator[EncryptStreamRequest]:
        yield EncryptStreamRequest(start=EncryptStreamStart(key=PASSPHRASE, context=CONTEXT))
        for chunk in CHUNKS:
            yield EncryptStreamRequest(chunk=chunk)

    _say(f"\nA stream:  {_sizes(CHUNKS)}")
    sealed = [response.chunk async for response in stub.EncryptStream(plain(), timeout=PATIENCE)]
    _say(f"encrypted: {_sizes(sealed)}")

    async def secret() -> AsyncIterator[DecryptStreamRequest]:
        yield DecryptStreamRequest(start=DecryptStreamStart(key=PASSPHRASE, context=CONTEXT))
        for chunk in sealed:
            yield DecryptStreamRequest(chunk=chunk)

    opened = [response.chunk async for response in stub.DecryptStream(secret(), timeout=PATIENCE)]
    _say(f"decrypted: {_sizes(opened)}, {_same(b''.join(CHUNKS), b''.join(opened))}")


def _same(given: object, got: object) -> str:
    if given != got:
        raise SystemExit("demo: what came back is not what was encrypted")
    return "the same as before"


def _reason(address: str, error: Error) -> str:
    if error.code in {Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED}:
        return f"nobody answers at {address} ({error.code.name}): `make run` starts a server there"
    return f"{address} answers {error}"


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:40]}... ({len(text)} characters)"  # noqa: PLR2004 - what a line holds


def _sizes(chunks: list[bytes] | tuple[bytes, ...]) -> str:
    return f"{sum(map(len, chunks)):,} bytes in {len(chunks)} chunks"


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201 - it talks to people; at once, so that it stands in order with the log


if __name__ == "__main__":
    asyncio.run(main())
