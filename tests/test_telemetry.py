"""What observers write to."""

from __future__ import annotations

import io
import json
import logging
import sys
from datetime import UTC, datetime
from typing import IO

import pytest
import structlog

from servicekit.clock import MovableClock, SystemClock
from servicekit.telemetry import Level, Telemetry

CANARY = "canary-" + "90d1"


def lines(stream: io.BytesIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Counting(io.BytesIO):
    def __init__(self) -> None:
        super().__init__()
        self.writes = 0
        self.flushes = 0

    def write(self, data: object, /) -> int:
        self.writes += 1
        return super().write(data)  # type: ignore[arg-type]  # whatever it was given

    def flush(self) -> None:
        self.flushes += 1


class Broken(io.BytesIO):
    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error: Exception | None = error

    def write(self, data: object, /) -> int:
        if self.error is not None:
            raise self.error
        return super().write(data)  # type: ignore[arg-type]  # whatever it was given


def test_a_line_is_an_object() -> None:
    """A JSON line has time, level and event first, then the fields, in their own types."""
    stream = io.BytesIO()
    before = datetime.now(tz=UTC)
    Telemetry(log="json", stream=stream).logger.info("started", port=50051, ratio=0.5, names=["a"], none=None)
    (line,) = lines(stream)
    assert list(line) == ["timestamp", "level", "event", "port", "ratio", "names", "none"]
    moment = datetime.fromisoformat(str(line.pop("timestamp")))
    assert before <= moment <= datetime.now(tz=UTC)
    assert line == {"level": "info", "event": "started", "port": 50051, "ratio": 0.5, "names": ["a"], "none": None}


def test_a_line_is_one_write() -> None:
    """A line leaves in one write and is flushed, so that processes that share a pipe do not mix theirs."""
    stream = Counting()
    Telemetry(log="json", stream=stream).logger.info("a", text="b\nc")
    assert (stream.writes, stream.flushes) == (1, 1)
    assert stream.getvalue().count(b"\n") == 1


@pytest.mark.parametrize("level", ["debug", "info", "warning", "error"])
def test_lines_below_the_level_are_not_made(level: Level) -> None:
    """What is less important than ``level`` is not written, and ``at`` says so beforehand."""
    stream = io.BytesIO()
    telemetry = Telemetry(log="json", level=level, stream=stream)
    levels: list[Level] = ["debug", "info", "warning", "error"]
    for name in levels:
        getattr(telemetry.logger, name)("event")
    written = levels[levels.index(level) :]
    assert [line["level"] for line in lines(stream)] == written
    assert [name for name in levels if telemetry.at(name) is not None] == written


def test_at_writes() -> None:
    """What ``at`` returns writes a line of that level."""
    stream = io.BytesIO()
    write = Telemetry(log="json", stream=stream).at("warning")
    assert write is not None
    write("event", field=1)
    assert (lines(stream)[0]["level"], lines(stream)[0]["field"]) == ("warning", 1)


def test_an_exception_is_shown_with_its_traceback() -> None:
    """``exc_info`` becomes the traceback, in one field of one line, with the exception's text once."""
    stream = io.BytesIO()
    logger = Telemetry(log="json", stream=stream).logger
    with pytest.raises(ValueError) as caught:
        raise ValueError(CANARY)
    logger.error("failed", exc_info=caught.value)
    (line,) = lines(stream)
    assert str(line["exception"]).startswith("Traceback (most recent call last):")
    assert "exc_info" not in line
    assert stream.getvalue().count(CANARY.encode()) == 1


class Shy:
    def __repr__(self) -> str:
        raise RuntimeError(CANARY)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (b"bytes", "b'bytes'"),
        ({1, 2}, "{1, 2}"),
        (2**64, 2**64),
        ("\udc80", "\udc80"),
        ([2**64, b"x"], [2**64, "b'x'"]),
        (Shy(), "<Shy without repr>"),
    ],
)
def test_any_field_can_be_written(value: object, shown: object) -> None:
    """What JSON does not know is shown by its repr, what orjson does not take is written all the same."""
    stream = io.BytesIO()
    telemetry = Telemetry(log="json", stream=stream)
    telemetry.logger.info("event", value=value)
    assert lines(stream)[0]["value"] == shown


@pytest.mark.parametrize("error", [BrokenPipeError(32, "Broken pipe"), ValueError("closed"), RuntimeError("odd")])
def test_a_broken_stream_costs_the_line_only(error: Exception) -> None:
    """A stream that raises is counted and never heard of, and written to again once it works."""
    stream = Broken(error)
    telemetry = Telemetry(log="json", stream=stream)
    telemetry.logger.info("one")
    telemetry.logger.info("two")
    assert telemetry.lost == 2
    stream.error = None
    telemetry.logger.info("three")
    assert telemetry.lost == 2
    assert [line["event"] for line in lines(stream)] == ["three"]


