"""The business: texts and streams, encrypted with a passphrase or a key of the keyring, over no transport in particular."""

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterable, Callable
from contextlib import suppress
from types import TracebackType
from typing import Final, Self, TypeVar

from encryption import cipher
from encryption.envelope import (
    ARGON2ID,
    MESSAGE,
    SALT_SIZE,
    STREAM,
    TAG_SIZE,
    UNSTRETCHED,
    Header,
    Kdf,
    Suite,
    armor,
    armored_size,
    bound,
    dearmor,
)
from encryption.errors import DecryptionFailed, InvalidInput
from encryption.keys import KeyId, Keyring, MessageKeys, Passphrase, Secret, argon2id, message_keys, normalise
from encryption.pool import KdfPool
from encryption.stream import CHUNK_MAX, SEGMENT_MAX, Opener, Sealer

TEXT_MAX: Final = 1024 * 1024
CONTEXT_MAX: Final = 64 * 1024
ENVELOPE_MAX: Final = armored_size(MESSAGE.layout.size + TEXT_MAX + TAG_SIZE)

# Up to here the work is shorter than the way to a thread and back.
_ON_LOOP_MAX: Final = 64 * 1024

T = TypeVar("T")


class EncryptionService:
    """Encrypts and decrypts; one instance serves any number of callers at once. Close it, or use it as `async with`.

    Encryption raises InvalidInput, UnknownKey or Busy; decryption raises DecryptionFailed or Busy, whatever was wrong.
    A `context` of up to 64 KiB is bound to the result: decryption needs the same bytes. `random` returns as many
    unpredictable bytes as it is asked for.
    """

    def __init__(
        self,
        keyring: Keyring | None = None,
        *,
        kdf_threads: int = 2,
        kdf_queue: int = 32,
        random: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self._keyring = Keyring(keys={}) if keyring is None else keyring
        self._pool = KdfPool(threads=kdf_threads, queue=kdf_queue)
        self._random = random

    async def encrypt(self, secret: Secret, text: str, context: bytes = b"") -> str:
        """Return an envelope of `text`, at most 1 MiB of UTF-8, which may be empty; never the same envelope twice."""
        plaintext = _utf8(text)
        _check_context(context)
        header, keys = await self._fresh(secret, MESSAGE)

        def seal() -> str:
            return armor(header.pack() + cipher.seal(keys.key, header.nonce, plaintext, bound(header, context)))

        return await _compute(len(plaintext), seal)

    async def decrypt(self, secret: Secret, envelope: str, context: bytes = b"") -> str:
        """Return the text that `encrypt` was given, if secret, envelope and context are the right ones."""
        if len(envelope) > ENVELOPE_MAX or len(context) > CONTEXT_MAX:
            raise DecryptionFailed
        data = await _compute(len(envelope), lambda: dearmor(envelope))
        header = Header.parse(data, MESSAGE)
        keys = await self._known(secret, header)

        def unseal() -> str:
            sealed = data[MESSAGE.layout.size :]
            plaintext = cipher.unseal(keys.key, header.nonce, sealed, bound(header, context))
            with suppress(UnicodeDecodeError):
                return plaintext.decode()
            raise DecryptionFailed

        return await _compute(len(data), unseal)

    async def encrypt_stream(
        self, secret: Secret, chunks: AsyncIterable[bytes], context: bytes = b""
    ) -> AsyncGenerator[bytes, None]:
        """Yield the sealed stream of `chunks`, in pieces that are chunks too: 1 byte to 64 KiB.

        The header leaves before the first chunk is asked for, and each chunk before the next. A chunk may be empty.
        """
        _check_context(context)
        header, keys = await self._fresh(secret, STREAM)
        sealer = Sealer(keys.key, header, context)
        yield header.pack()
        async for chunk in chunks:
            if len(chunk) > CHUNK_MAX:
                raise InvalidInput(f"chunk is longer than {CHUNK_MAX} bytes")
            for start in range(0, len(chunk), SEGMENT_MAX):
                yield sealer.segment(chunk[start : start + SEGMENT_MAX])
        yield sealer.last()

    async def decrypt_stream(
        self, secret: Secret, chunks: AsyncIterable[bytes], context: bytes = b""
    ) -> AsyncGenerator[bytes, None]:
        """Yield the plaintext of a sealed stream, cut into chunks of up to 64 KiB wherever its bearer liked.

        Whatever is yielded is authentic and in its place, but may be cut short: only the generator's end says that it
        was everything. What is held does not grow with the stream: a few chunks at most.
        """
        if len(context) > CONTEXT_MAX:
            raise DecryptionFailed
        head, opener = b"", None
        async for chunk in chunks:
            if len(chunk) > CHUNK_MAX:
                raise DecryptionFailed
            if opener is None:
                head += chunk
                if len(head) < STREAM.layout.size:
                    continue
                header = Header.parse(head, STREAM)
                opener = Opener((await self._known(secret, header)).key, header, context)
                opener.feed(head[STREAM.layout.size :])
                head = b""
            else:
                opener.feed(chunk)
            while (plaintext := opener.take()) is not None:
                yield plaintext
        if opener is None:
            raise DecryptionFailed
        opener.end()

    async def close(self) -> None:
        """Return when the threads have ended, after the work they had accepted. For when nobody calls any more."""
        await self._pool.close()

    async def _fresh(self, secret: Secret, suite: Suite) -> tuple[Header, MessageKeys]:
        """Make header and keys of a new message: salt and nonce are new, so the keys are."""
        kdf = ARGON2ID if isinstance(secret, Passphrase) else UNSTRETCHED
        salt, nonce = self._random(SALT_SIZE), self._random(suite.nonce_size)
        keys = await self._derive(secret, self._keyring.encrypting, suite, kdf, salt)
        return Header(suite=suite, kdf=kdf, salt=salt, nonce=nonce, commitment=keys.commitment), keys

    async def _known(self, secret: Secret, header: Header) -> MessageKeys:
        """Find the keys of a message that we are to open, and check that they are the ones it was committed to."""
        if isinstance(secret, Passphrase) != (header.kdf.code == ARGON2ID.code):
            raise DecryptionFailed
        with suppress(InvalidInput):  # no such passphrase can have encrypted anything
            keys = await self._derive(secret, self._keyring.decrypting, header.suite, header.kdf, header.salt)
            keys.check(header.commitment)
            return keys
        raise DecryptionFailed

    async def _derive(
        self, secret: Secret, master: Callable[[KeyId], bytes], suite: Suite, kdf: Kdf, salt: bytes
    ) -> MessageKeys:
        match secret:
            case Passphrase():
                passphrase = normalise(secret)
                # A closure, not a partial: the repr of a partial shows its arguments.
                root = await self._pool.run(lambda: argon2id(passphrase, salt, kdf))
                return message_keys(root, salt=salt, suite=suite, kdf=kdf)
            case KeyId():
                return message_keys(master(secret), salt=salt, suite=suite, kdf=kdf, key_id=secret.value)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"EncryptionService({self._keyring!r}, {self._pool!r})"


def _utf8(text: str) -> bytes:
    if len(text) <= TEXT_MAX:
        plaintext = None
        with suppress(UnicodeEncodeError):  # would hold the text, were it to stay as the context of what we raise
            plaintext = text.encode()
        if plaintext is None:
            raise InvalidInput("text is not valid Unicode: it has a lone surrogate")
        if len(plaintext) <= TEXT_MAX:
            return plaintext
    raise InvalidInput(f"text is longer than {TEXT_MAX} bytes of UTF-8")


def _check_context(context: bytes) -> None:
    if len(context) > CONTEXT_MAX:
        raise InvalidInput(f"context is longer than {CONTEXT_MAX} bytes")


async def _compute(size: int, work: Callable[[], T]) -> T:
    return work() if size <= _ON_LOOP_MAX else await asyncio.to_thread(work)
