"""Who calls, by a long random key."""

from __future__ import annotations

import pytest

from servicekit.middleware import ApiKeyAuth, hash_key, new_key
from servicekit.principal import Principal

from .callers import KEY, KEYS, OLD, OTHER, outcome


async def test_a_key_names_its_owner() -> None:
    """Several keys while one is rotated; roles by the setting."""
    auth = ApiKeyAuth(KEYS, roles={"batch": ["writer"]})
    batch = Principal(name="batch", scheme="api_key", roles=frozenset({"writer"}))
    assert await outcome(auth, ("x-api-key", KEY)) == batch
    assert await outcome(auth, ("x-api-key", OLD)) == batch
    assert await outcome(auth, ("x-api-key", OTHER)) == Principal(name="web", scheme="api_key")
    assert await outcome(ApiKeyAuth(KEYS, header="x-key"), ("x-key", OTHER)) == Principal(name="web", scheme="api_key")


def test_keys_are_long_and_random() -> None:
    """What people make up is refused, without being shown."""
    assert len(new_key()) == 43
    assert new_key() != new_key()
    assert hash_key(new_key()).startswith("sha256$")
    with pytest.raises(ValueError, match="12 characters") as caught:
        hash_key("canary short")
    assert "canary" not in str(caught.value)
