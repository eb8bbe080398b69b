"""HPACK's encoder: fields become a header block, and those that come again go into the dynamic table (RFC 7541)."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from . import huffman
from .hpack_integers import encode_integer
from .hpack_static import DEFAULT_TABLE_SIZE, LAST_STATIC, STATIC_TABLE, Field, cost

if TYPE_CHECKING:
    from collections.abc import Container, Iterable

SENSITIVE: Final = frozenset({b"authorization", b"proxy-authorization", b"cookie", b"set-cookie", b"x-api-key"})
"""Names of fields that no hop may index: whoever can add fields to the same table could guess them (7.1.3)."""

_INDEXED = 0x80, 7  # 6.1: the first bits of each representation, and how many bits are left for the integer
_INDEXING = 0x40, 6  # 6.2.1
_SIZE_UPDATE = 0x20, 5  # 6.3
_NEVER_INDEXED = 0x10, 4  # 6.2.3
_WITHOUT_INDEXING = 0x00, 4  # 6.2.2
_HUFFMAN = 0x80, 7  # 5.2
_RAW = 0x00, 7

_ENCODED: Final = {
    form: tuple(encode_integer(number, bits=form[1], first=form[0]) for number in range(256))
    for form in (_INDEXED, _INDEXING, _NEVER_INDEXED, _WITHOUT_INDEXING, _RAW)
}
_RAW_LENGTHS: Final = _ENCODED[_RAW]
_INDEXES: Final = _ENCODED[_INDEXED]

_STATIC_FIELDS: Final = {field: _INDEXES[index] for index, field in enumerate(STATIC_TABLE, 1)}
# A name that is there more than once is known by its first index: going backwards, that is written last.
_STATIC_NAMES: Final = {STATIC_TABLE[index - 1][0]: index for index in range(LAST_STATIC, 0, -1)}

_MOST_SEEN = 128


def encode_stateless(fields: Iterable[Field], *, sensitive: Container[bytes] = SENSITIVE) -> bytes:
    """Return a block that touches no dynamic table: good on every connection, at any time, any number of times.

    It is for what is encoded once and sent often, so strings are Huffman-coded where that is shorter. Where size
    updates are owed, they go in front of it: see ``HeaderEncoder.take_updates``.
    """
    octets = []
    for field in fields:
        known = _STATIC_FIELDS.get(field)
        if known is None:
            name, value = field
            form = _NEVER_INDEXED if name in sensitive else _WITHOUT_INDEXING
            known = _beginning(form, name, _STATIC_NAMES.get(name, 0)) + _shorter(value)
        octets.append(known)
    return b"".join(octets)


class HeaderEncoder:
    """Encodes the header blocks of one connection, which must be sent in the order of their making (RFC 7541, 2.2).

    ``max_table_size`` is what we are willing to keep for the dynamic table, in octets; the peer's setting bounds it
    too. A field is indexed when its name is new, or when it is seen for the second time: what is fresh in every call
    (trace, request id, deadline) would only drive out what repeats.
    """

    __slots__ = ("_capacity", "_inserted", "_names", "_numbers", "_seen", "_smallest", "_used", "_willing")

    def __init__(self, *, max_table_size: int = DEFAULT_TABLE_SIZE) -> None:
        self._willing = max_table_size
        # The dynamic table, the oldest first: each field with its number in the order of all insertions ever. No
        # field is in it twice. Beside it, the last number of each name.
        self._numbers: OrderedDict[Field, int] = OrderedDict()
        self._names: dict[bytes, int] = {}
        self._inserted = 0
        self._used = 0
        self._seen: set[int] = set()  # hashes: a clash indexes a field too early, no more
        self._capacity = DEFAULT_TABLE_SIZE
        self._smallest: int | None = None
        self.resize(DEFAULT_TABLE_SIZE)

    def encode(self, fields: Iterable[Field], *, sensitive: Container[bytes] = SENSITIVE) -> bytes:
        """Return the block of ``fields``. Those whose names are ``sensitive`` are never indexed, by any hop."""
        octets = [self.take_updates()]
        for field in fields:
            known = _STATIC_FIELDS.get(field)
            if known is None:
                number = self._numbers.get(field)
                known = self._literal(field, sensitive) if number is None else _indexed(self._index(number))
            octets.append(known)
        return b"".join(octets)

    def resize(self, size: int) -> None:
        """Obey the peer's SETTINGS_HEADER_TABLE_SIZE, to be acknowledged before the next block is sent."""
        capacity = min(size, self._willing)
        if capacity != self._capacity or self._smallest is not None:
            self._smallest = capacity if self._smallest is None else min(self._smallest, capacity)
            self._capacity = capacity
            self._evict()

    def take_updates(self) -> bytes:
        """Return the size updates that must begin the next block, once; ``encode`` puts them there itself."""
        smallest, self._smallest = self._smallest, None
        if smallest is None:
            return b""
        # RFC 7541, 4.2: of several changes since the last block, the smallest is told, and then the last.
        sizes = (smallest,) if smallest == self._capacity else (smallest, self._capacity)
        return b"".join(encode_integer(size, bits=_SIZE_UPDATE[1], first=_SIZE_UPDATE[0]) for size in sizes)

    def _literal(self, field: Field, sensitive: Container[bytes]) -> bytes:
        """Return a field that is in no table, and index it if it is worth it."""
        name, value = field
        index = _STATIC_NAMES.get(name, 0)
        if not index:
            number = self._names.get(name)
            if number is not None:
                index = self._index(number)
        if name in sensitive:
            return _beginning(_NEVER_INDEXED, name, index) + _raw(value)
        if self._worth_indexing(field, new=not index):
            octets = _beginning(_INDEXING, name, index) + _shorter(value)
            self._insert(field)
            return octets
        # Sent once, it is not worth the work of Huffman's code, neither ours nor the peer's.
        return _beginning(_WITHOUT_INDEXING, name, index) + _raw(value)

    def _worth_indexing(self, field: Field, *, new: bool) -> bool:
        if cost(field) > self._capacity // 2:
            return False  # it would drive out too much
        mark = hash(field)
        if new or mark in self._seen:
            self._seen.discard(mark)
            return True
        if len(self._seen) >= _MOST_SEEN:
            self._seen.clear()
        self._seen.add(mark)
        return False

    def _insert(self, field: Field) -> None:
        self._inserted += 1
        self._numbers[field] = self._names[field[0]] = self._inserted
        self._used += cost(field)
        self._evict()

    def _evict(self) -> None:
        """Drop the oldest fields until the rest fits (4.3, 4.4)."""
        while self._used > self._capacity:
            field, number = self._numbers.popitem(last=False)
            self._used -= cost(field)
            if self._names[field[0]] == number:
                del self._names[field[0]]

    def _index(self, number: int) -> int:
        """Return the index of an entry: the newest has the first one behind the static table (2.3.3)."""
        return LAST_STATIC + 1 + self._inserted - number


def _indexed(index: int) -> bytes:
    return _INDEXES[index] if index < len(_INDEXES) else encode_integer(index, bits=_INDEXED[1], first=_INDEXED[0])


def _beginning(form: tuple[int, int], name: bytes, index: int) -> bytes:
    """Return a literal up to its value: its form, and its name by index or spelled out (6.2)."""
    known = _ENCODED[form]
    head = known[index] if index < len(known) else encode_integer(index, bits=form[1], first=form[0])
    return head if index else head + _shorter(name)


def _raw(string: bytes) -> bytes:
    """Return a string as it is (5.2)."""
    length = len(string)
    known = length < len(_RAW_LENGTHS)
    return (_RAW_LENGTHS[length] if known else encode_integer(length, bits=_RAW[1], first=_RAW[0])) + string


def _shorter(string: bytes) -> bytes:
    """Return a string Huffman-coded, or as it is when that is no longer (5.2)."""
    length = huffman.encoded_length(string)
    if length >= len(string):
        return _raw(string)
    return encode_integer(length, bits=_HUFFMAN[1], first=_HUFFMAN[0]) + huffman.encode(string)
