"""HPACK's decoder: a header block becomes a list of fields, and those that the peer indexes are kept (RFC 7541).

It is on the path of every call, so what can be is remembered: a block that neither changed the dynamic table nor was
decoded with another one gives the same fields again, for the price of one look into a dictionary.
"""

from __future__ import annotations

from typing import Final

from . import huffman
from .hpack_errors import HeaderListTooLarge, HpackError
from .hpack_integers import decode_rest
from .hpack_static import DEFAULT_TABLE_SIZE, FIELD_OVERHEAD, LAST_STATIC, STATIC_TABLE, Field, cost

_HARD_FACTOR = 8  # a header list so many times over the limit is an attack on the connection
_NO_LIMIT = 1 << 31

_MOST = 64  # so many blocks are remembered, and so many strings,
_LONGEST = 2048  # none of more octets than this,
_MOST_OCTETS = 8192  # and strings of so many in all; for blocks that is the limit of a header list
_LONG_STRING = 64  # decoding so many octets costs far more than to look for them

_STATIC: Final = ((((b"", b""), 0)), *((field, cost(field)) for field in STATIC_TABLE))
_STATIC_NAMES: Final = tuple(field[0] for field, _ in _STATIC)


class HeaderBlock:
    """One decoded header block, shared by all calls that sent the same octets: not to be changed, but for ``memo``."""

    __slots__ = ("fields", "leading", "memo", "size")

    def __init__(self, fields: tuple[Field, ...], size: int, leading: int = 0) -> None:
        self.fields = fields
        """Names and values, in their order."""
        self.leading = leading
        """How many of them are entries of a table, and likely to come again, before the first literal; 0 without one."""
        self.size = size
        """The size of the list as RFC 9113, 6.5.2 counts it: 32 octets for each field beside its own."""
        self.memo: object | None = None
        """Free for whoever stands above, for what it made of the fields: as long-lived as the block."""

    def __repr__(self) -> str:
        """Return how large it is: the fields may be secrets."""
        return f"HeaderBlock({len(self.fields)} fields, size={self.size})"


