"""How much of a served call's time the calls made for it may have."""

from __future__ import annotations

LEAST = 0.005
SHARE = 0.1
MOST = 0.2


def inherited(remaining: float) -> float:
    """Return the seconds that an outgoing call may take when the call it is made for has ``remaining`` seconds left.

    A tenth is kept back, at least 5 ms and at most 200 ms, so that whoever made the outgoing call still has time to
    say how it went. 0.0 when nothing would be left.
    """
    return max(0.0, remaining - max(LEAST, min(SHARE * remaining, MOST)))
