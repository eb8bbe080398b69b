"""HPACK's Huffman code (RFC 7541, 5.2 and appendix B), decoded an octet at a time.

The code is canonical: symbols in order of the length of their codes, then of their value, have consecutive codes. So
the lengths alone tell all of it.
"""

from __future__ import annotations

from typing import Final, TypeAlias

from .hpack_errors import HpackError

_BY_LENGTH: Final = {
    5: b"012aceiost",
    6: b" %-./3456789=A_bdfghlmnpru",
    7: b":BCDEFGHIJKLMNOPQRSTUVWYjkqvwxyz",
    8: b"&*,;XZ",
    10: b'!"()?',
    11: b"'+|",
    12: b"#>",
    13: b"\x00$@[]~",
    14: b"^}",
    15: b"<`{",
    19: b"\\\xc3\xd0",
    20: b"\x80\x82\x83\xa2\xb8\xc2\xe0\xe2",
    21: b"\x99\xa1\xa7\xac\xb0\xb1\xb3\xd1\xd8\xd9\xe3\xe5\xe6",
    22: b"\x81\x84\x85\x86\x88\x92\x9a\x9c\xa0\xa3\xa4\xa9\xaa\xad\xb2\xb5\xb9\xba\xbb\xbd\xbe\xc4\xc6\xe4\xe8\xe9",
    23: b"\x01\x87\x89\x8a\x8b\x8c\x8d\x8f\x93\x95\x96\x97\x98\x9b\x9d\x9e\xa5\xa6\xa8\xae\xaf\xb4\xb6\xb7\xbc\xbf\xc5\xe7\xef",
    24: b"\t\x8e\x90\x91\x94\x9f\xab\xce\xd7\xe1\xec\xed",
    25: b"\xc7\xcf\xea\xeb",
    26: b"\xc0\xc1\xc8\xc9\xca\xcd\xd2\xd5\xda\xdb\xee\xf0\xf2\xf3\xff",
    27: b"\xcb\xcc\xd3\xd4\xd6\xdd\xde\xdf\xf1\xf4\xf5\xf6\xf7\xf8\xfa\xfb\xfc\xfd\xfe",
    28: b"\x02\x03\x04\x05\x06\x07\x08\x0b\x0c\x0e\x0f\x10\x11\x12\x13\x14\x15\x17\x18\x19\x1a\x1b\x1c\x1d\x1e\x1f\x7f\xdc\xf9",
    30: b"\n\r\x16",
}
"""The octets whose codes have so many bits. The last code, of 30 ones, is the end of the string (EOS)."""


def _codes() -> list[str]:
    """Return the code of each octet, in bits."""
    codes = [""] * 256
    code = bits = 0
    for length, octets in _BY_LENGTH.items():
        code <<= length - bits
        bits = length
        for octet in octets:
            codes[octet] = f"{code:0{bits}b}"
            code += 1
    return codes


_CODES: Final = _codes()
_LENGTHS: Final = bytes(map(len, _CODES))

# A state of the decoder is what has been read of a code: its bits behind a leading one, as a number.
_START: Final = 0b1
_EOS: Final = (1 << 31) - 1
_OCTETS: Final = {int("1" + code, 2): bytes((octet,)) for octet, code in enumerate(_CODES)}

# A row tells, for one state and each next octet, what that octet completes and the row of the state it leads to.
# The rows are filled when they are first needed: all 257 would take 50 ms and 5 MB, and traffic needs some thirty.
_Row: TypeAlias = "list[tuple[bytes, _Row]]"
_ROWS: Final[dict[int, _Row]] = {}
_STATES: Final[dict[int, int]] = {}


def _row(state: int) -> _Row:
    """Return the row of a state, still empty when nobody needed it yet."""
    row = _ROWS.get(state)
    if row is None:
        row = _ROWS[state] = []
        _STATES[id(row)] = state  # rows are never dropped, so the id is theirs for good
    return row


def _step(state: int, piece: bytes, bit: int) -> tuple[int, bytes]:
    """Return where one more bit leads, and what has been completed till then."""
    if state == _EOS:
        return state, piece  # there is no way back
    state = state << 1 | bit
    octet = _OCTETS.get(state)
    return (state, piece) if octet is None else (_START, piece + octet)


def _fill(row: _Row) -> None:
    """Fill an empty row: the walks through the next eight bits, in the order of the octets that they make."""
    walks = [(_STATES[id(row)], b"")]
    for _ in range(8):
        walks = [_step(state, piece, bit) for state, piece in walks for bit in (0, 1)]
    row.extend((piece, _row(state)) for state, piece in walks)


_FIRST: Final = _row(_START)
# RFC 7541, 5.2: padding is the beginning of EOS, all ones, and shorter than an octet.
_ENDS: Final = frozenset(id(_row((1 << ones + 1) - 1)) for ones in range(8))


def decode(data: bytes) -> bytes:
    """Return what ``data`` stands for. Takes time linear in its length, and returns at most 8/5 of it.

    Raises HpackError when EOS is in it, or when what is left behind the last symbol is longer than seven bits or not
    all ones (RFC 7541, 5.2).
    """
    row = _FIRST
    pieces: list[bytes] = []
    for octet in data:
        # A plain list, indexed and unpacked: of all the ways to take this step, CPython is fastest on this one.
        try:
            piece, row = row[octet]
        except IndexError:
            _fill(row)
            piece, row = row[octet]
        pieces.append(piece)
    if row is not _FIRST and id(row) not in _ENDS:
        raise HpackError("a Huffman string has the end of string in it, or wrong padding")
    return b"".join(pieces)


def encoded_length(data: bytes) -> int:
    """Return how many octets ``encode`` makes of ``data``."""
    return sum(map(_LENGTHS.__getitem__, data)) + 7 >> 3


def encode(data: bytes) -> bytes:
    """Return the Huffman code of ``data``, padded with ones. Takes time linear in its length."""
    bits = "".join(map(_CODES.__getitem__, data))
    bits += "1" * (-len(bits) % 8)
    # In base 2 a number is read in linear time, and without the limit that Python sets on long decimal ones.
    return int(bits, 2).to_bytes(len(bits) // 8, "big") if bits else b""
