import asyncio
import random

import pytest

from encryption import cipher
from encryption.envelope import ARGON2ID, MESSAGE, UNSTRETCHED, Header, Kdf, armor, bound, dearmor
from encryption.errors import DecryptionFailed, EncryptionError, InvalidInput, UnknownKey
from encryption.keys import KeyId, Keyring, Passphrase, Secret, message_keys
from encryption.service import ENVELOPE_MAX, EncryptionService
from tests.encryption.samples import (
    KEY_ID,
    KEYRING,
    OLDER_KEYRING,
    PASSPHRASE,
    every_bit_flipped,
    flipped,
    given,
    joined,
    without_a_free_thread,
)

MIB = 1024 * 1024
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


async def refusal(service: EncryptionService, secret: Secret, envelope: str, context: bytes = b"") -> DecryptionFailed:
    with pytest.raises(DecryptionFailed) as caught:
        await service.decrypt(secret, envelope, context)
    return caught.value


async def test_ten_thousand_texts_come_back_through_a_key_id(service: EncryptionService) -> None:
    """Whatever was encrypted, of any length and script and with any context, is decrypted; no two envelopes are alike."""
    dice = random.Random(1)
    alphabet = "abc é世\U0001f510\x00\n"
    envelopes = set()
    for _ in range(10_000):
        text = "".join(dice.choices(alphabet, k=dice.randrange(50)))
        context = dice.randbytes(dice.randrange(20))
        envelope = await service.encrypt(KEY_ID, text, context)
        envelopes.add(envelope)
        assert await service.decrypt(KEY_ID, envelope, context) == text
    assert len(envelopes) == 10_000


async def test_fifty_texts_come_back_through_a_passphrase(service: EncryptionService) -> None:
    """As with a key id, many at a time, each with a passphrase of its own."""

    async def there_and_back(number: int) -> bool:
        secret, text = Passphrase(f"passphrase {number}"), f"text {number}"
        return await service.decrypt(secret, await service.encrypt(secret, text, b"c"), b"c") == text

    assert all(await asyncio.gather(*(there_and_back(number) for number in range(50))))


async def test_a_passphrase_may_be_composed_differently_at_each_end(service: EncryptionService) -> None:
    """Encrypted with composed umlauts, decrypted with combining ones."""
    envelope = await service.encrypt(Passphrase("Äpfel und Öl"), "text")
    assert await service.decrypt(Passphrase("A\u0308pfel und O\u0308l"), envelope) == "text"


