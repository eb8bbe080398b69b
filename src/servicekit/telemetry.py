"""What observers write to: a logger, a tracer, and a provider of metrics.

Passed to whoever observes, never global: nothing here reads or changes structlog's configuration, nor OpenTelemetry's.
A line is rendered once, by orjson, and leaves in one write. A log that cannot be written is counted and otherwise
ignored, because a full disk or a closed pipe must not fail a call.
"""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import IO, Final, Literal, Protocol, TypeAlias, get_args

import orjson
import structlog
from opentelemetry import trace
from structlog.typing import EventDict, Processor, WrappedLogger

from .clock import Clock, SystemClock
from .instruments import Provider
from .policy.checked import able, flag

Level: TypeAlias = Literal["debug", "info", "warning", "error"]
Format: TypeAlias = Literal["json", "console", "auto"]
Write: TypeAlias = "Callable[..., object]"

_KINDS: Final = ("counter", "gauge", "histogram")
_CLOCK: Final = ("time", "sleep", "call_at", "random")
_OPT_IN: Final = "OTEL_SEMCONV_STABILITY_OPT_IN"

LEVELS: Final[tuple[Level, ...]] = get_args(Level)
"""The levels, the least important one first."""


class Logger(Protocol):
    """What a line is written with: any structlog logger will do. The event is a name, what varies is in the fields.

    ``exc_info`` among the fields is an exception, to be shown with its traceback.
    """

    def debug(self, event: str, /, **fields: object) -> object:
        """Write what only somebody looking for a fault wants to see."""

    def info(self, event: str, /, **fields: object) -> object:
        """Write what happens in the ordinary course of things."""

    def warning(self, event: str, /, **fields: object) -> object:
        """Write what an operator should know of."""

    def error(self, event: str, /, **fields: object) -> object:
        """Write what an operator should do something about."""


class Telemetry:
    """Where observers write. Safe to share between any number of servers, channels and threads.

    ``log`` is "json" (one object a line), "console" (for people), "auto" (console when ``stream`` is a terminal, else
    JSON: the default), None (no log at all), or a logger of your own. Lines go to ``stream``, text or binary, standard
    output by default; those below ``level`` ("info" by default) are not made. A logger of your own writes where it
    wants, but ``level`` holds for what observers give it. ``clock`` is what observers measure their own time with.

    ``traces`` is a TracerProvider or a Tracer of OpenTelemetry, "auto" (the global provider as it is when this is made,
    or the one that is set later if none is yet), or None: no spans (the default). ``metrics`` is "prometheus" (a
    ``PrometheusMetrics`` with a registry of its own), a Provider, or None: no figures (the default). What happens to be
    installed decides nothing.

    ``old_names`` has observers use the names that OpenTelemetry's RPC conventions gave up beside the current ones; None
    asks the environment, once, as every instrumentation does: whether OTEL_SEMCONV_STABILITY_OPT_IN has "rpc/dup".

    Raises ValueError or TypeError for a setting that is none of these, naming it; ImportError, naming the extra, where
    it is not installed.
    """

    __slots__ = ("_said", "_sink", "clock", "level", "log", "logger", "metrics", "old_names", "tracer")

    def __init__(  # noqa: PLR0913 - keywords with defaults: three things to write to, and how each of them is written
        self,
        *,
        log: Format | Logger | None = "auto",
        traces: trace.TracerProvider | trace.Tracer | Literal["auto"] | None = None,
        metrics: Provider | Literal["prometheus"] | None = None,
        level: Level = "info",
        stream: IO[str] | IO[bytes] | None = None,
        clock: Clock | None = None,
        old_names: bool | None = None,
    ) -> None:
        """Make the logger, and find the others."""
        if level not in LEVELS:
            msg = f"level={level!r} is none of {', '.join(LEVELS)}"
            raise ValueError(msg)
        if isinstance(log, str) and log not in get_args(Format):
            msg = f"log={log!r} is none of {', '.join(get_args(Format))}, None, or a logger"
            raise ValueError(msg)
        if stream is not None and not isinstance(log, str):
            msg = f"stream={stream!r} goes with log='json', 'console' or 'auto', not with log={log!r}"
            raise ValueError(msg)
        if stream is not None:
            able("stream", stream, ("write", "isatty"), "stream")
        self._sink: Final = _Sink(sys.stdout if stream is None else stream)
        if log == "auto":
            log = "console" if self._sink.terminal else "json"
        self.log: Final = log if log is None or isinstance(log, str) else type(log).__name__
        self.level: Final[Level] = level
        self.logger: Final[Logger] = _logger(log, level, self._sink)
        self.clock: Final[Clock] = SystemClock() if clock is None else able("clock", clock, _CLOCK, "Clock")
        self.tracer: Final[trace.Tracer | None] = _tracer(traces)
        self.metrics: Final[Provider | None] = _provider(metrics)
        self.old_names: Final = _opted_in() if old_names is None else flag("old_names", old_names)
        self._said: set[str] = set()

    def at(self, level: Level) -> Write | None:
        """Return what writes a line of ``level``, called as ``write(event, **fields)``, or None when nobody wants it.

        Who asks once, and finds None, need not make the fields.
        """
        if self.log is None or LEVELS.index(level) < LEVELS.index(self.level):
            return None
        write: Write = getattr(self.logger, level)
        return write

    def once(self, event: str, /, **fields: object) -> None:
        """Write a line of level "info", the first time that ``event`` is told here; later ones say nothing new."""
        if event not in self._said:
            self._said.add(event)
            self.logger.info(event, **fields)

    @property
    def lost(self) -> int:
        """How many lines could not be written to the stream."""
        return self._sink.lost

    def __repr__(self) -> str:
        """Return the settings as they came out."""
        more = "" if self.tracer is None else f", traces={type(self.tracer).__name__}"
        more += "" if self.metrics is None else f", metrics={self.metrics!r}"
        return f"Telemetry(log={self.log!r}, level={self.level!r}{more})"


