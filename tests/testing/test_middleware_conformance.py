"""The middleware suite itself: it lets a plain link pass, and finds what is wrong with a broken one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from typing import Any

import pytest

from servicekit.call import Call, Side
from servicekit.endpoint import Endpoint, Message, Middleware
from servicekit.errors import Code, Error
from servicekit.metadata import Metadata
from servicekit.method import Kind
from servicekit.testing.middleware_conformance import CASES, Refuses, Run, Subject, check, middleware_cases


async def plain(request: Message, call: Call, next: Endpoint) -> Message:  # noqa: A002 - the term
    return await next(request, call)


PLAIN = Subject(make=lambda: plain, name="plain")


async def test_a_link_that_does_nothing_passes() -> None:
    """On both sides, over memory here."""
    for run in middleware_cases(PLAIN, over=["memory"], kinds=[Kind.BIDI_STREAM]):
        await check(run)


@pytest.mark.conformance
@pytest.mark.parametrize("run", middleware_cases(PLAIN), ids=str)
async def test_a_link_that_does_nothing_passes_everywhere(run: Run) -> None:
    """On both sides, over both wires, around methods of every kind."""
    await check(run)


def test_every_case_states_its_rule() -> None:
    """A case's docstring is the rule, its name is its own, and helpers are not taken for cases."""
    assert len(CASES) > 20
    assert len({case.__name__ for case in CASES}) == len(CASES)
    assert all(case.__doc__ and case.__doc__.rstrip().endswith(".") for case in CASES)


def test_a_rule_that_does_not_exist_cannot_be_left_out() -> None:
    """A name that is wrong in ``unkept`` fails where it is written."""
    with pytest.raises(ValueError, match="no_such_rule"):
        middleware_cases(Subject(make=lambda: plain, unkept={"no_such_rule": "why"}))
    named = {
        case.case.__name__ for case in middleware_cases(Subject(make=lambda: plain, unkept={"next_is_called_once": ""}))
    }
    assert "next_is_called_once" not in named
    assert "what_next_returned_is_returned" in named


# Links that are broken: (request, call, next) as of any other


async def swallows_cancellation(request: Message, call: Call, next: Endpoint) -> Message:  # noqa: A002 - the term
    try:
        return await next(request, call)
    except asyncio.CancelledError:
        return None


async def translates_cancellation(request: Message, call: Call, next: Endpoint) -> Message:  # noqa: A002 - the term
    try:
        return await next(request, call)
    except BaseException as error:
        if isinstance(error, Error):
            raise
        raise Error(Code.UNAVAILABLE) from error


async def is_not_cancelled(request: Message, call: Call, next: Endpoint) -> Message:  # noqa: A002 - the term
    task = asyncio.ensure_future(next(request, call))
    try:
        return await asyncio.shield(task)
    finally:
        task.add_done_callback(lambda task: task.cancelled() or task.exception())


async def calls_next_twice(request: Message, call: Call, next: Endpoint) -> Message:  # noqa: A002 - the term
    await next(request, call.fork())
    return await next(request, call.fork())


async def never_calls_next(request: Message, call: Call, next: Endpoint) -> Message:  # noqa: A002 - the term
    return None


async def loses_the_answer(request: Message, call: Call, next: Endpoint) -> Message:  # noqa: A002 - the term
    await next(request, call)
    return False


async def loses_trailers(request: Message, call: Call, next: Endpoint) -> Message:  # noqa: A002 - the term
    response = await next(request, call)
    call.trailers = Metadata()
    return response


async def loses_metadata(request: Message, call: Call, next: Endpoint) -> Message:  # noqa: A002 - the term
    call.metadata = Metadata()
    return await next(request, call)


async def makes_up_a_call(request: Message, call: Call, next: Endpoint) -> Message:  # noqa: A002 - the term
    attempt = call.fork()
    attempt._state = {}
    return await next(request, attempt)


async def swallows_exceptions(request: Message, call: Call, next: Endpoint) -> Message:  # noqa: A002 - the term
    try:
        return await next(request, call)
    except Error:
        raise
    except Exception:  # noqa: BLE001 - that is the fault
        return None


async def translates_errors(request: Message, call: Call, next: Endpoint) -> Message:  # noqa: A002 - the term
    try:
        return await next(request, call)
    except Error as error:
        raise Error(error.code, error.message) from None


async def leaks_a_task(request: Message, call: Call, next: Endpoint) -> Message:  # noqa: A002 - the term
    tasks.append(asyncio.ensure_future(asyncio.sleep(3600)))
    return await next(request, call)


async def leaks_a_timer(request: Message, call: Call, next: Endpoint) -> Message:  # noqa: A002 - the term
    call.clock.call_at(call.clock.time() + 1e9, lambda: None)
    return await next(request, call)


