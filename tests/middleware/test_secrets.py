"""Who calls, by a secret that both sides know: what holds for keys and passwords alike."""

from __future__ import annotations

import pytest

from servicekit.endpoint import Middleware
from servicekit.errors import Code, Error
from servicekit.middleware import ApiKeyAuth, BasicAuth, hash_key

from .callers import KEY, KEYS, OTHER, PASSWORD, USERS, Untyped, basic, outcome


def link(scheme: str, **settings: Untyped) -> Middleware:
    return ApiKeyAuth(KEYS, **settings) if scheme == "api_key" else BasicAuth(USERS, **settings)


@pytest.mark.parametrize(
    ("scheme", "metadata", "reason"),
    [
        ("api_key", [], "MISSING_CREDENTIALS"),
        ("api_key", [("authorization", f"Bearer {KEY}")], "MISSING_CREDENTIALS"),
        ("api_key", [("x-api-key", "")], "INVALID_CREDENTIALS"),
        ("api_key", [("x-api-key", KEY[:-1])], "INVALID_CREDENTIALS"),
        ("api_key", [("x-api-key", KEY + "k")], "INVALID_CREDENTIALS"),
        ("api_key", [("x-api-key", hash_key(KEY))], "INVALID_CREDENTIALS"),
        ("api_key", [("x-api-key", "k" * 100_000)], "INVALID_CREDENTIALS"),
        ("api_key", [("x-api-key", KEY), ("x-api-key", KEY)], "INVALID_CREDENTIALS"),
        ("api_key", [("x-api-key", OTHER), ("x-api-key", KEY)], "INVALID_CREDENTIALS"),
        ("basic", [], "MISSING_CREDENTIALS"),
        ("basic", [basic("alice", "wrong")], "INVALID_CREDENTIALS"),
        ("basic", [basic("alice", "another")], "INVALID_CREDENTIALS"),
        ("basic", [basic("nobody", PASSWORD)], "INVALID_CREDENTIALS"),
        ("basic", [basic("alice", "")], "INVALID_CREDENTIALS"),
        ("basic", [basic("", PASSWORD)], "INVALID_CREDENTIALS"),
        ("basic", [basic("alice", PASSWORD), basic("alice", PASSWORD)], "INVALID_CREDENTIALS"),
        ("basic", [("authorization", "Basic !!!!")], "INVALID_CREDENTIALS"),
        ("basic", [("authorization", "Basic YWxpY2U=")], "INVALID_CREDENTIALS"),
        ("basic", [("authorization", "Basic /////w==")], "INVALID_CREDENTIALS"),
        ("basic", [("authorization", "Bearer x")], "INVALID_CREDENTIALS"),
        ("basic", [basic("alice", "x" * 5000)], "INVALID_CREDENTIALS"),
    ],
)
async def test_anything_else_is_nobody(scheme: str, metadata: list[tuple[str, str]], reason: str) -> None:
    """UNAUTHENTICATED; an unknown name and a wrong secret in the same words."""
    error = await outcome(link(scheme), *metadata)
    assert isinstance(error, Error)
    assert (error.code, error.reason) == (Code.UNAUTHENTICATED, reason)


@pytest.mark.parametrize("scheme", ["api_key", "basic"])
async def test_the_servers_own_methods_pass(scheme: str) -> None:
    """Unless the setting says otherwise."""
    assert await outcome(link(scheme), auxiliary=True) is None
    assert isinstance(await outcome(link(scheme, auxiliary=True), auxiliary=True), Error)


@pytest.mark.parametrize(
    ("make", "known", "settings", "words"),
    [
        (ApiKeyAuth, {}, {}, "nobody"),
        (ApiKeyAuth, {"a": []}, {}, "nobody"),
        (ApiKeyAuth, {"batch": KEY}, {}, r"keys\['batch'\]"),
        (ApiKeyAuth, {"": hash_key(KEY)}, {}, "name"),
        (ApiKeyAuth, {hash_key(KEY): "batch"}, {}, r"^keys\[a hash\]: give a name"),
        (ApiKeyAuth, {"batch": [5]}, {}, r"keys\['batch'\]"),
        (ApiKeyAuth, {"batch": 5}, {}, r"keys\['batch'\]"),
        (ApiKeyAuth, {5: hash_key(KEY)}, {}, r"keys\[5\]"),
        (ApiKeyAuth, {"a": hash_key(KEY), "b": hash_key(KEY)}, {}, "the same key"),
        (ApiKeyAuth, KEYS, {"header": "X-Api-Key"}, "X-Api-Key"),
        (ApiKeyAuth, KEYS, {"header": "x-key-bin"}, "x-key-bin"),
        (ApiKeyAuth, KEYS, {"roles": {"nobody": []}}, "nobody"),
        (BasicAuth, {}, {}, "nobody"),
        (BasicAuth, {"alice": PASSWORD}, {}, r"users\['alice'\]"),
        (BasicAuth, {"a:b": USERS["alice"]}, {}, r"users\['a:b'\]"),
        (BasicAuth, {USERS["alice"]: "alice"}, {}, r"^users\[a hash\]: give a name"),
        (BasicAuth, {5: USERS["alice"]}, {}, r"users\[5\]"),
        (BasicAuth, {"alice": USERS["alice"].replace("$10$", "$30$")}, {}, "too dear"),
        (BasicAuth, USERS, {"threads": 0}, "threads=0"),
        (BasicAuth, USERS, {"remember": -1}, "remember=-1"),
        (BasicAuth, USERS, {"roles": {"carol": ["x"]}}, "carol"),
        (BasicAuth, USERS, {"roles": {"alice": "admin"}}, "one text"),
    ],
)
def test_a_wrong_setting_is_named_and_no_secret_is_shown(
    make: Untyped, known: Untyped, settings: dict[str, Untyped], words: str
) -> None:
    """Where it is written."""
    with pytest.raises((TypeError, ValueError), match=words) as caught:
        make(known, **settings)
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize(
    ("scheme", "shown"), [("api_key", "ApiKeyAuth(3 keys, header='x-api-key')"), ("basic", "BasicAuth(2 users)")]
)
def test_the_repr_has_no_secret(scheme: str, shown: str) -> None:
    """Nor a name."""
    assert repr(link(scheme)) == shown
