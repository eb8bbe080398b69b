"""Figures of every call: how many, how they ended, how long they took, what they carried, and what was decided."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Final

from servicekit.call import Call, Hook, Side
from servicekit.endpoint import Endpoint, Message
from servicekit.errors import Code
from servicekit.instruments import OTHER, Counter, Family, Gauge, Histogram, Provider, is_error, name_of
from servicekit.method import Method
from servicekit.policy.checked import kind
from servicekit.telemetry import Telemetry, recording

_MOST_METHODS: Final = 2_000
_MOST_DECISIONS: Final = 1_000
_MILLISECONDS: Final = (5, 10, 25, 50, 75, 100, 250, 500, 750, 1_000, 2_500, 5_000, 7_500, 10_000)


@dataclass(frozen=True, slots=True, eq=False)
class Metrics:
    """Counts every call, refused ones too, on a server as ``rpc.server.call.…``, on a client as ``rpc.client.call.…``.

    Default: on for every method. ``duration`` is a histogram in seconds, by method and code, until the call was over,
    which for a stream is all of it; where a span is recorded, its trace is the exemplar. ``started`` and ``handled`` (by
    code) count calls, ``in_flight`` is how many are under way. ``messages`` and ``bytes`` count as they pass, by
    direction ("received", "sent"), all attempts together. ``servicekit.decisions`` counts what links further in decide,
    by link and decision.

    Prometheus spells them ``rpc_server_call_duration_seconds{rpc_method="package.Service/Method",
    rpc_response_status_code="OK", …}``, ``rpc_server_call_handled_total`` and so on. All methods that a server does not
    have are one, "_OTHER", and so are those after the first 2,000. With ``telemetry.old_names`` there is
    ``rpc.server.duration`` too, in milliseconds, as it was in the conventions once.

    A provider that raises costs the figure, not the call.
    """

    keeps_messages: ClassVar[bool] = True
    observes: ClassVar[bool] = True

    telemetry: Telemetry
    _server: _Side = field(init=False, repr=False)
    _client: _Side = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Raise TypeError for what is no Telemetry, ValueError when there is nowhere to keep figures."""
        provider = kind("telemetry", self.telemetry, Telemetry, "Telemetry").metrics
        if provider is None:
            msg = f"Metrics needs somewhere to keep figures: Telemetry(metrics=...), not {self.telemetry!r}"
            raise ValueError(msg)
        for side in Side:
            object.__setattr__(self, f"_{side.value}", _Side(provider, side, old_names=self.telemetry.old_names))

    async def __call__(self, request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        """Count the call, then run it, then say how it ended."""
        side = self._server if call.side is Side.SERVER else self._client
        figures = side.methods.get(call.method.path) or side.of(call.method)
        figures.begin(call)
        try:
            response = await next(request, call)
        except BaseException as error:
            figures.end(call, error)
            raise
        figures.end(call, None)
        return response


class _Side:
    """The families of one side, made when its first call comes, and the figures of its methods by path.

    By path and not by Method: a client has a new Method for each stub that is made.
    """

    __slots__ = ("_decisions", "_families", "_old_names", "_other", "_provider", "_side", "decided", "methods")

    def __init__(self, provider: Provider, side: Side, *, old_names: bool) -> None:
        self._provider = provider
        self._side = side
        self._old_names = old_names
        self._families: _Families | None = None
        self._other: _Figures | None = None
        self._decisions: dict[tuple[str, str], Counter] = {}
        self.methods: dict[str, _Figures] = {}
        self.decided = self._decide  # bound once

    def of(self, method: Method) -> _Figures:
        """Return the figures of a method that is not in ``methods``, and put it there while there is room."""
        if self._families is None:
            self._families = _Families(self._provider, self._side, old_names=self._old_names)
        if method.known and len(self.methods) < _MOST_METHODS:
            figures = _Figures(self, self._families, name_of(method), method)
        else:
            if self._other is None:
                self._other = _Figures(self, self._families, OTHER, None)
            figures = self._other
        if len(self.methods) < _MOST_METHODS:
            self.methods[method.path] = figures
        return figures

    def _decide(self, link: str, decision: str) -> None:
        child = self._decisions.get((link, decision))
        try:
            if child is None:
                child = self._decision(link, decision)
            child.add()
        except Exception:  # noqa: BLE001 - somebody's provider: it has nothing to do with the call
            return

    def _decision(self, link: str, decision: str) -> Counter:
        assert self._families is not None  # noqa: S101 - the call whose decision this is was counted
        if len(self._decisions) >= _MOST_DECISIONS:
            link = decision = OTHER
        child = self._decisions[link, decision] = self._families.decisions.labels(link, decision)
        return child


class _Families:
    """The metrics of one side."""

    __slots__ = (
        "bytes",
        "decisions",
        "duration",
        "handled",
        "in_flight",
        "messages",
        "old_duration",
        "side",
        "started",
    )

    def __init__(self, provider: Provider, side: Side, *, old_names: bool) -> None:
        self.side = side
        prefix, method, code = f"rpc.{side.value}.call", "rpc.method", "rpc.response.status_code"
        self.duration: Family[Histogram] = provider.histogram(
            f"{prefix}.duration",
            f"How long calls took, on the {side.value}.",
            unit="s",
            labels=("rpc.system.name", method, code, "error.type"),
        )
        self.started: Family[Counter] = provider.counter(
            f"{prefix}.started", "Calls that were begun.", labels=(method,)
        )
        self.handled: Family[Counter] = provider.counter(
            f"{prefix}.handled", "Calls that are over.", labels=(method, code)
        )
        self.in_flight: Family[Gauge] = provider.gauge(
            f"{prefix}.in_flight", "Calls that are under way.", labels=(method,)
        )
        self.messages: Family[Counter] = provider.counter(
            f"{prefix}.messages", "Messages, by direction.", labels=(method, "direction")
        )
        self.bytes: Family[Counter] = provider.counter(
            f"{prefix}.bytes", "Size of messages before compression.", unit="By", labels=(method, "direction")
        )
        self.decisions: Family[Counter] = provider.counter(
            "servicekit.decisions", "What links decided about calls.", labels=("link", "decision")
        )
        self.old_duration: Family[Histogram] | None = None
        if old_names:
            self.old_duration = provider.histogram(
                f"rpc.{side.value}.duration",
                f"How long calls took, on the {side.value}, as the conventions had it before.",
                unit="ms",
                labels=("rpc.system", "rpc.service", method, "rpc.grpc.status_code"),
                buckets=_MILLISECONDS,
            )


class _Figures:
    """The children of one method: found once, kept."""

    __slots__ = ("_by_code", "_families", "_in_flight", "_method", "_name", "_received", "_sent", "_side", "_started")

    def __init__(self, side: _Side, families: _Families, name: str, method: Method | None) -> None:
        self._side = side
        self._families = families
        self._name = name
        self._method = method
        self._started = families.started.labels(name)
        self._in_flight = families.in_flight.labels(name)
        self._received = _counting(families, name, "received")
        self._sent = _counting(families, name, "sent")
        self._by_code: dict[Code, tuple[Counter, Histogram, Histogram | None]] = {}

    def begin(self, call: Call) -> None:
        """Take note of a call that begins."""
        call.on_received(self._received)
        call.on_sent(self._sent)
        call.on_decision(self._side.decided)
        try:
            self._started.add()
            self._in_flight.add()
        except Exception:  # noqa: BLE001 - somebody's provider: it has nothing to do with the call
            return

    def end(self, call: Call, error: BaseException | None) -> None:
        """Take note of how it ended."""
        try:
            self._in_flight.add(-1.0)
            code = Code.OK if error is None else call.outcome(error)
            handled, duration, old_duration = self._by_code.get(code) or self._children(code)
            handled.add()
            seconds = call.clock.time() - call.started
            span = recording()
            trace_id = format(span.trace_id, "032x") if span is not None and span.trace_flags.sampled else None
            duration.observe(seconds, trace_id)
            if old_duration is not None:
                old_duration.observe(seconds * 1e3)
        except Exception:  # noqa: BLE001 - as above
            return

    def _children(self, code: Code) -> tuple[Counter, Histogram, Histogram | None]:
        families = self._families
        kind = code.name if is_error(code, families.side) else ""
        old: Histogram | None = None
        if families.old_duration is not None:
            service, name = (OTHER, OTHER) if self._method is None else (self._method.service, self._method.name)
            old = families.old_duration.labels("grpc", service, name, str(int(code)))
        children = self._by_code[code] = (
            families.handled.labels(self._name, code.name),
            families.duration.labels("grpc", self._name, code.name, kind),
            old,
        )
        return children


def _counting(families: _Families, name: str, direction: str) -> Hook:
    messages, size = families.messages.labels(name, direction).add, families.bytes.labels(name, direction).add

    def count(_message: object, length: int) -> None:
        try:
            messages()
            size(length)
        except Exception:  # noqa: BLE001 - somebody's provider: it has nothing to do with the call
            return

    return count
