"""What a failed call raises, wherever it failed, and what is refused before it is made."""

from __future__ import annotations

import asyncio
import copy
import pickle
import time
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from google.rpc.error_details_pb2 import BadRequest

from servicekit import CallError, Code, Error
from servicekit.call import Call
from servicekit.endpoint import Endpoint, Message
from servicekit.errors import By
from servicekit.method import Kind
from servicekit.testing import pair
from servicekit.testing.pair import Over
from servicekit.testing.v1.echo_pb2 import ExpandRequest, ExpandResponse

from .clients import (
    ANSWERS,
    Context,
    Held,
    _nothing_is_left,  # noqa: F401 - a fixture for every test here
    all_methods,
    ask,
    begin,
    both,
    echo,
    every_kind,
    finish,
    stub_of,
)


def rich() -> Error:
    violation = BadRequest.FieldViolation(field="text", description="too long")
    error = Error(
        Code.RESOURCE_EXHAUSTED,
        "too much",
        reason="QUOTA",
        details=[BadRequest(field_violations=[violation])],
        retry_after=2.5,
        trailers=(("k", "v"),),
    )
    error.__cause__ = LookupError("the reason behind")
    return error


def check(caught: CallError) -> None:
    assert isinstance(caught, grpc.aio.AioRpcError)
    assert isinstance(caught, grpc.RpcError)
    assert (caught.code(), caught.details()) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "too much")
    assert (caught.reason, caught.retry_after) == ("QUOTA", 2.5)
    bad_request = caught.detail(BadRequest)
    assert bad_request is not None
    assert bad_request.field_violations[0].field == "text"
    assert ("k", "v") in list(caught.trailing_metadata())
    assert "RESOURCE_EXHAUSTED" in (caught.debug_error_string() or "")


