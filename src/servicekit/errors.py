"""What can go wrong: the canonical codes, the one exception that crosses layers, and what became of its call."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Sequence

    from google.protobuf.message import Message

M = TypeVar("M", bound="Message")

_SHOWN = 200
"""Characters of another side's message that a line shows."""


class Code(enum.IntEnum):
    """The canonical gRPC status codes (google.rpc.Code): OK and the sixteen ways to fail."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class By(enum.Enum):
    """Who ended an RPC."""

    PEER = "peer"  # its status came over the wire
    LOCAL = "local"  # this side's own decision or transport: refused, timed out, never connected
    CALLER = "caller"  # whoever made the call cancelled it


class Error(Exception):
    """Raised when an RPC fails on purpose: a code, a message for the other side, and what it may act on.

    ``message`` crosses the wire, so it never holds what the other side must not see. ``reason`` is a stable
    UPPER_SNAKE_CASE word for programs (google.rpc.ErrorInfo); ``details`` are protobuf messages of any type
    (google.rpc.Status.details); ``retry_after`` is in seconds and tells a client when to come back
    (google.rpc.RetryInfo and ``grpc-retry-pushback-ms``); a negative one says "do not".

    On an error that came out of a call, ``begun`` is False when the peer cannot have started the work, ``by`` says
    who ended it, and ``headers`` and ``trailers`` hold the metadata that came with it. ``refused`` marks one that a link
    on this side raised in the place of a call: nobody else was asked. ``report`` is what became of that call, attempt
    by attempt; None on an error that came out of none.
    """

    report: CallReport | None = None
    # Whether the text of ``__cause__`` belongs in the log: it may quote what came over the wire, but no secret of ours.
    tells_cause = False

    def __init__(  # noqa: PLR0913 - one place where a failure is described; all but two are keywords
        self,
        code: Code,
        message: str = "",
        *,
        reason: str = "",
        details: Sequence[Message] = (),
        retry_after: float | None = None,
        begun: bool = True,
        by: By = By.LOCAL,
        refused: bool = False,
        headers: tuple[tuple[str, str | bytes], ...] = (),
        trailers: tuple[tuple[str, str | bytes], ...] = (),
    ) -> None:
        """Raise ValueError for ``Code.OK``: success is not an error, and a peer would wait for what never comes.

        So it does for what is no code; a ``grpc.StatusCode`` is the Code of its number. Other mistakes do not hide the
        code: what cannot be sent is left out, and logged.
        """
        code = code if isinstance(code, Code) else _known(code)
        if code is Code.OK:
            msg = f"an Error needs a code other than OK (message: {message!r})"
            raise ValueError(msg)
        super().__init__(code, message)
        self.code = code
        self.message = message
        self.reason = reason
        self.details = details if isinstance(details, tuple) else _listed(details)
        self.retry_after = retry_after
        self.begun = begun
        self.by = by
        self.refused = refused
        self.headers = headers
        self.trailers = trailers if isinstance(trailers, tuple) else _listed(trailers)

    def detail(self, kind: type[M]) -> M | None:
        """Return the first detail of type ``kind``, or None when there is none."""
        return next((detail for detail in self.details if isinstance(detail, kind)), None)

    def __str__(self) -> str:
        """Return "CODE: message"."""
        return f"{self.code.name}: {self.message}" if self.message else self.code.name

    def __repr__(self) -> str:
        """Return the code, the message and the reason, never the details (they may hold anything)."""
        reason = f", reason={self.reason!r}" if self.reason else ""
        return f"Error({self.code.name}, {self.message!r}{reason})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One attempt that was handed to the wire. All times are in seconds.

    ``number`` counts from 1; one that a link on this side refused is missing from the row, and told of by a decision.
    ``instance`` is the address that was asked, "" where the wire does not know. ``again`` is the link that made it after
    or beside an earlier one ("retry", "hedge"), ``waited`` how long that link waited first; "" and 0.0 for the first.

    ``code``, ``message``, ``reason``, ``begun`` and ``retry_after`` are how it ended, as an Error has them; ``code`` is
    None while it is under way. What is no Error has UNKNOWN and its class's name.

    ``started`` counts from the start of the call. ``seconds`` is how long it took, or has until now.
    """

    number: int = 1
    instance: str = ""
    again: str = ""
    waited: float = 0.0
    code: Code | None = None
    message: str = ""
    reason: str = ""
    begun: bool = True
    retry_after: float | None = None
    started: float = 0.0
    seconds: float = 0.0

    def __str__(self) -> str:
        """Return "attempt 2 (retry after 51.0 ms) at 10.0.0.1:50051: UNAVAILABLE 'down' in 3.1 ms"."""
        again = f" ({self.again} after {_ms(self.waited)})" if self.again else ""
        where = f" at {self.instance}" if self.instance else ""
        ended = "under way for" if self.code is None else f"{self.code.name}{self._why()} in"
        return f"attempt {self.number}{again}{where}: {ended} {_ms(self.seconds)}"

    def _why(self) -> str:
        message = self.message if len(self.message) <= _SHOWN else f"{self.message[:_SHOWN]}…"
        told = [f" {message!r}"] if message else []
        if self.reason:
            told.append(f" {self.reason}")
        if not self.begun:
            told.append(", never begun,")
        if self.retry_after is not None:
            told.append(
                f", come back after {_ms(self.retry_after)}," if self.retry_after >= 0 else ", do not come back,"
            )
        return "".join(told)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What a link decided about the call, ``after`` so many seconds: ``link`` and ``decision`` are fixed words."""

    link: str
    decision: str
    after: float

    def __str__(self) -> str:
        """Return "retry: exhausted"."""
        return f"{self.link}: {self.decision}"


@dataclass(frozen=True, slots=True, kw_only=True)
class CallReport:
    """What became of one call on the client: for a log, a terminal, or whoever decides what to do next.

    ``attempts`` are those that were handed to the wire, in the order of their start; a call that was refused before
    has none. ``decisions`` are what the links decided, in the order of time. ``waited`` is how many seconds each link
    made the call wait, for those that did ("retry": the back-off). ``seconds`` is the whole, or what it is until now:
    links do nothing else that takes time, so what neither an attempt nor a wait accounts for is the event loop's.

    It holds no metadata and no message but the status messages.
    """

    method: str
    attempts: tuple[Attempt, ...] = ()
    decisions: tuple[Decision, ...] = ()
    waited: tuple[tuple[str, float], ...] = ()
    seconds: float = 0.0

    @property
    def instances(self) -> tuple[str, ...]:
        """The instances that were asked, each once, in order."""
        return tuple(dict.fromkeys(attempt.instance for attempt in self.attempts if attempt.instance))

    def __str__(self) -> str:
        """Return one line: the method, the whole time, then attempts and decisions in the order of time, and the waits."""
        timed = [(attempt.started, str(attempt)) for attempt in self.attempts]
        timed += [(decision.after, str(decision)) for decision in self.decisions]
        told = [line for _, line in sorted(timed, key=lambda each: each[0])]
        told += [f"{link} waited {_ms(seconds)}" for link, seconds in self.waited]
        return f"{self.method} in {_ms(self.seconds)}: {'; '.join(told) or 'no attempt'}"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms"


def _known(code: Any) -> Code:  # noqa: ANN401 - it is none by its type
    number = getattr(code, "value", code)
    try:
        return Code(number[0] if isinstance(number, tuple) else number)
    except ValueError:
        msg = f"code={code!r} is no Code"
        raise ValueError(msg) from None


def _listed(given: Any) -> tuple[Any, ...]:  # noqa: ANN401 - as above
    """Return what was given as a tuple, also where it is a dict, nothing, or one thing that belongs in a list."""
    if given is None:
        return ()
    if isinstance(given, str | bytes) or not isinstance(given, Iterable):
        return (given,)
    return tuple(given.items() if isinstance(given, Mapping) else given)


def code_of(error: BaseException | None) -> Code:
    """Return the code that an outcome amounts to: None is OK, a cancellation CANCELLED, a stranger INTERNAL.

    Whether a cancellation was a deadline that passed only the call knows: prefer ``call.outcome(error)`` where
    there is one.
    """
    if error is None:
        return Code.OK
    if isinstance(error, Error):
        return error.code
    if isinstance(error, asyncio.CancelledError):
        return Code.CANCELLED
    return Code.INTERNAL
