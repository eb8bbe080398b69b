import base64
import sys
import unicodedata

import pytest

from encryption.envelope import MESSAGE, STREAM, UNSTRETCHED
from encryption.errors import DecryptionFailed, InvalidInput, UnknownKey
from encryption.keys import KeyId, Keyring, Passphrase, message_keys, normalise

KEY = base64.b64encode(b"\xfb" * 32).decode()
URLSAFE = base64.urlsafe_b64encode(b"\xfb" * 32).decode()
OTHER = base64.b64encode(b"\xfc" * 32).decode()


def test_a_keyring_is_read_from_one_line_with_the_primary_first() -> None:
    """`id:key,id:key`; blanks around an entry do not matter."""
    keyring = Keyring.parse(f"2025-06:{KEY}, 2024.b_1:{OTHER}\n")
    assert list(keyring.keys.items()) == [("2025-06", b"\xfb" * 32), ("2024.b_1", b"\xfc" * 32)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "keyring entry 1: expected id:key"),
        (KEY, "keyring entry 1: expected id:key"),
        (f"a:{KEY},", "keyring entry 2: expected id:key"),
        (f"a:{KEY};b:{OTHER}", "keyring entry 1: the key is not standard base64"),
        (f"a:{KEY},b:{KEY[:-1]}", "keyring entry 2: the key is not standard base64"),
        (f"a:{URLSAFE}", "keyring entry 1: the key is not standard base64"),
        (f"a:{KEY},b:{KEY[:40]}", "keyring entry 2: the key has 30 bytes, not 32"),
        ("a:", "keyring entry 1: the key has 0 bytes, not 32"),
        (f"a:{KEY},a:{OTHER}", "keyring entry 2: its id was given before"),
        (f"a b:{KEY}", "keyring entry 1: the id is not 1 to 64 letters, digits, '.', '_' or '-'"),
        (f":{KEY}", "keyring entry 1: the id is not 1 to 64 letters, digits, '.', '_' or '-'"),
        (f"{'a' * 65}:{KEY}", "keyring entry 1: the id is not 1 to 64 letters, digits, '.', '_' or '-'"),
        (f"é:{KEY}", "keyring entry 1: the id is not 1 to 64 letters, digits, '.', '_' or '-'"),
    ],
)
def test_a_wrong_keyring_is_refused_with_the_entry_and_the_rule_and_nothing_of_its_keys(text: str, said: str) -> None:
    """The operator learns which entry to look at; the log learns nothing."""
    with pytest.raises(InvalidInput) as caught:
        Keyring.parse(text)
    assert str(caught.value) == said
    assert caught.value.__context__ is None


def test_swapping_id_and_key_does_not_show_the_key() -> None:
    """What stands in an id's place may be a key."""
    with pytest.raises(InvalidInput) as caught:
        Keyring.parse(f"{KEY}:primary")
    assert KEY not in str(caught.value)


def test_the_primary_encrypts_and_all_decrypt() -> None:
    """A key that was rotated out opens what it sealed and seals nothing new."""
    keyring = Keyring.parse(f"new:{KEY},old:{OTHER}")
    assert keyring.encrypting(KeyId("new")) == keyring.decrypting(KeyId("new")) == b"\xfb" * 32
    assert keyring.decrypting(KeyId("old")) == b"\xfc" * 32
    for stranger in ("old", "unknown", ""):
        with pytest.raises(UnknownKey):
            keyring.encrypting(KeyId(stranger))
    with pytest.raises(DecryptionFailed):
        keyring.decrypting(KeyId("unknown"))


def test_an_empty_keyring_knows_no_key() -> None:
    """Not even the one without a name."""
    with pytest.raises(UnknownKey):
        Keyring(keys={}).encrypting(KeyId(""))


def test_a_keyring_does_not_change_after_it_was_checked() -> None:
    """It keeps its own copy of what it was given."""
    keys = {"a": bytes(32)}
    keyring = Keyring(keys=keys)
    keys["b"] = b"short"
    assert list(keyring.keys) == ["a"]


def test_nothing_that_holds_a_secret_shows_it() -> None:
    """A repr ends up in logs, tracebacks and failed assertions."""
    keys = message_keys(b"k" * 32, salt=b"s" * 16, suite=MESSAGE, kdf=UNSTRETCHED)
    assert repr(Passphrase("tell nobody")) == "Passphrase()"
    assert repr(KeyId("tell nobody")) == "KeyId()"
    assert repr(keys) == "MessageKeys()"
    assert repr(Keyring.parse(f"a:{KEY},b:{OTHER}")) == "Keyring(<2 keys>)"


def test_every_input_of_the_derivation_matters() -> None:
    """Another root, salt, suite or key id: another key and another commitment, and the two are never the same."""
    derived = [
        message_keys(b"k" * 32, salt=b"s" * 16, suite=MESSAGE, kdf=UNSTRETCHED, key_id="a"),
        message_keys(b"K" * 32, salt=b"s" * 16, suite=MESSAGE, kdf=UNSTRETCHED, key_id="a"),
        message_keys(b"k" * 32, salt=b"S" * 16, suite=MESSAGE, kdf=UNSTRETCHED, key_id="a"),
        message_keys(b"k" * 32, salt=b"s" * 16, suite=STREAM, kdf=UNSTRETCHED, key_id="a"),
        message_keys(b"k" * 32, salt=b"s" * 16, suite=MESSAGE, kdf=UNSTRETCHED, key_id="b"),
    ]
    assert len({half for keys in derived for half in (keys.key, keys.commitment)}) == 10


@pytest.mark.parametrize("spelling", ["pässwörd", "pa\u0308sswo\u0308rd"])
def test_a_passphrase_is_the_same_however_its_letters_are_composed(spelling: str) -> None:
    """NFC: keyboards and systems differ in how they write an umlaut, people do not."""
    assert normalise(Passphrase(spelling)) == "pässwörd".encode()


@pytest.mark.parametrize("passphrase", ["8 bytes.", "é" * 4, "x" * 1024, "é" * 512, "u\u0308\u0304" * 512])
def test_a_passphrase_of_8_to_1024_bytes_is_taken(passphrase: str) -> None:
    """What counts are bytes of UTF-8 after normalisation: the last one comes as 2,560 bytes."""
    assert 8 <= len(normalise(Passphrase(passphrase))) <= 1024


@pytest.mark.parametrize(
    "passphrase", ["7 bytes", "e\u0301" * 3, "x" * 1025, "é" * 513, "\u0301\u0323" * 50_000, "lone \ud800 surrogate"]
)
def test_another_passphrase_is_refused_without_being_shown(passphrase: str) -> None:
    """The rule is told, the value is not: neither in the message nor in an exception behind it."""
    with pytest.raises(InvalidInput) as caught:
        normalise(Passphrase(passphrase))
    assert str(caught.value) == "key is not 8 to 1024 bytes of UTF-8 (as NFC)"
    assert caught.value.__context__ is None


def test_an_empty_passphrase_is_refused_as_such() -> None:
    """A field that was forgotten deserves a plain word."""
    with pytest.raises(InvalidInput, match=r"^key is empty$"):
        normalise(Passphrase(""))


def test_refusing_long_passphrases_unread_refuses_no_good_one() -> None:
    """No character of Unicode decomposes into more than two characters for each byte that it has when composed."""
    for code in range(sys.maxunicode + 1):
        if not 0xD800 <= code < 0xE000:
            character = chr(code)
            assert len(unicodedata.normalize("NFD", character)) <= 2 * len(character.encode())
