"""AES-256-GCM, the one place where anything is sealed or unsealed."""

from contextlib import suppress

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from encryption.errors import DecryptionFailed


def seal(key: bytes, nonce: bytes, plaintext: bytes, bound: bytes) -> bytes:
    """Return ciphertext and tag. A nonce may be used once per key: every message has a key of its own."""
    return AESGCM(key).encrypt(nonce, plaintext, bound)


def unseal(key: bytes, nonce: bytes, sealed: bytes, bound: bytes) -> bytes:
    """Return the plaintext, all of it authentic; DecryptionFailed otherwise."""
    # Raised after the block, not in an `except`: there InvalidTag would stay behind as the error's context.
    with suppress(InvalidTag):
        return AESGCM(key).decrypt(nonce, sealed, bound)
    raise DecryptionFailed
