"""What became of a call: every attempt at it, and what each link decided, for whoever has to explain a failure."""

from __future__ import annotations

from dataclasses import dataclass

from .errors import Code


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One attempt on the wire.

    ``number`` counts from 1; ``instance`` is the address that was asked, "" where nobody knows. ``code`` and
    ``message`` are how it ended, None and "" for one that is under way; ``begun`` is False when the other side cannot
    have started the work. ``started`` is in seconds after the call's own start, ``seconds`` how long it took.
    """

    number: int
    instance: str
    code: Code | None
    message: str
    begun: bool
    started: float
    seconds: float

    def __str__(self) -> str:
        """Return one line: number, instance, outcome, times."""
        where = f" at {self.instance}" if self.instance else ""
        ended = "under way" if self.code is None else self.code.name
        told = f" {self.message!r}" if self.message else ""
        begun = "" if self.begun else ", never begun"
        times = f"{self.seconds * 1e3:.1f} ms from {self.started * 1e3:.1f} ms on"
        return f"attempt {self.number}{where}: {ended}{told}{begun}, {times}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What a link decided about the call, ``after`` so many seconds: ``link`` and ``decision`` are fixed words."""

    link: str
    decision: str
    after: float

    def __str__(self) -> str:
        """Return one line."""
        return f"{self.link}: {self.decision} after {self.after * 1e3:.1f} ms"


@dataclass(frozen=True, slots=True, kw_only=True)
class CallReport:
    """What became of one call on the client.

    ``attempts`` are those that reached the innermost endpoint, in the order of their start; a call that was refused
    before has none. ``decisions`` are in the order of time. ``seconds`` is the whole: what no attempt accounts for, a
    back-off or a wait for a limit, was spent in the links, and the decisions say in which.
    """

    method: str
    attempts: tuple[Attempt, ...] = ()
    decisions: tuple[Decision, ...] = ()
    seconds: float = 0.0

    @property
    def instances(self) -> tuple[str, ...]:
        """The instances that were asked, each once, in order."""
        return tuple(dict.fromkeys(attempt.instance for attempt in self.attempts if attempt.instance))

    def __str__(self) -> str:
        """Return a line for the call, and one for each attempt and decision, in the order of time."""
        timed = [(attempt.started, str(attempt)) for attempt in self.attempts]
        timed += [(decision.after, str(decision)) for decision in self.decisions]
        lines = [line for _, line in sorted(timed, key=lambda each: each[0])]
        return "\n  ".join([f"{self.method}, {self.seconds * 1e3:.1f} ms", *lines])


def report(of: object) -> CallReport:
    """Return what became of a call: given its call object (also one under way), or what it has failed with.

    Raises TypeError for what no channel of this package has made.
    """
    found = getattr(of, "report", None)
    if not isinstance(found, CallReport):
        msg = f"{of!r} tells of no call: give a call object or an error of a channel that connect() made"
        raise TypeError(msg)
    return found
