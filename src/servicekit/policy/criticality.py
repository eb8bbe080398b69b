"""How bad it is when a call is turned away: four words, and how much of a limit each may use.

Source: "Handling Overload", Site Reliability Engineering, ch. 21.
"""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

from servicekit.call import Call

Criticality: TypeAlias = Literal["critical_plus", "critical", "sheddable_plus", "sheddable"]
"""What a person waits for and what must not fail at all; what a person waits for, or nobody has said anything; what
may be late; what may be missing altogether, as a batch may."""

HEADER: Final = "x-criticality"
"""The request metadata that says it."""

STATE: Final = "criticality"
"""Where in ``call.state`` it is, once it was believed."""

SHARES: Final[dict[str, float]] = {"critical_plus": 1.25, "critical": 1.0, "sheddable_plus": 0.75, "sheddable": 0.5}
"""The part of a limit up to which each is let in, the most critical first. There is something on top for
``critical_plus``, so that those who never say a word have all of the limit."""


def criticality_of(call: Call) -> str | None:
    """Return what the call's metadata says, or None: nothing, or not one of the four words."""
    word = call.metadata.text(HEADER)
    return word if word in SHARES else None
