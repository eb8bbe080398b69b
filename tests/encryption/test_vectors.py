"""The primitives, as we call them, against published values."""

import pytest
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from encryption.cipher import seal, unseal
from encryption.envelope import Kdf
from encryption.keys import argon2id, hkdf


def test_our_cipher_is_aes_256_gcm() -> None:
    """Test case 16 of McGrew and Viega, The Galois/Counter Mode of Operation, as submitted to NIST."""
    key = bytes.fromhex("feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308")
    nonce = bytes.fromhex("cafebabefacedbaddecaf888")
    bound = bytes.fromhex("feedfacedeadbeeffeedfacedeadbeefabaddad2")
    plaintext = bytes.fromhex(
        "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72"
        "1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39"
    )
    sealed = bytes.fromhex(
        "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa"
        "8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662"
        "76fc6ece0f4e1768cddf8853bb2d551b"
    )
    assert seal(key, nonce, plaintext, bound) == sealed
    assert unseal(key, nonce, sealed, bound) == plaintext


@pytest.mark.parametrize(
    ("root", "salt", "info", "output"),
    [
        pytest.param(
            "0b" * 22,
            "000102030405060708090a0b0c",
            "f0f1f2f3f4f5f6f7f8f9",
            "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865",
            id="A.1",
        ),
        pytest.param(
            bytes(range(0x50)).hex(),
            bytes(range(0x60, 0xB0)).hex(),
            bytes(range(0xB0, 0x100)).hex(),
            "b11e398dc80327a1c8e7f78c596a49344f012eda2d4efad8a050cc4c19afa97c59045a99cac7827271cb41c65e590e09"
            "da3275600c2f09b8367793a9aca3db71cc30c58179ec3e87c14c01d5c1f3434f1d87",
            id="A.2",
        ),
        pytest.param(
            "0b" * 22,
            "",
            "",
            "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8",
            id="A.3",
        ),
    ],
)
def test_our_hkdf_is_the_one_of_rfc_5869(root: str, salt: str, info: str, output: str) -> None:
    """RFC 5869, appendix A: the test cases with SHA-256."""
    expected = bytes.fromhex(output)
    assert hkdf(bytes.fromhex(root), bytes.fromhex(salt), bytes.fromhex(info), len(expected)) == expected


@pytest.mark.parametrize(
    ("memory", "output"),
    [
        (256, "9dfeb910e80bad0311fee20f9c0e2b12c17987b4cac90c2ef54d5b3021c68bfe"),
        (65536, "09316115d5cf24ed5a15a31a3ba326e5cf32edc24702987c02b6566f61913cf7"),
    ],
)
def test_our_argon2id_is_the_reference_implementations(memory: int, output: str) -> None:
    """Two passes, one lane, version 0x13: from the test suite of the reference implementation, phc-winner-argon2."""
    kdf = Kdf(code=1, memory=memory, passes=2, lanes=1)
    assert argon2id(b"password", b"somesalt", kdf).hex() == output


def test_the_argon2id_below_ours_is_the_one_of_rfc_9106() -> None:
    """RFC 9106, section 5.3; through the library itself, because we use neither of the vector's extra inputs."""
    primitive = Argon2id(
        salt=b"\x02" * 16, length=32, iterations=3, lanes=4, memory_cost=32, ad=b"\x04" * 12, secret=b"\x03" * 8
    )
    expected = "0d640df58d78766c08c037a34a8b53c9d01ef0452d75b65eb52520e96b01e659"
    assert primitive.derive(b"\x01" * 32).hex() == expected
