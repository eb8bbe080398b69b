"""An endpoint that plays a script, for tests of middleware: first this fails, then that is returned.

For a middleware that tries again::

    endpoint = scripted(Error(Code.UNAVAILABLE), "hello")
    assert await run(MyRetry(), endpoint, "hi", make_call(side=Side.CLIENT)) == "hello"
    assert len(endpoint.calls) == 2

Messages may be anything: there is no codec.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Iterable
from dataclasses import dataclass

from servicekit.call import Call
from servicekit.endpoint import Message


@dataclass(frozen=True, slots=True, kw_only=True)
class Sends:
    """An outcome: the messages of a streaming response, ``every`` so many seconds, and ``then`` its end."""

    messages: tuple[Message, ...]
    every: float = 0.0
    then: Exception | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Waits:
    """An outcome: nothing for ``seconds`` of the call's clock (None: until cancelled), and ``then`` another outcome."""

    seconds: float | None
    then: Message = None


def sends(*messages: Message, every: float = 0.0, then: Exception | None = None) -> Sends:
    """Return the outcome of sending ``messages``, with ``every`` seconds before each; it ends well or with ``then``."""
    return Sends(messages=messages, every=every, then=then)


def waits(seconds: float | None = None, then: Message = None) -> Waits:
    """Return the outcome of taking ``seconds`` (None: for ever, until cancelled) before the outcome ``then``."""
    return Waits(seconds=seconds, then=then)


def scripted(*outcomes: Message) -> Scripted:
    """Return an endpoint that plays one outcome at each call, in order.

    An exception, instance or class, is raised; ``sends(...)`` and ``waits(...)`` do so; a function is called as an
    endpoint; anything else is returned. A request stream is read to its end first, except by a function. Once the
    script is over, a call raises AssertionError.
    """
    return Scripted(outcomes)


class Scripted:
    """An endpoint that plays a script. ``calls`` and ``requests`` are what it saw, a request stream as a list."""

    __slots__ = ("_outcomes", "calls", "requests")

    def __init__(self, outcomes: Iterable[Message]) -> None:
        """Take the script; see ``scripted``."""
        self._outcomes = list(outcomes)
        self.calls: list[Call] = []
        self.requests: list[Message] = []

    async def __call__(self, request: Message, call: Call, /) -> Message:
        """Play the next outcome."""
        number = len(self.calls)
        self.calls.append(call)
        call.used = True  # as on a wire: from here on the other side may have begun
        if number >= len(self._outcomes):
            msg = f"the script has {len(self._outcomes)} outcomes, and this is call number {number + 1}"
            raise AssertionError(msg)
        outcome = self._outcomes[number]
        if not isinstance(request, AsyncIterable) or _is_function(outcome):
            self.requests.append(request)
        else:
            seen: list[Message] = []
            self.requests.append(seen)
            async for message in request:
                seen.append(message)  # noqa: PERF401 - one by one: a stream that breaks leaves what came before
        return await _play(outcome, request, call)

    @property
    def left(self) -> int:
        """How many outcomes were not played yet."""
        return max(0, len(self._outcomes) - len(self.calls))

    def __repr__(self) -> str:
        """Return how far it has come."""
        return f"Scripted({len(self._outcomes)} outcomes, {self.left} left)"


async def _play(outcome: Message, request: Message, call: Call) -> Message:
    if isinstance(outcome, Waits):
        if outcome.seconds is None:
            await asyncio.Event().wait()
        else:
            await call.clock.sleep(outcome.seconds)
        return await _play(outcome.then, request, call)
    if isinstance(outcome, Sends):
        for message in outcome.messages:
            if outcome.every:
                await call.clock.sleep(outcome.every)
            await call.send(message)
        outcome = outcome.then
    if isinstance(outcome, BaseException) or (isinstance(outcome, type) and issubclass(outcome, BaseException)):
        raise outcome
    if _is_function(outcome):
        return await outcome(request, call)
    return outcome


def _is_function(outcome: Message) -> bool:
    return callable(outcome) and not isinstance(outcome, type)
