"""The rules of HPACK's encoder: what it indexes, and what it never does."""

from __future__ import annotations

import pytest

from servicekit.http2.hpack_decoder import HeaderDecoder
from servicekit.http2.hpack_encoder import HeaderEncoder, encode_stateless
from servicekit.http2.hpack_static import STATIC_TABLE, Field

KEY = (b"custom-key", b"custom-value")
TOKEN = (b"authorization", b"Bearer made-up")


def kind(block: bytes) -> str:
    """Return which representation a block of one field is (RFC 7541, 6)."""
    octet = block[0]
    if octet >= 0x80:
        return "indexed"
    if octet >= 0x40:
        return "indexing"
    return "never indexed" if octet >= 0x10 else "without indexing"


@pytest.mark.parametrize("field", STATIC_TABLE)
def test_a_static_field_is_one_octet(field: Field) -> None:
    """Everybody has the static table: no other representation is shorter (6.1)."""
    octet = bytes((0x81 + STATIC_TABLE.index(field),))
    assert HeaderEncoder().encode([field]) == octet
    assert encode_stateless([field]) == octet


def test_a_field_with_a_new_name_is_indexed_at_once() -> None:
    """The name is worth it; C.3.3 and C.4.3 show the octets."""
    encoder = HeaderEncoder()
    assert encoder.encode([KEY]) == bytes.fromhex("408825a849e95ba97d7f8925a849e95bb8e8b4bf")
    assert encoder.encode([KEY]) == b"\xbe"


def test_another_value_is_indexed_when_it_comes_again() -> None:
    """What is fresh in every call goes into no table; what repeats goes in at its second coming."""
    encoder = HeaderEncoder()
    encoder.encode([KEY])
    for number in range(10):
        assert kind(encoder.encode([(b"custom-key", b"fresh %d" % number)])) == "without indexing"
    again = (b"custom-key", b"again")
    assert [kind(encoder.encode([again])) for _ in range(3)] == ["without indexing", "indexing", "indexed"]
    assert encoder.encode([again, KEY]) == b"\xbe\xbf"


def test_a_fresh_value_is_sent_as_it_is() -> None:
    """With its name by index, and without the work of Huffman's code."""
    encoder = HeaderEncoder()
    encoder.encode([KEY])
    assert encoder.encode([(b"custom-key", b"fresh")]) == b"\x0f\x2f\x05fresh"
    assert encoder.encode([(b":path", b"/a")]) == b"\x04\x02/a"


def test_a_sensitive_field_is_never_indexed() -> None:
    """However often it comes, and its form tells every hop (7.1.3)."""
    encoder = HeaderEncoder()
    for _ in range(3):
        assert kind(encoder.encode([TOKEN])) == "never indexed"
        assert kind(encoder.encode([(b"made-up", b"secret")], sensitive={b"made-up"})) == "never indexed"
    assert encoder._used == 0
    assert encoder._seen == set()
    assert kind(encode_stateless([TOKEN])) == "never indexed"
    assert kind(encode_stateless([KEY])) == "without indexing"
    assert kind(encode_stateless([KEY], sensitive={b"custom-key"})) == "never indexed"


def test_a_field_of_half_the_table_is_not_indexed() -> None:
    """It would drive out too much of what repeats."""
    encoder = HeaderEncoder()
    large = (b"large", b"v" * 3000)
    assert [kind(encoder.encode([large])) for _ in range(3)] == ["without indexing"] * 3


def test_what_was_seen_has_a_bound() -> None:
    """Fresh values without end leave nothing behind."""
    encoder = HeaderEncoder()
    for number in range(1000):
        encoder.encode([(b":path", b"/%d" % number)])
        assert len(encoder._seen) <= 128


def test_the_oldest_make_room() -> None:
    """The encoder's table is the decoder's, entry by entry (4.4)."""
    encoder, decoder = HeaderEncoder(), HeaderDecoder()
    for number in range(300):
        fields = (b"name-%d" % number, b"value"), (b"name-%d" % (number // 2), b"value"), (b"name-0", b"another")
        assert decoder.decode(encoder.encode(fields)).fields == fields
        assert list(encoder._numbers) == [entry for entry, _ in decoder._entries]
        assert encoder._used == decoder._used <= 4096
        assert set(encoder._names) == {name for name, _ in encoder._numbers}


def test_a_stateless_block_goes_between_any_others() -> None:
    """It neither reads nor writes a dynamic table."""
    encoder, decoder = HeaderEncoder(), HeaderDecoder()
    block = encode_stateless([(b":status", b"200"), KEY, (b"content-type", b"application/grpc")])
    for _ in range(3):
        decoder.decode(encoder.encode([KEY]))
        assert decoder.decode(block).fields == ((b":status", b"200"), KEY, (b"content-type", b"application/grpc"))


@pytest.mark.parametrize(
    ("sizes", "updates"),
    [
        ([4096], ""),
        ([65536], ""),
        ([100], "3f45"),
        ([0, 4096], "203fe11f"),
        ([100, 4096], "3f453fe11f"),
        ([100, 0], "20"),
        ([100, 0, 4096, 100], "203f45"),
    ],
)
def test_a_change_of_size_begins_the_next_block(sizes: list[int], updates: str) -> None:
    """The smallest since the last block, and then the last (4.2); once, and none where nothing changed."""
    encoder = HeaderEncoder()
    for size in sizes:
        encoder.resize(size)
    assert encoder.encode([STATIC_TABLE[1]]) == bytes.fromhex(updates) + b"\x82"
    assert encoder.encode([STATIC_TABLE[1]]) == b"\x82"


def test_updates_can_be_taken_for_a_stateless_block() -> None:
    """Then the encoder does not say them again."""
    encoder = HeaderEncoder()
    encoder.resize(0)
    assert encoder.take_updates() == b"\x20"
    assert encoder.take_updates() == b""
    assert encoder.encode([STATIC_TABLE[1]]) == b"\x82"


def test_less_than_the_default_is_said_first() -> None:
    """The peer starts with 4,096 octets; more than that waits for its word."""
    assert HeaderEncoder(max_table_size=0).encode([]) == b"\x20"
    encoder = HeaderEncoder(max_table_size=8192)
    assert encoder.encode([]) == b""
    encoder.resize(1 << 20)
    assert encoder.encode([]) == bytes.fromhex("3fe13f")


def test_a_smaller_table_drops_the_oldest() -> None:
    """What no longer fits is sent anew (4.3)."""
    encoder, decoder = HeaderEncoder(), HeaderDecoder()
    fields = [(b"name-%d" % number, b"value") for number in range(10)]
    decoder.decode(encoder.encode(fields))
    encoder.resize(100)
    decoder.max_table_size = 100
    assert decoder.decode(encoder.encode(fields[-2:])).fields == tuple(fields[-2:])
    assert list(encoder._numbers) == fields[-2:]
    assert decoder.decode(encoder.encode(fields)).fields == tuple(fields)


def test_a_large_table_has_large_indexes() -> None:
    """Indexes and lengths beyond what is written down beforehand."""
    encoder, decoder = HeaderEncoder(max_table_size=1 << 16), HeaderDecoder(max_list_size=1 << 20)
    encoder.resize(1 << 16)
    decoder.max_table_size = 1 << 16
    fields = tuple((b"name-%d" % number, b"value") for number in range(1000))
    assert decoder.decode(encoder.encode(fields)).fields == fields
    again = encoder.encode(fields)
    assert len(again) < 3 * len(fields)
    assert decoder.decode(again).fields == fields
    other = tuple((name, b"\xff" * 300) for name, _ in fields)
    assert decoder.decode(encoder.encode(other)).fields == other
