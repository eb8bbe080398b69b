"""Nothing unmapped passes above Recovery, and no text that was not meant to."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest

from servicekit.endpoint import Message, chain, only
from servicekit.errors import Code, Error
from servicekit.mapping import ErrorMapping, Rule, error_id, to_error
from servicekit.method import Kind
from servicekit.middleware import AccessLog, Recovery
from servicekit.testing import make_call, run, scripted, sends

from .probes import Log, Probe

CANARY = "canary-" + "7f3a"  # put together, so that no line of source that a traceback shows has it


class NotFoundError(Exception):
    pass


class KeyNotFoundError(NotFoundError):
    pass


async def recovered(exception: Message, errors: Mapping[type[Exception], Rule] | None = None) -> BaseException:
    """What leaves Recovery when the endpoint raises ``exception``."""
    probe = Probe()
    with pytest.raises(BaseException):  # noqa: B017 - which one it is, is the question
        await run([probe, Recovery(errors)], scripted(exception), "hi", make_call())
    (error,) = probe.seen
    assert isinstance(error, BaseException)
    return error


async def test_an_error_passes() -> None:
    """An Error leaves as the very object that was raised."""
    error = Error(Code.NOT_FOUND, "no such key", reason="KEY_NOT_FOUND")
    assert await recovered(error) is error


async def test_a_mapped_exception_becomes_its_code() -> None:
    """A domain exception that is mapped to a code leaves as that code with its own text, and is the cause."""
    exception = NotFoundError("no key called k1")
    error = await recovered(exception, {NotFoundError: Code.NOT_FOUND})
    assert isinstance(error, Error)
    assert (error.code, error.message) == (Code.NOT_FOUND, "no key called k1")
    assert error.__cause__ is exception
    assert error_id(error.trailers) is None


async def test_the_most_specific_class_wins() -> None:
    """Of two mapped classes the nearer one in the exception's MRO decides, whatever their order."""
    errors: dict[type[Exception], Rule] = {NotFoundError: Code.NOT_FOUND, KeyNotFoundError: Code.FAILED_PRECONDITION}
    error = await recovered(KeyNotFoundError("x"), errors)
    assert isinstance(error, Error)
    assert error.code is Code.FAILED_PRECONDITION
    error = await recovered(KeyNotFoundError("x"), {NotFoundError: Code.NOT_FOUND})
    assert isinstance(error, Error)
    assert error.code is Code.NOT_FOUND


async def test_a_rule_may_be_a_function() -> None:
    """A function is given the exception and returns the whole Error."""

    def rule(exception: NotFoundError) -> Error:
        return Error(Code.NOT_FOUND, "gone", reason="GONE", retry_after=len(exception.args))

    error = await recovered(NotFoundError("a", "b"), {NotFoundError: rule})
    assert isinstance(error, Error)
    assert (error.message, error.reason, error.retry_after) == ("gone", "GONE", 2)


async def test_a_function_may_name_the_cause_itself() -> None:
    """A cause that a rule has set stays; without one it is the exception."""
    root = OSError("disk")

    def rule(_exception: Exception) -> Error:
        error = Error(Code.UNAVAILABLE)
        error.__cause__ = root
        return error

    assert (await recovered(NotFoundError(), {NotFoundError: rule})).__cause__ is root
    exception = NotFoundError()
    assert (await recovered(exception, {NotFoundError: lambda _: Error(Code.ABORTED)})).__cause__ is exception


async def test_a_stranger_becomes_internal() -> None:
    """Anything else is INTERNAL, "internal error", with an id, and with the exception as its cause."""
    exception = ValueError(CANARY)
    error = await recovered(exception, {NotFoundError: Code.NOT_FOUND})
    assert isinstance(error, Error)
    assert (error.code, error.message) == (Code.INTERNAL, "internal error")
    assert error.__cause__ is exception
    assert error_id(error.trailers)


