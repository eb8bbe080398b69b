"""Memory for large messages: kept when they are done with, where the C library would give it back and fetch it again."""

from __future__ import annotations

import contextlib
from typing import Final

from .options import KIB

LARGE: Final = 64 * KIB
"""Bytes of a message for which it matters."""

_FREED: Final = 16 * 1024 * KIB


def keep_freed_memory() -> None:
    """Let the process keep up to 32 MiB of what it frees, if its C library is glibc; elsewhere this does nothing.

    A call with 1 MiB each way needs some 5 MiB for a moment. By default glibc returns them to the system each time, and
    the next call pays for a thousand page faults, more than for all else. It learns from what a program does: freeing
    one block that was mapped by itself sets M_MMAP_THRESHOLD to its size and M_TRIM_THRESHOLD to twice that (mallopt(3)),
    unless these were set in the environment, as ``MALLOC_TRIM_THRESHOLD_``. So one such block is taken, never touched,
    and freed.
    """
    with contextlib.suppress(MemoryError):  # where there is a limit on it, there is nothing to keep
        bytes(_FREED)
