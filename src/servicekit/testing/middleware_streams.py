"""Conformance cases: streams go through a middleware message by message, and none is held open by it."""

# ruff: noqa: S101 - a case asserts: its module is a test that ships

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterable, AsyncIterator

from servicekit.call import Call
from servicekit.endpoint import Message
from servicekit.errors import Code

from .middleware_ground import SOON, WORDS, AnyCall, Ground
from .middleware_service import answer_of, expected, request, value_of


async def requests_go_through_as_they_come(ground: Ground) -> None:
    """A request reaches the service while the next one is not there yet: nothing waits for a stream's end."""
    if not ground.kind.request_streaming:
        return
    begun = ground.begin(None)
    for word in WORDS:
        await ground.done(begun.write(request(ground.kind, word)))
        await ground.until(functools.partial(ground.service.words.count, word), "a request is held back", within=SOON)
    await ground.done(begun.done_writing())
    answer = await ground.done(answer_of(begun, ground.kind))
    assert (answer.code, answer.values) == (Code.OK, expected(ground.kind, WORDS)), answer


async def responses_go_through_as_they_come(ground: Ground) -> None:
    """A response reaches the caller while the service is still at work on the next one."""
    if not ground.kind.response_streaming:
        return
    read = asyncio.Event()

    async def wait(_: str) -> None:
        await read.wait()

    ground.service.work = wait
    begun = ground.begin()
    first = await ground.done(_read(begun), within=SOON)
    assert value_of(ground.kind, first) == expected(ground.kind, WORDS)[0]
    read.set()
    answer = await ground.done(answer_of(begun, ground.kind))
    assert (answer.code, answer.values) == (Code.OK, expected(ground.kind, WORDS)[1:]), answer


async def a_request_stream_is_read_once(ground: Ground) -> None:
    """A stream that nobody keeps is iterated once, and asked for no more messages than there are."""
    if not ground.kind.request_streaming:
        return
    streams: list[_Once] = []

    def count(request: Message, _: Call) -> Message:
        streams.append(_Once(request))
        return streams[-1]

    ground.outer.before = count
    answer = await ground.call()
    assert (answer.code, answer.values) == (Code.OK, expected(ground.kind, WORDS)), answer
    (stream,) = streams
    assert stream.passes == 1, f"the request stream was iterated {stream.passes} times"
    assert stream.reads <= len(WORDS) + 1


async def an_answer_before_the_last_request_ends_the_call(ground: Ground) -> None:
    """A service that has heard enough may answer: the call is over then, though its caller has more to say."""
    if not ground.kind.request_streaming:
        return
    ground.service.brief = True
    begun = ground.begin(None)
    await ground.done(begun.write(request(ground.kind, "1")))
    answer = await ground.done(answer_of(begun, ground.kind), within=SOON)
    assert (answer.code, answer.values) == (Code.OK, expected(ground.kind, ["1"])), answer
    await ground.at_rest()


async def a_caller_who_stops_reading_ends_the_call(ground: Ground) -> None:
    """A caller may leave a stream of responses after the first one: nothing of the call is held open."""
    if not ground.kind.response_streaming:
        return
    ground.service.work = _wait
    begun = ground.begin()
    await ground.done(_read(begun), within=SOON)
    begun.cancel()
    await ground.at_rest()
    assert isinstance(ground.outer.outcomes[-1], asyncio.CancelledError), "the link made something else of it"


async def _read(begun: AnyCall) -> AnyCall:
    return await begun.read()


async def _wait(_: str) -> None:
    await asyncio.Event().wait()


class _Once:
    """A request stream that counts; no generator, and without ``keep``."""

    def __init__(self, messages: AsyncIterable[Message]) -> None:
        self._messages = messages
        self._iterator: AsyncIterator[Message] | None = None
        self.passes = 0
        self.reads = 0

    def __aiter__(self) -> AsyncIterator[Message]:
        self.passes += 1
        if self._iterator is None:
            self._iterator = aiter(self._messages)
        return self

    async def __anext__(self) -> Message:
        self.reads += 1
        assert self._iterator is not None
        return await anext(self._iterator)
