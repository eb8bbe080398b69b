"""Whoever calls ``next`` twice gets it right, or is told loudly: never a wrong answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest

from servicekit import CallError, Code, Error
from servicekit.call import Call
from servicekit.clock import settle
from servicekit.endpoint import Endpoint, Message, chain
from servicekit.metadata import Pairs
from servicekit.method import Kind
from servicekit.testing import pair
from servicekit.testing.pair import Over
from servicekit.testing.v1.echo_pb2 import ExpandRequest, ExpandResponse, SumRequest
from servicekit.transport.channel import Channel
from servicekit.wire import END, Head, Received, Reply, Status

from .clients import (
    ANSWERS,
    Context,
    Flaky,
    Held,
    Untyped,
    _nothing_is_left,  # noqa: F401 - a fixture for every test here
    all_methods,
    ask,
    begin,
    both,
    echo,
    every_kind,
    finish,
    later,
    numbers,
    streaming_requests,
    streaming_responses,
    stub_of,
    texts,
)


@dataclass
class Retry:
    """Ten lines of retrying, as anybody would write them."""

    keep: int | None = None
    codes: tuple[Code, ...] = (Code.UNAVAILABLE,)
    attempts: int = 3
    failures: list[Error] = field(default_factory=list)

    async def __call__(self, request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        if self.keep is not None and call.method.kind.request_streaming:
            request.keep(self.keep)
        while True:
            try:
                return await next(request, call.fork())
            except Error as error:
                self.failures.append(error)
                if error.code not in self.codes or len(self.failures) == self.attempts:
                    raise


@both
@every_kind
async def test_a_second_attempt_answers_in_the_place_of_the_first(kind: Kind, over: Over) -> None:
    """An attempt that failed before any message is not seen: answers, metadata and code are the second one's."""
    flaky = Flaky()
    async with pair(flaky.register, over=over, client=[Retry(keep=1000)]) as ends:
        call = begin(ends.channel, kind)
        assert await finish(call, kind) == ANSWERS[kind]
        assert await call.code() is grpc.StatusCode.OK
        assert ("attempt", "2") in list(await call.trailing_metadata())
        assert list(await call.initial_metadata()) == [("attempt", "2")]
    assert len(flaky.attempts) == 2


@both
@every_kind
async def test_attempts_that_all_fail_end_with_the_last_error(kind: Kind, over: Over) -> None:
    """The caller gets what the chain raises, with the metadata of that attempt."""
    retry = Retry(keep=1000, codes=())
    async with pair(Flaky(times=9).register, over=over, client=[retry]) as ends:
        call = begin(ends.channel, kind)
        with pytest.raises(CallError) as caught:
            await finish(call, kind)
        assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.UNAVAILABLE, "attempt 1")
        assert ("attempt", "1") in list(await call.trailing_metadata())
        if over == "memory":  # on grpcio a status that comes at once may overtake it
            assert list(await call.initial_metadata()) == [("attempt", "1")]


@both
@pytest.mark.parametrize("style", ["list", "generator", "write"])
async def test_a_client_stream_without_keep_is_never_summed_up_wrongly(style: str, over: Over) -> None:
    """Messages that the first attempt took are missing from the second: it raises, and OK with a wrong sum never is."""
    flaky = Flaky(after=2)
    async with pair(flaky.register, over=over, client=[Retry()]) as ends:
        stub = stub_of(ends.channel)

        async def upload() -> None:
            if style == "write":
                call = stub.Sum()
                for message in numbers(1, 2, 3):
                    await call.write(message)
                await call.done_writing()
                await call
            else:
                await stub.Sum(numbers(1, 2, 3) if style == "list" else later(numbers(1, 2, 3)))

        with pytest.raises(RuntimeError, match=r"request\.keep\(\)"):
            await upload()
    assert len(flaky.attempts) <= 2
    assert flaky.read[0] == [1, 2]
    assert flaky.read[1:] in ([], [[]])


@both
@pytest.mark.parametrize("style", ["list", "generator", "write"])
async def test_a_client_stream_that_is_kept_is_sent_again_in_full(style: str, over: Over) -> None:
    """With keep the second attempt gets every message once and in order, however the caller sends them."""
    flaky = Flaky(after=2)
    async with pair(flaky.register, over=over, client=[Retry(keep=1000)]) as ends:
        stub = stub_of(ends.channel)
        if style == "write":
            call = stub.Sum()
            for message in numbers(1, 2, 3):
                await call.write(message)
            await call.done_writing()
            response = await call
        else:
            response = await stub.Sum(numbers(1, 2, 3) if style == "list" else later(numbers(1, 2, 3)))
    assert (response.total, response.count) == (6, 3)
    assert flaky.read == [[1, 2], [1, 2, 3]]


