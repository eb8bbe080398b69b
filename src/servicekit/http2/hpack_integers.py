"""HPACK's integers: what fits into the rest of an octet stands there, the rest follows by sevens (RFC 7541, 5.1)."""

from __future__ import annotations

from .hpack_errors import HpackError

MAX_INTEGER = 2**31 - 1
"""The largest integer taken. RFC 7541, 5.1 leaves the limit to us: nothing in HTTP/2 is larger."""


def decode_rest(block: bytes, position: int, value: int) -> tuple[int, int]:
    """Return the integer and the position behind it, when its prefix was all ones.

    ``position`` is that of the octet behind the prefix, and ``value`` what the prefix said. Raises IndexError when the
    block ends first, and HpackError when the integer takes more than six octets or is above MAX_INTEGER: leading
    zeros could otherwise go on for ever.
    """
    for shift in (0, 7, 14, 21, 28):
        octet = block[position]
        position += 1
        value += (octet & 0x7F) << shift
        if octet < 0x80:
            if value > MAX_INTEGER:
                break
            return value, position
    raise HpackError("an integer is above 2^31-1 or longer than 6 octets")


def encode_integer(value: int, *, bits: int, first: int) -> bytes:
    """Return ``value`` in a prefix of ``bits`` bits, the bits before them being those of ``first``."""
    full = (1 << bits) - 1
    if value < full:
        return bytes((first | value,))
    octets = bytearray((first | full,))
    value -= full
    while value > 0x7F:
        octets.append(value & 0x7F | 0x80)
        value >>= 7
    octets.append(value)
    return bytes(octets)
