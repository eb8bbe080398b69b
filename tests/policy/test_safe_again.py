"""When asking again is safe, and when it may help."""

from __future__ import annotations

import pytest

from servicekit.call import Side
from servicekit.errors import By, Code, Error
from servicekit.method import Idempotency, Kind, Method
from servicekit.policy.safe_again import PREVIOUS, Marked, idempotent, is_repeated, may_pass
from servicekit.testing import make_call


def method(level: Idempotency = Idempotency.UNKNOWN, name: str = "Get") -> Method:
    return Method(service="a.B", name=name, kind=Kind.UNARY, idempotency=level)


@pytest.mark.parametrize("code", [code for code in Code if code is not Code.OK])
def test_one_code_may_pass_by_itself(code: Code) -> None:
    """UNAVAILABLE; every other one is an answer, or needs more than the code to tell."""
    assert may_pass(Error(code, by=By.LOCAL)) is (code is Code.UNAVAILABLE)


@pytest.mark.parametrize(("by", "helps"), [(By.PEER, True), (By.LOCAL, False), (By.CALLER, False)])
def test_cancelled_by_the_server_may_pass(*, by: By, helps: bool) -> None:
    """A server that goes cancels; a caller that cancels wants no more."""
    assert may_pass(Error(Code.CANCELLED, by=by)) is helps


@pytest.mark.parametrize(("retry_after", "helps"), [(None, False), (-1.0, False), (0.0, True), (2.0, True)])
def test_exhausted_may_pass_when_it_says_when(*, retry_after: float | None, helps: bool) -> None:
    """Without a word about when, asking again is what exhausts."""
    assert may_pass(Error(Code.RESOURCE_EXHAUSTED, retry_after=retry_after)) is helps


@pytest.mark.parametrize("level", list(Idempotency))
def test_the_proto_decides(level: Idempotency) -> None:
    """By its idempotency_level."""
    assert idempotent(None)(method(level)) is (level is not Idempotency.UNKNOWN)


def test_settings_say_otherwise() -> None:
    """By path, by service, by predicate; what the proto says stays true."""
    assert idempotent(["/a.B/Get"])(method())
    assert not idempotent(["/a.B/Get"])(method(name="Put"))
    assert idempotent(["/a.C/*", "/a.B/*"])(method())
    assert idempotent(lambda each: each.name == "Get")(method())
    assert not idempotent(lambda each: each.name == "Put")(method())
    assert idempotent([])(method(Idempotency.IDEMPOTENT))


@pytest.mark.parametrize(("marked", "kind"), [("/a.B/Get", TypeError), (["a.B/Get"], ValueError)])
def test_a_wrong_mark_is_refused(marked: Marked, kind: type[Exception]) -> None:
    """A path alone is no list of paths, and a word no path."""
    with pytest.raises(kind, match=r"a\.B/Get"):
        idempotent(marked)


@pytest.mark.parametrize(("sent", "repeated"), [("1", True), ("12", True), ("0", False), ("-1", False), ("x", False)])
def test_a_call_is_repeated_when_the_one_it_is_made_for_is(*, sent: str, repeated: bool) -> None:
    """As the metadata of the served call says."""
    parent = make_call(metadata=[(PREVIOUS, sent)])
    assert is_repeated(make_call(side=Side.CLIENT, parent=parent)) is repeated
    assert not is_repeated(make_call(side=Side.CLIENT, parent=make_call()))
    assert not is_repeated(make_call(side=Side.CLIENT, metadata=[(PREVIOUS, sent)]))
