"""What the tests of the service start from: secrets, streams, and ways to take them apart."""

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterable, Iterable
from contextlib import asynccontextmanager

from encryption.envelope import STREAM
from encryption.keys import KeyId, Keyring, Passphrase
from encryption.service import EncryptionService

KEYRING = Keyring(keys={"new": bytes(range(32)), "old": bytes(range(32, 64))})
OLDER_KEYRING = Keyring(keys={"old": bytes(range(32, 64))})
KEY_ID = KeyId("new")
PASSPHRASE = Passphrase("correct horse battery staple")


async def given(*chunks: bytes) -> AsyncGenerator[bytes, None]:
    for chunk in chunks:
        yield chunk


def recut(data: bytes, size: int) -> AsyncGenerator[bytes, None]:
    return given(*(data[start : start + size] for start in range(0, len(data), size)))


async def joined(chunks: AsyncIterable[bytes]) -> bytes:
    return b"".join([chunk async for chunk in chunks])


async def until_refused(chunks: AsyncIterable[bytes]) -> tuple[bytes, Exception | None]:
    """What a stream gave before it ended, and the error that it ended with."""
    got = bytearray()
    try:
        async for chunk in chunks:
            got += chunk
    except Exception as error:  # noqa: BLE001 - which one it is, is what the test asks
        return bytes(got), error
    return bytes(got), None


def taken_apart(stream: bytes) -> tuple[bytes, list[bytes]]:
    """A sealed stream's header and its segments."""
    header, rest = stream[: STREAM.layout.size], stream[STREAM.layout.size :]
    segments = []
    while rest:
        end = 2 + int.from_bytes(rest[:2])
        segments.append(rest[:end])
        rest = rest[end:]
    return header, segments


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def every_bit_flipped(data: bytes) -> Iterable[bytes]:
    return (flipped(data, bit) for bit in range(len(data) * 8))


@asynccontextmanager
async def without_a_free_thread(service: EncryptionService) -> AsyncGenerator[None, None]:
    """Hold every place of a service that was made with one thread and no queue: whoever derives a key gets Busy."""
    finish = threading.Event()
    holder = asyncio.create_task(service._pool.run(finish.wait))
    await asyncio.sleep(0)
    try:
        yield
    finally:
        finish.set()
        await holder
