"""The examples of RFC 7541, appendix C, decoded and, where they are what our encoder would do too, encoded."""

from __future__ import annotations

import pytest

from servicekit.http2 import huffman
from servicekit.http2.hpack_decoder import HeaderDecoder
from servicekit.http2.hpack_integers import decode_rest, encode_integer
from servicekit.http2.hpack_static import Field

CUSTOM = (b"custom-key", b"custom-header")


@pytest.mark.parametrize(
    ("value", "bits", "octets"),
    [(10, 5, "0a"), (1337, 5, "1f9a0a"), (42, 8, "2a")],
    ids=["C.1.1", "C.1.2", "C.1.3"],
)
def test_integers(value: int, bits: int, octets: str) -> None:
    """C.1: an integer stands in its prefix, or goes on behind it by sevens."""
    encoded = bytes.fromhex(octets)
    assert encode_integer(value, bits=bits, first=0) == encoded
    if len(encoded) > 1:
        assert decode_rest(encoded, 1, (1 << bits) - 1) == (value, len(encoded))


@pytest.mark.parametrize(
    ("octets", "field", "table"),
    [
        ("400a637573746f6d2d6b65790d637573746f6d2d686561646572", CUSTOM, [CUSTOM]),
        ("040c2f73616d706c652f70617468", (b":path", b"/sample/path"), []),
        ("100870617373776f726406736563726574", (b"password", b"secret"), []),
        ("82", (b":method", b"GET"), []),
    ],
    ids=["C.2.1", "C.2.2", "C.2.3", "C.2.4"],
)
def test_representations(octets: str, field: Field, table: list[Field]) -> None:
    """C.2: each representation gives its field, and only a literal with indexing leaves it in the table."""
    decoder = HeaderDecoder()
    assert decoder.decode(bytes.fromhex(octets)).fields == (field,)
    assert [entry for entry, _ in decoder._entries] == table


GET = ((b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/"), (b":authority", b"www.example.com"))
NO_CACHE = (b"cache-control", b"no-cache")
KEY = (b"custom-key", b"custom-value")
REQUESTS = [
    GET,
    (*GET, NO_CACHE),
    (
        (b":method", b"GET"),
        (b":scheme", b"https"),
        (b":path", b"/index.html"),
        (b":authority", b"www.example.com"),
        KEY,
    ),
]
FIRST_DATE = (b"date", b"Mon, 21 Oct 2013 20:13:21 GMT")
LAST_DATE = (b"date", b"Mon, 21 Oct 2013 20:13:22 GMT")
PRIVATE = (b"cache-control", b"private")
LOCATION = (b"location", b"https://www.example.com")
COOKIE = (b"set-cookie", b"foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1")
RESPONSES = [
    ((b":status", b"302"), PRIVATE, FIRST_DATE, LOCATION),
    ((b":status", b"307"), PRIVATE, FIRST_DATE, LOCATION),
    ((b":status", b"200"), PRIVATE, LAST_DATE, LOCATION, (b"content-encoding", b"gzip"), COOKIE),
]
AUTHORITY = (b":authority", b"www.example.com")
REQUEST_TABLES = [([AUTHORITY], 57), ([AUTHORITY, NO_CACHE], 110), ([AUTHORITY, NO_CACHE, KEY], 164)]
RESPONSE_TABLES = [
    ([(b":status", b"302"), PRIVATE, FIRST_DATE, LOCATION], 222),
    ([PRIVATE, FIRST_DATE, LOCATION, (b":status", b"307")], 222),
    ([LAST_DATE, (b"content-encoding", b"gzip"), COOKIE], 215),
]


@pytest.mark.parametrize(
    ("size", "blocks", "lists", "tables"),
    [
        pytest.param(
            4096,
            [
                "828684410f7777772e6578616d706c652e636f6d",
                "828684be58086e6f2d6361636865",
                "828785bf400a637573746f6d2d6b65790c637573746f6d2d76616c7565",
            ],
            REQUESTS,
            REQUEST_TABLES,
            id="C.3",
        ),
        pytest.param(
            4096,
            [
                "828684418cf1e3c2e5f23a6ba0ab90f4ff",
                "828684be5886a8eb10649cbf",
                "828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf",
            ],
            REQUESTS,
            REQUEST_TABLES,
            id="C.4",
        ),
        pytest.param(
            256,
            [
                (
                    "4803333032580770726976617465611d4d6f6e2c203231204f637420323031332032303a31333a323120474d54"
                    "6e1768747470733a2f2f7777772e6578616d706c652e636f6d"
                ),
                "4803333037c1c0bf",
                (
                    "88c1611d4d6f6e2c203231204f637420323031332032303a31333a323220474d54c05a04677a69707738666f6f3d"
                    "4153444a4b48514b425a584f5157454f50495541585157454f49553b206d61782d6167653d333630303b207665"
                    "7273696f6e3d31"
                ),
            ],
            RESPONSES,
            RESPONSE_TABLES,
            id="C.5",
        ),
        pytest.param(
            256,
            [
                "488264025885aec3771a4b6196d07abe941054d444a8200595040b8166e082a62d1bff6e919d29ad171863c78f0b97c8e9ae82ae43d3",
                "4883640effc1c0bf",
                (
                    "88c16196d07abe941054d444a8200595040b8166e084a62d1bffc05a839bd9ab77ad94e7821dd7f2e6c7b335dfdfcd5b3960d5af27087f"
                    "3672c1ab270fb5291f9587316065c003ed4ee5b1063d5007"
                ),
            ],
            RESPONSES,
            RESPONSE_TABLES,
            id="C.6",
        ),
    ],
)
def test_conversations(
    size: int,
    blocks: list[str],
    lists: list[tuple[Field, ...]],
    tables: list[tuple[list[Field], int]],
) -> None:
    """C.3 to C.6: three blocks on one connection, with and without Huffman's code, with and without eviction."""
    decoder = HeaderDecoder(max_table_size=size)
    for block, fields, (table, used) in zip(blocks, lists, tables, strict=True):
        assert decoder.decode(bytes.fromhex(block)).fields == fields
        assert [entry for entry, _ in decoder._entries] == table
        assert decoder._used == used


@pytest.mark.parametrize(
    ("text", "octets"),
    [
        (b"www.example.com", "f1e3c2e5f23a6ba0ab90f4ff"),
        (b"no-cache", "a8eb10649cbf"),
        (b"custom-value", "25a849e95bb8e8b4bf"),
        (b"Mon, 21 Oct 2013 20:13:21 GMT", "d07abe941054d444a8200595040b8166e082a62d1bff"),
        (
            b"foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1",
            "94e7821dd7f2e6c7b335dfdfcd5b3960d5af27087f3672c1ab270fb5291f9587316065c003ed4ee5b1063d5007",
        ),
    ],
)
def test_strings(text: bytes, octets: str) -> None:
    """The Huffman strings of C.4 and C.6, both ways."""
    assert huffman.encode(text) == bytes.fromhex(octets)
    assert huffman.decode(bytes.fromhex(octets)) == text
