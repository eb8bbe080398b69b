"""The format of what leaves the service, without any cryptography: headers packed and parsed, base64url, what is bound.

    header   = magic 3 | version 1 | suite 1 | kdf 7 | salt 16 | nonce 12, or 7 in a stream | commitment 32
    kdf      = code 1 | memory in KiB 4 | passes 1 | lanes 1
    envelope = base64url( header | ciphertext | tag 16 )
    stream   = header | segment ...

Integers are big-endian. `kdf` is compared with the ones that we make, never computed with: an envelope that asks for a
gigabyte of Argon2 is refused before anything is derived. The magic spells `enc_` in base64url, so that people and
secret scanners know an envelope when they see one.
"""

import base64
import struct
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Self

from encryption.errors import DecryptionFailed

MAGIC: Final = base64.urlsafe_b64decode("enc_")
VERSION: Final = 1
SALT_SIZE: Final = 16
TAG_SIZE: Final = 16
COMMITMENT_SIZE: Final = 32

_KDF: Final = struct.Struct(">BIBB")


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """How the bytes after the header are sealed; the length of the nonce goes with it."""

    code: int
    nonce_size: int

    @property
    def layout(self) -> struct.Struct:
        """Where the fields of its header stand."""
        return struct.Struct(f">3sBB{_KDF.size}s{SALT_SIZE}s{self.nonce_size}s{COMMITMENT_SIZE}s")


@dataclass(frozen=True, slots=True, kw_only=True)
class Kdf:
    """How a secret becomes the message's root key. Memory is in KiB; all parameters are 0 where they mean nothing."""

    code: int
    memory: int = 0
    passes: int = 0
    lanes: int = 0

    def pack(self) -> bytes:
        """Return the header's field."""
        return _KDF.pack(self.code, self.memory, self.passes, self.lanes)


MESSAGE: Final = Suite(code=1, nonce_size=12)
"""AES-256-GCM over the whole text, keys by HKDF-SHA256."""
STREAM: Final = Suite(code=2, nonce_size=7)
"""AES-256-GCM over numbered segments (see `stream`), keys by HKDF-SHA256."""

ARGON2ID: Final = Kdf(code=1, memory=19 * 1024, passes=2, lanes=1)
"""For passphrases: Argon2id (RFC 9106) at OWASP's first recommendation, some 20 ms."""
UNSTRETCHED: Final = Kdf(code=2)
"""For keys that the server holds: they are strong already and need no stretching."""

# Whoever raises Argon2's cost adds an entry; taking one away makes every envelope made with it unreadable.
_ALLOWED: Final = {kdf.pack(): kdf for kdf in (ARGON2ID, UNSTRETCHED)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """The head of an envelope or a stream. Nothing in it is secret, all of it is authenticated."""

    suite: Suite
    kdf: Kdf
    salt: bytes
    nonce: bytes
    commitment: bytes

    def pack(self) -> bytes:
        """Return the header as bytes, `suite.layout.size` of them."""
        return self.suite.layout.pack(
            MAGIC, VERSION, self.suite.code, self.kdf.pack(), self.salt, self.nonce, self.commitment
        )

    @classmethod
    def parse(cls, data: bytes, suite: Suite) -> Self:
        """Read the header that `data` begins with; DecryptionFailed unless we could have made it, for this suite."""
        layout = suite.layout
        if len(data) < layout.size:
            raise DecryptionFailed
        magic, version, code, spec, salt, nonce, commitment = layout.unpack_from(data)
        kdf = _ALLOWED.get(spec)
        if (magic, version, code) != (MAGIC, VERSION, suite.code) or kdf is None:
            raise DecryptionFailed
        return cls(suite=suite, kdf=kdf, salt=salt, nonce=nonce, commitment=commitment)


def bound(header: Header, context: bytes) -> bytes:
    """Return the associated data: header and context, each after its length, so that no byte can change sides."""
    packed = header.pack()
    return b"".join((struct.pack(">I", len(packed)), packed, struct.pack(">I", len(context)), context))


def armor(data: bytes) -> str:
    """Return `data` as base64url without padding (RFC 4648, section 5)."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def dearmor(text: str) -> bytes:
    """Undo `armor`; DecryptionFailed for every text that `armor` would not have written.

    Python's decoder skips foreign characters and ignores left-over bits (RFC 4648, section 3.5), so one envelope would
    have many spellings; comparing with the one right spelling leaves none of them.
    """
    with suppress(ValueError):
        data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
        if armor(data) == text:
            return data
    raise DecryptionFailed


def armored_size(size: int) -> int:
    """Return the number of characters that `armor` makes of `size` bytes."""
    return (size * 4 + 2) // 3
