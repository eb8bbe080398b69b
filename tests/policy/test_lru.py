"""One thing for each of a bounded number of keys."""

from __future__ import annotations

import pytest

from servicekit.policy.lru import Lru


def test_the_one_not_asked_for_longest_goes() -> None:
    """Asking makes a key young again."""
    lru: Lru[str, list[int]] = Lru(list, most=2)
    first, second = lru.get("a"), lru.get("b")
    assert lru.get("a") is first
    lru.get("c")
    assert len(lru) == 2
    assert repr(lru) == "Lru(2 of 2)"
    assert lru.get("a") is first
    assert lru.get("b") is not second


def test_there_is_room_for_one_at_least() -> None:
    """A wrong value fails where it is written."""
    with pytest.raises(ValueError, match="most=0"):
        Lru(list, most=0)
