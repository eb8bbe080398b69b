"""Another attempt where one may help and is safe, and never so many that they are the next problem."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

from servicekit.call import Call, Side
from servicekit.endpoint import Endpoint, Message
from servicekit.errors import Error
from servicekit.method import Method
from servicekit.policy.backoff import Backoff
from servicekit.policy.budget import Budget
from servicekit.policy.checked import able, count, seconds
from servicekit.policy.lru import Lru
from servicekit.policy.quantile import Latencies
from servicekit.policy.safe_again import PREVIOUS, Marked, idempotent, is_repeated, may_pass

_METHODS = 1000


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Retry:
    """Tries a call again that has failed in passing: up to ``attempts`` (3) times in all, within the call's deadline.

    Trigger: UNAVAILABLE, a CANCELLED that the server sent, RESOURCE_EXHAUSTED that says when to come back. Of methods
    whose proto declares them ``IDEMPOTENT`` or ``NO_SIDE_EFFECTS``, or that ``idempotent`` (a predicate on the Method,
    or paths) marks; of all others only when the server cannot have begun the work. Of any kind, as long as no response
    message has reached the caller. The messages of a request stream are kept up to ``keep`` bytes (256 KiB) to be
    sent again; past that there is no more retrying.

    Before each attempt it waits as ``backoff`` says (full jitter, 50 ms doubling to 1 s), or exactly as long as the
    server asked for; when the server said not to come back, it does not. ``budget`` (20 % of the calls and 10 a second,
    over 10 s) bounds the further attempts on one target, so one Retry belongs to one channel. An attempt that could
    not be over before the deadline, by what half of the method's calls take, is not begun; without a deadline, none that
    the server wants later than ``patience`` (30 s) from now, for nobody would end that wait. One layer retries: while
    serving a call that is a further attempt itself (``grpc-previous-rpc-attempts``, which every further attempt
    sends), nothing is retried.

    The caller gets the first success, or the last error that somebody else gave: not what a link of this side made of
    it; its ``report`` tells of every attempt. Decisions, as ``retry``: "retried", and where it would have helped but was
    not done "exhausted", "committed", "not_idempotent", "nested", "pushed_back", "not_kept", "too_late", "over_budget".

    For the client, outside of the balancer (``call.tried`` tells it where not to go again); on a server every call
    passes.
    """

    tries_again: ClassVar[bool] = True

    attempts: int = 3
    backoff: Backoff = field(default_factory=Backoff)
    budget: Budget = field(default_factory=Budget)
    idempotent: Marked = None
    keep: int = 256 * 1024
    patience: float = 30.0
    _idempotent: Callable[[Method], bool] = field(init=False, repr=False)
    _latencies: Lru[str, Latencies] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Raise TypeError or ValueError, naming setting and value, for what cannot be done."""
        count("attempts", self.attempts)
        count("keep", self.keep, least=0)
        seconds("patience", self.patience)
        able("backoff", self.backoff, ("delay",), "Backoff")
        able("budget", self.budget, ("call", "spend"), "Budget")
        object.__setattr__(self, "_idempotent", idempotent(self.idempotent))
        object.__setattr__(self, "_latencies", Lru(Latencies, most=_METHODS))

    async def __call__(self, request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        """Make attempts until one succeeds, or no other may be made."""
        if call.side is Side.SERVER:
            return await next(request, call)
        self.budget.call(call.clock.time())
        self._keep(request, call)
        number, tried, waited = 0, call.tried, 0.0
        last: Error | None = None
        while True:
            attempt = _attempt(call, number, tried, waited)
            started = attempt.clock.time()
            try:
                response = await next(request, attempt)
            except Error as error:
                if not may_pass(error):
                    raise
                failed = error
            else:
                self._learn(attempt, started)
                return response
            number += 1
            if last is None or not failed.refused:
                last = failed
            delay = self._decide(failed, number, request, call)
            if delay is None:
                raise last
            if attempt.instance is not None:
                tried = (*tried, attempt.instance)
            with call.waiting("retry") as wait:
                await call.clock.sleep(delay)
            waited = wait.seconds

    def _learn(self, attempt: Call, started: float) -> None:
        if not attempt.method.kind.response_streaming:
            self._latencies.get(attempt.method.path).add(attempt.clock.time() - started)

    def _keep(self, request: Message, call: Call) -> None:
        # Where a second attempt is safe only if nothing was sent, 0 bytes are enough: they keep the first read whole.
        if call.method.kind.request_streaming and _replayable(request):
            request.keep(self.keep if self._idempotent(call.method) else 0)

    def _decide(self, error: Error, number: int, request: Message, call: Call) -> float | None:
        """Return the seconds to wait before another attempt, or None for none; tell which it is, and why."""
        delay = error.retry_after
        if delay is None:
            delay = self.backoff.delay(number - 1, call.clock.random())
        why_not = self._why_not(error, number, delay, request, call)
        call.decide("retry", why_not or "retried")
        return delay if why_not is None else None

    def _why_not(self, error: Error, number: int, delay: float, request: Message, call: Call) -> str | None:
        if number >= self.attempts:
            return "exhausted"
        if call.committed:
            return "committed"
        if error.begun and not self._idempotent(call.method):
            return "not_idempotent"
        if is_repeated(call):
            return "nested"
        if delay < 0:
            return "pushed_back"
        if call.method.kind.request_streaming and not _replayable(request):
            return "not_kept"
        now = call.clock.time()
        if (
            now + delay + self._usual(call.method) >= call.deadline
            if call.deadline is not None
            else delay > self.patience
        ):
            return "too_late"
        return None if self.budget.spend(now) else "over_budget"

    def _usual(self, method: Method) -> float:
        if method.kind.response_streaming:
            return 0.0  # how long a stream lasts says nothing about how soon it answers
        return self._latencies.get(method.path).quantile(0.5) or 0.0


def _attempt(call: Call, number: int, tried: tuple[str, ...], waited: float) -> Call:
    attempt = call.fork(again="retry" if number else "", waited=waited)
    attempt.tried = tried
    if number:
        attempt.metadata.set(PREVIOUS, str(number))
    return attempt


def _replayable(request: Message) -> bool:
    # What another link has put in the stream's place may be any iterable: then it cannot be asked for twice.
    return bool(getattr(request, "replayable", False))