async def test_every_failure_has_an_id_of_its_own() -> None:
    """The id names one failure, not a kind of failure."""
    ids = {error_id(to_error(ValueError(), ErrorMapping()).trailers) for _ in range(100)}
    assert len(ids) == 100
    assert None not in ids


@pytest.mark.parametrize("kind", list(Kind))
async def test_a_secret_stays_in_the_log(kind: Kind) -> None:
    """The text of an unexpected exception is once in the log and nowhere in the Error, for every kind."""
    log = Log()
    outcome = sends("a", then=ValueError(CANARY)) if kind.response_streaming else ValueError(CANARY)
    request = ["hi"] if kind.request_streaming else "hi"
    with pytest.raises(Error) as raised:
        await run([AccessLog(log.telemetry), Recovery()], scripted(outcome), request, make_call(kind=kind))
    assert log.text.count(CANARY) == 1
    error = raised.value
    assert CANARY not in repr((error, str(error), error.args, error.details, error.headers, error.trailers))
    assert log.line["error_id"] == error_id(error.trailers)


async def test_a_rule_that_fails_leaks_nothing() -> None:
    """A rule that raises, or returns no Error, leaves a stranger: INTERNAL, with the first exception as the cause."""

    def raising(exception: Exception) -> Error:
        raise RuntimeError(str(exception))

    def confused(exception: Exception) -> str:
        return str(exception)

    for rule in (raising, confused):
        error = await recovered(NotFoundError(CANARY), {NotFoundError: rule})  # type: ignore[dict-item]  # on purpose
        assert isinstance(error, Error)
        assert (error.code, error.message) == (Code.INTERNAL, "internal error")
        assert isinstance(error.__cause__, NotFoundError)


async def test_a_text_that_fails_leaks_nothing() -> None:
    """An exception mapped to a code that cannot tell its text is a stranger."""

    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError(CANARY)

    error = await recovered(Mute(), {Mute: Code.NOT_FOUND})
    assert isinstance(error, Error)
    assert (error.code, error.message) == (Code.INTERNAL, "internal error")


class Odd(BaseException):  # a BaseException of somebody's own
    pass


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, asyncio.CancelledError, GeneratorExit])
async def test_what_ends_work_passes_untouched(kind: type[BaseException]) -> None:
    """A cancellation, and what ends the process, is no failure of the call."""
    raised = kind()

    async def endpoint(_request: Message, _call: object) -> Message:
        raise raised

    with pytest.raises(kind) as caught:
        await Recovery()("hi", make_call(), endpoint)
    assert caught.value is raised


async def test_any_other_base_exception_does_not() -> None:
    """A BaseException of somebody's own, alone or in a group, does not pass; a group with an exit in it does."""
    for exception in (Odd(CANARY), BaseExceptionGroup("several", [Odd(), ValueError()])):

        async def endpoint(_request: Message, _call: object, raised: BaseException = exception) -> Message:
            raise raised

        with pytest.raises(Error) as caught:
            await Recovery()("hi", make_call(), endpoint)
        assert caught.value.code is Code.INTERNAL

    async def leaving(_request: Message, _call: object) -> Message:
        raise BaseExceptionGroup("several", [SystemExit(), ValueError()])

    with pytest.raises(BaseExceptionGroup):
        await Recovery()("hi", make_call(), leaving)


async def test_a_task_groups_only_failure_is_the_failure() -> None:
    """A group of one Error, or of one mapped exception, is that Error: TaskGroup wraps whatever fails in it."""

    async def endpoint(_request: Message, _call: object) -> Message:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(failing())

    async def failing() -> None:
        raise KeyNotFoundError("k1")

    error = await recovered(endpoint, {NotFoundError: Code.NOT_FOUND})
    assert isinstance(error, Error)
    assert (error.code, error.message) == (Code.NOT_FOUND, "k1")


async def test_a_group_that_agrees_is_its_first() -> None:
    """A group, nested or not, whose exceptions all mean one code, is the first of them, with its own cause."""
    first = Error(Code.UNAVAILABLE, "a")
    group = ExceptionGroup("several", [ExceptionGroup("inner", [first]), Error(Code.UNAVAILABLE, "b")])
    error = await recovered(group)
    assert error is first
    assert error.__cause__ is None


