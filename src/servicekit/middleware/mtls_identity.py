"""Who calls, by the certificate of the connection: SPIFFE IDs and DNS names (X.509 SANs), proven by mutual TLS."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar, Final

from servicekit.call import Call
from servicekit.endpoint import Endpoint, Message
from servicekit.metadata import check
from servicekit.policy.checked import flag, texts
from servicekit.principal import Principal, authenticate, invalid, missing, principal_of, roles_of

_LINK: Final = "mtls_identity"
# SPIFFE-ID, 2.1 to 2.3: a workload's ID has a path, of segments that no URL parser would change.
_SPIFFE: Final = re.compile(r"spiffe://([a-z0-9._-]{1,255})((?:/(?!\.{1,2}(?:/|$))[A-Za-z0-9._-]+)+)")
_SPIFFE_LONGEST: Final = 2048
_TRUST_DOMAIN: Final = re.compile(r"[a-z0-9._-]{1,255}")
_DNS: Final = re.compile(r"(?:\*\.)?[a-z0-9_-]+(?:\.[a-z0-9_-]+)*")
IDENTITY_HEADERS: Final = ("x-forwarded-client-cert", "x-forwarded-user", "x-forwarded-email", "x-principal")


class MtlsIdentity:
    """Lets a call pass if the client's certificate, which TLS has verified, names somebody who is known here.

    ``spiffe`` are the trust domains whose workloads may call: the certificate has one URI, a SPIFFE ID of one of them.
    ``dns`` are DNS names, or ``*.domain`` for one label before it. The common name is never looked at (RFC 9525). The
    ``Principal`` (scheme "mtls") is named by the SPIFFE ID, else by the first DNS name that fits, has the ``roles`` that
    the setting gives to that name, and claims "uri" and "dns", all names in the certificate.
    Refused: UNAUTHENTICATED, with reason MISSING_CREDENTIALS (no certificate: the server must ask for one) or
    INVALID_CREDENTIALS.

    What a client says of itself in the metadata ``headers`` (x-forwarded-client-cert, x-forwarded-user,
    x-forwarded-email, x-principal) is taken out before anybody sees it, unless the peer is one of ``proxies``: names as
    principals have them. None is by default.

    Default: the server's own methods (health, reflection) pass, without such headers; ``auxiliary=True`` asks them too.
    Decisions of "mtls_identity": those of ``authenticate``, and "stripped".
    """

    checks_callers: ClassVar[bool] = True

    __slots__ = ("_auxiliary", "_dns", "_headers", "_proxies", "_roles", "_spiffe")

    def __init__(  # noqa: PLR0913 - keywords with defaults
        self,
        *,
        spiffe: Iterable[str] = (),
        dns: Iterable[str] = (),
        roles: Mapping[str, Iterable[str]] | None = None,
        proxies: Iterable[str] = (),
        headers: Iterable[str] = IDENTITY_HEADERS,
        auxiliary: bool = False,
    ) -> None:
        """Raise ValueError or TypeError for a setting that cannot work, naming it."""
        self._spiffe = frozenset(_each("spiffe", spiffe, _TRUST_DOMAIN, "a trust domain, such as example.org"))
        self._dns = frozenset(_each("dns", dns, _DNS, "a DNS name in lower case, or *. and one"))
        if not self._spiffe and not self._dns:
            msg = "give spiffe or dns: a certificate alone does not say who may call"
            raise ValueError(msg)
        self._roles = roles_of(roles)
        self._proxies = frozenset(texts("proxies", proxies))
        self._headers = tuple(_keys("headers", headers))
        self._auxiliary = flag("auxiliary", auxiliary)

    async def __call__(self, request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        """Name the peer, take out what it says of itself, then run the call."""
        proxy = False
        try:
            if self._auxiliary or not call.method.auxiliary:
                await authenticate(call, _LINK, self._check)
                principal = principal_of(call)
                proxy = principal is not None and principal.name in self._proxies
        finally:
            if not proxy:
                self._strip(call)
        return await next(request, call)

    async def _check(self, call: Call) -> Principal:
        properties = call.security().properties
        if not properties.get("x509_pem_cert"):
            raise missing("no client certificate")
        uris, names = _decoded(properties.get("peer_uri")), _decoded(properties.get("peer_dns"))
        name = self._workload(uris) or self._host(names)
        if name is None:
            raise invalid("the client certificate names nobody who is known here")
        claims = {"uri": uris, "dns": names}
        return Principal(name=name, scheme="mtls", roles=self._roles.get(name, frozenset()), claims=claims)

    def _workload(self, uris: tuple[str, ...]) -> str | None:
        if len(uris) != 1 or len(uris[0]) > _SPIFFE_LONGEST:  # X509-SVID, 2: exactly one URI, or it is none
            return None
        found = _SPIFFE.fullmatch(uris[0])
        return uris[0] if found is not None and found[1] in self._spiffe else None

    def _host(self, names: tuple[str, ...]) -> str | None:
        for given in names:
            name = given.lower()
            # A name with a * of its own stands for many, and so for nobody.
            if _DNS.fullmatch(name) and "*" not in name and {name, f"*.{name.partition('.')[2]}"} & self._dns:
                return name
        return None

    def _strip(self, call: Call) -> None:
        before = len(call.metadata)
        for header in self._headers:
            call.metadata.remove(header)
        if len(call.metadata) < before:
            call.decide(_LINK, "stripped")

    def __repr__(self) -> str:
        """Return who may call, and for whom a proxy may speak."""
        return f"MtlsIdentity(spiffe={sorted(self._spiffe)!r}, dns={sorted(self._dns)!r}, proxies={sorted(self._proxies)!r})"


def _decoded(values: Sequence[bytes] | None) -> tuple[str, ...]:
    return tuple(value.decode() for value in values or ())


def _each(setting: str, values: Iterable[str], form: re.Pattern[str], what: str) -> list[str]:
    for value in (found := texts(setting, values)):
        if form.fullmatch(value) is None:
            msg = f"{setting}: {value!r} is not {what}"
            raise ValueError(msg)
    return found


def _keys(setting: str, values: Iterable[str]) -> list[str]:
    for value in (found := texts(setting, values)):
        try:
            check(value, b"" if value.endswith("-bin") else "")
        except ValueError as error:
            msg = f"{setting}: {error}"
            raise ValueError(msg) from None
    return found
