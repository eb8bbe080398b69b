"""Our HPACK against that of the hpack package, both ways, and against whatever else can arrive."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import TypeAlias

import hpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from servicekit.http2.hpack_decoder import HeaderDecoder
from servicekit.http2.hpack_encoder import SENSITIVE, HeaderEncoder, encode_stateless
from servicekit.http2.hpack_errors import HeaderListTooLarge, HpackError
from servicekit.http2.hpack_static import STATIC_TABLE, Field

Fields: TypeAlias = tuple[Field, ...]

NAMES = [*{name for name, _ in STATIC_TABLE}, b"traceparent", b"x-request-id", b"grpc-timeout", b"a-bin", b""]
names = st.sampled_from(sorted(NAMES)) | st.binary(max_size=40)
values = st.sampled_from([b"", b"0", b"/a.Service/Method", b"v" * 300]) | st.binary(max_size=60)
lists = st.lists(st.sampled_from(STATIC_TABLE) | st.tuples(names, values), max_size=12).map(tuple)
sizes = st.sampled_from([0, 31, 100, 200, 1000, 4096, 8192]) | st.integers(0, 8192)
conversations = st.lists(st.tuples(st.lists(sizes, max_size=3) | st.just([]), lists), max_size=15)
"""What happens on one connection: changes of the table's size, and then a header list, again and again."""


def plain(headers: Iterable[hpack.HeaderTuple]) -> Fields:
    """Return what the oracle decoded as ours says it."""
    return tuple((bytes(header[0]), bytes(header[1])) for header in headers)


def oracle_decoder() -> hpack.Decoder:
    return hpack.Decoder(max_header_list_size=1 << 20)


@given(conversations)
def test_the_oracle_reads_what_we_write(conversation: list[tuple[list[int], Fields]]) -> None:
    """Through evictions and changes of size, and so do we."""
    encoder, oracle, own = HeaderEncoder(max_table_size=8192), oracle_decoder(), HeaderDecoder()
    for changes, fields in conversation:
        for size in changes:
            encoder.resize(size)
            oracle.max_allowed_table_size = own.max_table_size = size
        block = encoder.encode(fields)
        assert plain(oracle.decode(block, raw=True)) == fields
        assert own.decode(block).fields == fields
        stateless = encode_stateless(fields)
        assert plain(oracle.decode(stateless, raw=True)) == fields
        assert own.decode(stateless).fields == fields


@given(conversations, st.booleans())
def test_we_read_what_the_oracle_writes(
    conversation: list[tuple[list[int], Fields]],
    coded: bool,  # noqa: FBT001 - hypothesis draws it
) -> None:
    """With Huffman's code and without; a block that comes again is the same."""
    oracle, own = hpack.Encoder(), HeaderDecoder()
    for changes, fields in conversation:
        for size in changes[-1:]:  # of several, the oracle wrongly tells those over the last too
            oracle.header_table_size = own.max_table_size = size
        for _ in range(3):
            headers = [
                hpack.NeverIndexedHeaderTuple(*field) if field[0] in SENSITIVE else hpack.HeaderTuple(*field)
                for field in fields
            ]
            block = own.decode(oracle.encode(headers, huffman=coded))
            assert block.fields == fields
            assert block.size == sum(len(name) + len(value) + 32 for name, value in fields)


def arrivals(chance: random.Random) -> list[bytes]:
    """Return the blocks of one connection: honest ones, of which some are bent, and noise."""
    encoder = hpack.Encoder()
    blocks = []
    for _ in range(chance.randrange(1, 6)):
        if chance.random() < 0.2:
            blocks.append(chance.randbytes(chance.randrange(40)))
            continue
        fields = [
            chance.choice(STATIC_TABLE)
            if chance.random() < 0.4
            else (chance.choice(NAMES), chance.randbytes(chance.randrange(20)))
            for _ in range(chance.randrange(8))
        ]
        if chance.random() < 0.1:
            encoder.header_table_size = chance.choice([0, 100, 4096])
        block = bytearray(encoder.encode(fields, huffman=chance.random() < 0.7))
        for _ in range(chance.choice([0, 0, 1, 3])):
            if block:
                at = chance.randrange(len(block))
                match chance.randrange(4):
                    case 0:
                        block[at] ^= 1 << chance.randrange(8)
                    case 1:
                        block[at] = chance.randrange(256)
                    case 2:
                        del block[at : at + chance.randrange(1, 4)]
                    case _:
                        block[at:at] = chance.randbytes(chance.randrange(1, 4))
        blocks.append(bytes(block))
    return blocks


def both_decode(blocks: list[bytes]) -> int:
    """Feed both decoders until one refuses; return how many blocks both took."""
    own, oracle = HeaderDecoder(), oracle_decoder()
    for number, block in enumerate(blocks):
        try:
            fields = own.decode(block).fields
        except (HpackError, HeaderListTooLarge):
            return number
        try:
            expected = plain(oracle.decode(block, raw=True))
        except hpack.HPACKError:
            return number
        assert fields == expected, block.hex()
        assert own._used == oracle.header_table._current_size, block.hex()
    return len(blocks)


@pytest.mark.parametrize(
    "inputs",
    [pytest.param(5_000, id="some"), pytest.param(50_000, id="many", marks=pytest.mark.fuzz)],
)
def test_whatever_arrives_is_decoded_alike_or_refused(inputs: int) -> None:
    """Bent blocks and noise raise nothing but our two errors, and where both decoders take them they agree."""
    chance = random.Random(7541)
    sent = taken = 0
    while sent < inputs:
        blocks = arrivals(chance)
        sent += len(blocks)
        taken += both_decode(blocks)
    assert sent // 4 < taken < sent