async def test_a_group_that_disagrees_is_a_stranger() -> None:
    """A group of different codes, or with a stranger in it, is INTERNAL, with the group as its cause."""
    for other in (Error(Code.NOT_FOUND), ValueError(CANARY)):
        group = ExceptionGroup("several", [Error(Code.UNAVAILABLE, "a"), other])
        error = await recovered(group)
        assert isinstance(error, Error)
        assert (error.code, error.message) == (Code.INTERNAL, "internal error")
        assert error.__cause__ is group


async def test_a_group_may_be_mapped_itself() -> None:
    """A rule for a group's own class comes before what is in it."""
    error = await recovered(ExceptionGroup("all failed", [ValueError(CANARY)]), {ExceptionGroup: Code.ABORTED})
    assert isinstance(error, Error)
    assert error.code is Code.ABORTED


async def test_a_failing_hook_is_an_exception_like_any_other() -> None:
    """What a hook raises, whatever the endpoint made of it, leaves as INTERNAL."""

    def hook(_message: object, _size: int) -> None:
        raise ValueError(CANARY)

    call = make_call()
    call.on_sent(hook)
    with pytest.raises(Error, match="internal error") as caught:
        await run(Recovery(), scripted("ok"), "hi", call)
    assert caught.value.code is Code.INTERNAL


@pytest.mark.parametrize(
    ("errors", "named"),
    [
        ({asyncio.CancelledError: Code.CANCELLED}, "CancelledError"),
        ({"ValueError": Code.NOT_FOUND}, "'ValueError'"),
        ({Error: Code.NOT_FOUND}, "Error is an Error"),
        ({ValueError: Code.OK}, "ValueError cannot mean OK"),
        ({ValueError: 5}, "mapped to 5"),
        ({ValueError: "NOT_FOUND"}, "'NOT_FOUND'"),
        ({Exception: Code.INTERNAL}, "text of every bug"),
        ([ValueError], "errors=.*ValueError"),
    ],
)
def test_refuses_rules_that_are_none(errors: Mapping[type[Exception], Rule], named: str) -> None:
    """A wrong rule is refused where it is written, with what was wrong in the message."""
    with pytest.raises((TypeError, ValueError), match=named):
        Recovery(errors)


async def test_takes_a_mapping_made_before() -> None:
    """An ErrorMapping can be shared, with the server for example; it is copied, so nobody changes it later."""
    rules: dict[type[Exception], Rule] = {NotFoundError: Code.NOT_FOUND}
    mapping = ErrorMapping(rules)
    rules[NotFoundError] = Code.INTERNAL
    with pytest.raises(Error) as caught:
        await run(Recovery(mapping), scripted(NotFoundError), "hi", make_call())
    assert caught.value.code is Code.NOT_FOUND


async def test_only_some_methods() -> None:
    """Inside ``only``, other methods' exceptions pass it as they are."""
    probe = Probe()
    link = only("/test.Service/Other", Recovery({ValueError: Code.NOT_FOUND}))
    with pytest.raises(Error) as caught:
        await run([probe, link], scripted(ValueError("x")), "hi", make_call())
    assert isinstance(probe.seen[0], ValueError)
    assert caught.value.code is Code.INTERNAL  # the edge's last resort


def test_a_cancellation_asked_about_is_cancelled() -> None:
    """The edge's last resort answers for a CancelledError too, as ``code_of`` does."""
    assert to_error(asyncio.CancelledError(), ErrorMapping()).code is Code.CANCELLED


def test_repr() -> None:
    """The rules can be read in a chain's repr."""
    link = Recovery({NotFoundError: Code.NOT_FOUND, ValueError: to_error})
    assert repr(chain(link)) == "chain(Recovery(ErrorMapping(NotFoundError: NOT_FOUND, ValueError: to_error)))"
