"""Who calls, by a long random key that a program was given."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable, Mapping
from typing import ClassVar, Final

from servicekit.call import Call
from servicekit.endpoint import Endpoint, Message
from servicekit.policy import checked
from servicekit.principal import Principal, authenticate, invalid, missing, roles_of, sole

_LINK: Final = "api_key_auth"
_DIGEST: Final = re.compile(r"sha256\$([0-9a-f]{64})")
_SHORTEST: Final = 24
_LONGEST: Final = 1024


class ApiKeyAuth:
    """Lets a call pass if ``header`` ("x-api-key") is one entry with a key of one of ``keys``.

    ``keys`` is name -> hash, or several of them while a key is rotated, as ``hash_key`` makes them: a key itself is never a
    setting. SHA-256 is enough for what nobody can guess, so keys are random (``new_key``), never made up by people; those
    have ``BasicAuth``. The ``Principal`` (scheme "api_key") has the name, and the ``roles`` that the setting gives to it.
    Refused: UNAUTHENTICATED, with reason MISSING_CREDENTIALS or INVALID_CREDENTIALS, after the same work for every key.

    Default: the server's own methods (health, reflection) pass; ``auxiliary=True`` asks them too. Decisions of
    "api_key_auth": those of ``authenticate``.
    """

    checks_callers: ClassVar[bool] = True

    __slots__ = ("_auxiliary", "_header", "_names", "_roles")

    def __init__(
        self,
        keys: Mapping[str, str | Iterable[str]],
        *,
        header: str = "x-api-key",
        roles: Mapping[str, Iterable[str]] | None = None,
        auxiliary: bool = False,
    ) -> None:
        """Raise ValueError or TypeError for a setting that cannot work, never showing a hash."""
        self._header = checked.header("header", header)
        self._names: dict[bytes, str] = {}
        checked.kind("keys", keys, Mapping, "mapping from names to hashes", secret=True)
        for name, hashes in keys.items():
            for text in hashes if isinstance(hashes, Iterable) and not isinstance(hashes, str) else [hashes]:
                found = _DIGEST.fullmatch(text) if isinstance(text, str) else None
                if found is None or not name or not isinstance(name, str):
                    mixed_up = isinstance(name, str) and _DIGEST.fullmatch(name)
                    who = "a hash" if mixed_up else repr(name)
                    msg = f"keys[{who}]: give a name and what hash_key() returned, never the key itself"
                    raise ValueError(msg)
                digest = bytes.fromhex(found[1])
                if self._names.setdefault(digest, name) != name:
                    msg = f"keys[{name!r}] has the same key as {self._names[digest]!r}"
                    raise ValueError(msg)
        if not self._names:
            msg = "keys holds no key: nobody could call"
            raise ValueError(msg)
        self._roles = roles_of(roles, keys)
        self._auxiliary = checked.flag("auxiliary", auxiliary)

    async def __call__(self, request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        """Check the key, then run the call."""
        if self._auxiliary or not call.method.auxiliary:
            await authenticate(call, _LINK, self._check)
        return await next(request, call)

    async def _check(self, call: Call) -> Principal:
        key = sole(call, self._header)
        if key is None:
            raise missing(f"no key in {self._header}")
        given = hashlib.sha256(key[: _LONGEST + 1].encode()).digest()
        # All are compared, each in constant time. A look-up by digest would tell next to nothing, but it would tell.
        name = ""
        for digest, owner in self._names.items():
            if hmac.compare_digest(digest, given):
                name = owner
        if not name:
            raise invalid()
        return Principal(name=name, scheme="api_key", roles=self._roles.get(name, frozenset()))

    def __repr__(self) -> str:
        """Return the header and how many keys there are."""
        return f"ApiKeyAuth({len(self._names)} keys, header={self._header!r})"


def new_key() -> str:
    """Return a new key: 43 characters, 256 random bits."""
    return secrets.token_urlsafe(32)


def hash_key(key: str) -> str:
    """Return what ``ApiKeyAuth`` is given for ``key``. Raises ValueError for one that is too short to be random."""
    checked.kind("key", key, str, "text", secret=True)
    if not _SHORTEST <= len(key) <= _LONGEST:
        msg = f"a key of {len(key)} characters is not {_SHORTEST} to {_LONGEST} random ones: see new_key()"
        raise ValueError(msg)
    return f"sha256${hashlib.sha256(key.encode()).hexdigest()}"
