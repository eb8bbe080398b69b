"""Who calls, by name and password."""

from __future__ import annotations

import asyncio
import hashlib

import pytest

from servicekit.clock import MovableClock
from servicekit.errors import Code, Error
from servicekit.middleware import BasicAuth, hash_password
from servicekit.principal import Principal

from .callers import PASSWORD, USERS, Untyped, basic, outcome


class Hashing:
    """scrypt, counted; it may be held up."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.done = 0
        self._scrypt = hashlib.scrypt
        monkeypatch.setattr(hashlib, "scrypt", self.scrypt)

    def scrypt(self, *args: Untyped, **settings: Untyped) -> bytes:
        self.done += 1
        return self._scrypt(*args, **settings)


@pytest.fixture
def hashing(monkeypatch: pytest.MonkeyPatch) -> Hashing:
    return Hashing(monkeypatch)


async def test_the_right_password_names_the_caller() -> None:
    """With the roles that the setting gives to that name."""
    auth = BasicAuth(USERS, roles={"alice": ["admin"]})
    assert await outcome(auth, basic("alice", PASSWORD)) == Principal(
        name="alice", scheme="basic", roles=frozenset({"admin"})
    )
    assert await outcome(auth, basic("bob", "another")) == Principal(name="bob", scheme="basic")


async def test_an_unknown_name_costs_what_a_wrong_password_does(hashing: Hashing) -> None:
    """The same work for both: how long it takes tells nobody who exists."""
    auth = BasicAuth(USERS)
    errors = []
    for credentials in (basic("alice", "wrong"), basic("nobody", "wrong")):
        hashing.done = 0
        errors.append(repr(await outcome(auth, credentials)))
        assert hashing.done == 1
    assert errors[0] == errors[1]


async def test_the_work_is_done_once_for_all_who_come_at_once(hashing: Hashing) -> None:
    """And not again while it is remembered; a wrong one is never."""
    clock = MovableClock()
    auth = BasicAuth(USERS, threads=1, queue=0)
    assert all(await asyncio.gather(*(outcome(auth, basic("alice", PASSWORD), clock=clock) for _ in range(20))))
    assert hashing.done == 1
    await clock.advance(299.0)
    assert isinstance(await outcome(auth, basic("alice", PASSWORD), clock=clock), Principal)
    assert hashing.done == 1
    await clock.advance(1.0)
    assert isinstance(await outcome(auth, basic("alice", PASSWORD), clock=clock), Principal)
    assert hashing.done == 2
    for _ in range(2):
        assert isinstance(await outcome(auth, basic("alice", "wrong"), clock=clock), Error)
    assert hashing.done == 4


async def test_nothing_is_remembered_when_that_is_asked_for(hashing: Hashing) -> None:
    """``remember=0``."""
    auth = BasicAuth(USERS, remember=0)
    for _ in range(3):
        await outcome(auth, basic("alice", PASSWORD))
    assert hashing.done == 3


async def test_too_many_at_once_are_turned_away() -> None:
    """RESOURCE_EXHAUSTED, to come back in a second; whoever is remembered still passes."""
    auth = BasicAuth(USERS, threads=1, queue=1)
    await outcome(auth, basic("alice", PASSWORD))
    guesses = await asyncio.gather(
        outcome(auth, basic("alice", PASSWORD)),
        *(outcome(auth, basic("alice", f"guess {number}")) for number in range(5)),
    )
    codes = [guess.code for guess in guesses if isinstance(guess, Error)]
    assert isinstance(guesses[0], Principal)
    assert sorted(codes) == [Code.RESOURCE_EXHAUSTED] * 3 + [Code.UNAUTHENTICATED] * 2
    busy = next(guess for guess in guesses if isinstance(guess, Error) and guess.code is Code.RESOURCE_EXHAUSTED)
    assert (busy.reason, busy.retry_after) == ("AUTHENTICATION_BUSY", 1.0)


async def test_a_caller_who_leaves_does_not_answer_for_others() -> None:
    """Those who waited for the same password go on by themselves."""
    auth = BasicAuth(USERS)
    first = asyncio.create_task(outcome(auth, basic("alice", PASSWORD)))
    second = asyncio.create_task(outcome(auth, basic("alice", PASSWORD)))
    while not auth._work:  # noqa: ASYNC110 - nothing tells when the work has begun
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    first.cancel()
    assert isinstance(await second, Principal)
    assert auth._waiting == 0


def test_a_hash_is_salted_and_slow() -> None:
    """Twice the same password makes two hashes; what is too cheap is refused."""
    assert hash_password("a", cost=10) != hash_password("a", cost=10)
    assert hash_password("a").startswith("scrypt$14$8$5$")
    for password, cost in (("", 14), ("a", 9), ("a", 21)):
        with pytest.raises(ValueError, match="cost"):
            hash_password(password, cost=cost)
