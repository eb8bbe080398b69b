"""Who calls, by a signed token: bearer JWTs (RFC 7519, 6750), checked with keys that are given or fetched (RFC 7517)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeAlias
from urllib.parse import urlsplit

from servicekit.call import Call
from servicekit.clock import Clock
from servicekit.endpoint import Endpoint, Message
from servicekit.errors import Code, Error
from servicekit.policy import checked
from servicekit.principal import EXPIRED, UNREACHABLE, Principal, authenticate, authorization, invalid
from servicekit.refreshed import Ages, Refreshed, Unreachable

if TYPE_CHECKING:
    from jwt import PyJWK

# (kid, algorithm) -> key. A key is made for one algorithm, so a token cannot choose what a key is used for.
_Keys: TypeAlias = "dict[tuple[str | None, str], PyJWK]"

_LINK: Final = "jwt_auth"
_LONGEST: Final = 16 * 1024
_MOST_LEEWAY: Final = 300  # seconds: more than any clock is wrong by
# Which keys an algorithm can have (RFC 7518, 3.1; 8037; 8812): type, and curve where there is one.
_KINDS: Final[Mapping[str, tuple[str, str | None]]] = {
    **{f"{family}{bits}": ("RSA", None) for family in ("RS", "PS") for bits in (256, 384, 512)},
    **{f"HS{bits}": ("oct", None) for bits in (256, 384, 512)},
    "ES256": ("EC", "P-256"),
    "ES384": ("EC", "P-384"),
    "ES512": ("EC", "P-521"),
    "ES256K": ("EC", "secp256k1"),
    "EdDSA": ("OKP", None),
}


class JwtAuth:
    """Lets a call pass if its ``authorization`` is one ``Bearer`` token that is meant for this service and still good.

    ``keys`` is a JWK Set, or kid -> public key (PEM, or a JWK); ``jwks_url`` is where a JWK Set is fetched instead. A token
    is good when its algorithm is one of ``algorithms``, asked before any key is touched, when its ``kid`` names a key made
    for that algorithm and the signature fits, when ``iss`` is ``issuer``, ``aud`` holds ``audience`` (or one of them), and
    ``exp`` and ``nbf`` allow it within ``leeway`` (30 s) by the machine's clock. A token without a kid needs a set of one
    key. ``exp``, ``aud``, ``iss`` and the ``name`` claim ("sub") must be there. It is judged when the call begins: a stream
    may outlive its token.

    The caller's ``Principal`` (scheme "bearer") has the name, the roles in the claim ``roles`` ("roles": a list, or words
    with spaces between them) and all claims. Refused: UNAUTHENTICATED, with reason MISSING_CREDENTIALS, INVALID_CREDENTIALS
    or EXPIRED_CREDENTIALS.

    Keys at a URL are fetched in a thread with the first call, again in the background when they are ``refresh`` (300 s) old,
    and at once for an unknown kid, but never within ``interval`` (10 s) of the last fetch. While that fails they serve
    until they are ``expire`` (3600 s) old; then, and when there are none or the kid is unknown, the answer is UNAVAILABLE
    with the time to come back.

    Default: the server's own methods (health, reflection) pass; ``auxiliary=True`` asks them too. Needs servicekit[auth].
    Decisions of "jwt_auth": those of ``authenticate``.
    """

    checks_callers: ClassVar[bool] = True

    __slots__ = (
        "_algorithms",
        "_audience",
        "_auxiliary",
        "_decode",
        "_fixed",
        "_header",
        "_issuer",
        "_leeway",
        "_name",
        "_remote",
        "_roles",
    )

    def __init__(  # noqa: PLR0913 - keywords, each a part of what makes a token good
        self,
        keys: Mapping[str, Any] | None = None,
        *,
        jwks_url: str | None = None,
        issuer: str,
        audience: str | Iterable[str],
        algorithms: Iterable[str] = ("RS256", "ES256", "EdDSA"),
        leeway: float = 30.0,
        name: str = "sub",
        roles: str = "roles",
        refresh: float = 300.0,
        expire: float = 3600.0,
        interval: float = 10.0,
        timeout: float = 5.0,
        auxiliary: bool = False,
    ) -> None:
        """Raise ImportError without the extra; ValueError or TypeError for a setting that cannot work, never showing a key."""
        jwt = _pyjwt()
        self._decode, self._header = jwt.decode, jwt.get_unverified_header
        self._algorithms = _allowed(algorithms)
        self._audience = [audience] if isinstance(audience, str) else checked.texts("audience", audience)
        checked.kind("issuer", issuer, str, "text")
        if not issuer or not self._audience or not all(self._audience):
            msg = f"issuer={issuer!r}, audience={audience!r}: a token that anybody made, for anybody, proves nothing"
            raise ValueError(msg)
        if not 0 <= checked.seconds_or_zero("leeway", leeway) <= _MOST_LEEWAY:
            msg = f"leeway={leeway!r} is not 0 to {_MOST_LEEWAY} seconds"
            raise ValueError(msg)
        for setting, value in (("refresh", refresh), ("interval", interval), ("timeout", timeout)):
            checked.seconds(setting, value)
        ages = Ages(refresh=refresh, expire=checked.seconds_or_ever("expire", expire))
        if (keys is None) == (jwks_url is None):
            msg = "give either keys or jwks_url"
            raise ValueError(msg)
        self._issuer = issuer
        self._leeway = leeway
        self._name = checked.text("name", name)
        self._roles = checked.text("roles", roles)
        self._auxiliary = checked.flag("auxiliary", auxiliary)
        self._fixed = None if keys is None else _parsed(keys, self._algorithms)
        self._remote: Refreshed[_Keys] | None = None
        if jwks_url is not None:
            if interval > refresh:
                msg = f"interval={interval!r} is more than refresh={refresh!r}"
                raise ValueError(msg)
            fetch = _fetching(jwks_url, timeout, self._algorithms)
            self._remote = Refreshed(fetch, ages=lambda _: ages, interval=interval, timeout=timeout)

    async def __call__(self, request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        """Check the token, then run the call."""
        if self._auxiliary or not call.method.auxiliary:
            await authenticate(call, _LINK, self._check)
        return await next(request, call)

    async def _check(self, call: Call) -> Principal:
        from jwt.exceptions import ExpiredSignatureError, InvalidTokenError  # noqa: PLC0415 - of the extra

        token = authorization(call, "bearer")
        if len(token) > _LONGEST:
            raise invalid()
        refusal = invalid()
        try:
            header = self._header(token)
            algorithm, kid = header.get("alg"), header.get("kid")
            if isinstance(algorithm, str) and algorithm in self._algorithms:
                key = await self._key(kid, algorithm, call.clock)
                claims = self._decode(
                    token,
                    key,
                    algorithms=[algorithm],
                    audience=self._audience,
                    issuer=self._issuer,
                    leeway=self._leeway,
                    options={"require": ["exp", "aud", "iss"], "enforce_minimum_key_length": True},
                )
                return self._principal(claims)
        except ExpiredSignatureError:  # looked at only when the signature fits
            refusal = Error(Code.UNAUTHENTICATED, "the token has expired", reason=EXPIRED)
        except InvalidTokenError:
            pass  # its text may quote the token
        raise refusal

    def _principal(self, claims: dict[str, Any]) -> Principal:
        name, roles = claims.get(self._name), claims.get(self._roles, ())
        # PyJWT would also take a text that spells a number, which RFC 7519 does not.
        if not name or not isinstance(name, str) or not isinstance(claims["exp"], int | float):
            raise invalid()
        if isinstance(roles, str):
            roles = roles.split()
        if not isinstance(roles, list | tuple) or not all(isinstance(role, str) for role in roles):
            raise invalid()
        return Principal(name=name, scheme="bearer", roles=frozenset(roles), claims=claims)

    async def _key(self, kid: str | None, algorithm: str, clock: Clock) -> PyJWK:
        if self._remote is None:
            return _find(self._fixed or {}, kid, algorithm) or _nobodys()
        try:
            key = _find(await self._remote.get(clock), kid, algorithm)
            if key is None:
                key = _find(await self._remote.newer(clock), kid, algorithm)
        except Unreachable as error:
            raise Error(
                Code.UNAVAILABLE,
                "the keys to check tokens with cannot be fetched",
                reason=UNREACHABLE,
                retry_after=error.retry_after,
            ) from error.why
        return key or _nobodys()

    def __repr__(self) -> str:
        """Return the settings that say which tokens are good; never a key."""
        keys = f"{len(self._fixed)} fixed" if self._fixed is not None else "fetched"
        return (
            f"JwtAuth(issuer={self._issuer!r}, audience={self._audience!r}, "
            f"algorithms={sorted(self._algorithms)!r}, leeway={self._leeway!r}, keys={keys})"
        )


def _find(keys: _Keys, kid: str | None, algorithm: str) -> PyJWK | None:
    if kid is not None:
        return keys.get((kid, algorithm))
    fitting = [key for (_, made_for), key in keys.items() if made_for == algorithm]
    return fitting[0] if len({known for known, _ in keys}) == 1 and len(fitting) == 1 else None


def _nobodys() -> PyJWK:
    raise invalid()


def _allowed(algorithms: Iterable[str]) -> frozenset[str]:
    allowed = frozenset([algorithms] if isinstance(algorithms, str) else checked.texts("algorithms", algorithms))
    if not allowed or allowed - _KINDS.keys():
        msg = f"algorithms={sorted(allowed)!r}: there is {', '.join(_KINDS)}"
        raise ValueError(msg)
    if any(name.startswith("HS") for name in allowed) and not all(name.startswith("HS") for name in allowed):
        # A public key taken for the secret of an HMAC is the oldest way to forge a token.
        msg = f"algorithms={sorted(allowed)!r} mixes shared secrets (HS…) with public keys: use two links, or one kind"
        raise ValueError(msg)
    return allowed


def _parsed(keys: Mapping[str, Any], algorithms: frozenset[str]) -> _Keys:
    """Return each key once for every algorithm that it may be used with. Raises ValueError when none is left."""
    given = checked.kind("keys", keys, Mapping, "JWK Set or mapping from kid to key", secret=True).get("keys")
    named = (
        [(jwk.get("kid"), jwk) for jwk in given if isinstance(jwk, Mapping)]
        if isinstance(given, list)
        else [(kid, _jwk(kid, key)) for kid, key in keys.items()]
    )
    parsed: _Keys = {}
    for kid, jwk in named:
        for algorithm in algorithms:
            key = _made_for(algorithm, jwk)
            if key is not None:
                parsed[kid, algorithm] = key
    if not parsed:
        msg = f"keys: none of the {len(named)} can be used with algorithms={sorted(algorithms)!r}"
        raise ValueError(msg)
    return parsed


def _made_for(algorithm: str, jwk: Mapping[str, Any]) -> PyJWK | None:
    from jwt import PyJWK  # noqa: PLC0415 - of the extra
    from jwt.exceptions import PyJWTError  # noqa: PLC0415 - as above

    kind, curve = _KINDS[algorithm]
    fits = (
        jwk.get("kty") == kind
        and curve in {None, jwk.get("crv")}
        and jwk.get("alg") in {None, algorithm}
        and jwk.get("use") in {None, "sig"}
        and "verify" in jwk.get("key_ops", ["verify"])
    )
    try:
        key = PyJWK(dict(jwk), algorithm) if fits else None
    except PyJWTError:
        return None  # as RFC 7517, 5 wants it; its text would show the key
    return None if key is None or key.Algorithm.check_key_length(key.key) else key  # RFC 7518, 3.2 and 3.3


def _jwk(kid: str, key: Any) -> Mapping[str, Any]:  # noqa: ANN401 - what the user gave
    """Return a key of the setting ``keys`` as a JWK. Raises TypeError or ValueError, showing the kid alone."""
    from jwt.algorithms import get_default_algorithms  # noqa: PLC0415 - of the extra

    if isinstance(key, Mapping):
        return key
    if not isinstance(key, str | bytes):
        msg = f"keys[{kid!r}] is neither a PEM nor a JWK, but {type(key).__name__}"
        raise TypeError(msg)
    from cryptography.hazmat.primitives.serialization import load_pem_public_key  # noqa: PLC0415 - of the extra

    known: dict[str, Any] = get_default_algorithms()
    try:
        public = load_pem_public_key(key.encode() if isinstance(key, str) else key)
    except Exception:  # noqa: BLE001 - whatever is wrong, its text may show the key
        public = None
    for name in ("RS256", "ES256", "EdDSA"):
        try:
            return known[name].to_jwk(public, as_dict=True)  # type: ignore[no-any-return]
        except Exception:  # noqa: BLE001, S112 - a key of another type
            continue
    msg = f"keys[{kid!r}] is no public key in PEM"
    raise ValueError(msg)


def _fetching(url: str, timeout: float, algorithms: frozenset[str]) -> Callable[[], Awaitable[_Keys]]:
    """Return what fetches the keys. Raises ValueError for a URL that keys should not come from."""
    from jwt import PyJWKClient  # noqa: PLC0415 - of the extra

    parts = urlsplit(checked.kind("jwks_url", url, str, "text", secret=True))
    if parts.scheme != "https" and (parts.scheme != "http" or parts.hostname not in {"127.0.0.1", "::1", "localhost"}):
        msg = f"jwks_url={parts.scheme}://{parts.hostname}: keys that can be changed on their way prove nothing, use https"
        raise ValueError(msg)
    client = PyJWKClient(url, cache_jwk_set=False, timeout=timeout)

    async def fetch() -> _Keys:
        return _parsed(await asyncio.to_thread(client.fetch_data), algorithms)

    return fetch


def _pyjwt() -> Any:  # noqa: ANN401 - a module
    try:
        import cryptography  # noqa: F401, PLC0415 - PyJWT alone knows shared secrets only
        import jwt  # noqa: PLC0415 - so that importing servicekit needs no extra
    except ImportError as error:
        msg = "JwtAuth needs PyJWT with cryptography: pip install 'servicekit[auth]'"
        raise ImportError(msg) from error
    return jwt
