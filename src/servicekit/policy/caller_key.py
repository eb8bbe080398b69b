"""What a limit counts under: one count for each peer, principal, method, or whatever a function finds in the call."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Final, Literal, TypeAlias

from servicekit.call import Call
from servicekit.principal import PRINCIPAL, Principal

Key: TypeAlias = Literal["peer", "principal", "method"] | Callable[[Call], Hashable]
"""A word for one of the usual keys, or a function from a call to its key."""

_PORTED = ("ipv4:", "ipv6:")


def key_of(key: Key) -> Callable[[Call], Hashable]:
    """Return the function from a call to its key. Raises ValueError or TypeError for what is neither word nor function.

    "peer" is the other end's host, without the port, which is another one for each connection. "principal" is who
    authentication found (``call.state["principal"]``): a limit by it stands inside authentication, and calls without
    one share one key, None. "method" is the path, the same for all that the server does not have.
    """
    if isinstance(key, str):
        known = _WORDS.get(key)
        if known is None:
            msg = f"key={key!r} is none of {', '.join(map(repr, _WORDS))}, nor a function of the call"
            raise ValueError(msg)
        return known
    if not callable(key):
        msg = f"key={key!r} is neither a word nor a function of the call"
        raise TypeError(msg)
    return key


def _peer(call: Call) -> Hashable:
    peer = call.peer
    return peer.rpartition(":")[0] if peer.startswith(_PORTED) else peer


def _principal(call: Call) -> Hashable:
    principal = call.state.get(PRINCIPAL)
    if isinstance(principal, Principal):
        return f"{principal.scheme}:{principal.name}"  # whatever the roles: somebody with two tokens has one limit
    return principal if isinstance(principal, Hashable) else None


def _method(call: Call) -> Hashable:
    return call.method.path


_WORDS: Final[dict[str, Callable[[Call], Hashable]]] = {"peer": _peer, "principal": _principal, "method": _method}
