import itertools
from collections.abc import AsyncGenerator

import pytest
from hypothesis import given as whatever
from hypothesis import settings
from hypothesis import strategies as st

from encryption.envelope import STREAM, UNSTRETCHED, Header, armor
from encryption.errors import DecryptionFailed, InvalidInput, UnknownKey
from encryption.keys import KeyId, Passphrase, Secret
from encryption.service import EncryptionService
from encryption.stream import CHUNK_MAX, SEGMENT_MAX, Opener, Sealer, segment_nonce
from tests.encryption.samples import (
    KEY_ID,
    KEYRING,
    PASSPHRASE,
    every_bit_flipped,
    flipped,
    given,
    joined,
    recut,
    taken_apart,
    until_refused,
    without_a_free_thread,
)

CHUNKS = (b"one", b"two!", b"three")
PREFIXES = [b"", b"one", b"onetwo!", b"onetwo!three"]


async def sealed(service: EncryptionService, *chunks: bytes, context: bytes = b"") -> bytes:
    return await joined(service.encrypt_stream(KEY_ID, given(*chunks), context))


async def opened(service: EncryptionService, stream: bytes, size: int = CHUNK_MAX) -> tuple[bytes, Exception | None]:
    return await until_refused(service.decrypt_stream(KEY_ID, recut(stream, size)))


async def is_refused(service: EncryptionService, stream: bytes, after: bytes) -> None:
    got, error = await opened(service, stream)
    assert got == after
    assert isinstance(error, DecryptionFailed)


@pytest.mark.parametrize("secret", [KEY_ID, PASSPHRASE], ids=["key id", "passphrase"])
async def test_what_encryption_gives_out_can_be_sent_to_decryption_as_it_is(
    service: EncryptionService, secret: Secret
) -> None:
    """No piece is empty or longer than a chunk may be, not even of the longest chunks."""
    chunks = [b"", b"x", b"y" * SEGMENT_MAX, b"z" * (SEGMENT_MAX + 1), b"", b"w" * CHUNK_MAX]
    pieces = [piece async for piece in service.encrypt_stream(secret, given(*chunks), b"context")]
    assert all(1 <= len(piece) <= CHUNK_MAX for piece in pieces)
    assert await joined(service.decrypt_stream(secret, given(*pieces), b"context")) == b"".join(chunks)


@pytest.mark.parametrize("chunks", [(), (b"",), (b"", b"", b"")], ids=len)
async def test_an_empty_stream_is_a_stream(service: EncryptionService, chunks: tuple[bytes, ...]) -> None:
    """It is a header and the last segment, and opens to nothing; a stream of nothing at all does not open."""
    stream = await sealed(service, *chunks)
    assert len(stream) == STREAM.layout.size + 2 + 16
    assert await opened(service, stream) == (b"", None)
    await is_refused(service, b"", after=b"")


@settings(max_examples=150, deadline=None)
@whatever(chunks=st.lists(st.binary(max_size=300), max_size=8), cuts=st.lists(st.integers(0, 3000), max_size=20))
async def test_a_stream_may_be_cut_anywhere_on_its_way(chunks: list[bytes], cuts: list[int]) -> None:
    """The receiver finds the segments by their lengths, whatever pieces they come in, empty ones included."""
    async with EncryptionService(KEYRING) as service:
        stream = await sealed(service, *chunks)
        borders = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
        pieces = [stream[start:end] for start, end in itertools.pairwise(borders)]
        assert await joined(service.decrypt_stream(KEY_ID, given(*pieces))) == b"".join(chunks)


@settings(max_examples=150, deadline=None)
@whatever(stream=st.binary(max_size=300), at=st.integers(0, 300), size=st.integers(1, 50))
async def test_whatever_is_written_into_a_stream_it_opens_to_the_truth_or_not_at_all(
    stream: bytes, at: int, size: int
) -> None:
    """What left before the refusal is a beginning of what was encrypted, made of whole segments."""
    async with EncryptionService(KEYRING) as service:
        real = await sealed(service, *CHUNKS)
        forged = real[:at] + stream + real[at:]
        got, error = await opened(service, forged, size)
        assert got in PREFIXES
        assert isinstance(error, DecryptionFailed) is (forged != real)


async def test_a_stream_that_was_cut_short_is_refused_at_its_end(service: EncryptionService) -> None:
    """At every byte, so at every border of segments too; what had come whole before has left already."""
    stream = await sealed(service, *CHUNKS)
    header, segments = taken_apart(stream)
    ends = list(itertools.accumulate((len(segment) for segment in segments), initial=len(header)))
    assert len(segments) == 4
    for end in range(len(stream)):
        whole = sum(border <= end for border in ends[1:])
        await is_refused(service, stream[:end], after=PREFIXES[whole])


