"""A wire without a wire: client and server joined in one loop, under any clock."""

from __future__ import annotations

from .limits import Limits
from .network import MemoryNetwork

__all__ = ["Limits", "MemoryNetwork"]
