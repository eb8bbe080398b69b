from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servicekit.metadata import Metadata, check

KEYS = st.text("abcdefghijklmnopqrstuvwxyz0123456789_.-", min_size=1, max_size=10).filter(
    lambda key: not key.endswith("-bin") and key not in {"te", "content-type"}
)
TEXT = st.text([chr(code) for code in range(0x20, 0x7F)], max_size=20).map(lambda text: text.strip(" "))
ENTRIES = st.one_of(st.tuples(KEYS, TEXT), st.tuples(KEYS.map("{}-bin".format), st.binary(max_size=20)))


def test_order_and_duplicates_are_kept() -> None:
    """Metadata is a list of pairs: nothing is merged, nothing is moved."""
    metadata = Metadata.checked([("a", "1"), ("b", "2"), ("a", "3")])
    assert metadata.pairs() == (("a", "1"), ("b", "2"), ("a", "3"))
    assert list(metadata) == [("a", "1"), ("b", "2"), ("a", "3")]
    assert len(metadata) == 3
    assert metadata.get("a") == "1"
    assert metadata.get_all("a") == ["1", "3"]
    assert metadata.get("c") is None
    assert metadata.get_all("c") == []
    assert "a" in metadata
    assert "c" not in metadata


def test_set_takes_the_place_of_all() -> None:
    """``set`` leaves one entry of its key; ``remove`` leaves none, and minds no key that is not there."""
    metadata = Metadata.checked([("a", "1"), ("b", "2"), ("a", "3")])
    metadata.set("a", "4")
    assert metadata.pairs() == (("b", "2"), ("a", "4"))
    metadata.remove("b")
    metadata.remove("never")
    assert metadata.pairs() == (("a", "4"),)


def test_text_is_never_bytes() -> None:
    """``text`` returns text values only."""
    metadata = Metadata.checked([("a", "1"), ("a-bin", b"1")])
    assert metadata.text("a") == "1"
    assert metadata.text("a-bin") is None
    assert metadata.text("b") is None


def test_a_copy_is_its_own() -> None:
    """Copies and snapshots do not change with the original; equality is by content and order."""
    metadata = Metadata.checked([("a", "1")])
    copy, pairs = metadata.copy(), metadata.pairs()
    assert copy == metadata
    metadata.extend([("b", "2"), ("c-bin", b"3")])
    assert copy.pairs() == pairs == (("a", "1"),)
    assert copy != metadata
    assert Metadata([("a", "1"), ("b", "2")]) != Metadata([("b", "2"), ("a", "1")])
    assert metadata != (("a", "1"),)


def test_what_came_from_the_wire_is_taken() -> None:
    """The constructor checks nothing: a peer's metadata is what it is."""
    metadata = Metadata([("Weird Key", "ü"), ("x-bin", "text")])
    assert metadata.get("Weird Key") == "ü"


def test_its_repr_shows_no_values() -> None:
    """Values may be secrets: keys only."""
    assert repr(Metadata([("authorization", "Bearer secret"), ("k", "v")])) == "Metadata(authorization, k)"


@pytest.mark.parametrize("key", ["", "Key", "kEy", "with space", "ü", "k:", ":path", "a/b", "k\n", "k=", "(k)"])
def test_a_key_is_lower_case_ascii(key: str) -> None:
    """Any other key is refused, by name."""
    with pytest.raises(ValueError, match="metadata key") as raised:
        Metadata().add(key, "secret")
    assert repr(key) in str(raised.value)
    assert "secret" not in str(raised.value)


def test_capital_letters_are_explained() -> None:
    """A key that is wrong by its capitals only is told so; another is not."""
    with pytest.raises(ValueError, match="keys are lower-case"):
        check("X-Request-Id", "1")
    with pytest.raises(ValueError, match="may hold only") as raised:
        check("X Request", "1")
    assert "lower-case" not in str(raised.value)


@pytest.mark.parametrize("key", ["grpc-status", "grpc-message", "grpc-timeout", "content-type", "te"])
def test_the_protocols_own_keys_are_refused(key: str) -> None:
    """What gRPC writes itself is not for others to write."""
    with pytest.raises(ValueError, match=key):
        Metadata().set(key, "0")


def test_pushback_is_ours_to_write() -> None:
    """Keys of gRPC's that applications do write pass."""
    check("grpc-retry-pushback-ms", "100")
    check("grpc-trace-bin", b"\x00")


@pytest.mark.parametrize("value", ["ü", "line\n", "tab\t", "\x00", "\x7f", "\u2028"])
def test_text_is_printable_ascii(value: str) -> None:
    """Any other text is refused by its key, and the value is not repeated."""
    with pytest.raises(ValueError, match="'k'") as raised:
        Metadata().add("k", f"secret{value}")
    assert "secret" not in str(raised.value)
    assert "-bin" in str(raised.value)


@pytest.mark.parametrize(
    ("key", "value", "wants"), [("k", b"secret", "text"), ("k", 1, "text"), ("k-bin", "secret", "bytes")]
)
def test_the_key_says_what_the_value_is(key: str, value: str | bytes, wants: str) -> None:
    """-bin means bytes, all others text; a mistake is named, without the value."""
    with pytest.raises(TypeError, match=f"{key}.*{wants}") as raised:
        Metadata().add(key, value)
    assert "secret" not in str(raised.value)


def test_a_key_is_text() -> None:
    """A key of bytes is refused."""
    with pytest.raises(TypeError, match="bytes"):
        check(b"k", "v")  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [" padded", "padded ", " "])
def test_text_has_no_space_at_its_ends(value: str) -> None:
    """HTTP/2 takes such a space off, so the other side would read something else."""
    with pytest.raises(ValueError, match="'k' begins or ends with a space"):
        check("k", value)


def test_a_refused_entry_changes_nothing() -> None:
    """``set`` with a bad value leaves the old one; ``extend`` stops at the first bad pair."""
    metadata = Metadata.checked([("k", "old")])
    with pytest.raises(ValueError, match="'k'"):
        metadata.set("k", "\n")
    assert metadata.get("k") == "old"


@given(st.lists(ENTRIES, max_size=10))
def test_whatever_passes_is_kept_as_it_was(pairs: list[tuple[str, str | bytes]]) -> None:
    """Everything the rules allow is accepted and comes back unchanged."""
    metadata = Metadata.checked(pairs)
    assert metadata.pairs() == tuple(pairs)
    assert Metadata(metadata) == metadata == metadata.copy()
    for key, _ in pairs:
        assert metadata.get_all(key) == [value for name, value in pairs if name == key]
