"""What the links of a chain tell of their decisions about one call."""

from __future__ import annotations

from servicekit.call import Call


class Decisions:
    """Keeps each (link, decision) that is told of ``call``, in ``seen``."""

    def __init__(self, call: Call) -> None:
        self.seen: list[tuple[str, str]] = []
        call.on_decision(lambda link, decision: self.seen.append((link, decision)))
