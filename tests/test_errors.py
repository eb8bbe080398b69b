from __future__ import annotations

import asyncio
import copy
import pickle

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.wrappers_pb2 import StringValue

from servicekit.errors import By, Code, Error, code_of


def test_the_codes_are_grpcs() -> None:
    """OK and the sixteen others, with the numbers of google.rpc.Code."""
    assert [code.value for code in Code] == list(range(17))
    assert (Code.OK, Code.UNKNOWN, Code.UNAVAILABLE, Code.UNAUTHENTICATED) == (0, 2, 14, 16)


def test_an_error_says_what_it_knows() -> None:
    """Every field is kept; sequences become tuples."""
    error = Error(
        Code.UNAVAILABLE,
        "draining",
        reason="DRAINING",
        details=[StringValue(value="a"), Duration(seconds=1)],
        retry_after=1.5,
        begun=False,
        by=By.PEER,
        headers=(("h", "1"),),
        trailers=(("t", "2"),),
    )
    assert (error.code, error.message, error.reason, error.retry_after) == (
        Code.UNAVAILABLE,
        "draining",
        "DRAINING",
        1.5,
    )
    assert (error.begun, error.by, error.headers, error.trailers) == (
        False,
        By.PEER,
        (("h", "1"),),
        (("t", "2"),),
    )
    assert isinstance(error.details, tuple)


def test_an_error_of_ones_own_is_local_and_begun() -> None:
    """What a handler raises needs a code only; it is this side's, and nothing says that work had not begun."""
    error = Error(Code.NOT_FOUND)
    assert (error.message, error.reason, error.details, error.retry_after) == ("", "", (), None)
    assert (error.begun, error.by, error.headers, error.trailers) == (True, By.LOCAL, (), ())


def test_ok_is_no_error() -> None:
    """Error(OK) would leave a client without an answer: refused, with the message that came with it."""
    with pytest.raises(ValueError, match="all went well"):
        Error(Code.OK, "all went well")
    with pytest.raises(ValueError, match="OK"):
        Error(0)  # type: ignore[arg-type]


def test_a_code_is_one_of_the_seventeen() -> None:
    """A number becomes its code; one that is none is refused."""
    assert Error(5).code is Code.NOT_FOUND  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="99"):
        Error(99)  # type: ignore[arg-type]


def test_a_detail_is_found_by_its_type() -> None:
    """The first detail of a type, or None."""
    first, second = StringValue(value="first"), StringValue(value="second")
    error = Error(Code.ABORTED, details=[first, second])
    assert error.detail(StringValue) is first
    assert error.detail(Duration) is None


def test_its_text_shows_no_details() -> None:
    """Its str and repr hold code, message and reason; details may hold anything."""
    error = Error(Code.ABORTED, "lost the race", reason="RACE", details=[StringValue(value="secret")])
    assert str(error) == "ABORTED: lost the race"
    assert repr(error) == "Error(ABORTED, 'lost the race', reason='RACE')"
    assert str(Error(Code.ABORTED)) == "ABORTED"
    assert repr(Error(Code.ABORTED)) == "Error(ABORTED, '')"


@pytest.mark.parametrize("again", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))], ids=["copy", "pickle"])
def test_an_error_can_be_copied(again: object) -> None:
    """Copied or sent to another process, an error is the same error."""
    assert callable(again)
    twin = again(Error(Code.ABORTED, "m", reason="R", details=[StringValue(value="v")], retry_after=-1.0, by=By.PEER))
    assert (twin.code, twin.message, twin.reason, twin.retry_after, twin.by) == (Code.ABORTED, "m", "R", -1.0, By.PEER)
    assert twin.detail(StringValue) == StringValue(value="v")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (None, Code.OK),
        (Error(Code.NOT_FOUND), Code.NOT_FOUND),
        (asyncio.CancelledError(), Code.CANCELLED),
        (ValueError("secret"), Code.INTERNAL),
        (TimeoutError(), Code.INTERNAL),
        (KeyboardInterrupt(), Code.INTERNAL),
    ],
)
def test_every_outcome_has_a_code(error: BaseException | None, code: Code) -> None:
    """None is OK, an Error its code, a cancellation CANCELLED, a stranger INTERNAL."""
    assert code_of(error) is code
