"""Who calls, by a long random key."""

from __future__ import annotations

from typing import Any, TypeAlias

import pytest

from servicekit.endpoint import Message
from servicekit.errors import Code, Error
from servicekit.middleware import ApiKeyAuth, hash_key, new_key
from servicekit.principal import Principal, principal_of
from servicekit.testing import make_call, run, scripted

Untyped: TypeAlias = Any
"""What is one of several things, or wrong on purpose."""


KEY, OLD, OTHER = "canary-" + "k" * 30, "canary-" + "o" * 30, "canary-" + "x" * 30
KEYS = {"batch": [hash_key(KEY), hash_key(OLD)], "web": hash_key(OTHER)}


async def outcome(auth: ApiKeyAuth, *metadata: tuple[str, str | bytes], **call: Untyped) -> Principal | Error | None:
    seen: list[Principal | None] = []

    async def endpoint(_request: Message, call: Untyped) -> str:
        seen.append(principal_of(call))
        return "ok"

    try:
        await run(auth, scripted(endpoint), "hi", make_call(metadata=metadata, **call))
    except Error as error:
        assert seen == []
        return error
    return seen[0]


async def test_a_key_names_its_owner() -> None:
    """Several keys while one is rotated; roles by the setting."""
    auth = ApiKeyAuth(KEYS, roles={"batch": ["writer"]})
    batch = Principal(name="batch", scheme="api_key", roles=frozenset({"writer"}))
    assert await outcome(auth, ("x-api-key", KEY)) == batch
    assert await outcome(auth, ("x-api-key", OLD)) == batch
    assert await outcome(auth, ("x-api-key", OTHER)) == Principal(name="web", scheme="api_key")
    assert await outcome(ApiKeyAuth(KEYS, header="x-key"), ("x-key", OTHER)) == Principal(name="web", scheme="api_key")


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ([], "MISSING_CREDENTIALS"),
        ([("authorization", f"Bearer {KEY}")], "MISSING_CREDENTIALS"),
        ([("x-api-key", "")], "INVALID_CREDENTIALS"),
        ([("x-api-key", KEY[:-1])], "INVALID_CREDENTIALS"),
        ([("x-api-key", KEY + "k")], "INVALID_CREDENTIALS"),
        ([("x-api-key", hash_key(KEY))], "INVALID_CREDENTIALS"),
        ([("x-api-key", "k" * 100_000)], "INVALID_CREDENTIALS"),
        ([("x-api-key", KEY), ("x-api-key", KEY)], "INVALID_CREDENTIALS"),
        ([("x-api-key", OTHER), ("x-api-key", KEY)], "INVALID_CREDENTIALS"),
    ],
)
async def test_anything_else_is_nobody(metadata: list[tuple[str, str]], reason: str) -> None:
    """UNAUTHENTICATED."""
    error = await outcome(ApiKeyAuth(KEYS), *metadata)
    assert isinstance(error, Error)
    assert (error.code, error.reason) == (Code.UNAUTHENTICATED, reason)


async def test_the_servers_own_methods_pass() -> None:
    """Unless the setting says otherwise."""
    assert await outcome(ApiKeyAuth(KEYS), auxiliary=True) is None
    assert isinstance(await outcome(ApiKeyAuth(KEYS, auxiliary=True), auxiliary=True), Error)


@pytest.mark.parametrize(
    ("keys", "settings", "words"),
    [
        ({}, {}, "nobody"),
        ({"a": []}, {}, "nobody"),
        ({"batch": KEY}, {}, r"keys\['batch'\]"),
        ({"": hash_key(KEY)}, {}, "name"),
        ({"a": hash_key(KEY), "b": hash_key(KEY)}, {}, "the same key"),
        (KEYS, {"header": "X-Api-Key"}, "X-Api-Key"),
        (KEYS, {"header": "x-key-bin"}, "x-key-bin"),
        (KEYS, {"roles": {"nobody": []}}, "nobody"),
    ],
)
def test_a_wrong_setting_is_named_and_no_key_is_shown(keys: Untyped, settings: dict[str, Untyped], words: str) -> None:
    """Where it is written."""
    with pytest.raises((TypeError, ValueError), match=words) as caught:
        ApiKeyAuth(keys, **settings)
    assert "canary" not in str(caught.value)


def test_keys_are_long_and_random() -> None:
    """What people make up is refused, without being shown."""
    assert len(new_key()) == 43
    assert new_key() != new_key()
    assert hash_key(new_key()).startswith("sha256$")
    with pytest.raises(ValueError, match="12 characters") as caught:
        hash_key("canary short")
    assert "canary" not in str(caught.value)


def test_the_repr_has_no_secret() -> None:
    """Nor a name."""
    assert repr(ApiKeyAuth(KEYS)) == "ApiKeyAuth(3 keys, header='x-api-key')"
