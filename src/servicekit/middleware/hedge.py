"""A second attempt beside a slow first one: the tail of one instance is not the tail of the service.

Source: Dean and Barroso, "The Tail at Scale", CACM 2013 (hedged requests); gRFC A6; Finagle's backup requests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from servicekit.call import Call, Side
from servicekit.clock import Clock
from servicekit.endpoint import Endpoint, Message
from servicekit.errors import Error
from servicekit.method import Kind, Method
from servicekit.policy.budget import Budget
from servicekit.policy.checked import able, seconds_or_zero, share
from servicekit.policy.lru import Lru
from servicekit.policy.quantile import Latencies
from servicekit.policy.safe_again import PREVIOUS, Marked, idempotent, is_repeated, may_pass
from servicekit.verdict import Verdict, verdict

_METHODS = 1000


def _at_most_5_percent() -> Budget:
    return Budget(share=0.05, per_second=0.0)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Hedge:
    """Makes one more attempt when the first takes longer than usual; the first answer wins, the other is cancelled.

    Trigger: the method's own ``quantile`` (0.95) of the answers so far has passed, at least ``least`` (2 ms); before
    there are 100 answers nothing is hedged. An attempt that fails in passing (as ``Retry`` has it) before that is not
    slow but lost: the other one is made at once, or when the server asked for it, or not at all if it said so.
    ``budget`` (5 % of the calls over 10 s) bounds the extra attempts, so one Hedge belongs to one channel.

    Opt-in, and for unary methods that are safe to repeat: their proto declares them ``IDEMPOTENT`` or
    ``NO_SIDE_EFFECTS``, or ``idempotent`` (a predicate on the Method, or paths) marks them. All others pass, as do
    calls made while serving a further attempt (``grpc-previous-rpc-attempts``), and every call on a server. It takes
    the place of Retry for a method: never have both.

    The caller gets the first success, or the first error that is an answer (NOT_FOUND and its like); when both
    attempts break, the error of the later one. The loser is cancelled at once and its end awaited. Decisions, as
    ``hedge``: "sent" for each extra attempt, "won" when it was the first, "over_budget", "pushed_back", "too_late".
    """

    tries_again: ClassVar[bool] = True

    quantile: float = 0.95
    least: float = 0.002
    budget: Budget = field(default_factory=_at_most_5_percent)
    idempotent: Marked = None
    _idempotent: Callable[[Method], bool] = field(init=False, repr=False)
    _latencies: Lru[str, Latencies] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Raise ValueError or TypeError, naming setting and value, for what is no quantile and no time."""
        if share("quantile", self.quantile) in {0, 1}:
            msg = f"quantile={self.quantile!r} is not between 0 and 1"
            raise ValueError(msg)
        seconds_or_zero("least", self.least)
        able("budget", self.budget, ("call", "spend"), "Budget")
        object.__setattr__(self, "_idempotent", idempotent(self.idempotent))
        object.__setattr__(self, "_latencies", Lru(Latencies, most=_METHODS))

    async def __call__(self, request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        """Run the call, with one more attempt if it is slow."""
        if not self._applies(call):
            return await next(request, call)
        started = call.clock.time()
        self.budget.call(started)
        latencies = self._latencies.get(call.method.path)
        first = _Attempt(request, call.fork(), next)
        attempts = [first]
        try:
            if await self._is_wanted(first, call, latencies):
                attempts.append(_Attempt(request, _beside(first, call, call.clock.time() - started), next))
                call.decide("hedge", "sent")
            winner = await _winner(attempts)
        finally:
            await _end(attempts)
        if winner is not first:
            call.decide("hedge", "won")
        error = winner.error()
        if error is not None:
            raise error
        winner.call.settle()  # the loser may have answered in the same moment, and handed its metadata back after this
        if winner is first or first.task.cancelled():
            # A first attempt that was cancelled would have taken longer: counted so, it cannot pull the quantile down.
            latencies.add(call.clock.time() - started)
        return winner.task.result()

    def _applies(self, call: Call) -> bool:
        return (
            call.side is Side.CLIENT
            and call.method.kind is Kind.UNARY
            and self._idempotent(call.method)
            and not is_repeated(call)
        )

    async def _is_wanted(self, first: _Attempt, call: Call, latencies: Latencies) -> bool:
        """Wait for ``first``, not longer than usual, and return whether another attempt is to be made now."""
        usual = latencies.quantile(self.quantile)
        await _until(first.task, None if usual is None else max(self.least, usual), call.clock)
        pause = 0.0
        if first.task.done():
            error = first.error()
            if not isinstance(error, Error) or not may_pass(error):
                return False
            pause = error.retry_after or 0.0
        why_not = self._why_not(pause, call)
        if why_not is not None:
            call.decide("hedge", why_not)
            return False
        if pause:
            with call.waiting("hedge"):
                await call.clock.sleep(pause)
        return True

    def _why_not(self, pause: float, call: Call) -> str | None:
        now = call.clock.time()
        if pause < 0:
            return "pushed_back"
        if call.deadline is not None and now + pause >= call.deadline:
            return "too_late"
        return None if self.budget.spend(now) else "over_budget"


class _Attempt:
    __slots__ = ("call", "task")

    def __init__(self, request: Message, call: Call, next: Endpoint) -> None:  # noqa: A002 - the term
        self.call = call
        self.task: asyncio.Future[Message] = asyncio.ensure_future(next(request, call))

    def error(self) -> BaseException | None:
        """Return what it failed with, once it is done."""
        return asyncio.CancelledError() if self.task.cancelled() else self.task.exception()

    @property
    def answers(self) -> bool:
        """Whether what it ended with is for the caller, whatever the other one will say."""
        error = self.error()
        return not isinstance(error, Error) or verdict(error) is Verdict.SUCCESS


def _beside(first: _Attempt, call: Call, waited: float) -> Call:
    attempt = call.fork(again="hedge", waited=waited)
    attempt.metadata.set(PREVIOUS, "1")
    if first.call.instance is not None:
        attempt.tried = (*call.tried, first.call.instance)
    return attempt


async def _until(task: asyncio.Future[Message], delay: float | None, clock: Clock) -> None:
    """Return when ``task`` is done, or after ``delay`` seconds."""
    if delay is None:
        await asyncio.wait([task])
        return
    passed = asyncio.get_running_loop().create_future()
    timer = clock.call_at(clock.time() + delay, lambda: passed.set_result(None))
    try:
        await asyncio.wait([task, passed], return_when=asyncio.FIRST_COMPLETED)
    finally:
        timer.cancel()


async def _winner(attempts: Sequence[_Attempt]) -> _Attempt:
    while True:
        pending = [attempt.task for attempt in attempts if not attempt.task.done()]
        for attempt in attempts:
            if attempt.task.done() and attempt.answers:
                return attempt
        if not pending:
            break
        await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
    # All have failed: what a link of this side raised tells the caller less than what the other side did.
    return next((attempt for attempt in reversed(attempts) if not _is_refused(attempt)), attempts[-1])


def _is_refused(attempt: _Attempt) -> bool:
    error = attempt.error()
    return isinstance(error, Error) and error.refused


async def _end(attempts: Sequence[_Attempt]) -> None:
    """Cancel what is still at work and wait until it is over, also when the one who waits is cancelled meanwhile."""
    cancelled: asyncio.CancelledError | None = None
    for attempt in attempts:
        attempt.task.cancel()  # once: what an attempt does in leaving is its own affair
    while pending := [attempt.task for attempt in attempts if not attempt.task.done()]:
        try:
            await asyncio.wait(pending)
        except asyncio.CancelledError as error:
            cancelled = error
    for attempt in attempts:
        attempt.error()  # asked for, or asyncio complains of an exception that nobody has seen
    if cancelled is not None:
        raise cancelled
