"""A circuit breaker as a state machine: whether a call may be made, and what its result changes.

    closed     everything passes; enough failures in the window -> open
    open       nothing passes; when its time is over, the next call finds it half-open
    half-open  a few probes pass at a time; enough successes -> closed, one failure -> open, for longer

Sources: Nygard, "Release It!"; Hystrix (the window of buckets); Resilience4j (the probes).

Each transition begins a new generation. A call carries the one that it was admitted in, and its result counts in no
other: what was begun before the circuit opened says nothing about whether it may close.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from servicekit.verdict import Verdict

from .checked import count, seconds, share
from .elapsed import Elapsed
from .window import Window

_JITTER = 0.2
_GUESS = 1.0
_MOST_DOUBLINGS = 64


class State(enum.Enum):
    """What the breaker does with a call."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """When a breaker opens and closes.

    Default: it opens when, of at least ``calls`` (20) judged in ``window`` (10 s, in ``buckets``: 10), the share
    ``failures`` (0.5) or more have failed. It stays open for ``first`` (5 s), doubling with every time that a probe
    fails up to ``most`` (60 s), all ± 20 % so that not every client comes back at once. Half-open it admits ``probes``
    (3) at a time, and closes after ``successes`` (3). A probe that says nothing for ``lost`` (10 s) frees its place.
    """

    window: float = 10.0
    buckets: int = 10
    calls: int = 20
    failures: float = 0.5
    first: float = 5.0
    most: float = 60.0
    probes: int = 3
    successes: int = 3
    lost: float = 10.0

    def __post_init__(self) -> None:
        """Raise ValueError or TypeError, naming setting and value, for a rule that cannot be kept."""
        for name in ("window", "first", "most", "lost"):
            seconds(name, getattr(self, name))
        for name in ("buckets", "calls", "probes", "successes"):
            count(name, getattr(self, name))
        if not share("failures", self.failures) > 0:
            msg = f"failures={self.failures!r} is no share of the calls: give more than 0 and at most 1"
            raise ValueError(msg)
        if self.first > self.most:
            msg = f"first={self.first!r} is more than most={self.most!r}"
            raise ValueError(msg)


class Permit:
    """Leave to make one call; its result is reported with it."""

    __slots__ = ("generation", "since")

    def __init__(self, generation: int, since: float) -> None:
        """Belong to one generation, from ``since`` on."""
        self.generation = generation
        self.since = since


class Breaker:
    """The state of one circuit. ``now`` is what a clock shows, ``chance`` a random number in [0, 1)."""

    __slots__ = (
        "_elapsed",
        "_generation",
        "_openings",
        "_probes",
        "_rules",
        "_successes",
        "_until",
        "_window",
        "state",
    )

    def __init__(self, rules: Rules) -> None:
        """Begin closed."""
        self._rules = rules
        self._elapsed = Elapsed()
        self._window = Window(seconds=rules.window, buckets=rules.buckets)
        self.state = State.CLOSED
        self._generation = 0
        self._openings = 0  # since it was last closed
        self._until = 0.0
        self._probes: list[Permit] = []
        self._successes = 0

    def admit(self, now: float) -> Permit | None:
        """Return leave to make a call at ``now``, whose result must be reported; None when it is refused."""
        passed = self._elapsed(now)
        if self.state is State.OPEN:
            if passed < self._until:
                return None
            self._enter(State.HALF_OPEN)
        permit = Permit(self._generation, passed)
        if self.state is State.HALF_OPEN:
            # A probe may never come back: a stream that is silent for hours must not keep the circuit shut.
            self._probes = [probe for probe in self._probes if passed - probe.since < self._rules.lost]
            if len(self._probes) >= self._rules.probes:
                return None
            self._probes.append(permit)
        return permit

    def report(self, permit: Permit, verdict: Verdict, now: float, chance: float) -> State | None:
        """Take note of how a call went; return the state that this leads to, or None when it stays the same."""
        passed = self._elapsed(now)
        if permit.generation != self._generation:
            return None
        if self.state is State.HALF_OPEN:
            return self._report_probe(permit, verdict, passed, chance)
        if verdict is Verdict.IGNORED:
            return None
        self._window.add(passed, marked=verdict is Verdict.FAILURE)
        window, rules = self._window, self._rules
        if window.total >= rules.calls and window.marked >= rules.failures * window.total:
            return self._open(passed, chance)
        return None

    def _report_probe(self, permit: Permit, verdict: Verdict, passed: float, chance: float) -> State | None:
        if permit in self._probes:
            self._probes.remove(permit)
        # One that was given up for lost may still say something: it was made in this state, so it counts.
        if verdict is Verdict.FAILURE:
            return self._open(passed, chance)
        if verdict is Verdict.SUCCESS:
            self._successes += 1
            if self._successes >= self._rules.successes:
                self._openings = 0
                return self._enter(State.CLOSED)
        return None

    def _open(self, passed: float, chance: float) -> State:
        rules = self._rules
        length = min(rules.most, rules.first * 2.0 ** min(self._openings, _MOST_DOUBLINGS))
        self._until = passed + length * (1 - _JITTER + 2 * _JITTER * chance)
        self._openings += 1
        return self._enter(State.OPEN)

    def _enter(self, state: State) -> State:
        self.state = state
        self._generation += 1
        self._probes = []
        self._successes = 0
        self._window.clear()
        return state

    def retry_after(self, now: float) -> float:
        """Return the seconds after which a refused call might pass: the rest of an open circuit's time.

        While probes are out nobody knows. They are calls like any other, so a second is a fair guess.
        """
        passed = self._elapsed(now)
        return max(0.0, self._until - passed) if self.state is State.OPEN else _GUESS

    def __repr__(self) -> str:
        """Return the state, and what it has counted."""
        return f"Breaker({self.state.value}, {self._window!r}, {len(self._probes)} probes, {self._successes} successes)"
