"""One line for each call, however it ended."""

from __future__ import annotations

import asyncio
import contextlib
import traceback
from dataclasses import KW_ONLY, dataclass, field
from typing import ClassVar, Final

from servicekit.call import Call, Side
from servicekit.call_report import report
from servicekit.endpoint import FORGOTTEN, Endpoint, Message, check_answer
from servicekit.errors import By, Code, Error
from servicekit.mapping import error_id
from servicekit.policy.checked import kind, seconds_or_none, share
from servicekit.telemetry import LEVELS, Level, Telemetry, Write, recording

_LONGEST_PATH = 128
_LONGEST_CAUSE = 1024
# What nobody did on purpose is an error, what time and load did a warning; refusing a bad request is a day's work.
_LEVELS: Final[dict[Code, Level]] = {
    Code.INTERNAL: "error",
    Code.UNKNOWN: "error",
    Code.DATA_LOSS: "error",
    Code.DEADLINE_EXCEEDED: "warning",
    Code.UNAVAILABLE: "warning",
    Code.RESOURCE_EXHAUSTED: "warning",
}


@dataclass(frozen=True, slots=True, eq=False)
class AccessLog:
    """Writes exactly one line for each call, event "rpc", when it ends: by return, error, cancellation or deadline.

    Default: level "info"; "warning" for DEADLINE_EXCEEDED, UNAVAILABLE and RESOURCE_EXHAUSTED; "error" for INTERNAL,
    UNKNOWN and DATA_LOSS. For the server's own methods (health, reflection) ``auxiliary`` ("debug") is the level of
    all but the last three; None leaves those lines out.

    ``success_ratio`` (1.0: all) is how many of the calls that went well have a line, drawn by the call's clock; one that
    did not always has. ``slow`` (seconds; None: nothing is) marks a call that took as long with ``slow: true`` and brings
    it to "warning" at least, whatever the ratio; methods that stream responses may take their time.

    Fields: ``method``, ``kind``, ``side``, ``code``, ``duration_ms``, ``received`` and ``sent`` (messages, all
    attempts together); where there is one ``peer``, ``request_id``, ``trace_id`` and ``span_id`` (of a span that is
    recorded), ``remaining_ms`` (until the deadline), ``attempts`` (when more than one), and ``path`` (what was asked for,
    when the method is unknown: the method's name is the same for all of those). After a failure ``error`` (the message
    that the other side sees or sent), ``reason``, ``error_type``, ``error_id``, on a client ``by`` (who ended it) and
    where there was more than one attempt ``report`` (each of them, and why); after an unexpected one the traceback. When
    a message could not be decoded or encoded ``cause`` is what the codec says of it, which may quote it. Never what is
    in a message otherwise, and of the metadata the request id only.
    """

    keeps_messages: ClassVar[bool] = True
    observes: ClassVar[bool] = True

    telemetry: Telemetry
    _: KW_ONLY
    auxiliary: Level | None = "debug"
    success_ratio: float = 1.0
    slow: float | None = None
    # One (write, name) for each code: neither the level nor an enum's name is worked out again at each call.
    _writers: tuple[tuple[Write | None, str], ...] = field(init=False, repr=False)
    _auxiliary: tuple[tuple[Write | None, str], ...] = field(init=False, repr=False)
    _slow: tuple[tuple[Write | None, str], ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Raise ValueError or TypeError, naming setting and value, for what is no level, share or time."""
        kind("telemetry", self.telemetry, Telemetry, "Telemetry")
        if self.auxiliary is not None and self.auxiliary not in LEVELS:
            msg = f"auxiliary={self.auxiliary!r} is none of {', '.join(LEVELS)}, None"
            raise ValueError(msg)
        share("success_ratio", self.success_ratio)
        seconds_or_none("slow", self.slow)
        at = {level: self.telemetry.at(level) for level in LEVELS}
        quiet = None if self.auxiliary is None else at[self.auxiliary]
        levels = [_LEVELS.get(code, "info") for code in Code]
        writers = tuple((at[level], code.name) for code, level in zip(Code, levels, strict=True))
        auxiliary = (
            writer if level == "error" else (quiet, writer[1]) for writer, level in zip(writers, levels, strict=True)
        )
        object.__setattr__(self, "_writers", writers)
        object.__setattr__(self, "_auxiliary", tuple(auxiliary))
        slow = (
            (at["error"] if level == "error" else at["warning"], name)
            for level, (_, name) in zip(levels, writers, strict=True)
        )
        object.__setattr__(self, "_slow", tuple(slow))

    async def __call__(self, request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        """Run the call, and write its line."""
        count = _Count()
        call.on_received(count.receive)
        call.on_sent(count.send)
        try:
            response = await next(request, call)
            if isinstance(response, FORGOTTEN):
                check_answer(response, call)
        except BaseException as error:
            self._write(call, count, error)
            raise
        self._write(call, count, None)
        return response

    def _write(self, call: Call, count: _Count, error: BaseException | None) -> None:
        method = call.method
        outcome = call.outcome(error)
        slow = self._is_slow(call)
        writers = self._auxiliary if method.auxiliary else self._slow if slow else self._writers
        write, code = writers[outcome]
        if write is None or (outcome is Code.OK and not slow and self._is_left_out(call)):
            return
        # Somebody else's logger may raise anything: a line that is lost must not fail the call.
        with contextlib.suppress(Exception):
            fields = _fields(call, count, code, error)
            if slow:
                fields["slow"] = True
            write("rpc", **fields)
            # Only with the id that the client gets: without one (no Recovery inside) the edge makes it, and tells why.
            call.logged = call.logged or ("exc_info" in fields and "error_id" in fields)

    def _is_slow(self, call: Call) -> bool:
        method = call.method
        if self.slow is None or method.auxiliary or method.kind.response_streaming:
            return False
        return call.clock.time() - call.started >= self.slow

    def _is_left_out(self, call: Call) -> bool:
        return self.success_ratio < 1.0 and call.clock.random() >= self.success_ratio


class _Count:
    __slots__ = ("received", "sent")

    def __init__(self) -> None:
        self.received = 0
        self.sent = 0

    def receive(self, _message: object, _size: int) -> None:
        self.received += 1

    def send(self, _message: object, _size: int) -> None:
        self.sent += 1


def _fields(call: Call, count: _Count, code: str, error: BaseException | None) -> dict[str, object]:
    method = call.method
    now = call.clock.time()
    fields: dict[str, object] = {
        "method": method.path,
        "kind": method.kind.value,
        "side": call.side.value,
        "code": code,
        "duration_ms": round((now - call.started) * 1e3, 3),
        "received": count.received,
        "sent": count.sent,
    }
    if call.peer:
        fields["peer"] = call.peer
    if (request_id := call.state.get("request_id")) is not None:
        fields["request_id"] = request_id
    if (span := recording()) is not None:
        fields["trace_id"], fields["span_id"] = f"{span.trace_id:032x}", f"{span.span_id:016x}"
    if call.deadline is not None:
        fields["remaining_ms"] = round(max(0.0, call.deadline - now) * 1e3, 3)
    if call.attempt > 1:
        fields["attempts"] = call.attempt
    if not method.known:
        fields["path"] = _shown(call.path, _LONGEST_PATH)
    if error is not None:
        fields.update(_failure(call, error))
    return fields


def _failure(call: Call, error: BaseException) -> dict[str, object]:
    if isinstance(error, asyncio.CancelledError):
        if call.failure is None:
            return {}  # the code says it all
        error = call.failure
    if not isinstance(error, Error):
        return {"error_type": _type(error), "exc_info": error}
    fields: dict[str, object] = {"error": error.message}
    if error.reason:
        fields["reason"] = error.reason
    if call.side is Side.CLIENT:
        fields["by"] = error.by.value
        if call.attempt > 1 and call.origin is None:
            fields["report"] = str(report(call))
    name = error_id(error.trailers)
    if name is not None:
        fields["error_id"] = name
    if error.__cause__ is not None:
        fields.update(_cause(error, error.__cause__, ours=name is not None and error.by is By.LOCAL))
    return fields


def _cause(error: Error, cause: BaseException, *, ours: bool) -> dict[str, object]:
    fields: dict[str, object] = {"error_type": _type(cause)}
    if error.tells_cause:
        told = traceback.format_exception_only(cause)[-1].strip()  # also of one whose own str() fails
        fields["cause"] = _shown(told, _LONGEST_CAUSE)
    # An id and a cause, both ours: not raised on purpose. What came over the wire may have the id alone.
    if ours:
        fields["exc_info"] = cause
    return fields


def _type(error: BaseException) -> str:
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _shown(text: str, longest: int) -> str:
    # Anybody may send anything here: printable ASCII only, and not more of it than helps.
    shown = text[:longest].encode("unicode_escape").decode()
    return shown if len(text) <= longest else shown + "..."
