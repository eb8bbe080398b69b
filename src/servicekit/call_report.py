"""What became of a call, made up when somebody asks: from what transport and links have noted on the Call."""

from __future__ import annotations

from .call import Call, Succeeded
from .errors import Attempt, CallReport, Code, Decision, Error


def report(of: object) -> CallReport:
    """Return what became of a call on the client.

    ``of`` is its call object (also one under way, or that went well), what it has raised, or inside of a link the Call.
    Raises TypeError for what no channel of this package has made.
    """
    found = _report_of(of) if isinstance(of, Call) else getattr(of, "report", None)
    if not isinstance(found, CallReport):
        msg = f"{of!r} tells of no call: give a call object or an error of a channel that connect() made"
        raise TypeError(msg)
    return found


def failed(call: Call, error: BaseException) -> Attempt:
    """Return what became of the attempt ``call``, which has just failed with ``error``."""
    now, since = call.clock.time(), call.root.started
    if isinstance(error, Error):
        return _attempt(
            call,
            now,
            since,
            code=error.code,
            message=error.message,
            reason=error.reason,
            begun=error.begun,
            retry_after=error.retry_after,
        )
    # The name only: what an exception says was not meant for others, and it holds everything that was at work.
    code = Code.UNKNOWN if isinstance(error, Exception) else call.outcome(error)
    return _attempt(call, now, since, code=code, message=type(error).__name__)


def succeeded(call: Call) -> Succeeded:
    """Return what became of the attempt ``call``, which has just succeeded."""
    instance = call.instance or call.peer
    return Succeeded(call.attempt or 1, instance, call.again, call.waited, call.began, call.clock.time())


def _attempt(  # noqa: PLR0913 - what an Error has
    call: Call,
    now: float,
    since: float,
    *,
    code: Code | None,
    message: str = "",
    reason: str = "",
    begun: bool = True,
    retry_after: float | None = None,
) -> Attempt:
    return Attempt(
        number=max(1, call.attempt),
        instance=call.instance or call.peer,
        again=call.again,
        waited=call.waited,
        code=code,
        message=message,
        reason=reason,
        begun=begun,
        retry_after=retry_after,
        started=call.began - since,
        seconds=now - call.began,
    )


def _report_of(call: Call) -> CallReport:
    root = call.root
    since, now = root.started, root.clock.time() if root.ended is None else root.ended
    decisions: list[Decision] = []
    waited: dict[str, float] = {}
    for link, decision, when, seconds in root.notes:
        if decision:
            decisions.append(Decision(link=link, decision=decision, after=when - since))
        else:
            waited[link] = waited.get(link, 0.0) + seconds
    return CallReport(
        method=root.path,
        attempts=tuple([_told(each, since, now) for each in root.attempts]),
        decisions=tuple(decisions),
        waited=tuple(waited.items()),
        seconds=now - since,
    )


def _told(attempt: Call | Attempt | Succeeded, since: float, now: float) -> Attempt:
    if isinstance(attempt, Attempt):
        return attempt
    if isinstance(attempt, Call):
        return _attempt(attempt, now, since, code=None)
    return Attempt(
        number=attempt.number,
        instance=attempt.instance,
        again=attempt.again,
        waited=attempt.waited,
        code=Code.OK,
        started=attempt.began - since,
        seconds=attempt.ended - attempt.began,
    )
