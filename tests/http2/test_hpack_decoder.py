"""The rules of HPACK's decoder, and what it remembers."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any

import pytest

from servicekit.http2 import huffman
from servicekit.http2.hpack_decoder import HeaderDecoder
from servicekit.http2.hpack_errors import HeaderListTooLarge, HpackError
from servicekit.http2.hpack_integers import MAX_INTEGER, encode_integer

GET = b"\x82"
INDEXED = b"\x40\x01a\x01b"  # puts a: b into the dynamic table
NEWEST = b"\xbe"
UNINDEXED = b"\x00\x01a\x01b"


def update(size: int) -> bytes:
    """Return a size update."""
    return encode_integer(size, bits=5, first=0x20)


def raw(name: bytes, value: bytes, *, first: int = 0x00) -> bytes:
    """Return a literal, spelled out."""
    return bytes((first,)) + b"".join(encode_integer(len(text), bits=7, first=0) + text for text in (name, value))


@pytest.mark.parametrize(
    "block",
    [
        pytest.param(b"\x80", id="6.1: index 0"),
        pytest.param(b"\xbe", id="2.3.3: an index that no table holds"),
        pytest.param(b"\xff\x00", id="2.3.3: such an index, in two octets"),
        pytest.param(b"\xff\x80\x80\x01", id="2.3.3: such an index, in four octets"),
        pytest.param(b"\x7e\x01b", id="2.3.3: such an index of a name, to be indexed"),
        pytest.param(b"\x0f\x2f\x01b", id="2.3.3: such an index of a name"),
        pytest.param(b"\x40", id="ends before the name"),
        pytest.param(b"\x40\x02a", id="ends within the name"),
        pytest.param(b"\x40\x01a", id="ends before the value"),
        pytest.param(b"\x40\x01a\x02b", id="ends within the value"),
        pytest.param(b"\x41\x7f\x80", id="ends within an integer"),
        pytest.param(b"\xff", id="ends within an index"),
        pytest.param(b"\x7f", id="ends within the index of a name"),
        pytest.param(b"\x0f", id="ends within the index of a name, not to be indexed"),
        pytest.param(b"\x3f", id="ends within a size update"),
        pytest.param(b"\xff" + b"\xff" * 4 + b"\x0f", id="5.1: an integer above 2^31-1"),
        pytest.param(b"\x3f" + b"\x80" * 5 + b"\x00", id="5.1: an integer of seven octets"),
        pytest.param(b"\x3f\xe2\x1f", id="6.3: a size update over the limit"),
        pytest.param(GET + update(0), id="4.2: a size update behind a field"),
        pytest.param(b"\x00\x01a\x81\xff", id="5.2: Huffman padding of eight bits"),
        pytest.param(b"\x00\x81\xff\x01a", id="5.2: the same in a name"),
    ],
)
def test_a_malformed_block_is_refused(block: bytes) -> None:
    """Whatever is wrong with a block is one error, which ends the connection."""
    with pytest.raises(HpackError):
        HeaderDecoder().decode(block)


def test_the_longest_integers_are_read() -> None:
    """Six octets are enough for every integer that is taken, leading zeros and all (5.1)."""
    decoder = HeaderDecoder(max_table_size=1 << 40)
    assert decoder.decode(update(MAX_INTEGER) + GET).fields == ((b":method", b"GET"),)
    assert decoder.decode(b"\x3f\x80\x80\x80\x80\x00" + GET).fields == ((b":method", b"GET"),)
    with pytest.raises(HpackError, match="2\\^31"):
        decoder.decode(update(MAX_INTEGER + 1) + GET)


def test_an_empty_block_has_no_fields() -> None:
    """Nothing is a block too."""
    block = HeaderDecoder().decode(b"")
    assert (block.fields, block.size) == ((), 0)


def test_the_dynamic_table_begins_with_the_newest() -> None:
    """Index 62 is the last that came; indexes of two and three octets reach the others (2.3.3)."""
    decoder = HeaderDecoder(max_table_size=1 << 16)
    decoder.decode(update(1 << 16))
    fields = [(b"name-%d" % number, b"%d" % number) for number in range(250)]
    for field in fields:
        decoder.decode(raw(*field, first=0x40))
    for age, field in enumerate(reversed(fields)):
        assert decoder.decode(encode_integer(62 + age, bits=7, first=0x80)).fields == (field,)
        for first, bits in (0x40, 6), (0x00, 4), (0x10, 4):
            table = list(decoder._entries)
            head = encode_integer(62 + age, bits=bits, first=first)
            assert decoder.decode(head + b"\x01v").fields == ((field[0], b"v"),)
            decoder._entries[:] = table


def test_a_field_as_large_as_the_table_stays_alone() -> None:
    """The oldest go until the new one fits (4.4)."""
    decoder = HeaderDecoder(max_table_size=100)
    decoder.decode(INDEXED)
    decoder.decode(raw(b"n", b"v" * 67, first=0x40))
    assert decoder.decode(NEWEST).fields == ((b"n", b"v" * 67),)
    with pytest.raises(HpackError):
        decoder.decode(b"\xbf")


def test_a_field_larger_than_the_table_empties_it() -> None:
    """That is no error, and the table goes on (4.4)."""
    decoder = HeaderDecoder(max_table_size=100)
    decoder.decode(INDEXED)
    large = (b"n", b"v" * 68)
    assert decoder.decode(raw(*large, first=0x40)).fields == (large,)
    assert decoder._entries == []
    decoder.decode(INDEXED)
    assert decoder.decode(NEWEST).fields == ((b"a", b"b"),)


def test_a_name_may_be_that_of_a_field_that_goes() -> None:
    """The name is taken before its field makes room (4.4)."""
    decoder = HeaderDecoder(max_table_size=100)
    decoder.decode(INDEXED)
    value = b"v" * 67
    decoder.decode(b"\x7e" + encode_integer(len(value), bits=7, first=0) + value)
    assert decoder.decode(NEWEST).fields == ((b"a", value),)


def test_a_size_update_evicts_at_once() -> None:
    """To 0 and back, the table is empty (4.3); the peer may do so without being asked (4.2)."""
    decoder = HeaderDecoder()
    decoder.decode(INDEXED)
    decoder.decode(update(0) + update(4096) + GET)
    with pytest.raises(HpackError):
        decoder.decode(NEWEST)


def test_a_size_update_evicts_what_no_longer_fits() -> None:
    """The oldest go, and no more than must (4.3)."""
    decoder = HeaderDecoder()
    for name in (b"a", b"b", b"c"):
        decoder.decode(raw(name, b"v", first=0x40))
    decoder.decode(update(3 * 34))
    assert len(decoder._entries) == 3
    decoder.decode(update(3 * 34 - 1))
    assert [name for (name, _), _ in decoder._entries] == [b"b", b"c"]


def test_a_smaller_table_must_be_confirmed() -> None:
    """Once the peer has acknowledged less, its next block begins with a size update (4.2)."""
    decoder = HeaderDecoder()
    decoder.decode(GET)
    decoder.max_table_size = 100
    assert decoder.max_table_size == 100
    with pytest.raises(HpackError, match="100"):
        decoder.decode(GET)


def test_the_smallest_of_several_sizes_must_be_confirmed() -> None:
    """Down and up again between two blocks: the peer tells the smallest, then the last (4.2)."""
    decoder = HeaderDecoder()
    decoder.max_table_size = 100
    decoder.max_table_size = 4096
    decoder.decode(update(100) + update(4096) + GET)
    decoder.decode(GET)
    decoder.max_table_size = 100
    decoder.max_table_size = 4096
    with pytest.raises(HpackError, match="100"):
        decoder.decode(update(200) + GET)
    decoder = HeaderDecoder()
    decoder.max_table_size = 100
    decoder.max_table_size = 200
    with pytest.raises(HpackError, match="100"):
        decoder.decode(update(200) + GET)


def test_a_size_already_kept_needs_no_update() -> None:
    """A peer that uses less than it may is not asked again (4.2)."""
    decoder = HeaderDecoder()
    decoder.decode(update(50) + GET)
    decoder.max_table_size = 100
    assert decoder.decode(GET).fields


def test_a_larger_table_begins_with_the_peers_word() -> None:
    """Until the size update the table is as it was (4.2)."""
    decoder = HeaderDecoder()
    decoder.max_table_size = 8192
    value = b"v" * 5000
    decoder.decode(raw(b"n", value, first=0x40))
    assert decoder._entries == []
    decoder.decode(update(8192) + raw(b"n", value, first=0x40))
    assert decoder.decode(NEWEST).fields == ((b"n", value),)


def test_the_size_counts_32_for_each_field() -> None:
    """Names, values and 32 octets a field, from whichever table they came (RFC 9113, 6.5.2)."""
    assert HeaderDecoder().decode(GET + INDEXED + NEWEST + UNINDEXED).size == 10 + 2 + 2 + 2 + 4 * 32


def test_a_list_up_to_the_limit_is_taken() -> None:
    """The limit itself is within it."""
    block = HeaderDecoder(max_list_size=34).decode(UNINDEXED)
    assert (block.fields, block.size) == (((b"a", b"b"),), 34)
    with pytest.raises(HeaderListTooLarge, match=r"34 .* 33"):
        HeaderDecoder(max_list_size=33).decode(UNINDEXED)


def test_a_list_over_the_limit_leaves_the_tables_alike() -> None:
    """What the refused block indexed can be asked for by the next one."""
    decoder = HeaderDecoder(max_list_size=200)
    with pytest.raises(HeaderListTooLarge):
        decoder.decode(INDEXED + UNINDEXED * 10 + raw(b"last", b"one", first=0x40))
    assert decoder.decode(NEWEST + b"\xbf").fields == ((b"last", b"one"), (b"a", b"b"))


def test_a_list_far_over_the_limit_is_an_attack() -> None:
    """Small references to a large field end at eight times the limit, at once (RFC 7541, 7.3)."""
    decoder = HeaderDecoder(max_list_size=4096)
    decoder.decode(raw(b"n", b"v" * 3000, first=0x40))
    with pytest.raises(HeaderListTooLarge):
        decoder.decode(NEWEST * 10)
    with pytest.raises(HpackError, match="8 times 4096"):
        decoder.decode(NEWEST * 11 + b"\x80")


def test_a_block_that_comes_again_is_remembered() -> None:
    """The same octets give the same object, so what was made of it is there still."""
    decoder = HeaderDecoder()
    decoder.decode(INDEXED)
    block = decoder.decode(GET + NEWEST + UNINDEXED)
    assert block.memo is None
    block.memo = "made of it"
    assert decoder.decode(GET + NEWEST + UNINDEXED) is block
    assert repr(block) == f"HeaderBlock(3 fields, size={block.size})"


def test_a_change_of_the_table_forgets_the_blocks() -> None:
    """The same octets now mean another field."""
    decoder = HeaderDecoder()
    decoder.decode(INDEXED)
    assert decoder.decode(NEWEST).fields == ((b"a", b"b"),)
    decoder.decode(raw(b"c", b"d", first=0x40))
    assert decoder.decode(NEWEST).fields == ((b"c", b"d"),)
    decoder.decode(update(0))
    with pytest.raises(HpackError):
        decoder.decode(NEWEST)


def test_a_refused_block_that_changed_the_table_forgets_too() -> None:
    """Too large or not, the table has moved."""
    decoder = HeaderDecoder(max_list_size=100)
    decoder.decode(INDEXED)
    assert decoder.decode(NEWEST).fields == ((b"a", b"b"),)
    with pytest.raises(HeaderListTooLarge):
        decoder.decode(raw(b"c", b"d", first=0x40) + UNINDEXED * 3)
    assert decoder.decode(NEWEST).fields == ((b"c", b"d"),)


def test_a_block_that_indexes_is_decoded_each_time() -> None:
    """It changes the table each time."""
    decoder = HeaderDecoder()
    assert decoder.decode(INDEXED) is not decoder.decode(INDEXED)
    assert len(decoder._entries) == 2


def test_what_is_remembered_has_bounds() -> None:
    """Fresh blocks and strings without end: so many are kept, of so many octets, and no large one."""
    decoder = HeaderDecoder()
    for number in range(1000):
        text = huffman.encode(b"token-%d-" % number + b"x" * number * 4)
        coded = encode_integer(len(text), bits=7, first=0x80) + text
        decoder.decode(b"\x00\x01a" + coded)
        assert len(decoder._blocks) <= 64
        assert sum(len(block) + known.size for block, known in decoder._blocks.items()) <= decoder.max_list_size
        assert len(decoder._strings) <= 64
        assert sum(map(len, decoder._strings)) <= 8192
    assert decoder._blocks
    assert decoder._strings
    assert max(map(len, decoder._blocks)) <= 2048


def work(act: Callable[[], object]) -> int:
    """Return how many lines of the package run."""
    lines = 0

    def trace(frame: FrameType, event: str, _: object) -> Any:  # noqa: ANN401 - the type that settrace asks for
        nonlocal lines
        if "http2" not in frame.f_code.co_filename:
            return None
        lines += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        act()
    finally:
        sys.settrace(before)
    return lines


def decode_all(*blocks: bytes) -> None:
    decoder = HeaderDecoder(max_list_size=1 << 14)
    for block in blocks:
        try:
            decoder.decode(block)
        except (HpackError, HeaderListTooLarge):
            return


@pytest.mark.parametrize(
    "attack",
    [
        pytest.param(lambda n: [NEWEST * n], id="fields that are not there"),
        pytest.param(lambda n: [GET * n], id="one field again and again"),
        pytest.param(lambda n: [raw(b"n", b"v" * 4000, first=0x40), NEWEST * n], id="a large field again and again"),
        pytest.param(lambda n: [INDEXED * n], id="fields that drive out others"),
        pytest.param(lambda n: [INDEXED * 120 + raw(b"n", b"v" * 4060, first=0x40)] * (n // 400), id="all at once"),
        pytest.param(lambda n: [(update(0) + update(4096)) * n], id="size updates"),
        pytest.param(lambda n: [b"\x00" * n], id="empty fields"),
        pytest.param(lambda n: [b"\x00\x01a" + encode_integer(n, bits=7, first=0x80) + b"\x00" * n], id="Huffman"),
        pytest.param(lambda n: [b"\x00\x01a" + encode_integer(n, bits=7, first=0x80) + b"\xff" * n], id="long codes"),
        pytest.param(lambda n: [b"\xff" + b"\x80" * n], id="an integer without end"),
        pytest.param(lambda n: [b"\x04\x01%c" % (number % 256) for number in range(n)], id="fresh blocks"),
    ],
)
def test_the_work_is_linear_in_the_octets(attack: Callable[[int], list[bytes]]) -> None:
    """No block makes the decoder run more lines for an octet than a small number."""
    for length in (400, 4000):
        blocks = attack(length)
        decode_all(*blocks)  # fills the rows of Huffman's code
        assert work(partial(decode_all, *blocks)) < 500 + 40 * sum(map(len, blocks))
