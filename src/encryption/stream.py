"""The STREAM construction, without I/O: a plaintext of any length as numbered segments of which the last one is marked.

    segment = length 2 | ciphertext | tag 16                 length counts ciphertext and tag
    nonce   = prefix 7 | number 4 | last 1

The number in the nonce makes a segment fit in its own place only; the mark makes the end unforgeable. The last segment
is the empty one, and only it is empty: so no segment waits for its successor before it leaves, and a receiver knows the
last one by its length. Hoang, Reyhanitabar, Rogaway, Vizar: Online Authenticated-Encryption and its Nonce-Reuse
Misuse-Resistance, 2015.
"""

import struct
from typing import Final

from encryption import cipher
from encryption.envelope import TAG_SIZE, Header, bound
from encryption.errors import DecryptionFailed, InvalidInput

CHUNK_MAX: Final = 64 * 1024

_LENGTH: Final = struct.Struct(">H")
# A framed segment is a chunk at most, so what encryption gives out can be sent to decryption as it is.
SEGMENT_MAX: Final = CHUNK_MAX - _LENGTH.size - TAG_SIZE
_NUMBER_MAX: Final = 2**32 - 1


def segment_nonce(prefix: bytes, number: int, *, last: bool) -> bytes:
    """Return the nonce of the segment with this number, counted from 0."""
    return prefix + struct.pack(">IB", number, last)


class Sealer:
    """Makes the segments of one stream, in order."""

    def __init__(self, key: bytes, header: Header, context: bytes) -> None:
        self._key = key
        self._prefix = header.nonce
        self._bound = bound(header, context)
        self._number = 0

    def segment(self, plaintext: bytes) -> bytes:
        """Return the next segment, for 1 to SEGMENT_MAX bytes; InvalidInput after 2**32 - 1 of them."""
        if self._number == _NUMBER_MAX:  # the last number is the last segment's
            raise InvalidInput("the stream has too many chunks")
        return self._seal(plaintext, last=False)

    def last(self) -> bytes:
        """Return the last segment; the sealer is of no use afterwards."""
        return self._seal(b"", last=True)

    def _seal(self, plaintext: bytes, *, last: bool) -> bytes:
        nonce = segment_nonce(self._prefix, self._number, last=last)
        self._number += 1
        sealed = cipher.seal(self._key, nonce, plaintext, self._bound)
        return _LENGTH.pack(len(sealed)) + sealed


class Opener:
    """Opens the segments of one stream: `feed` bytes as they come, `take` until there is no more, `end` when they end.

    It holds what it was fed and not yet asked for: at most one unfinished segment when `take` has returned None.
    """

    def __init__(self, key: bytes, header: Header, context: bytes) -> None:
        self._key = key
        self._prefix = header.nonce
        self._bound = bound(header, context)
        self._number = 0
        self._over = False
        self._buffer = bytearray()

    def feed(self, data: bytes) -> None:
        """Add the next bytes of the stream, cut anywhere."""
        self._buffer += data

    def take(self) -> bytes | None:
        """Return the next segment's plaintext, checked, or None if more bytes are needed; DecryptionFailed if forged."""
        if self._over:
            self.end()
            return None
        if len(self._buffer) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(self._buffer)
        end = _LENGTH.size + length  # two bytes of length: a forger can make us hold 64 KiB, no more
        if len(self._buffer) < end:
            return None
        sealed = bytes(self._buffer[_LENGTH.size : end])
        del self._buffer[:end]
        last = length == TAG_SIZE
        if self._number > _NUMBER_MAX:
            raise DecryptionFailed
        nonce = segment_nonce(self._prefix, self._number, last=last)
        plaintext = cipher.unseal(self._key, nonce, sealed, self._bound)
        self._number += 1
        if not last:
            return plaintext
        self._over = True
        self.end()
        return None

    def end(self) -> None:
        """Raise DecryptionFailed unless the last segment was taken and nothing came after it."""
        if not self._over or self._buffer:
            raise DecryptionFailed