@both
async def test_a_conversation_that_is_kept_is_sent_again_in_full(over: Over) -> None:
    """The same for a stream each way, as long as no answer has come."""
    flaky = Flaky(after=2, times=2)
    async with pair(flaky.register, over=over, client=[Retry(keep=1000)]) as ends:
        assert await ask(ends.channel, Kind.BIDI_STREAM) == ["a", "b", "c"]
    assert flaky.read == [["a", "b"], ["a", "b"], ["a", "b", "c"]]


@both
async def test_messages_that_reached_the_caller_are_never_sent_twice(over: Over) -> None:
    """After the first message there is no second attempt: its error is the one that the caller gets."""
    taken = asyncio.Event()
    attempts = []

    async def expand(request: Message, context: Context) -> AsyncIterator[ExpandResponse]:
        attempts.append(1)
        yield ExpandResponse(index=0)
        yield ExpandResponse(index=1)
        await taken.wait()
        await context.abort(grpc.StatusCode.UNAVAILABLE, "attempt 1")

    async with pair(echo(Expand=expand), over=over, client=[Retry()]) as ends:
        call = stub_of(ends.channel).Expand(ExpandRequest(count=2))
        assert [(await call.read()).index, (await call.read()).index] == [0, 1]
        taken.set()
        # The loop does try again: every further attempt is refused with the first one's error.
        with pytest.raises(CallError, match="attempt 1"):
            await call.read()
    assert len(attempts) == 1


@both
@streaming_responses
async def test_messages_on_their_way_when_an_attempt_fails_are_not_mixed_with_anothers(kind: Kind, over: Over) -> None:
    """A message of a failed attempt and one of the next never both reach the caller, however close they come."""
    attempts: list[int] = []

    async def method(request: Message, context: Context) -> None:
        attempts.append(len(attempts) + 1)
        number = attempts[-1]
        for index in range(3):
            await context.write(ExpandResponse(text=str(number), index=index))
        if number % 2:
            await context.abort(grpc.StatusCode.UNAVAILABLE, f"attempt {number}")

    async def read(call: Untyped) -> tuple[list[str], str]:
        seen: list[str] = []
        try:
            async for message in call:
                seen.append(message.text)  # noqa: PERF401 - the call may fail
        except CallError as error:
            return seen, error.details() or ""
        return seen, "OK"

    async with pair(echo(Expand=method, Chat=method), over=over) as ends:
        for turn in range(30):
            attempts.clear()
            channel = ends.connect(Retry(keep=1000))
            call = begin(channel, kind)
            for _ in range(turn % 7):
                await asyncio.sleep(0)
            seen, end = await read(call)
            await channel.close()
            assert (seen, end) == (["2", "2", "2"], "OK") or (seen == ["1"] * len(seen) and seen and end == "attempt 1")


class Feed:
    """An RPC on a wire whose message and end come when the test says so."""

    peer = ""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.message: asyncio.Future[bytes] = loop.create_future()
        self.end: asyncio.Future[Status] = loop.create_future()
        self.taken = False

    async def receive(self) -> Received:
        if self.taken:
            await asyncio.shield(self.end)
            return END
        data = await asyncio.shield(self.message)
        self.taken = True
        return data

    async def ended(self) -> Status:
        return await asyncio.shield(self.end)

    async def headers(self) -> Pairs:
        return ()

    async def send(self, data: bytes) -> None:
        raise NotImplementedError

    async def half_close(self) -> None:
        raise NotImplementedError

    def cancel(self) -> None:
        if not self.end.done():
            self.end.set_result(Status(code=Code.CANCELLED))


class Feeds:
    """A wire of such RPCs."""

    def __init__(self) -> None:
        self.opened: list[Feed] = []

    def open(self, head: Head, data: bytes | None) -> Feed:
        self.opened.append(Feed())
        return self.opened[-1]

    async def unary(self, head: Head, data: bytes) -> Reply:
        raise NotImplementedError

    async def close(self, grace: float) -> None:
        pass


async def test_a_message_that_comes_with_its_attempts_end() -> None:
    """The attempt fails and the next one begins while a reader has the first one's message in its hands: it is dropped.

    If it were not, the caller would have that message, and then all of the second attempt's.
    """
    feeds = Feeds()
    channel = Channel(feeds, chain(Retry()))
    call = stub_of(channel).Expand(ExpandRequest())
    reading = asyncio.create_task(call.read())
    await settle()
    (first,) = feeds.opened
    first.end.set_result(Status(code=Code.UNAVAILABLE))
    first.message.set_result(ExpandResponse(index=1).SerializeToString())
    await settle()
    assert not reading.done()
    second = feeds.opened[1]
    second.message.set_result(ExpandResponse(index=2).SerializeToString())
    assert (await reading).index == 2
    second.end.set_result(Status())
    assert await call.read() is grpc.aio.EOF
    await channel.close()


