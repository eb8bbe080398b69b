"""Huffman's code as HPACK has it."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH
from hypothesis import given
from hypothesis import strategies as st

from servicekit.http2 import huffman
from servicekit.http2.hpack_errors import HpackError

EOS = 256


def bits(*codes: str) -> bytes:
    """Return the octets of these bits, which must fill them."""
    joined = "".join(codes)
    assert len(joined) % 8 == 0
    return int(joined, 2).to_bytes(len(joined) // 8, "big")


def code(symbol: int) -> str:
    """Return the published code of a symbol."""
    return f"{REQUEST_CODES[symbol]:0{REQUEST_CODES_LENGTH[symbol]}b}"


@pytest.mark.parametrize("octet", range(256))
def test_every_code_is_the_published_one(octet: int) -> None:
    """Appendix B, symbol by symbol: the lengths alone give all codes."""
    padding = "1" * (-len(code(octet)) % 8)
    assert huffman.encode(bytes((octet,))) == bits(code(octet), padding)
    assert huffman.decode(bits(code(octet), padding)) == bytes((octet,))


@given(st.binary(max_size=300))
def test_what_is_encoded_decodes_to_itself(data: bytes) -> None:
    """Any octets survive, and the length is known beforehand."""
    encoded = huffman.encode(data)
    assert huffman.decode(encoded) == data
    assert huffman.encoded_length(data) == len(encoded)


@pytest.mark.parametrize("ones", range(8))
def test_padding_is_up_to_seven_ones(ones: int) -> None:
    """What is left of the last octet is the beginning of EOS (5.2)."""
    text = next(text for text in (b"&" * n + b"0" * m for n in range(8) for m in range(8)) if unused(text) == ones)
    encoded = huffman.encode(text)
    assert huffman.decode(encoded) == text
    if ones:
        wrong = encoded[:-1] + bytes((encoded[-1] ^ 1,))
        with pytest.raises(HpackError, match="padding"):
            huffman.decode(wrong)


def unused(text: bytes) -> int:
    """Return how many bits of the last octet the code of ``text`` leaves."""
    return -sum(REQUEST_CODES_LENGTH[octet] for octet in text) % 8


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\xff", id="eight bits of padding"),
        pytest.param(huffman.encode(b"a&") + b"\xff", id="more than an octet of it"),
        pytest.param(b"\xff\xff\xff", id="three octets of it"),
        pytest.param(bits(code(ord("0")), "000"), id="padding of zeros"),
        pytest.param(bits(code(EOS), "11"), id="the end of string"),
        pytest.param(bits(code(EOS), "11", code(ord("&"))), id="the end of string, and more behind it"),
        pytest.param(bits(code(ord("&")), code(EOS), "11"), id="the end of string behind a symbol"),
    ],
)
def test_a_wrong_end_is_refused(data: bytes) -> None:
    """Padding of more than seven bits, padding that is not the beginning of EOS, and EOS itself (5.2)."""
    with pytest.raises(HpackError):
        huffman.decode(data)


def test_there_is_a_row_for_each_state_at_most() -> None:
    """Whatever comes: the code has 256 states within a symbol, and behind EOS there is one more."""
    for octet in range(256):
        for beginning in (b"", b"\xff", b"\xff\xff", b"\xff\xff\xff", b"\xff\xff\xff\xff"):
            with suppress(HpackError):
                huffman.decode(beginning + bytes((octet,)) * 40)
    assert len(huffman._ROWS) <= 257


def test_long_strings_are_no_trouble() -> None:
    """A number as long as the string is no limit to it."""
    text = b"a long string, %d" * 10_000
    assert huffman.decode(huffman.encode(text)) == text
