"""From a secret to the keys of one message: passphrases, the keyring, and how keys are derived.

    root             = Argon2id(passphrase, salt)  or  the keyring's master key
    key | commitment = HKDF-SHA256(root, salt, info = label | suite | kdf | key id)

The commitment ties an envelope to one root. Without it AES-GCM lets an envelope be built that opens with several keys,
so that many passphrases are tried by one request (Len, Grubbs, Ristenpart: Partitioning Oracle Attacks, 2021).
"""

import base64
import hmac
import re
import unicodedata
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, Self

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from encryption.envelope import COMMITMENT_SIZE, Kdf, Suite
from encryption.errors import DecryptionFailed, InvalidInput, UnknownKey

KEY_SIZE: Final = 32
PASSPHRASE_MIN: Final = 8
PASSPHRASE_MAX: Final = 1024

_LABEL: Final = b"encryption.v1 message keys"
_KEY_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)
# NFC makes at best two bytes of three characters, so a longer one cannot come down to the limit. It is refused unread,
# because normalising takes quadratic time on long runs of combining marks.
_PASSPHRASE_CHARACTERS: Final = 2 * PASSPHRASE_MAX


@dataclass(frozen=True, slots=True)
class Passphrase:
    """A secret that a person knows; its repr shows nothing of it."""

    value: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class KeyId:
    """The name of a key in the server's keyring."""

    value: str = field(repr=False)


Secret = Passphrase | KeyId


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageKeys:
    """What one message is sealed with; used for no other message."""

    key: bytes = field(repr=False)
    commitment: bytes = field(repr=False)

    def check(self, commitment: bytes) -> None:
        """Raise DecryptionFailed unless the commitment is ours, after the same time wherever the two differ."""
        if not hmac.compare_digest(self.commitment, commitment):
            raise DecryptionFailed


@dataclass(frozen=True, slots=True, kw_only=True)
class Keyring:
    """The keys that the server holds, by id: the first one, the primary, encrypts; all decrypt. It may be empty.

    To rotate: add the new key after the primary everywhere, then make it the primary, then drop the old one when
    nothing that it encrypted is left. A master key has 32 bytes, an id 1 to 64 letters, digits, `.`, `_` or `-`; else
    InvalidInput.
    """

    keys: Mapping[str, bytes]

    def __post_init__(self) -> None:
        for number, (key_id, key) in enumerate(self.keys.items(), 1):
            # Entries are told by number: whoever swapped id and key would find the key in the log.
            if _KEY_ID.fullmatch(key_id) is None:
                raise InvalidInput(f"keyring entry {number}: the id is not 1 to 64 letters, digits, '.', '_' or '-'")
            if len(key) != KEY_SIZE:
                raise InvalidInput(f"keyring entry {number}: the key has {len(key)} bytes, not {KEY_SIZE}")
        object.__setattr__(self, "keys", MappingProxyType(dict(self.keys)))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `id:key,id:key`, the primary first, each key 32 bytes in standard base64 (`openssl rand -base64 32`).

        Raises InvalidInput that says which entry is wrong, by its number, and shows nothing of any entry.
        """
        keys: dict[str, bytes] = {}
        for number, entry in enumerate(text.split(","), 1):
            key_id, colon, encoded = entry.strip().partition(":")
            key = _standard_base64(encoded)
            if not colon:
                raise InvalidInput(f"keyring entry {number}: expected id:key")
            if key is None:
                raise InvalidInput(f"keyring entry {number}: the key is not standard base64")
            if key_id in keys:
                raise InvalidInput(f"keyring entry {number}: its id was given before")
            keys[key_id] = key
        return cls(keys=keys)

    def encrypting(self, key_id: KeyId) -> bytes:
        """Return the master key to encrypt with; UnknownKey unless it is the primary."""
        primary, key = next(iter(self.keys.items()), (None, b""))
        if key_id.value != primary:
            raise UnknownKey
        return key

    def decrypting(self, key_id: KeyId) -> bytes:
        """Return the master key to decrypt with; DecryptionFailed when there is none of that id."""
        key = self.keys.get(key_id.value)
        if key is None:
            raise DecryptionFailed
        return key

    def __repr__(self) -> str:
        return f"Keyring(<{len(self.keys)} keys>)"


def normalise(passphrase: Passphrase) -> bytes:
    """Return what Argon2 is given: NFC, so that a passphrase is one from every keyboard. InvalidInput by length."""
    if not passphrase.value:
        raise InvalidInput("key is empty")
    encoded = b""
    if len(passphrase.value) <= _PASSPHRASE_CHARACTERS:
        with suppress(UnicodeEncodeError):  # a lone surrogate: not text, and the exception would hold the passphrase
            encoded = unicodedata.normalize("NFC", passphrase.value).encode()
    if not PASSPHRASE_MIN <= len(encoded) <= PASSPHRASE_MAX:
        raise InvalidInput(f"key is not {PASSPHRASE_MIN} to {PASSPHRASE_MAX} bytes of UTF-8 (as NFC)")
    return encoded


def argon2id(passphrase: bytes, salt: bytes, kdf: Kdf) -> bytes:
    """Stretch a passphrase into a root key (RFC 9106, version 0x13). Slow on purpose; other threads run meanwhile."""
    stretch = Argon2id(salt=salt, length=KEY_SIZE, iterations=kdf.passes, lanes=kdf.lanes, memory_cost=kdf.memory)
    return stretch.derive(passphrase)


def hkdf(root: bytes, salt: bytes, info: bytes, length: int) -> bytes:
    """HKDF with SHA-256 (RFC 5869)."""
    return HKDF(algorithm=hashes.SHA256(), length=length, salt=salt, info=info).derive(root)


def message_keys(root: bytes, *, salt: bytes, suite: Suite, kdf: Kdf, key_id: str = "") -> MessageKeys:
    """Derive the keys of the one message that has this salt. The id is the last of `info`, so it needs no length."""
    info = b"".join((_LABEL, bytes([suite.code]), kdf.pack(), key_id.encode()))
    output = hkdf(root, salt, info, KEY_SIZE + COMMITMENT_SIZE)
    return MessageKeys(key=output[:KEY_SIZE], commitment=output[KEY_SIZE:])


def _standard_base64(text: str) -> bytes | None:
    with suppress(ValueError):
        return base64.b64decode(text, validate=True)
    return None
