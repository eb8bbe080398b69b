"""Conformance cases: whatever ends a call ends it through a middleware too, soon, as what it was, and leaving nothing."""

# ruff: noqa: S101 - a case asserts: its module is a test that ships

from __future__ import annotations

import asyncio
from collections.abc import Callable

from google.rpc.error_details_pb2 import BadRequest

from servicekit.call import Call
from servicekit.endpoint import Message
from servicekit.errors import Code, Error

from .middleware_ground import SOON, WORDS, Ground
from .middleware_service import answer_of, expected

MOST_STEPS = 100_000
"""A call that is not over after so many steps of the loop never will be."""


class Strange(BaseException):
    """Raised where nobody expects anything of the kind."""


async def an_error_keeps_its_code_message_and_details(ground: Ground) -> None:
    """An Error from further in reaches the caller as it was raised: code, message, reason and details."""
    detail = BadRequest(field_violations=[BadRequest.FieldViolation(field="f", description="d")])
    for code in (Code.NOT_FOUND, Code.FAILED_PRECONDITION, Code.INTERNAL):

        async def fail(_: str, code: Code = code) -> None:
            raise Error(code, f"a {code.name}", reason="WHY", details=[detail])

        ground.service.work = fail
        answer = await ground.call()
        assert (answer.code, answer.message) == (code, f"a {code.name}"), answer
        assert answer.error is not None
        assert (answer.error.reason, answer.error.detail(BadRequest)) == ("WHY", detail)
        seen = ground.outer.outcomes[-1]
        assert isinstance(seen, Error)
        assert (seen.code, seen.message, seen.reason) == (code, f"a {code.name}", "WHY")
    await ground.at_rest()


async def an_exception_is_not_swallowed(ground: Ground) -> None:
    """Whatever ``next`` raises, an exception or what is none, the call does not end well."""
    for kind in (ZeroDivisionError, Strange):
        ground.inner.before = _raising(kind)
        answer = await ground.call()
        assert answer.code is not Code.OK, f"{kind.__name__} became a success"
        assert isinstance(ground.outer.outcomes[-1], BaseException), f"{kind.__name__} became a success"
    await ground.at_rest()


async def a_stray_cancellation_is_not_swallowed(ground: Ground) -> None:
    """A CancelledError out of ``next`` goes up, also where nobody has cancelled the call."""
    ground.inner.before = _raising(asyncio.CancelledError)
    answer = await ground.call()
    assert answer.code is not Code.OK
    assert isinstance(ground.outer.outcomes[-1], BaseException)
    await ground.at_rest()


async def a_cancelled_call_ends_as_cancelled(ground: Ground) -> None:
    """A caller who leaves half-way ends the call: CancelledError goes up, and nothing is left of it within a second."""
    ground.service.work = _wait
    begun = ground.begin()
    await ground.until(lambda: ground.service.words, "the call does not reach the service")
    begun.cancel()
    await ground.at_rest()
    (outcome,) = ground.outer.outcomes
    assert isinstance(outcome, asyncio.CancelledError), f"the cancellation became {outcome!r}"


async def a_caller_may_leave_at_any_step(ground: Ground) -> None:
    """However far a call has come when its caller leaves, nothing is left of it, and the next one passes."""
    steps, over = 0, False
    while not over:
        begun = ground.begin()
        waiting = asyncio.ensure_future(answer_of(begun, ground.kind))
        for _ in range(steps):
            await asyncio.sleep(0)
        over = waiting.done()
        waiting.cancel()
        begun.cancel()
        await asyncio.wait([waiting])
        await ground.at_rest()
        # Over a socket far more steps are waits for the kernel, and one of them is like the next.
        steps += 1 if ground.place.over == "memory" else 1 + steps // 2
        assert steps < MOST_STEPS, "the call does not end"
    answer = await ground.call()
    assert (answer.code, answer.values) == (Code.OK, expected(ground.kind, WORDS)), answer


async def a_deadline_that_passes_ends_the_call(ground: Ground) -> None:
    """The caller gets DEADLINE_EXCEEDED when its time is over, and nothing is left of the call within a second."""
    memory = ground.place.over == "memory"
    if not memory:
        await ground.call()  # the connection is there, so the time is the call's own
    ground.service.work = _wait
    reached = len(ground.service.words)
    calling = asyncio.ensure_future(ground.ask(timeout=10.0 if memory else 0.3))
    try:
        # On a machine that is too busy its time may be over before it gets there, which is a deadline too.
        await ground.until(
            lambda: calling.done() or len(ground.service.words) > reached,
            "the call does not reach the service",
            within=5.0,
        )
        if memory:
            await ground.ends.clock.advance(10.0)
        answer = await ground.done(calling, within=SOON)
    finally:
        calling.cancel()
    assert answer.code is Code.DEADLINE_EXCEEDED, answer
    await ground.at_rest()
    if len(ground.service.words) > reached:
        assert isinstance(ground.outer.outcomes[-1], BaseException)


async def a_hook_that_raises_ends_the_call(ground: Ground) -> None:
    """What a hook raises is how the call ends, whether it was set outside of the middleware or inside of it."""
    for probe in (ground.outer, ground.inner):
        for add in (Call.on_received, Call.on_sent):
            probe.before = _hooked(add)
            answer = await ground.call()
            assert (answer.code, answer.message) == (Code.ABORTED, "hooked"), answer
            await ground.at_rest()
        probe.before = None


def _raising(kind: type[BaseException]) -> Callable[[Message, Call], Message]:
    def fail(*_: object) -> Message:
        raise kind

    return fail


def _hooked(add: Callable[[Call, Callable[[object, int], None]], None]) -> Callable[[Message, Call], Message]:
    def fail(_message: object, _size: int) -> None:
        raise Error(Code.ABORTED, "hooked")

    def before(request: Message, call: Call) -> Message:
        add(call, fail)
        return request

    return before


async def _wait(_: str) -> None:
    await asyncio.Event().wait()