async def test_a_message_that_comes_with_the_calls_end() -> None:
    """Where nobody tries again it is the caller's, and the error comes after it."""
    feeds = Feeds()
    channel = Channel(feeds)
    call = stub_of(channel).Expand(ExpandRequest())
    reading = asyncio.create_task(call.read())
    await settle()
    feeds.opened[0].end.set_result(Status(code=Code.UNAVAILABLE))
    feeds.opened[0].message.set_result(ExpandResponse(index=1).SerializeToString())
    assert (await reading).index == 1
    with pytest.raises(CallError):
        await call.read()
    await channel.close()


@both
@streaming_responses
async def test_a_read_begun_in_a_dead_attempt_gets_the_next_ones_messages(kind: Kind, over: Over) -> None:
    """A failed attempt is unbound before its error is raised: between two attempts a read waits, and sees no end."""
    failed, go = asyncio.Event(), asyncio.Event()

    async def patient(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        if kind.request_streaming:
            request.keep()
        try:
            return await next(request, call.fork())
        except Error:
            failed.set()
            await go.wait()
            return await next(request, call.fork())

    async with pair(Flaky().register, over=over, client=[patient]) as ends:
        call = begin(ends.channel, kind)
        reading = asyncio.create_task(call.read())
        await failed.wait()
        await settle()
        assert not reading.done()
        go.set()
        first = await reading
        assert [first.index if kind is Kind.SERVER_STREAM else first.text, *await finish(call, kind)] == ANSWERS[kind]


@both
@streaming_requests
async def test_too_much_to_keep_ends_retrying(kind: Kind, over: Over) -> None:
    """Past ``max_bytes`` the messages are let go: ``replayable`` says so, and who tries all the same is told loudly."""
    replayable = []

    async def careful(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        request.keep(max_bytes=3)
        try:
            return await next(request, call.fork())
        except Error:
            replayable.append(request.replayable)
            if not request.replayable:
                raise
            return await next(request, call.fork())

    async def ended(channel: grpc.aio.Channel) -> BaseException | None:
        try:
            await ask(channel, kind)
        except (CallError, RuntimeError) as error:
            return error
        return None

    async with pair(Flaky(after=2).register, over=over, client=[careful]) as ends:
        error = await ended(ends.channel)
        assert isinstance(error, CallError)
        assert error.details() == "attempt 1"
    async with pair(Flaky(after=2).register, over=over, client=[Retry(keep=3)]) as ends:
        error = await ended(ends.channel)
        assert isinstance(error, RuntimeError)
        assert "request.keep()" in str(error)
    assert replayable == [False]


@both
async def test_too_much_to_keep_does_not_disturb_the_attempt_under_way(over: Over) -> None:
    """A call that does not fail is served in full, whatever was asked to be kept."""
    async with pair(echo(), over=over, client=[Retry(keep=0)]) as ends:
        assert await ask(ends.channel, Kind.CLIENT_STREAM) == [6]


@both
@pytest.mark.parametrize("keep", [None, 1000])
async def test_a_request_generator_that_an_attempt_was_waiting_for(keep: int | None, over: Over) -> None:
    """A generator ends where a read of it is cancelled, which must not look like the end of the stream.

    Kept, its read outlives the attempt and the next one gets the message; otherwise the next attempt raises.
    """
    failed, go, closed = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def requests() -> AsyncIterator[SumRequest]:
        try:
            yield SumRequest(number=1)
            await go.wait()
            yield SumRequest(number=2)
        finally:
            closed.set()

    async def signalling(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        try:
            return await next(request, call)
        except Error:
            failed.set()
            raise

    flaky = Flaky(after=1)
    async with pair(flaky.register, over=over, client=[Retry(keep=keep), signalling]) as ends:
        call = stub_of(ends.channel).Sum(requests())
        await failed.wait()
        await settle()
        go.set()
        if keep is None:
            with pytest.raises(RuntimeError, match=r"request\.keep\(\)"):
                await call
        else:
            assert (await call).total == 3
            assert flaky.read[1] == [1, 2]
        await closed.wait()


@both
async def test_a_write_goes_on_in_the_next_attempt(over: Over) -> None:
    """A write that was waiting while its attempt failed returns in the next one, and nothing is lost or doubled."""
    flaky = Flaky(after=1)
    async with pair(flaky.register, over=over, client=[Retry(keep=1000)]) as ends:
        call = stub_of(ends.channel).Chat()
        answers = []
        for message in texts("a", "b", "c"):
            await call.write(message)
            answers.append((await call.read()).text)
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
    assert answers == ["a", "b", "c"]
    assert flaky.read == [["a"], ["a", "b", "c"]]


@both
@every_kind
async def test_next_twice_without_fork_is_refused(kind: Kind, over: Over) -> None:
    """A second attempt with the same call would mix up the two: RuntimeError names ``call.fork()``."""

    async def careless(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        try:
            return await next(request, call)
        except Error:
            return await next(request, call)

    flaky = Flaky()
    async with pair(flaky.register, over=over, client=[careless]) as ends:
        with pytest.raises(RuntimeError, match=r"call\.fork\(\)"):
            await ask(ends.channel, kind)
    assert len(flaky.attempts) == 1


@both
@every_kind
async def test_attempts_do_not_see_each_others_metadata(kind: Kind, over: Over) -> None:
    """What one attempt adds is sent with that one only."""

    async def numbering(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        call.metadata.add("number", str(call.attempt))
        return await next(request, call)

    flaky = Flaky(times=2)
    async with pair(flaky.register, over=over, client=[Retry(keep=1000), numbering]) as ends:
        assert await ask(ends.channel, kind, metadata=[("mine", "yes")]) == ANSWERS[kind]
    assert [attempt["number"] for attempt in flaky.attempts] == ["1", "2", "3"]
    assert all(attempt["mine"] == "yes" for attempt in flaky.attempts)


@both
@every_kind
async def test_a_call_that_was_ended_makes_no_further_attempts(kind: Kind, over: Over) -> None:
    """Closing the channel ends a call whose chain would try again: the attempt is refused, and close returns."""
    held = Held()
    async with pair(echo(**all_methods(held.method)), over=over) as ends:
        channel = ends.connect(Retry(keep=1000, codes=tuple(Code)))
        call = begin(channel, kind)
        await held.begun.wait()
        await channel.close()
        with pytest.raises(CallError, match="channel closed"):
            await finish(call, kind)
        await held.cancelled.wait()
    assert held.calls == 1


@both
@every_kind
async def test_a_fork_of_a_call_that_was_ended_is_refused(kind: Kind, over: Over) -> None:
    """Also when the first attempt was the call itself, whose failure its chain sees as an error like any other."""

    async def once_more(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        if kind.request_streaming:
            request.keep()
        try:
            return await next(request, call)
        except Error:
            return await next(request, call.fork())

    held = Held()
    async with pair(echo(**all_methods(held.method)), over=over) as ends:
        channel = ends.connect(once_more)
        call = begin(channel, kind)
        await held.begun.wait()
        await channel.close()
        with pytest.raises(CallError, match="channel closed"):
            await finish(call, kind)
        await held.cancelled.wait()
    assert held.calls == 1


async def test_the_deadline_is_the_total_of_all_attempts() -> None:
    """However often it is tried and waited for in between, the call ends when its deadline passes."""

    async def for_ever(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        while True:
            try:
                return await next(request, call.fork())
            except Error as error:
                if error.code is not Code.UNAVAILABLE:
                    raise
                await call.clock.sleep(1.0)

    flaky = Flaky(times=99)
    async with pair(flaky.register, client=[for_ever]) as ends:
        call = begin(ends.channel, Kind.UNARY, timeout=2.5)
        await ends.clock.advance(2.49)
        assert not call.done()
        await ends.clock.advance(0.02)
        assert await call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert len(flaky.attempts) == 3


@both
@streaming_requests
async def test_what_the_callers_iterator_raises_ends_a_call_that_is_retried(kind: Kind, over: Over) -> None:
    """The caller's own exception is no failed attempt: it leaves as itself, at once."""

    class MineError(Exception):
        pass

    async def broken() -> AsyncIterator[Any]:
        yield numbers(1)[0] if kind is Kind.CLIENT_STREAM else texts("a")[0]
        raise MineError

    retry = Retry(keep=1000, codes=tuple(Code))
    async with pair(echo(), over=over, client=[retry]) as ends:
        stub = stub_of(ends.channel)
        call = stub.Sum(broken()) if kind is Kind.CLIENT_STREAM else stub.Chat(broken())
        with pytest.raises(MineError):
            await finish(call, kind)
    assert retry.failures == []


async def test_keep_is_asked_for_in_time() -> None:
    """Asking twice is harmless; asking when messages are gone, or for a negative size, is refused."""
    errors: list[BaseException] = []

    async def asking(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        with pytest.raises(ValueError, match="-1") as negative:
            request.keep(-1)
        response = await next(request, call)
        with pytest.raises(RuntimeError, match="too late") as late:
            request.keep()
        errors.extend([negative.value, late.value])
        return response

    async with pair(echo(), client=[asking]) as ends:
        assert await ask(ends.channel, Kind.CLIENT_STREAM) == [6]
    assert len(errors) == 2
