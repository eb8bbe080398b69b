from __future__ import annotations

import gzip
import itertools
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servicekit.errors import Code, Error
from servicekit.native.codings import compressed, decompressed
from servicekit.native.messages import Messages, framed, framed_compressed

LIMIT = 1000
GZIPPED = gzip.compress(b"abc", mtime=0)
BODIES = st.lists(st.binary(max_size=50), max_size=8)


def fed(messages: Messages, *parts: bytes) -> list[bytes]:
    return [message for part in parts for message in messages.feed(part)]


@given(BODIES, st.lists(st.integers(min_value=0, max_value=400), max_size=12))
def test_however_the_bytes_are_cut_the_messages_are_the_same(bodies: list[bytes], cuts: list[int]) -> None:
    """Messages do not depend on how their bytes were split into frames, and nothing is held after the last."""
    stream = b"".join(framed(body) for body in bodies)
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    messages = Messages(LIMIT, "identity")
    parts = [stream[start:end] for start, end in itertools.pairwise(edges)]
    assert fed(messages, *parts) == bodies
    assert messages.held == 0


@pytest.mark.parametrize("end", range(1, 14))
def test_what_is_not_whole_is_held(end: int) -> None:
    """``held`` counts the bytes of a message that was cut off, wherever that happened."""
    messages = Messages(LIMIT, "identity")
    assert fed(messages, *(framed(b"123456789")[index : index + 1] for index in range(end))) == []
    assert messages.held == end


def test_a_length_above_the_limit_is_refused_before_the_message_came() -> None:
    """RESOURCE_EXHAUSTED when only the prefix is there, so nobody can make this end hold more than the limit."""
    with pytest.raises(Error) as caught:
        Messages(LIMIT, "identity").feed(b"\0" + (LIMIT + 1).to_bytes(4, "big"))
    assert caught.value.code is Code.RESOURCE_EXHAUSTED
    assert fed(Messages(LIMIT, "identity"), framed(bytes(LIMIT))) == [bytes(LIMIT)]


def test_an_unknown_flag_is_refused() -> None:
    """Flags other than "compressed" mean nothing: INTERNAL."""
    with pytest.raises(Error) as caught:
        Messages(LIMIT, "identity").feed(b"\2\0\0\0\0")
    assert caught.value.code is Code.INTERNAL


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_messages_are_compressed_one_by_one(encoding: str) -> None:
    """Compressed and plain messages may alternate within one stream."""
    messages = Messages(LIMIT, encoding)
    stream = (
        framed_compressed(compressed(b"a" * 900, encoding))
        + framed(b"b")
        + framed_compressed(compressed(b"", encoding))
    )
    assert fed(messages, stream) == [b"a" * 900, b"b", b""]


def test_the_formats_are_those_of_the_standard_library() -> None:
    """``gzip`` is RFC 1952 and ``deflate`` is RFC 1950, as the HTTP registry has them."""
    assert gzip.decompress(compressed(b"abc", "gzip")) == b"abc"
    assert zlib.decompress(compressed(b"abc", "deflate")) == b"abc"
    assert decompressed(gzip.compress(b"abc"), "gzip", LIMIT) == b"abc"


def test_a_bomb_is_not_unpacked() -> None:
    """What would be more than the limit when decompressed is refused, and one of exactly the limit is not."""
    with pytest.raises(Error) as caught:
        decompressed(gzip.compress(bytes(LIMIT + 1)), "gzip", LIMIT)
    assert caught.value.code is Code.RESOURCE_EXHAUSTED
    assert decompressed(gzip.compress(bytes(LIMIT)), "gzip", LIMIT) == bytes(LIMIT)


@pytest.mark.parametrize(
    ("data", "encoding"),
    [
        (b"no gzip at all", "gzip"),
        (GZIPPED[:-3], "gzip"),
        (GZIPPED + b"more", "gzip"),
        (GZIPPED, "deflate"),
        (b"anything", "identity"),
    ],
)
def test_what_is_not_of_its_encoding_is_refused(data: bytes, encoding: str) -> None:
    """INTERNAL, also for a compressed message of a call that names no encoding."""
    with pytest.raises(Error) as caught:
        decompressed(data, encoding, LIMIT)
    assert caught.value.code is Code.INTERNAL
