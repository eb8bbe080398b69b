"""Who calls: what authentication leaves on a call, and how it refuses one.

Everything here fails closed. A call has a principal only after a link has checked its credentials, and whatever goes
wrong while they are checked is a refusal.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from .errors import Code, Error
from .mapping import unexpected
from .policy.checked import kind, texts

if TYPE_CHECKING:
    from .call import Call

PRINCIPAL: Final = "principal"
"""Where in ``call.state`` the principal is."""

MISSING: Final = "MISSING_CREDENTIALS"
INVALID: Final = "INVALID_CREDENTIALS"
EXPIRED: Final = "EXPIRED_CREDENTIALS"
UNREACHABLE: Final = "AUTHENTICATION_UNAVAILABLE"
BUSY: Final = "AUTHENTICATION_BUSY"
"""The reasons of a refused authentication, as the client reads them."""

_DECISIONS: Final = {
    MISSING: "missing",
    INVALID: "refused",
    EXPIRED: "expired",
    UNREACHABLE: "unavailable",
    BUSY: "busy",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """Who calls, proven. ``name`` is unique within its ``scheme`` ("bearer", "basic", "api_key", "mtls").

    ``roles`` are what rules ask for, ``claims`` all else that the credentials say. They are never in ``repr()``, and two
    principals of the same name, scheme and roles are equal whatever they claim.
    """

    name: str
    scheme: str
    roles: frozenset[str] = frozenset()
    claims: Mapping[str, object] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Raise ValueError for a nameless one; keep the claims from being changed."""
        if not self.name:
            msg = f"a principal has a name (scheme: {self.scheme!r})"
            raise ValueError(msg)
        object.__setattr__(self, "claims", MappingProxyType(dict(self.claims)))


def principal_of(call: Call) -> Principal | None:
    """Return who calls, or None when nobody has checked."""
    principal = call.state.get(PRINCIPAL)
    return principal if isinstance(principal, Principal) else None


def roles_of(
    roles: Mapping[str, Iterable[str]] | None, names: Iterable[str] | None = None
) -> dict[str, frozenset[str]]:
    """Return the setting ``roles`` (name -> roles), checked.

    Raises TypeError for what is no such mapping and for roles that are one text, ValueError for those of a name that is
    not among ``names``.
    """
    if roles is not None:
        kind("roles", roles, Mapping, "mapping from names to roles")
    checked: dict[str, frozenset[str]] = {}
    known = None if names is None else set(names)
    for name, given in (roles or {}).items():
        if isinstance(given, str):
            msg = f"roles[{name!r}]={given!r} is one text, not a list of roles"
            raise TypeError(msg)
        if known is not None and name not in known:
            msg = f"roles[{name!r}] is for nobody: there is no such name"
            raise ValueError(msg)
        checked[name] = frozenset(texts(f"roles[{name!r}]", given))
    return checked


def sole(call: Call, header: str) -> str | None:
    """Return the one value of ``header`` in the request's metadata, None when there is none.

    Raises Error UNAUTHENTICATED when there are several: whichever was taken, somebody else may have meant the other one.
    """
    values = call.metadata.get_all(header)
    if not values:
        return None
    value = values[0]
    if len(values) > 1 or not isinstance(value, str):
        raise invalid(f"more than one entry of {header}")
    return value


def authorization(call: Call, scheme: str) -> str:
    """Return the credentials of the one ``authorization`` entry, if it is of ``scheme``; else raise UNAUTHENTICATED."""
    value = sole(call, "authorization")
    if value is None:
        raise missing(f"no {scheme} credentials in authorization")
    given, _, credentials = value.partition(" ")
    if given.lower() != scheme or not credentials:
        raise invalid(f"authorization holds no {scheme} credentials")
    return credentials


def missing(message: str) -> Error:
    """Return the refusal of a call without credentials."""
    return Error(Code.UNAUTHENTICATED, message, reason=MISSING)


def invalid(message: str = "the credentials are not valid") -> Error:
    """Return the refusal of credentials that prove nothing. ``message`` says no more than whoever sent them knows."""
    return Error(Code.UNAUTHENTICATED, message, reason=INVALID)


async def authenticate(call: Call, link: str, check: Callable[[Call], Awaitable[Principal]]) -> None:
    """Put what ``check(call)`` returns into the call's state, and tell of it in the name of ``link``.

    Raises the Error that ``check`` raises, and UNAUTHENTICATED for any other exception: who cannot be checked is refused.
    The log gets that exception's type and place under an id that the client has too, but never its text, which may
    quote a credential. Decisions: "accepted", "missing", "refused", "expired", "unavailable", "busy", "failed".
    """
    call.state.pop(PRINCIPAL, None)
    principal: object = None
    failure: Exception | None = None
    try:
        principal = await check(call)
    except Error as error:
        call.decide(link, _DECISIONS.get(error.reason, "refused"))
        raise
    except Exception as error:  # noqa: BLE001 - whatever it is, nobody was authenticated
        failure = concealed(error)
    if failure is not None or not isinstance(principal, Principal):
        call.decide(link, "failed")
        failure = failure or RuntimeError(f"{link} has no principal for a call that it accepts")
        raise denial(Code.UNAUTHENTICATED, "the credentials could not be checked", failure) from failure
    call.decide(link, "accepted")
    call.state[PRINCIPAL] = principal


def denial(code: Code, message: str, cause: Exception) -> Error:
    """Return a refusal that nobody meant: with an id in the trailers, under which the log has ``cause``."""
    return Error(code, message, trailers=unexpected(cause).trailers)


def concealed(error: BaseException) -> Exception:
    """Return what the log may know of ``error``: its type and where it was raised, not its text."""
    kind = type(error)
    shown = RuntimeError(f"{kind.__module__}.{kind.__qualname__}; its text is left out, for it may quote a secret")
    return shown.with_traceback(error.__traceback__)