def recording() -> trace.SpanContext | None:
    """Return what names the span that the running task is in, while it is recorded; else None."""
    span = trace.get_current_span()
    return span.get_span_context() if span.is_recording() else None


def _opted_in() -> bool:
    words = os.environ.get(_OPT_IN, "").split(",")
    return any(word.strip() == "rpc/dup" for word in words)


def _tracer(traces: trace.TracerProvider | trace.Tracer | str | None) -> trace.Tracer | None:
    if traces is None or isinstance(traces, trace.Tracer):
        return traces
    if traces == "auto":
        traces = trace.get_tracer_provider()
    if not isinstance(traces, trace.TracerProvider):
        msg = f"traces={traces!r} is no TracerProvider or Tracer of OpenTelemetry, 'auto' or None"
        raise TypeError(msg)
    return traces.get_tracer("servicekit")


def _provider(metrics: Provider | str | None) -> Provider | None:
    if metrics == "prometheus":
        from .metrics.prometheus import PrometheusMetrics  # noqa: PLC0415 - an extra: imported by who asks for it

        return PrometheusMetrics()
    if isinstance(metrics, str):
        msg = f"metrics={metrics!r} is none of 'prometheus', None, or a provider"
        raise ValueError(msg)  # noqa: TRY004 - a word of the right type, and none of those that there are
    if metrics is not None and not all(callable(getattr(metrics, kind, None)) for kind in _KINDS):
        msg = f"metrics={metrics!r} is no provider of metrics: it has no counter(), gauge() or histogram()"
        raise TypeError(msg)
    return metrics


