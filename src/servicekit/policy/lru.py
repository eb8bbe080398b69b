"""One thing for each key, for a bounded number of keys: the one that was not asked for longest goes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

from .checked import count

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

K = TypeVar("K", bound="Hashable")
V = TypeVar("V")


class Lru(Generic[K, V]):
    """Makes a value for a key at first sight and keeps it while the key is among the ``most`` last asked for."""

    __slots__ = ("_make", "_values", "most")

    def __init__(self, make: Callable[[], V], *, most: int) -> None:
        """Raise ValueError or TypeError when there is room for none."""
        self.most = count("most", most)
        self._make = make
        self._values: dict[K, V] = {}

    def get(self, key: K) -> V:
        """Return the value of ``key``, a new one if it is not there."""
        # A dictionary keeps the order of insertion: taken out and put in again, a key is the youngest.
        value = self._values.pop(key, None)
        if value is None:
            if len(self._values) >= self.most:
                del self._values[next(iter(self._values))]
            value = self._make()
        self._values[key] = value
        return value

    def __len__(self) -> int:
        """Return how many keys there are."""
        return len(self._values)

    def __repr__(self) -> str:
        """Return how full it is."""
        return f"Lru({len(self._values)} of {self.most})"
