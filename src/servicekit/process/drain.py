"""How a server goes: what happens between the signal and the exit, and what the exit code says of it.

Sources: Google's SRE book, "lame duck" state; Kubernetes, termination of pods.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from servicekit.policy.checked import seconds_or_zero


class Exit(enum.IntEnum):
    """The exit codes of a process that serves. A second signal n ends it at once with 128 + n."""

    DRAINED = 0
    NOT_STARTED = 1  # it could not start, or it could not go on serving
    ABANDONED = 3  # calls were still under way when the grace was over


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain:
    """How much time a server takes to go, in seconds.

    For ``delay`` it still serves while health says NOT_SERVING, so that clients move elsewhere by themselves; then
    it accepts nothing new, and what is under way has ``grace`` to finish. What has not is ended with UNAVAILABLE, and
    ``flush`` is for what is being sent. A request that is still arriving counts as under way on the native wire; grpc
    core tells of none before it is whole, so that over grpcio such a one has the time for ``flush`` alone. Core also
    closes a connection with its last reply: a client that is then behind by megabytes may find it reset.

    Raises TypeError or ValueError for what is no time.
    """

    delay: float = 0.5
    grace: float = 20.0
    flush: float = 2.0

    def __post_init__(self) -> None:
        """Refuse times that cannot pass."""
        for name in ("delay", "grace", "flush"):
            seconds_or_zero(name, getattr(self, name))
