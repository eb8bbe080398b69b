"""An error that is described once and made often."""

from __future__ import annotations

from servicekit.errors import Code, Error
from servicekit.policy.refusal import Refusal


def test_is_what_the_constructor_makes() -> None:
    """In all that an Error has; refused by this side, and not begun."""
    made = Refusal(Code.UNAVAILABLE, "overloaded", reason="OVERLOADED", retry_after=1.0).error()
    plain = Error(Code.UNAVAILABLE, "overloaded", reason="OVERLOADED", retry_after=1.0, refused=True, begun=False)
    assert type(made) is Error
    assert made.args == plain.args
    assert vars(made) == vars(plain)
    assert (str(made), repr(made)) == (str(plain), repr(plain))


def test_is_a_new_one_each_time() -> None:
    """What happens to one happens to no other; when to come back may be each one's own."""
    refusal = Refusal(Code.RESOURCE_EXHAUSTED, "too many calls", reason="RATE_LIMITED")
    first, second = refusal.error(retry_after=2.0), refusal.error()
    assert first is not second
    assert (first.retry_after, second.retry_after) == (2.0, None)
    first.message = "changed"
    assert refusal.error().message == "too many calls"