async def holds_back_requests(request: Message, call: Call, next: Endpoint) -> Message:  # noqa: A002 - the term
    if not call.method.kind.request_streaming:
        return await next(request, call)
    messages = [message async for message in request]
    return await next(_each(messages), call)


async def reads_twice(request: Message, call: Call, next: Endpoint) -> Message:  # noqa: A002 - the term
    if call.method.kind.request_streaming:
        aiter(request)
    return await next(request, call)


async def keeps_a_generator_open(request: Message, call: Call, next: Endpoint) -> Message:  # noqa: A002 - the term
    generators.append(_bracket())
    await anext(generators[-1])
    return await next(request, call)


async def waits_for_the_last_request(request: Message, call: Call, next: Endpoint) -> Message:  # noqa: A002 - the term
    response = await next(request, call)
    if call.method.kind.request_streaming:
        async for _ in request:
            pass
    return response


async def has_a_hook_that_waits(request: Message, call: Call, next: Endpoint) -> Message:  # noqa: A002 - the term
    async def hook(link: str, decision: str) -> None: ...

    call.on_decision(hook)  # type: ignore[arg-type]
    return await next(request, call)


class MixesUpCalls:
    def __init__(self) -> None:
        self.request: Message = None

    async def __call__(self, request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        self.request = request
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return await next(self.request, call)


class NeverRecovers:
    def __init__(self) -> None:
        self.broken = False
        self.running = 0

    async def __call__(self, request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        if self.broken:
            raise Error(Code.UNAVAILABLE, "broken for good")
        self.broken = True
        self.running += 1
        response = await next(request, call)
        self.running -= 1
        self.broken = False
        return response


class ForOneChain:
    def __init__(self) -> None:
        self.next: Endpoint | None = None

    async def __call__(self, request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        self.next = self.next or next
        return await self.next(request, call)


class Keyed:
    def __init__(self, key: str = "hunter2", limit: int = 1) -> None:
        self.key, self.limit = key, limit

    async def __call__(self, request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        return await next(request, call)

    def __repr__(self) -> str:
        return f"Keyed({self.key!r}, {self.limit!r})"


async def refuses_too_late(request: Message, call: Call, next: Endpoint) -> Message:  # noqa: A002 - the term
    await next(request, call)
    raise Error(Code.UNAVAILABLE, retry_after=1.0)


async def refuses_for_ever(request: Message, call: Call, next: Endpoint) -> Message:  # noqa: A002 - the term
    raise Error(Code.UNAVAILABLE)


async def refuses_in_its_own_way(request: Message, call: Call, next: Endpoint) -> Message:  # noqa: A002 - the term
    raise PermissionError


tasks: list[asyncio.Future[None]] = []
generators: list[AsyncGenerator[None, None]] = []


async def _each(messages: Sequence[Message]) -> AsyncIterator[Message]:
    for message in messages:
        yield message


async def _bracket() -> AsyncGenerator[None, None]:
    try:
        yield
    finally:
        await asyncio.sleep(0)


@pytest.fixture(autouse=True)
async def _tidy() -> AsyncIterator[None]:
    yield
    for task in tasks:
        task.cancel()
    for generator in generators:
        await generator.aclose()
    tasks.clear()
    generators.clear()


BOTH = (Side.SERVER, Side.CLIENT)
ALL = tuple(Kind)
TWO = (Kind.UNARY, Kind.BIDI_STREAM)
UPLOADS = (Kind.CLIENT_STREAM, Kind.BIDI_STREAM)


def _refusing(link: Middleware, code: Code = Code.UNAVAILABLE) -> Subject:
    return Subject(make=lambda: plain, refusals=[Refuses(make=lambda: link, code=code)])


Faulty = tuple[str, Subject | Callable[..., Any], str, Sequence[Side], Sequence[Kind]]

FAULTS: list[Faulty] = [
    ("a_cancelled_call_ends_as_cancelled", swallows_cancellation, "the cancellation became None", BOTH, ALL),
    ("a_stray_cancellation_is_not_swallowed", swallows_cancellation, "", BOTH, ALL),
    ("a_cancelled_call_ends_as_cancelled", translates_cancellation, "the cancellation became Error", BOTH, ALL),
    ("a_cancelled_call_ends_as_cancelled", is_not_cancelled, "still under way", BOTH, TWO),
    ("next_is_called_once", calls_next_twice, "", BOTH, (Kind.UNARY, Kind.SERVER_STREAM)),
    ("next_is_called_once", never_calls_next, "", BOTH, ALL),
    ("what_next_returned_is_returned", loses_the_answer, "", BOTH, ALL),
    ("a_permitted_call_passes_unchanged", loses_trailers, "trailer", BOTH, ALL),
    ("a_permitted_call_passes_unchanged", loses_metadata, "", BOTH, ALL),
    ("the_call_goes_down", makes_up_a_call, "", BOTH, ALL),
    ("an_exception_is_not_swallowed", swallows_exceptions, "", BOTH, ALL),
    ("an_error_keeps_its_code_message_and_details", translates_errors, "", BOTH, ALL),
    ("a_permitted_call_passes_unchanged", leaks_a_task, "leaks_a_task|sleep", BOTH, TWO[:1]),
    ("a_permitted_call_passes_unchanged", leaks_a_timer, "pending timers", BOTH, TWO[:1]),
    ("requests_go_through_as_they_come", holds_back_requests, "held back", BOTH, UPLOADS[:1]),
    ("a_request_stream_is_read_once", reads_twice, "2 times", BOTH, UPLOADS),
    ("a_permitted_call_passes_unchanged", keeps_a_generator_open, "_bracket", BOTH, TWO[:1]),
    ("an_answer_before_the_last_request_ends_the_call", waits_for_the_last_request, "", BOTH, UPLOADS),
    ("hooks_are_plain_functions", has_a_hook_that_waits, "hook", BOTH, ALL),
    ("a_hundred_calls_at_once_are_not_mixed_up", MixesUpCalls, "", BOTH, (Kind.UNARY,)),
    ("a_call_passes_after_a_failed_one", NeverRecovers, "", BOTH, TWO),
    ("a_caller_may_leave_at_any_step", NeverRecovers, "", (Side.CLIENT,), ALL),
    (
        "a_cancelled_call_ends_as_cancelled",
        Subject(make=NeverRecovers, is_idle=lambda link: link.running == 0),
        "the link's own figures",
        BOTH,
        TWO,
    ),
    ("it_may_stand_in_two_chains", ForOneChain, "", BOTH, ALL),
    ("repr_shows_settings_and_no_secrets", Subject(make=Keyed, secrets=["hunter2"]), "secret", BOTH, ALL),
    ("repr_shows_settings_and_no_secrets", Subject(make=MixesUpCalls, shown=["limit=3"]), "limit=3", BOTH, ALL),
    ("wrong_settings_are_refused", Subject(make=Keyed, wrong=[{"limit": -1}]), "was taken", BOTH, ALL),
    ("a_refusal_is_an_error_and_calls_nobody", _refusing(refuses_too_late), "none was refused", BOTH, ALL),
    ("a_refusal_is_an_error_and_calls_nobody", _refusing(refuses_for_ever), "when to come back", BOTH, ALL),
    (
        "a_refusal_is_an_error_and_calls_nobody",
        _refusing(refuses_in_its_own_way, Code.INTERNAL),
        "",
        (Side.SERVER,),
        ALL,
    ),
    ("a_refusal_is_an_error_and_calls_nobody", _refusing(refuses_for_ever, Code.ABORTED), "", BOTH, ALL),
]


def _named(fault: Faulty) -> str:
    broken = fault[1]
    return f"{fault[0]}-{broken.name or broken.make.__name__ if isinstance(broken, Subject) else broken.__name__}"


def _subject(broken: Subject | Callable[..., Any]) -> Subject:
    if isinstance(broken, Subject):
        return broken
    return Subject(make=broken if isinstance(broken, type) else lambda: broken, name=broken.__name__)


@pytest.mark.parametrize("fault", FAULTS, ids=_named)
async def test_a_broken_link_is_found(fault: Faulty) -> None:
    """By the case whose rule it breaks, on every side and around methods of every kind, over memory."""
    name, broken, text, sides, kinds = fault
    runs = [
        run
        for run in middleware_cases(_subject(broken), over=["memory"])
        if run.case.__name__ == name and run.place.side in sides and run.place.kind in kinds
    ]
    assert runs
    for run in runs:
        with pytest.raises((AssertionError, TimeoutError), match=text or None):
            await check(run)


# A socket's time is the machine's, and its calls begin in an order of their own.
OVER_SOCKETS = [fault for fault in FAULTS if fault[1] not in (leaks_a_timer, MixesUpCalls)]


@pytest.mark.conformance
@pytest.mark.parametrize("fault", OVER_SOCKETS, ids=_named)
async def test_a_broken_link_is_found_over_a_socket(fault: Faulty) -> None:
    """As over memory, but for what only time that is moved can show."""
    name, broken, text, sides, kinds = fault
    for run in middleware_cases(_subject(broken), over=["socket"], kinds=kinds[:1]):
        if run.case.__name__ == name and run.place.side in sides:
            with pytest.raises((AssertionError, TimeoutError), match=text or None):
                await check(run)
