"""What the tests of links that know callers by a secret share: those callers, and who comes out as whom."""

from __future__ import annotations

import base64
from typing import Any, TypeAlias

from servicekit.endpoint import Message, Middleware
from servicekit.errors import Error
from servicekit.middleware import hash_key, hash_password
from servicekit.principal import Principal, principal_of
from servicekit.testing import make_call, run, scripted

Untyped: TypeAlias = Any
"""What is one of several things, or wrong on purpose."""

KEY, OLD, OTHER = "canary-" + "k" * 30, "canary-" + "o" * 30, "canary-" + "x" * 30
KEYS = {"batch": [hash_key(KEY), hash_key(OLD)], "web": hash_key(OTHER)}

PASSWORD = "canary horse battery"
USERS = {"alice": hash_password(PASSWORD, cost=10, parallel=1), "bob": hash_password("another", cost=10, parallel=1)}


def basic(name: str, password: str) -> tuple[str, str]:
    return "authorization", "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()


async def outcome(auth: Middleware, *metadata: tuple[str, str | bytes], **call: Untyped) -> Principal | Error | None:
    """Return who the endpoint sees, or why it was not reached."""
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