def test_a_closed_stream_costs_the_line_only() -> None:
    """A stream that somebody closes later is no different."""
    stream = io.BytesIO()
    telemetry = Telemetry(log="json", stream=stream)
    stream.close()
    telemetry.logger.error("event")
    assert telemetry.lost == 1


def test_writes_to_standard_output(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """Without a stream the lines go to standard output, as JSON when that is no terminal."""
    Telemetry().logger.info("event")
    assert json.loads(capfdbinary.readouterr().out)["event"] == "event"


def test_without_a_standard_output(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process without a console has no sys.stdout: then nothing is written, and nothing fails."""
    monkeypatch.setattr(sys, "stdout", None)
    telemetry = Telemetry()
    telemetry.logger.info("event")
    assert telemetry.lost == 0


@pytest.mark.parametrize("stream", [io.StringIO(), io.TextIOWrapper(io.BytesIO(), encoding="utf-8"), io.BytesIO()])
def test_takes_text_and_binary_streams(stream: IO[str] | IO[bytes]) -> None:
    """Any open stream will do."""
    Telemetry(log="json", stream=stream).logger.info("évènement")
    stream.seek(0)
    assert json.loads(stream.read())["event"] == "évènement"


def test_auto_is_for_people_on_a_terminal() -> None:
    """On a terminal "auto" writes for people, in colour; anywhere else JSON."""
    stream = Terminal()
    telemetry = Telemetry(stream=stream)
    telemetry.logger.info("started", port=50051)
    assert repr(telemetry) == "Telemetry(log='console', level='info')"
    assert "started" in stream.getvalue()
    assert "50051" in stream.getvalue()
    assert "\x1b[" in stream.getvalue()
    assert repr(Telemetry(stream=io.StringIO())) == "Telemetry(log='json', level='info')"


def test_a_console_line_cannot_be_forged() -> None:
    """For people too a value has no control characters: a terminal would obey them."""
    stream = io.StringIO()
    telemetry = Telemetry(log="console", stream=stream)
    telemetry.logger.info("rpc", path="a\x1b[2Jb\nc\x9b\u202e")
    assert stream.getvalue().count("\n") == 1
    assert r"a\x1b[2Jb\nc\x9b\u202e" in stream.getvalue()
    assert "\x1b" not in stream.getvalue()


def test_a_console_shows_tracebacks_without_local_variables() -> None:
    """A traceback on the console has its lines, and no values of variables."""
    stream = io.StringIO()
    logger = Telemetry(log="console", stream=stream).logger
    secret = CANARY
    with pytest.raises(ValueError) as caught:
        raise ValueError(len(secret))
    logger.error("failed", exc_info=caught.value)
    assert "Traceback (most recent call last):\n" in stream.getvalue()
    assert CANARY not in stream.getvalue()


def test_none_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    """With None nothing is written, and ``at`` says that nobody wants it."""
    telemetry = Telemetry(log=None)
    telemetry.logger.error("event", field=1)
    assert telemetry.at("error") is None
    assert capsys.readouterr().out == ""


def test_a_logger_of_ones_own() -> None:
    """A structlog logger is used as it is; ``level`` holds for what observers give it."""
    capture = structlog.testing.CapturingLogger()
    logger = structlog.wrap_logger(capture, processors=[structlog.processors.KeyValueRenderer()])
    telemetry = Telemetry(log=logger, level="warning")
    assert telemetry.logger is logger
    assert telemetry.at("info") is None
    write = telemetry.at("error")
    assert write is not None
    write("event", field=1)
    assert [call.method_name for call in capture.calls] == ["error"]


def test_leaves_structlogs_configuration_alone() -> None:
    """Neither is the global configuration changed, nor does it change what is written."""
    before = structlog.get_config()
    stream = io.BytesIO()
    telemetry = Telemetry(log="json", stream=stream)
    assert structlog.get_config() == before
    try:
        structlog.configure(processors=[], wrapper_class=structlog.make_filtering_bound_logger(50))
        telemetry.logger.info("event")
    finally:
        structlog.reset_defaults()
    assert lines(stream)[0]["event"] == "event"


def test_the_clock() -> None:
    """The clock is the one given, the system's by default."""
    clock = MovableClock()
    assert Telemetry(clock=clock).clock is clock
    assert isinstance(Telemetry().clock, SystemClock)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"log": "xml"}, "log='xml'"),
        ({"log": 3}, "log=3"),
        ({"log": logging.getLogger("x")}, "log=<Logger x"),
        ({"level": "INFO"}, "level='INFO'"),
        ({"level": 20}, "level=20"),
        ({"log": None, "stream": io.BytesIO()}, "stream=<_io.BytesIO"),
    ],
)
def test_refuses_settings_that_mean_nothing(settings: dict[str, object], named: str) -> None:
    """A wrong setting is refused where it is written, naming it and its value."""
    with pytest.raises((TypeError, ValueError), match=named):
        Telemetry(**settings)  # type: ignore[arg-type]  # on purpose