@both
@every_kind
async def test_a_refusal_that_never_reached_the_wire(kind: Kind, over: Over) -> None:
    """It leaves as the same exception as any other failure, with all that it says and why it was raised."""
    refusal, held = rich(), Held()

    async def refusing(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        raise refusal

    async with pair(echo(**all_methods(held.method)), over=over, client=[refusing]) as ends:
        call = begin(ends.channel, kind)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await finish(call, kind)
        assert isinstance(caught.value, CallError)
        check(caught.value)
        assert caught.value.error is refusal
        assert isinstance(caught.value.__cause__, LookupError)
        assert await call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert ("k", "v") in list(await call.trailing_metadata())
    assert held.calls == 0


@both
@every_kind
async def test_an_error_from_the_other_side(kind: Kind, over: Over) -> None:
    """Code, message, reason, details, retry_after and metadata come over the wire as they were raised; the cause does not."""

    async def failing(request: Message, context: Context) -> None:
        raise rich()

    async with pair(echo(**all_methods(failing)), over=over) as ends:
        call = begin(ends.channel, kind)
        with pytest.raises(CallError) as caught:
            await finish(call, kind)
        check(caught.value)
        assert caught.value.__cause__ is None
        assert (caught.value.error.by, caught.value.error.begun) == (By.PEER, True)
        assert ("grpc-retry-pushback-ms", "2500") in list(await call.trailing_metadata())


@pytest.mark.parametrize(
    "again",
    [lambda error: pickle.loads(pickle.dumps(error)), copy.copy, copy.deepcopy],
    ids=["pickle", "copy", "deepcopy"],
)
def test_an_error_can_be_sent_to_another_process(again: Callable[[CallError], CallError]) -> None:
    """Nothing that it says is lost; grpc's own form would lose the error."""
    error = again(CallError(rich(), inherited=True))
    check(error)
    assert isinstance(error.error, Error)
    assert error.inherited


@both
@every_kind
async def test_any_other_exception_of_a_chain_leaves_as_itself(kind: Kind, over: Over) -> None:
    """It is no answer of a server: the caller gets it unchanged, every time, and the code is UNKNOWN."""
    error = LookupError("mine")

    async def broken(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        await next(request, call)
        raise error

    async with pair(echo(), over=over, client=[broken]) as ends:
        call = begin(ends.channel, kind)
        for _ in range(2):
            with pytest.raises(LookupError) as caught:
                await finish(call, kind)
            assert caught.value is error
        assert await call.code() is grpc.StatusCode.UNKNOWN
        assert await call.details() == "LookupError"
        assert not call.cancelled()


@both
@every_kind
@pytest.mark.parametrize(
    ("entry", "error"),
    [
        (("Upper", "x"), ValueError),
        (("with space", "x"), ValueError),
        (("ümlaut", "x"), ValueError),
        (("", "x"), ValueError),
        (("grpc-timeout", "1S"), ValueError),
        (("accent", "é"), ValueError),
        (("newline", "a\nb"), ValueError),
        (("number", 5), TypeError),
        (("text", b"bytes"), TypeError),
        (("bytes-bin", "text"), TypeError),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
async def test_metadata_is_checked_where_it_is_given(
    entry: tuple[str, Any], error: type[Exception], kind: Kind, over: Over
) -> None:
    """What may not go on the wire is refused by the call itself, naming the key and never the value."""
    async with pair(echo(), over=over) as ends:
        with pytest.raises(error, match=repr(entry[0])) as caught:
            begin(ends.channel, kind, metadata=[("good", "x"), entry])
        assert not isinstance(entry[1], str) or len(entry[1]) < 2 or entry[1] not in str(caught.value)


@both
@every_kind
async def test_metadata_of_every_form(kind: Kind, over: Over) -> None:
    """A list, a tuple or grpc's own Metadata; text, bytes, and a key more than once."""
    seen: list[Any] = []

    async def looking(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        seen.append((call.metadata.get_all("k"), call.metadata.get("raw-bin")))
        return await next(request, call)

    given: list[tuple[str, str | bytes]] = [("k", "1"), ("raw-bin", b"\x00\xff"), ("k", "2")]
    async with pair(echo(), over=over, middleware=[looking]) as ends:
        for metadata in (given, tuple(given), grpc.aio.Metadata(*given)):
            assert await ask(ends.channel, kind, metadata=metadata) == ANSWERS[kind]
    assert [(sorted(texts), raw) for texts, raw in seen] == [(["1", "2"], b"\x00\xff")] * 3


@both
@every_kind
@pytest.mark.parametrize("timeout", [0, -1, -0.5])
async def test_no_time_at_all(timeout: float, kind: Kind, over: Over) -> None:
    """DEADLINE_EXCEEDED at once, without a call on the wire."""
    held = Held()
    async with pair(echo(**all_methods(held.method)), over=over) as ends:
        with pytest.raises(CallError) as caught:
            await ask(ends.channel, kind, timeout=timeout)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert not caught.value.error.begun
    assert held.calls == 0


@pytest.mark.parametrize("over", ["socket", "native"])  # in real time
@every_kind
async def test_the_time_was_up_before_the_wire_was_asked(kind: Kind, over: Over) -> None:
    """However late the loop is: what was never handed to the wire was never begun."""
    held = Held()

    async def busy(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        time.sleep(0.05)  # noqa: ASYNC251 - a loop that is held up, past deadline and slack
        return await next(request, call)

    async def waiting(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        await asyncio.Event().wait()
        return await next(request, call)

    for link in (busy, waiting):
        async with pair(echo(**all_methods(held.method)), over=over, client=[link]) as ends:
            with pytest.raises(CallError) as caught:
                await ask(ends.channel, kind, timeout=0.02)
            assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            assert not caught.value.error.begun
    assert held.calls == 0


@both
@every_kind
async def test_all_the_time_in_the_world(kind: Kind, over: Over) -> None:
    """An endless timeout is none."""
    async with pair(echo(), over=over) as ends:
        assert await ask(ends.channel, kind, timeout=float("inf")) == ANSWERS[kind]
        assert await ask(ends.channel, kind, timeout=1e10) == ANSWERS[kind]


@both
async def test_a_deadline_in_the_middle_of_a_stream(over: Over) -> None:
    """What came before is read, then DEADLINE_EXCEEDED, and the handler is cancelled."""
    held = Held()

    async def expand(request: Message, context: Context) -> None:
        await context.write(ExpandResponse(index=0))
        await held.method(request, context)

    async with pair(echo(Expand=expand), over=over) as ends:
        call = stub_of(ends.channel).Expand(ExpandRequest(), timeout=1.0)
        assert (await call.read()).index == 0
        reading = asyncio.create_task(call.read())
        await held.begun.wait()
        if over == "memory":
            await ends.clock.advance(1.0)
        with pytest.raises(CallError) as caught:
            await reading
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await held.cancelled.wait()


@both
@every_kind
async def test_a_chain_that_takes_too_long(kind: Kind, over: Over) -> None:
    """The deadline holds for the whole call, also while a middleware is at work and nothing is on the wire."""

    async def slow(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        await asyncio.Event().wait()

    async with pair(echo(), over=over, client=[slow]) as ends:
        call = begin(ends.channel, kind, timeout=0.1)
        if over == "memory":
            await ends.clock.advance(0.2)
        with pytest.raises(CallError) as caught:
            await finish(call, kind)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert not call.cancelled()