async def test_every_flipped_bit_of_a_stream_is_noticed(service: EncryptionService) -> None:
    """Segments before the damage have left, the damaged one and those after it never do."""
    stream = await sealed(service, *CHUNKS)
    header, segments = taken_apart(stream)
    ends = list(itertools.accumulate((len(segment) for segment in segments), initial=len(header)))
    for bit, damaged in enumerate(every_bit_flipped(stream)):
        before = sum(border <= bit // 8 for border in ends[1:])
        await is_refused(service, damaged, after=PREFIXES[before])


async def test_segments_out_of_order_are_refused(service: EncryptionService) -> None:
    """Of all orders of three segments and the last one only the right one opens."""
    header, segments = taken_apart(await sealed(service, *CHUNKS))
    for order in itertools.permutations(segments):
        got, error = await opened(service, header + b"".join(order))
        assert got in PREFIXES
        assert (error is None) is (list(order) == segments)


async def test_a_segment_that_comes_twice_or_not_at_all_is_refused(service: EncryptionService) -> None:
    """Its number says where it belongs."""
    header, segments = taken_apart(await sealed(service, *CHUNKS))
    for at in range(len(segments)):
        before, this, rest = b"".join(segments[:at]), segments[at], b"".join(segments[at + 1 :])
        await is_refused(service, header + before + rest, after=PREFIXES[at])
        if at < 3:
            await is_refused(service, header + before + this + this + rest, after=PREFIXES[at + 1])


async def test_nothing_may_follow_the_last_segment(service: EncryptionService) -> None:
    """Not a byte, not the last segment again, not another stream; in the same chunk or in one of its own."""
    stream = await sealed(service, *CHUNKS)
    _, segments = taken_apart(stream)
    for addition in (b"\x00", segments[-1], segments[0], stream):
        await is_refused(service, stream + addition, after=PREFIXES[3])
        apart = service.decrypt_stream(KEY_ID, given(stream, b"", addition))
        got, error = await until_refused(apart)
        assert got == PREFIXES[3]
        assert isinstance(error, DecryptionFailed)
    assert await joined(service.decrypt_stream(KEY_ID, given(stream, b"", b""))) == PREFIXES[3]


async def test_segments_of_two_streams_do_not_mix(service: EncryptionService) -> None:
    """Each stream has a key of its own."""
    header, ours = taken_apart(await sealed(service, *CHUNKS))
    _, theirs = taken_apart(await sealed(service, *CHUNKS))
    for at in range(len(ours)):
        mixed = [*ours[:at], theirs[at], *ours[at + 1 :]]
        await is_refused(service, header + b"".join(mixed), after=PREFIXES[at])


async def test_an_empty_segment_that_is_not_the_last_is_nothing_we_make(service: EncryptionService) -> None:
    """One spelling per stream, and no endless stream of nothing: an empty segment can only be read as the last."""
    header = Header(suite=STREAM, kdf=UNSTRETCHED, salt=bytes(16), nonce=bytes(7), commitment=bytes(32))
    opener = Opener(bytes(32), header, b"")
    opener.feed(Sealer(bytes(32), header, b"").segment(b""))
    with pytest.raises(DecryptionFailed):
        opener.take()


async def test_all_refusals_of_a_stream_are_the_same_to_the_byte(service: EncryptionService) -> None:
    """As for envelopes, and the same as theirs."""
    stream = await sealed(service, *CHUNKS)
    by_passphrase = await joined(service.encrypt_stream(PASSPHRASE, given(*CHUNKS)))
    envelope = await service.encrypt(KEY_ID, "text" * 20)
    wrong: list[tuple[Secret, bytes, bytes]] = [
        (PASSPHRASE, stream, b""),
        (KEY_ID, by_passphrase, b""),
        (Passphrase("another passphrase"), by_passphrase, b""),
        (Passphrase("short"), by_passphrase, b""),
        (KeyId("old"), stream, b""),
        (KeyId("unknown"), stream, b""),
        (KEY_ID, stream, b"another context"),
        (KEY_ID, stream, b"x" * (64 * 1024 + 1)),
        (KEY_ID, envelope.encode(), b""),
        (KEY_ID, armor(stream).encode(), b""),
        (KEY_ID, stream[:-1], b""),
        (KEY_ID, stream + b"\x00", b""),
        (KEY_ID, stream[: STREAM.layout.size] + b"\xff\xff", b""),
        (KEY_ID, stream[: STREAM.layout.size] + b"\x00\x0f", b""),
        (KEY_ID, b"\x00" * (CHUNK_MAX + 1), b""),
    ]
    for secret, data, context in wrong:
        _, error = await until_refused(service.decrypt_stream(secret, given(data), context))
        assert repr(error) == "DecryptionFailed('decryption failed')"
        assert error is not None
        assert error.__cause__ is error.__context__ is None


async def test_a_forged_kdf_in_a_stream_is_refused_before_any_stretching() -> None:
    """As for envelopes."""
    async with EncryptionService(KEYRING, kdf_threads=1, kdf_queue=0) as service:
        stream = await joined(service.encrypt_stream(PASSPHRASE, given(*CHUNKS)))
        async with without_a_free_thread(service):
            for bit in range(12 * 8):
                _, error = await until_refused(service.decrypt_stream(PASSPHRASE, given(flipped(stream, bit))))
                assert isinstance(error, DecryptionFailed)


async def test_chunks_that_break_a_rule_are_refused_by_name(service: EncryptionService) -> None:
    """What came before has left, and the stream is never ended: nobody can take it for a whole one."""
    got, error = await until_refused(service.encrypt_stream(KEY_ID, given(b"good", b"x" * (CHUNK_MAX + 1))))
    assert isinstance(error, InvalidInput)
    assert str(error) == "chunk is longer than 65536 bytes"
    await is_refused(service, got, after=b"good")
    _, error = await until_refused(service.encrypt_stream(KEY_ID, given(), b"x" * (64 * 1024 + 1)))
    assert isinstance(error, InvalidInput)
    _, error = await until_refused(service.encrypt_stream(KeyId("old"), given()))
    assert isinstance(error, UnknownKey)


async def test_every_chunk_leaves_before_the_next_is_asked_for(service: EncryptionService) -> None:
    """A conversation works: nothing is held back in either direction, from the header on."""
    asked: list[int] = []

    async def source() -> AsyncGenerator[bytes, None]:
        for number, chunk in enumerate(CHUNKS):
            asked.append(number)
            yield chunk

    there = service.encrypt_stream(KEY_ID, source())
    assert len(await anext(there)) == STREAM.layout.size
    assert asked == []
    back = service.decrypt_stream(KEY_ID, service.encrypt_stream(KEY_ID, source()))
    for number, chunk in enumerate(CHUNKS):
        assert await anext(back) == chunk
        assert asked == list(range(number + 1))
    assert [chunk async for chunk in back] == []
    await there.aclose()


async def test_an_error_of_the_source_passes_as_it_is(service: EncryptionService) -> None:
    """It is no refusal: whoever reads both ends must see which of them broke."""

    async def broken() -> AsyncGenerator[bytes, None]:
        yield b"x" * 10
        raise InvalidInput("the source's own")

    for stream in (service.encrypt_stream(KEY_ID, broken()), service.decrypt_stream(KEY_ID, broken())):
        _, error = await until_refused(stream)
        assert str(error) == "the source's own"


async def test_the_receiver_holds_no_more_than_one_unfinished_segment() -> None:
    """However long the stream: what was opened is let go."""
    header = Header(suite=STREAM, kdf=UNSTRETCHED, salt=bytes(16), nonce=bytes(7), commitment=bytes(32))
    sealer, opener = Sealer(bytes(32), header, b""), Opener(bytes(32), header, b"")
    stream = b"".join(sealer.segment(b"x" * SEGMENT_MAX) for _ in range(20)) + sealer.last()
    taken = 0
    for start in range(0, len(stream), 40_000):
        opener.feed(stream[start : start + 40_000])
        while (plaintext := opener.take()) is not None:
            taken += len(plaintext)
        assert len(opener._buffer) < CHUNK_MAX
    opener.end()
    assert taken == 20 * SEGMENT_MAX


async def test_no_number_is_used_twice() -> None:
    """The sealer keeps the highest number for the last segment; the opener does not count past it either."""
    header = Header(suite=STREAM, kdf=UNSTRETCHED, salt=bytes(16), nonce=bytes(7), commitment=bytes(32))
    sealer, opener = Sealer(bytes(32), header, b""), Opener(bytes(32), header, b"")
    sealer._number = opener._number = 2**32 - 2
    opener.feed(sealer.segment(b"x"))
    with pytest.raises(InvalidInput):
        sealer.segment(b"x")
    opener.feed(sealer.last())
    assert opener.take() == b"x"
    assert opener.take() is None
    opener.end()
    beyond = Opener(bytes(32), header, b"")
    beyond._number = 2**32
    beyond.feed(b"\x00\x11" + bytes(17))
    with pytest.raises(DecryptionFailed):
        beyond.take()


def test_a_nonce_is_prefix_number_and_mark() -> None:
    """Twelve bytes, as AES-GCM wants them."""
    assert segment_nonce(b"prefix.", 258, last=False) == b"prefix.\x00\x00\x01\x02\x00"
    assert segment_nonce(b"prefix.", 258, last=True) == b"prefix.\x00\x00\x01\x02\x01"