@pytest.mark.parametrize("text", ["", "x" * MIB, "é" * (MIB // 2), "\U0001f510" * (MIB // 4)], ids=len)
async def test_a_text_of_up_to_1_mib_comes_back(service: EncryptionService, text: str) -> None:
    """The empty one too; the limit counts bytes of UTF-8."""
    envelope = await service.encrypt(KEY_ID, text)
    assert len(envelope) <= ENVELOPE_MAX
    assert await service.decrypt(KEY_ID, envelope) == text


async def test_large_texts_leave_the_loop_free(service: EncryptionService) -> None:
    """Above 64 KiB the work is done in a thread: others get their turn; below, it is done before anyone could."""
    turns: list[str] = []
    asyncio.get_running_loop().call_soon(turns.append, "another's")
    await service.decrypt(KEY_ID, await service.encrypt(KEY_ID, "x" * 40_000))
    assert turns == []
    envelope = await service.encrypt(KEY_ID, "x" * (64 * 1024 + 1))
    assert turns == ["another's"]
    asyncio.get_running_loop().call_soon(turns.append, "another's")
    await service.decrypt(KEY_ID, envelope)
    assert turns == ["another's"] * 2


@pytest.mark.parametrize(
    ("text", "context", "said"),
    [
        ("x" * (MIB + 1), b"", "text is longer than 1048576 bytes of UTF-8"),
        ("é" * (MIB // 2) + "x", b"", "text is longer than 1048576 bytes of UTF-8"),
        ("lone \ud800 surrogate", b"", "text is not valid Unicode: it has a lone surrogate"),
        ("text", b"x" * (64 * 1024 + 1), "context is longer than 65536 bytes"),
    ],
    ids=["characters", "bytes", "surrogate", "context"],
)
async def test_input_that_breaks_a_rule_is_refused_by_its_name_and_not_shown(
    service: EncryptionService, text: str, context: bytes, said: str
) -> None:
    """The message is the field and the rule, and no exception stands behind it that holds the value."""
    with pytest.raises(InvalidInput) as caught:
        await service.encrypt(KEY_ID, text, context)
    assert str(caught.value) == said
    assert caught.value.__cause__ is caught.value.__context__ is None


async def test_encrypting_with_a_key_that_is_not_the_primary_is_refused(service: EncryptionService) -> None:
    """Unknown and rotated out look the same, and a service without a keyring knows none."""
    async with EncryptionService() as bare:
        for where, secret in ((service, KeyId("unknown")), (service, KeyId("old")), (bare, KEY_ID)):
            with pytest.raises(UnknownKey) as caught:
                await where.encrypt(secret, "text")
            assert str(caught.value) == "key_id does not encrypt here: it is unknown or was rotated out"


async def test_an_envelope_outlives_the_rotation_of_its_key(service: EncryptionService) -> None:
    """What was made when the old key was the primary opens with it after the new one took its place."""
    async with EncryptionService(OLDER_KEYRING) as before:
        envelope = await before.encrypt(KeyId("old"), "text")
    assert await service.decrypt(KeyId("old"), envelope) == "text"
    await refusal(service, KEY_ID, envelope)


async def test_the_same_master_key_under_another_id_does_not_open() -> None:
    """The id is bound into the keys: an envelope belongs to a name, not to whatever key it may be an alias of."""
    async with EncryptionService(Keyring(keys={"a": bytes(32), "b": bytes(32)})) as service:
        envelope = await service.encrypt(KeyId("a"), "text")
        await refusal(service, KeyId("b"), envelope)


async def test_every_flipped_bit_of_an_envelope_is_noticed(service: EncryptionService) -> None:
    """Of its bytes, and of its spelling."""
    envelope = await service.encrypt(KEY_ID, "hi", b"context")
    for damaged in every_bit_flipped(dearmor(envelope)):
        await refusal(service, KEY_ID, armor(damaged), b"context")
    for damaged in every_bit_flipped(envelope.encode()):
        await refusal(service, KEY_ID, damaged.decode("latin-1"), b"context")


@pytest.mark.parametrize("length", [0, 1, 2])
async def test_an_envelope_has_one_spelling(service: EncryptionService, length: int) -> None:
    """Whatever the length leaves over in the last character: no other character stands for it, nor padding, nor a blank."""
    envelope = await service.encrypt(KEY_ID, "x" * length)
    for last in ALPHABET.replace(envelope[-1], ""):
        await refusal(service, KEY_ID, envelope[:-1] + last)
    for addition in ("=", "==", "\n", " ", "A", "*", "é", "\ud800"):
        await refusal(service, KEY_ID, envelope + addition)
        await refusal(service, KEY_ID, addition + envelope)
    await refusal(service, KEY_ID, envelope[:50] + "\n" + envelope[50:])


async def test_an_envelope_that_was_cut_anywhere_does_not_open(service: EncryptionService) -> None:
    """Nor one that was cut by whole bytes, nor one that something was added to."""
    envelope = await service.encrypt(KEY_ID, "some text")
    data = dearmor(envelope)
    for end in range(len(envelope)):
        await refusal(service, KEY_ID, envelope[:end])
    for end in range(len(data)):
        await refusal(service, KEY_ID, armor(data[:end]))
    await refusal(service, KEY_ID, armor(data + b"\x00"))


async def test_every_flipped_bit_of_what_names_the_kdf_is_refused_before_any_stretching() -> None:
    """With no thread free, whatever stretches gets Busy: a forged cost is compared with ours and never worked off."""
    async with EncryptionService(KEYRING, kdf_threads=1, kdf_queue=0) as service:
        data = dearmor(await service.encrypt(PASSPHRASE, "text"))
        async with without_a_free_thread(service):
            for bit in range(12 * 8):  # magic, version, suite, kdf and its parameters
                await refusal(service, PASSPHRASE, armor(flipped(data, bit)))
            for kdf in (
                Kdf(code=1, memory=2**32 - 1, passes=255, lanes=255),
                Kdf(code=1, memory=8, passes=1, lanes=1),
                Kdf(code=2, memory=ARGON2ID.memory, passes=2, lanes=1),
            ):
                await refusal(service, PASSPHRASE, armor(data[:5] + kdf.pack() + data[12:]))


async def test_flipped_bits_after_the_kdf_are_noticed_with_a_passphrase_too(service: EncryptionService) -> None:
    """One bit of every byte of salt, nonce, commitment, text and tag: all of them take a stretching each."""
    data = dearmor(await service.encrypt(PASSPHRASE, "hi"))
    damaged = [armor(flipped(data, byte * 8 + byte % 8)) for byte in range(12, len(data))]
    await asyncio.gather(*(refusal(service, PASSPHRASE, envelope) for envelope in damaged))


async def test_header_and_context_cannot_lend_each_other_bytes(service: EncryptionService) -> None:
    """Each stands after its length in what is authenticated, so moving the border changes it."""
    envelope = await service.encrypt(KEY_ID, "text", b"context")
    for context in (b"", b"contex", b"context\x00", b"Context", b"x" * (64 * 1024 + 1)):
        await refusal(service, KEY_ID, envelope, context)
    header = Header.parse(dearmor(envelope), MESSAGE)
    assert bound(header, b"c") == b"\x00\x00\x00\x48" + header.pack() + b"\x00\x00\x00\x01c"


async def test_the_commitment_is_checked_before_anything_is_decrypted(service: EncryptionService) -> None:
    """An envelope whose tag is right for its key, but which commits to another one, does not open."""
    salt, nonce = b"s" * 16, b"n" * 12
    keys = message_keys(KEYRING.decrypting(KEY_ID), salt=salt, suite=MESSAGE, kdf=UNSTRETCHED, key_id=KEY_ID.value)
    for commitment, opens in ((keys.commitment, True), (bytes(32), False)):
        header = Header(suite=MESSAGE, kdf=UNSTRETCHED, salt=salt, nonce=nonce, commitment=commitment)
        envelope = armor(header.pack() + cipher.seal(keys.key, nonce, b"text", bound(header, b"")))
        if opens:
            assert await service.decrypt(KEY_ID, envelope) == "text"
        else:
            await refusal(service, KEY_ID, envelope)


async def test_all_refusals_are_the_same_to_the_byte(service: EncryptionService) -> None:
    """Whoever asks learns that it failed, never why: one type, one text, nothing behind it."""
    by_id, by_passphrase = await asyncio.gather(service.encrypt(KEY_ID, "text"), service.encrypt(PASSPHRASE, "text"))
    stream = await joined(service.encrypt_stream(KEY_ID, given(b"text")))
    salt, nonce = b"s" * 16, b"n" * 12
    keys = message_keys(KEYRING.decrypting(KEY_ID), salt=salt, suite=MESSAGE, kdf=UNSTRETCHED, key_id=KEY_ID.value)
    header = Header(suite=MESSAGE, kdf=UNSTRETCHED, salt=salt, nonce=nonce, commitment=keys.commitment)
    not_a_text = armor(header.pack() + cipher.seal(keys.key, nonce, b"\xff", bound(header, b"")))
    data = dearmor(by_id)
    wrong: list[tuple[Secret, str, bytes]] = [
        (Passphrase("another passphrase"), by_passphrase, b""),
        (Passphrase("short"), by_passphrase, b""),
        (Passphrase(""), by_passphrase, b""),
        (Passphrase("long" * 1000), by_passphrase, b""),
        (Passphrase("lone \ud800 surrogate"), by_passphrase, b""),
        (KEY_ID, by_passphrase, b""),
        (PASSPHRASE, by_id, b""),
        (KeyId("old"), by_id, b""),
        (KeyId("unknown"), by_id, b""),
        (KeyId("lone \ud800 surrogate"), by_id, b""),
        (KEY_ID, by_id, b"another context"),
        (KEY_ID, by_id, b"x" * MIB),
        (KEY_ID, "", b""),
        (KEY_ID, "enc_", b""),
        (KEY_ID, "Grüße", b""),
        (KEY_ID, "A" * (ENVELOPE_MAX + 1), b""),
        (KEY_ID, armor(stream), b""),
        (KEY_ID, not_a_text, b""),
        (KEY_ID, armor(data[:3] + b"\x02" + data[4:]), b""),
        (KEY_ID, armor(data[:-1]), b""),
        (KEY_ID, armor(flipped(data, len(data) * 8 - 1)), b""),
    ]
    refusals = [await refusal(service, *attempt) for attempt in wrong]
    assert {repr(error) for error in refusals} == {"DecryptionFailed('decryption failed')"}
    assert {str(error) for error in refusals} == {"decryption failed"}
    for error in refusals:
        assert error.__cause__ is error.__context__ is None
        assert not hasattr(error, "__notes__")


async def test_a_service_shows_its_state_and_none_of_its_keys(service: EncryptionService) -> None:
    """Its repr is made to be logged."""
    expected = "EncryptionService(Keyring(<2 keys>), KdfPool(threads=2, queue=200, held=0))"
    assert repr(service) == expected


def test_every_error_is_an_encryption_error() -> None:
    """One name is enough for whoever maps them."""
    assert {error.__name__ for error in EncryptionError.__subclasses__()} == {
        "InvalidInput",
        "UnknownKey",
        "DecryptionFailed",
        "Busy",
    }
