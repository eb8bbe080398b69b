"""Envelopes and streams that were made once and must open for ever: never edit one, only add."""

import struct

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from encryption.envelope import armor, dearmor
from encryption.keys import KeyId, Keyring, Passphrase, Secret
from encryption.service import EncryptionService
from tests.encryption.samples import given, joined, recut

GOLDEN_KEYRING = Keyring(keys={"golden": bytes(range(32))})
GOLDEN_ID = KeyId("golden")
GOLDEN_PASSPHRASE = Passphrase("correct horse battery staple")
CONTEXT = b"golden context"
TEXT = "Grüße, 世界"
CHUNKS = (b"first", b"", b"second chunk")

V1_PASSPHRASE = (
    "enc_AQEBAABMAAIBAQIDBAUGBwgJCgsMDQ4PEAECAwQFBgcICQoLDGfZX0YMvWLLgiBJxm6EfE1ITiMtv1fxqtUQOeYjr2a6"
    "HoIoOIB05o3li9m475d6pC7BvIXkY3wpDKye1lVvJA"
)
V1_KEY_ID = (
    "enc_AQECAAAAAAAAAQIDBAUGBwgJCgsMDQ4PEAECAwQFBgcICQoLDGWizkjNAzDz1rTfanPCIpMdDSEmDSeWY7F_k9DUtcqt"
    "UrmlVNiF8xnfprgn6qkK81vprYZorAdPavzpH1LL5A"
)
V1_STREAM_PASSPHRASE = (
    "7a773f01020100004c0002010102030405060708090a0b0c0d0e0f1001020304050607bf884f697f23f7bbf825f1ddeeb8d0"
    "b86af6c4d21d38a90762b5dc6fc6f6eabf00151909facd6e649ea289545f437c052d588224677128001c485ff3413d41f5dc"
    "1d259d49ffb1269faa79273662dd366d9c7776a30010a5f4ba6cb898ae43040030ca8f929503"
)
V1_STREAM_KEY_ID = (
    "7a773f0102020000000000000102030405060708090a0b0c0d0e0f1001020304050607216419a0e627dbdca2694d416f191c"
    "e65b7cdbba5fa479935e2a3d5419af791b001543635356bb8a306d700ec4e9997abdc0dea754d46e001ca8b951b31a7b4181"
    "7ae72d1eb033077cf17b0847eab40372a5f0dc4b001054a00596388e044016ae3226d142cd11"
)

ENVELOPES = [
    pytest.param(GOLDEN_PASSPHRASE, V1_PASSPHRASE, id="v1 passphrase"),
    pytest.param(GOLDEN_ID, V1_KEY_ID, id="v1 key id"),
]
STREAMS = [
    pytest.param(GOLDEN_PASSPHRASE, V1_STREAM_PASSPHRASE, id="v1 passphrase"),
    pytest.param(GOLDEN_ID, V1_STREAM_KEY_ID, id="v1 key id"),
]


def counting(size: int) -> bytes:
    """The randomness that the golden envelopes were made with."""
    return bytes(range(1, size + 1))


@pytest.mark.parametrize(("secret", "envelope"), ENVELOPES)
async def test_an_old_envelope_opens_and_is_still_made_byte_for_byte(secret: Secret, envelope: str) -> None:
    """The format is a promise: what was encrypted stays readable, and version 1 never changes under its number."""
    async with EncryptionService(GOLDEN_KEYRING, random=counting) as service:
        assert await service.decrypt(secret, envelope, CONTEXT) == TEXT
        assert await service.encrypt(secret, TEXT, CONTEXT) == envelope


@pytest.mark.parametrize(("secret", "stream"), STREAMS)
async def test_an_old_stream_opens_and_is_still_made_byte_for_byte(secret: Secret, stream: str) -> None:
    """As for envelopes."""
    sealed = bytes.fromhex(stream)
    async with EncryptionService(GOLDEN_KEYRING, random=counting) as service:
        assert await joined(service.decrypt_stream(secret, recut(sealed, 10), CONTEXT)) == b"".join(CHUNKS)
        assert await joined(service.encrypt_stream(secret, given(*CHUNKS), CONTEXT)) == sealed


def _root(spec: bytes, salt: bytes) -> tuple[bytes, bytes]:
    code, memory, passes, lanes = struct.unpack(">BIBB", spec)
    if code == 2:
        return bytes(range(32)), b"golden"
    stretch = Argon2id(salt=salt, length=32, iterations=passes, lanes=lanes, memory_cost=memory)
    return stretch.derive(GOLDEN_PASSPHRASE.value.encode()), b""


def _opened_by_hand(data: bytes, nonce_size: int) -> tuple[AESGCM, bytes, bytes, bytes]:
    """The cipher, the nonce, what is bound and the rest, from the format's description and the bare primitives alone."""
    size = 28 + nonce_size + 32
    header, rest = data[:size], data[size:]
    magic, version, suite, spec, salt = struct.unpack_from(">3sBB7s16s", header)
    assert (magic, version) == (b"\x7a\x77\x3f", 1)
    root, key_id = _root(spec, salt)
    info = b"encryption.v1 message keys" + bytes([suite]) + spec + key_id
    keys = HKDF(algorithm=hashes.SHA256(), length=64, salt=salt, info=info).derive(root)
    assert header[-32:] == keys[32:]
    bound = struct.pack(">I", size) + header + struct.pack(">I", len(CONTEXT)) + CONTEXT
    return AESGCM(keys[:32]), header[28 : 28 + nonce_size], bound, rest


@pytest.mark.parametrize("envelope", [V1_PASSPHRASE, V1_KEY_ID])
def test_an_envelope_opens_from_its_description_alone(envelope: str) -> None:
    """The documented format is the whole truth: another program needs nothing of ours to read an envelope."""
    cipher, nonce, bound, sealed = _opened_by_hand(dearmor(envelope), 12)
    assert cipher.decrypt(nonce, sealed, bound).decode() == TEXT


@pytest.mark.parametrize("stream", [V1_STREAM_PASSPHRASE, V1_STREAM_KEY_ID])
def test_a_stream_opens_from_its_description_alone(stream: str) -> None:
    """Segment i has the nonce prefix | i | last; each chunk that is not empty is one, and an empty one ends the stream."""
    cipher, prefix, bound, rest = _opened_by_hand(bytes.fromhex(stream), 7)
    plaintexts = []
    for number, last in enumerate((0, 0, 1)):
        (length,) = struct.unpack_from(">H", rest)
        sealed, rest = rest[2 : 2 + length], rest[2 + length :]
        plaintexts.append(cipher.decrypt(prefix + struct.pack(">IB", number, last), sealed, bound))
    assert plaintexts == [b"first", b"second chunk", b""]
    assert not rest


def test_an_envelope_can_be_told_by_its_first_characters() -> None:
    """Every version begins with `enc_`, for people and for scanners."""
    assert armor(dearmor("enc_AAAA")) == "enc_AAAA"
    assert V1_KEY_ID.startswith("enc_")
