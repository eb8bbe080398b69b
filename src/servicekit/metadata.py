"""What travels beside the messages: an ordered list of keys and values, checked when it is written."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

Pairs: TypeAlias = tuple[tuple[str, str | bytes], ...]

_KEY = re.compile(r"[0-9a-z_.-]+")
_TEXT = re.compile(r"[\x20-\x7e]*")
_RESERVED = frozenset({"grpc-status", "grpc-message", "grpc-timeout", "content-type", "te"})


class Metadata:
    """An ordered multi-map of metadata (gRPC over HTTP/2, "Custom-Metadata").

    Keys are lower-case ASCII; a value is printable ASCII text, or bytes when its key ends in ``-bin``. What breaks
    these rules is refused here, by name, because the wire refuses it late and unclearly. What came *from* the wire
    is taken as it is.
    """

    __slots__ = ("_pairs",)

    def __init__(self, pairs: Iterable[tuple[str, str | bytes]] = ()) -> None:
        """Take ``pairs`` unchecked: they came from the wire or from another Metadata."""
        # Most are only read: what is a tuple stays one until somebody writes.
        self._pairs: list[tuple[str, str | bytes]] | Pairs = pairs if isinstance(pairs, tuple) else list(pairs)

    @classmethod
    def checked(cls, pairs: Iterable[tuple[str, str | bytes]]) -> Metadata:
        """Return the metadata of ``pairs``, each checked as ``add`` does."""
        metadata = cls()
        for key, value in pairs:
            metadata.add(key, value)
        return metadata

    def add(self, key: str, value: str | bytes) -> None:
        """Append one entry; earlier ones of the same key stay. Raises ValueError or TypeError, naming the key."""
        check(key, value)
        self._append(key, value)

    def set(self, key: str, value: str | bytes) -> None:
        """Put one entry in the place of all of the same key. Raises ValueError or TypeError, naming the key."""
        check(key, value)
        self.remove(key)
        self._append(key, value)

    def _append(self, key: str, value: str | bytes) -> None:
        if isinstance(self._pairs, tuple):
            self._pairs = list(self._pairs)
        self._pairs.append((key, value))

    def remove(self, key: str) -> None:
        """Drop every entry of ``key``; harmless when there is none."""
        if any(name == key for name, _ in self._pairs):
            self._pairs = [pair for pair in self._pairs if pair[0] != key]

    def get(self, key: str) -> str | bytes | None:
        """Return the first value of ``key``, or None."""
        for name, value in self._pairs:
            if name == key:
                return value
        return None

    def text(self, key: str) -> str | None:
        """Return the first value of ``key`` when it is text, or None."""
        value = self.get(key)
        return value if isinstance(value, str) else None

    def get_all(self, key: str) -> list[str | bytes]:
        """Return every value of ``key``, in the order of their coming."""
        return [value for name, value in self._pairs if name == key]

    def extend(self, pairs: Iterable[tuple[str, str | bytes]]) -> None:
        """Append every pair, each checked as ``add`` does."""
        for key, value in pairs:
            self.add(key, value)

    def pairs(self) -> Pairs:
        """Return a snapshot as a tuple of (key, value)."""
        return tuple(self._pairs)

    def copy(self) -> Metadata:
        """Return an independent copy."""
        return Metadata(tuple(self._pairs))

    def __iter__(self) -> Iterator[tuple[str, str | bytes]]:
        """Iterate over (key, value)."""
        return iter(self._pairs)

    def __len__(self) -> int:
        """Return how many entries there are."""
        return len(self._pairs)

    def __contains__(self, key: object) -> bool:
        """Return whether there is an entry of ``key``."""
        return any(name == key for name, _ in self._pairs)

    def __eq__(self, other: object) -> bool:
        """Return whether the other holds the same entries in the same order."""
        return isinstance(other, Metadata) and self.pairs() == other.pairs()

    __hash__ = None  # type: ignore[assignment]  # mutable; object declares it callable

    def __repr__(self) -> str:
        """Return the keys only: values may be secrets."""
        return f"Metadata({', '.join(name for name, _ in self._pairs)})"


def check(key: str, value: str | bytes) -> None:
    """Raise ValueError or TypeError, naming the key and never the value, when the entry may not go on the wire."""
    if not isinstance(key, str):
        msg = f"a metadata key is text, not {type(key).__name__}"
        raise TypeError(msg)
    if not _KEY.fullmatch(key):
        hint = " (keys are lower-case)" if _KEY.fullmatch(key.lower()) else ""
        msg = f"metadata key {key!r} may hold only 0-9 a-z _ - .{hint}"
        raise ValueError(msg)
    if key in _RESERVED:
        msg = f"metadata key {key!r} is written by gRPC itself"
        raise ValueError(msg)
    if key.endswith("-bin"):
        if not isinstance(value, bytes):
            msg = f"metadata {key!r} ends in '-bin', so its value is bytes, not {type(value).__name__}"
            raise TypeError(msg)
    elif not isinstance(value, str):
        msg = f"metadata {key!r} does not end in '-bin', so its value is text, not {type(value).__name__}"
        raise TypeError(msg)
    elif value != value.strip(" "):
        msg = f"the value of metadata {key!r} begins or ends with a space, which HTTP/2 takes off"
        raise ValueError(msg)
    elif not _TEXT.fullmatch(value):
        msg = f"the value of metadata {key!r} may hold only printable ASCII; use a key ending in '-bin' for bytes"
        raise ValueError(msg)