class HeaderDecoder:
    """Decodes the header blocks of one connection, in the order of their coming (RFC 7541, 2.2).

    ``max_table_size`` is the SETTINGS_HEADER_TABLE_SIZE that holds for the peer: the default at the start of every
    connection, another once the peer has acknowledged it. ``max_list_size`` is the limit for a header list.
    """

    __slots__ = (
        "_blocks",
        "_blocks_size",
        "_capacity",
        "_entries",
        "_max_table_size",
        "_owed",
        "_strings",
        "_strings_size",
        "_used",
        "max_list_size",
    )

    def __init__(self, *, max_table_size: int = DEFAULT_TABLE_SIZE, max_list_size: int = 16384) -> None:
        self.max_list_size = max_list_size
        self._max_table_size = max_table_size
        # The dynamic table: each field with its cost, the newest at the end, so index 62 is -1. It has few entries
        # (4,096 octets are at most 128), so taking the oldest from the front of a list is cheap.
        self._entries: list[tuple[Field, int]] = []
        self._capacity = min(max_table_size, DEFAULT_TABLE_SIZE)
        self._used = 0
        self._owed = _NO_LIMIT  # the size that the next block must go down to, at least for a moment
        self._blocks: dict[bytes, HeaderBlock] = {}
        self._blocks_size = 0
        self._strings: dict[bytes, bytes] = {}
        self._strings_size = 0

    @property
    def max_table_size(self) -> int:
        """The SETTINGS_HEADER_TABLE_SIZE that the peer has acknowledged last.

        Set to less than the peer uses, it demands a size update at the start of the next block (RFC 7541, 4.2).
        """
        return self._max_table_size

    @max_table_size.setter
    def max_table_size(self, size: int) -> None:
        self._max_table_size = size
        if size < self._capacity:
            self._owed = min(self._owed, size)
            self._forget_blocks()  # a remembered block has no size update

    def decode(self, block: bytes) -> HeaderBlock:  # noqa: C901, PLR0915 - flat: this runs for every call
        """Return the fields of a whole header block, CONTINUATIONs appended. Takes time linear in its length.

        Raises HpackError for a malformed block and for a list of more than eight times the limit, and
        HeaderListTooLarge, once all of the block is in the dynamic table, for any other list over the limit.
        """
        known = self._blocks.get(block)
        if known is not None:
            return known
        entries = self._entries
        used = self._used
        capacity = self._capacity
        limit = self.max_list_size
        fields: list[Field] = []
        size = 0
        leading = -1
        changed = False
        position = 0
        end = len(block)
        try:
            while position < end:
                octet = block[position]
                position += 1
                if octet >= 0x80:  # 6.1: an indexed field
                    if octet > 0xBD:  # 2.3.3: from 62 on, the dynamic table, the newest first
                        index = octet & 0x7F
                        if index == 0x7F:  # 5.1, with one octet more: if there are others, it is read again
                            index += block[position]
                            position += 1
                            if index >= 0xFF:
                                index, position = decode_rest(block, position - 1, 0x7F)
                        field, weight = entries[61 - index]
                    elif octet == 0x80:
                        raise HpackError("a field has index 0")  # 6.1
                    else:
                        field, weight = _STATIC[octet & 0x7F]
                else:
                    if leading < 0:
                        leading = len(fields)
                    if octet >= 0x40:  # 6.2.1: a literal to be indexed
                        index = octet & 0x3F
                        if index == 0x3F:
                            index += block[position]
                            position += 1
                            if index >= 0xBF:
                                index, position = decode_rest(block, position - 1, 0x3F)
                    elif octet < 0x20:  # 6.2.2 and 6.2.3: a literal not to be indexed, by us or by anybody
                        index = octet & 0x0F
                        if index == 0x0F:
                            index += block[position]
                            position += 1
                            if index >= 0x8F:
                                index, position = decode_rest(block, position - 1, 0x0F)
                    else:  # 6.3: a size update
                        if size:
                            raise HpackError("a size update behind a field")  # 4.2
                        capacity = octet & 0x1F
                        if capacity == 0x1F:
                            capacity, position = decode_rest(block, position, 0x1F)
                        self._resize(capacity)
                        used = self._used
                        changed = True
                        continue
                    if index > LAST_STATIC:
                        name = entries[61 - index][0][0]
                    elif index:
                        name = _STATIC_NAMES[index]
                    else:
                        length = block[position]
                        position += 1
                        coded = length >= 0x80
                        length &= 0x7F
                        if length == 0x7F:
                            length, position = decode_rest(block, position, 0x7F)
                        start = position
                        position += length
                        if position > end:
                            raise IndexError  # noqa: TRY301
                        name = block[start:position]
                        if coded:
                            name = self._decoded(name)
                    length = block[position]
                    position += 1
                    coded = length >= 0x80  # 5.2: the first bit says whether the string is Huffman-coded
                    length &= 0x7F
                    if length == 0x7F:
                        length, position = decode_rest(block, position, 0x7F)
                    start = position
                    position += length
                    if position > end:
                        raise IndexError  # noqa: TRY301
                    value = block[start:position]
                    if coded:
                        value = self._decoded(value) if length >= _LONG_STRING else huffman.decode(value)
                    field = (name, value)
                    weight = len(name) + len(value) + FIELD_OVERHEAD
                    if octet >= 0x40:
                        changed = True
                        used += weight
                        while used > capacity and entries:  # 4.4: the oldest make room
                            used -= entries[0][1]
                            del entries[0]
                        if used <= capacity:
                            entries.append((field, weight))
                        else:  # it is larger than the table, which has become empty; that is no error
                            used = 0
                size += weight
                if size <= limit:
                    fields.append(field)
                elif size > limit * _HARD_FACTOR:
                    raise HpackError(f"a header list of more than {_HARD_FACTOR} times {limit}")
        except IndexError:
            raise HpackError("a block ends within a field, or has an index that no table holds") from None
        if self._owed != _NO_LIMIT:
            raise HpackError(f"no size update to {self._owed}, which was acknowledged")  # 4.2
        if changed:
            self._used = used
            self._forget_blocks()
        if size > limit:
            raise HeaderListTooLarge(f"a header list of {size} is over the limit of {limit}")
        decoded = HeaderBlock(tuple(fields), size, max(0, leading))
        if not changed:
            self._remember(block, decoded)
        return decoded

    def _resize(self, capacity: int) -> None:
        """Obey a size update. Raises HpackError when it is over what the peer was allowed."""
        if capacity > self._max_table_size:
            raise HpackError(f"a size update to {capacity} is over the limit of {self._max_table_size}")  # 6.3
        self._capacity = capacity
        while self._used > capacity:  # 4.3
            self._used -= self._entries.pop(0)[1]
        if capacity <= self._owed:
            self._owed = _NO_LIMIT

    def _decoded(self, string: bytes) -> bytes:
        """Return what a Huffman string stands for, from memory if it was seen before.

        For names, and for long values that are never indexed, such as tokens: the short ones are fresh in each call.
        """
        decoded = self._strings.get(string)
        if decoded is None:
            decoded = huffman.decode(string)
            if len(string) <= _LONGEST:
                self._strings_size += len(string)
                if len(self._strings) >= _MOST or self._strings_size > _MOST_OCTETS:
                    self._strings.clear()
                    self._strings_size = len(string)
                self._strings[string] = decoded
        return decoded

    def _remember(self, block: bytes, decoded: HeaderBlock) -> None:
        """Keep a block; once there are too many, all go, and those that come again come back soon."""
        if len(block) > _LONGEST:
            return
        size = len(block) + decoded.size
        self._blocks_size += size
        if len(self._blocks) >= _MOST or self._blocks_size > self.max_list_size:
            self._blocks.clear()
            self._blocks_size = size
        self._blocks[block] = decoded

    def _forget_blocks(self) -> None:
        if self._blocks:
            self._blocks.clear()
            self._blocks_size = 0
