"""Conformance cases: what a middleware does to a call that it lets pass, which is nothing that anybody could notice."""

# ruff: noqa: S101 - a case asserts: its module is a test that ships

from __future__ import annotations

import asyncio
import inspect

from servicekit.endpoint import chain, only
from servicekit.errors import Code, Error
from servicekit.method import Kind

from .middleware_ground import WORDS, Ground
from .middleware_service import HEADERS, NOTE, TRAILERS, Answer, expected, kept, path_of

CROWD = 100


async def a_permitted_call_passes_unchanged(ground: Ground) -> None:
    """Metadata and messages arrive as they were sent, each once and in order; so do headers, messages and trailers back."""
    note = ((NOTE, "one"), (NOTE, "two"))
    answer = await ground.call(metadata=(*ground.subject.metadata, *note))
    _passed(ground, answer)
    assert kept(answer.headers, HEADERS + note) == kept(HEADERS + note, HEADERS + note), f"headers: {answer.headers}"
    assert kept(answer.trailers, TRAILERS + note) == kept(TRAILERS + note, TRAILERS + note), (
        f"trailers: {answer.trailers}"
    )
    (metadata,) = ground.service.metadata
    assert kept(metadata, note) == list(note), metadata
    assert ground.service.words == (list(WORDS) if ground.kind.request_streaming else [WORDS[0]])


async def an_empty_stream_passes(ground: Ground) -> None:
    """A request stream without a message, and a response stream without one, are streams like any other."""
    if not ground.kind.request_streaming:
        return
    answer = await ground.call(())
    assert (answer.code, answer.values) == (Code.OK, expected(ground.kind, ())), answer


async def next_is_called_once(ground: Ground) -> None:
    """A call that succeeds at once goes through ``next`` once, or as often as the middleware says of itself."""
    for calls in (1, 2):
        _passed(ground, await ground.call())
        assert len(ground.inner.calls) == calls * ground.subject.nexts


async def what_next_returned_is_returned(ground: Ground) -> None:
    """The response goes up as it came: the message of a unary answer, None for a stream."""
    _passed(ground, await ground.call())
    ((outer,), inner) = ground.outer.outcomes, ground.inner.outcomes
    assert outer in inner
    assert (outer is None) == ground.kind.response_streaming


async def the_call_goes_down(ground: Ground) -> None:
    """What stands further in is given the same call, or an attempt at it, with the caller's metadata and the same state."""
    _passed(ground, await ground.call(metadata=(*ground.subject.metadata, (NOTE, "n"))))
    (outer,) = ground.outer.calls
    for inner in ground.inner.calls:
        assert inner is outer or inner.origin is outer, "next() was given another call: attempts are call.fork()"
        assert inner.metadata.get_all(NOTE) == ["n"]
        assert inner.state is outer.state


async def hooks_are_plain_functions(ground: Ground) -> None:
    """Hooks observe or raise: they are no coroutine functions, for nobody would await them."""
    _passed(ground, await ground.call())
    for call in [*ground.outer.calls, *ground.inner.calls]:
        for hook in (*call._on_received, *call._on_sent, *call._on_decision):  # noqa: SLF001 - only a check asks for them
            called = hook if inspect.isroutine(hook) else type(hook).__call__
            assert not inspect.iscoroutinefunction(called), f"{hook!r} is a coroutine function"


async def a_hundred_calls_at_once_are_not_mixed_up(ground: Ground) -> None:
    """Calls that overlap have nothing in common: each gets the answer, and the metadata, that are its own."""
    everybody, there = asyncio.Event(), 0

    async def wait_for_all(_: str) -> None:
        nonlocal there
        there += 1
        if there == CROWD:
            everybody.set()
        await everybody.wait()

    ground.service.work = wait_for_all

    async def one(number: int) -> None:
        words = [str(number + offset) for offset in range(3)]
        answer = await ground.ask(words, metadata=(*ground.subject.metadata, (NOTE, str(number))))
        assert (answer.code, answer.values) == (Code.OK, expected(ground.kind, words)), answer
        assert [value for key, value in answer.trailers if key == NOTE] == [str(number)]

    await ground.done(asyncio.gather(*(one(number) for number in range(CROWD))))
    assert len(ground.inner.calls) == CROWD * ground.subject.nexts
    await ground.at_rest()


async def a_call_passes_after_a_failed_one(ground: Ground) -> None:
    """One call that fails, and one that is cancelled, take nothing from those that come after them."""
    await _fail_once(ground)
    ground.service.work = _wait
    begun = ground.begin()
    await ground.until(lambda: len(ground.service.words) > 1, "the call does not reach the service")
    begun.cancel()
    await ground.at_rest()
    ground.service.work = None
    for _ in range(3):
        _passed(ground, await ground.call())


async def it_may_stand_in_two_chains(ground: Ground) -> None:
    """One middleware in two servers, or two channels, serves both at a time."""
    async with ground.beside(ground.link) as other:
        both, there = asyncio.Event(), 0

        async def wait_for_both(_: str) -> None:
            nonlocal there
            there += 1
            if there == 2:  # noqa: PLR2004 - both
                both.set()
            await both.wait()

        ground.service.work = other.service.work = wait_for_both
        answers = await ground.done(asyncio.gather(ground.ask(), other.ask()))
        for here, answer in zip((ground, other), answers, strict=True):
            _passed(here, answer)
            assert len(here.inner.calls) == ground.subject.nexts


async def it_may_stand_in_a_chain_of_chains(ground: Ground) -> None:
    """Inside ``chain`` and ``only`` it is what it is by itself; methods that it is not meant for do not see it."""
    async with ground.beside(chain(only(path_of(ground.kind), chain(ground.link)))) as other:
        _passed(other, await other.call())
        assert len(other.inner.calls) == ground.subject.nexts
    elsewhere = next(kind for kind in Kind if kind is not ground.kind)

    async def fails(*_: object) -> None:
        raise Error(Code.INTERNAL, "asked for a method that it is not meant for")

    async with ground.beside(only(path_of(elsewhere), chain(ground.link, fails))) as other:
        _passed(other, await other.call())


async def _fail_once(ground: Ground) -> None:
    async def fail(_: str) -> None:
        raise Error(Code.INTERNAL, "broken")

    ground.service.work = fail
    answer = await ground.call()
    assert answer.code is Code.INTERNAL, answer


async def _wait(_: str) -> None:
    await asyncio.Event().wait()


def _passed(ground: Ground, answer: Answer) -> None:
    assert answer.code is Code.OK, answer
    assert answer.values == expected(ground.kind, WORDS), answer.values
