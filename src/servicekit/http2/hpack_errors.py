"""What can be wrong with a header block: it breaks the connection, or only its own stream."""

from __future__ import annotations


class HpackError(Exception):
    """Raised when a header block cannot be decoded: a connection error COMPRESSION_ERROR (RFC 9113, 4.3).

    The two dynamic tables no longer agree, so the decoder that raised it must not be used again.
    """


class HeaderListTooLarge(Exception):
    """Raised when a decoded header list is over the limit; only its stream is refused (RFC 9113, 10.5.1).

    The dynamic table is up to date, so the decoder goes on with the next block.
    """
