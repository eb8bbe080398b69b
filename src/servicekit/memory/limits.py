"""How much one RPC may hold in memory."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a network in memory holds back and turns away.

    A direction of an RPC buffers up to ``window`` bytes in up to ``messages`` messages; then its sender waits. One
    message larger than the window travels alone. Neither end takes one of more than ``message`` bytes.
    """

    window: int = 64 * 1024
    messages: int = 16
    message: int = 4 * 1024 * 1024

    def __post_init__(self) -> None:
        """Raise ValueError for a limit that nothing could pass."""
        for name in ("window", "messages", "message"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)!r}")
