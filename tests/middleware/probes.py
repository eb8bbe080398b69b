"""What the tests of middleware share: a log that is read back, and a link that sees what leaves the one inside it."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, field

from servicekit.call import Call
from servicekit.endpoint import Endpoint, Message
from servicekit.telemetry import Level, Telemetry


@dataclass
class Log:
    """A telemetry whose lines can be read."""

    level: Level = "debug"
    stream: io.BytesIO = field(default_factory=io.BytesIO)

    def __post_init__(self) -> None:
        self.telemetry = Telemetry(log="json", level=self.level, stream=self.stream)

    @property
    def text(self) -> str:
        return self.stream.getvalue().decode()

    @property
    def lines(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.text.splitlines()]

    @property
    def line(self) -> dict[str, object]:
        """The one line; exactly one is what the access log promises."""
        (line,) = self.lines
        return line


@dataclass
class Probe:
    """A middleware that keeps what came out of the links inside it, however it came out."""

    seen: list[Message] = field(default_factory=list)

    async def __call__(self, request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        try:
            response = await next(request, call)
        except BaseException as error:
            self.seen.append(error)
            raise
        self.seen.append(response)
        return response