class _Sink:
    """The stream under a logger, one write and one flush a line. Never raises."""

    __slots__ = ("_flush", "_write", "lost", "terminal")

    def __init__(self, stream: IO[str] | IO[bytes] | None) -> None:
        self.lost = 0
        self.terminal = stream is not None and stream.isatty()
        # A text stream is written to below its encoder, where it has such a place; io.StringIO has none. None is what
        # sys.stdout is in a process without a console.
        binary = getattr(stream, "buffer", stream)
        self._flush: Callable[[], object] = getattr(binary, "flush", _nothing)
        self._write: Callable[[bytes], object] = getattr(binary, "write", _nothing)
        if isinstance(binary, io.TextIOBase):
            write_text = binary.write
            self._write = lambda line: write_text(line.decode())

    def msg(self, line: bytes) -> None:
        try:
            self._write(line)
            self._flush()
        except Exception:  # noqa: BLE001 - whatever a stream may raise: it has nothing to do with the call
            self.lost += 1

    # structlog calls the method that the level is named for
    debug = info = warning = error = critical = msg


class _Silence:
    __slots__ = ()

    def debug(self, event: str, /, **fields: object) -> None:
        pass

    info = warning = error = debug


def _nothing(*_: object) -> None:
    pass


def _logger(log: str | Logger | None, level: Level, sink: _Sink) -> Logger:
    if log is None:
        return _Silence()
    if not isinstance(log, str):
        return _checked(log)
    proxy = structlog.wrap_logger(
        sink,
        processors=_console(colors=sink.terminal) if log == "console" else [_json],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        context_class=dict,
    )
    # The proxy makes a logger at each line; what it binds is the logger itself.
    logger: Logger = proxy.bind()
    return logger


def _checked(log: Logger) -> Logger:
    missing = [level for level in LEVELS if not callable(getattr(log, level, None))]
    if missing:
        msg = f"log={log!r} is no logger: it has no {missing[0]}()"
        raise TypeError(msg)
    # The one logger that looks right, and refuses fields at the first line of the first call.
    if any(cls.__module__ == "logging" for cls in type(log).__mro__):
        msg = f"log={log!r} takes no fields: give structlog.wrap_logger of it, with processors that render for it"
        raise TypeError(msg)
    return log


def _json(_: WrappedLogger, level: str, fields: EventDict) -> bytes:
    line = {"timestamp": datetime.now(tz=UTC), "level": level, "event": fields.pop("event")}
    if "exc_info" in fields:
        fields = structlog.processors.format_exc_info(None, level, fields)
    line.update(fields)
    try:
        return orjson.dumps(line, _describe, orjson.OPT_UTC_Z | orjson.OPT_APPEND_NEWLINE)
    except TypeError:  # a lone surrogate, an integer above 64 bits: rare, and the slow encoder has no such limits
        return (json.dumps(line, default=_describe, skipkeys=True) + "\n").encode()


def _console(*, colors: bool) -> list[Processor]:
    render = structlog.dev.ConsoleRenderer(
        colors=colors and sys.platform != "win32",
        # not what happens to be installed: rich's tracebacks show local variables, and secrets with them
        exception_formatter=structlog.dev.plain_traceback,
        sort_keys=False,
    )
    return [
        structlog.processors.TimeStamper(fmt="%H:%M:%S.%f", utc=False),
        structlog.processors.add_log_level,
        structlog.processors.format_exc_info,
        _printable,
        lambda logger, level, fields: (render(logger, level, fields) + "\n").encode(errors="backslashreplace"),
    ]


def _printable(_: WrappedLogger, __: str, fields: EventDict) -> EventDict:
    # A terminal obeys control characters, wherever they come from; in a traceback the ends of lines are its own.
    for key, value in fields.items():
        if isinstance(value, str) and not value.isprintable():
            keep = "\n\t" if key == "exception" else ""
            fields[key] = "".join(
                character if character.isprintable() or character in keep else ascii(character)[1:-1]
                for character in value
            )
    return fields


def _describe(thing: object) -> str:
    if isinstance(thing, datetime):
        return thing.isoformat()
    try:
        return repr(thing)
    except Exception:  # noqa: BLE001 - a line with a hole is better than none
        return f"<{type(thing).__name__} without repr>"
