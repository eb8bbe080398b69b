"""Credentials that are not: none of them reaches a handler, whatever the kind of the call, and none is ever shown."""

from __future__ import annotations

import base64
import hmac
import time
from typing import Any, TypeAlias

import pytest

from servicekit.endpoint import Middleware
from servicekit.errors import Code
from servicekit.method import Kind
from servicekit.middleware import ApiKeyAuth, BasicAuth, JwtAuth, MtlsIdentity, hash_key, hash_password, standard
from servicekit.testing import pair
from servicekit.testing.pair import Over
from servicekit.transport.call_error import CallError
from tests.middleware.probes import Log

from .echo import BODY, Reached, call, over_both
from .tokens import (
    AUDIENCE,
    DAY,
    ISSUER,
    SECRET,
    bearer,
    changed,
    claims,
    ec_key,
    ed_key,
    encoded,
    forged,
    jwks,
    pem,
    rsa_key,
    token,
)

Untyped: TypeAlias = Any
"""What is one of several things, or wrong on purpose."""


NOW = int(time.time())
PASSWORD, KEY = "canary-password-77", "canary-key-" + "9" * 30
USERS = {"alice": hash_password(PASSWORD, cost=10, parallel=1), "bob": hash_password("other", cost=10, parallel=1)}

LINKS: dict[str, Middleware] = {
    "jwt": JwtAuth(jwks(), issuer=ISSUER, audience=AUDIENCE),
    "basic": BasicAuth(USERS),
    "api key": ApiKeyAuth({"batch": hash_key(KEY)}),
    "mtls": MtlsIdentity(spiffe=["example.org"]),
}


def hmac_with_public_key(secret: bytes, algorithm: str = "HS256", **header: Untyped) -> str:
    """The oldest forgery: what is public, taken for a shared secret."""
    body = f"{encoded({'alg': algorithm, 'kid': 'rsa'} | header)}.{encoded(claims())}"
    return f"{body}.{encoded(hmac.digest(secret, body.encode(), 'sha256'))}"


def spliced(one: str, other: str, part: int) -> str:
    parts, others = one.split("."), other.split(".")
    parts[part] = others[part]
    return ".".join(parts)


def basic(text: str | bytes) -> tuple[str, str]:
    return "authorization", "Basic " + base64.b64encode(text.encode() if isinstance(text, str) else text).decode()


GOOD = token()
PEM = pem(rsa_key())

BAD: dict[str, tuple[str, list[tuple[str, str | bytes]]]] = {
    # missing, or in the wrong place
    "nothing": ("jwt", []),
    "empty": ("jwt", [("authorization", "")]),
    "scheme alone": ("jwt", [("authorization", "Bearer")]),
    "no scheme": ("jwt", [("authorization", GOOD)]),
    "another scheme": ("jwt", [("authorization", f"Token {GOOD}")]),
    "basic for bearer": ("jwt", [basic(f"alice:{PASSWORD}")]),
    "another header": ("jwt", [("x-authorization", f"Bearer {GOOD}")]),
    "binary header": ("jwt", [("authorization-bin", f"Bearer {GOOD}".encode())]),
    "two spaces": ("jwt", [("authorization", f"Bearer  {GOOD}")]),
    "comma list": ("jwt", [("authorization", f"Bearer {GOOD}, Bearer {GOOD}")]),
    # duplicated
    "twice the same": ("jwt", [bearer(GOOD), bearer(GOOD)]),
    "good then bad": ("jwt", [bearer(GOOD), bearer("x.y.z")]),
    "bad then good": ("jwt", [bearer("x.y.z"), bearer(GOOD)]),
    "two schemes": ("jwt", [bearer(GOOD), basic(f"alice:{PASSWORD}")]),
    "empty then good": ("jwt", [("authorization", ""), bearer(GOOD)]),
    # malformed
    "one part": ("jwt", [bearer(GOOD.split(".")[0])]),
    "two parts": ("jwt", [bearer(GOOD.rsplit(".", 1)[0])]),
    "empty signature": ("jwt", [bearer(GOOD.rsplit(".", 1)[0] + ".")]),
    "four parts": ("jwt", [bearer(GOOD + ".x")]),
    "dots": ("jwt", [bearer("..")]),
    "no base64": ("jwt", [bearer("!!!.???.***")]),
    "standard base64": ("jwt", [bearer(spliced(GOOD, "a.+/+/.b", 1))]),
    "header no json": ("jwt", [bearer(forged(b"{", claims()))]),
    "header a list": ("jwt", [bearer(forged(["RS256"], claims()))]),
    "payload no json": ("jwt", [bearer(forged({"alg": "RS256", "kid": "rsa"}, b"\xff\xfe"))]),
    "payload a list": ("jwt", [bearer(forged({"alg": "RS256", "kid": "rsa"}, [1]))]),
    "nested deep": ("jwt", [bearer(forged(b"[" * 4000, claims()))]),
    "very long": ("jwt", [bearer(forged({"alg": "RS256", "kid": "rsa", "x": "y" * 5000}, claims()))]),
    "kid a number": ("jwt", [bearer(forged({"alg": "RS256", "kid": 1}, claims()))]),
    "kid a path": ("jwt", [bearer(token(kid="../../dev/null"))]),
    "kid unknown": ("jwt", [bearer(token(kid="nobody's"))]),
    "kid missing": ("jwt", [bearer(token(kid=None))]),
    "critical extension": ("jwt", [bearer(token(headers={"crit": ["exp"], "exp": 1}))]),
    "payload detached": ("jwt", [bearer(forged({"alg": "RS256", "kid": "rsa", "b64": False, "crit": ["b64"]}, b""))]),
    # signed wrongly
    "another's key": ("jwt", [bearer(token(key=rsa_key("another")))]),
    "another's key inside": ("jwt", [bearer(token(key=rsa_key("another"), headers={"jwk": jwks()["keys"][0]}))]),
    "a key from elsewhere": ("jwt", [bearer(token(key=rsa_key("another"), headers={"jku": "http://127.0.0.1:1/"}))]),
    "kid of another key": ("jwt", [bearer(token(kid="ec"))]),
    "ec under rsa": ("jwt", [bearer(token(key=ec_key(), algorithm="ES256", kid="rsa"))]),
    "ed under ec": ("jwt", [bearer(token(key=ed_key(), algorithm="EdDSA", kid="ec"))]),
    "claims changed": ("jwt", [bearer(changed(GOOD, sub="root"))]),
    "payload of another": ("jwt", [bearer(spliced(GOOD, token(sub="root"), 1))]),
    "signature of another": ("jwt", [bearer(spliced(GOOD, token(sub="root"), 2))]),
    "header of another": ("jwt", [bearer(spliced(GOOD, token(key=ec_key(), algorithm="ES256", kid="ec"), 0))]),
    "signature cut": ("jwt", [bearer(GOOD[:-10])]),
    "signature longer": ("jwt", [bearer(GOOD + "AAAA")]),
    "signature zero": ("jwt", [bearer(forged({"alg": "ES256", "kid": "ec"}, claims(), bytes(64)))]),
    # algorithms
    "none": ("jwt", [bearer(forged({"alg": "none", "kid": "rsa"}, claims(), b""))]),
    "None": ("jwt", [bearer(forged({"alg": "None", "kid": "rsa"}, claims(), b""))]),
    "no algorithm": ("jwt", [bearer(forged({"kid": "rsa"}, claims()))]),
    "algorithm null": ("jwt", [bearer(forged({"alg": None, "kid": "rsa"}, claims()))]),
    "algorithm a list": ("jwt", [bearer(forged({"alg": ["RS256"], "kid": "rsa"}, claims()))]),
    "hmac with the pem": ("jwt", [bearer(hmac_with_public_key(PEM.encode()))]),
    "hmac with the empty key": ("jwt", [bearer(hmac_with_public_key(b""))]),
    "hmac called rsa": ("jwt", [bearer(hmac_with_public_key(PEM.encode(), "RS256"))]),
    "hmac with a secret": ("jwt", [bearer(token(key=SECRET, algorithm="HS256"))]),
    "rsa not allowed": ("jwt", [bearer(token(algorithm="RS512"))]),
    "pss not allowed": ("jwt", [bearer(token(algorithm="PS256"))]),
    # time
    "expired": ("jwt", [bearer(token(exp=NOW - 60))]),
    "expired long ago": ("jwt", [bearer(token(exp=1))]),
    "expires never": ("jwt", [bearer(token(exp=None))]),
    "expires in words": ("jwt", [bearer(token(exp="tomorrow"))]),
    "expires in a text": ("jwt", [bearer(token(exp=str(NOW + DAY)))]),
    "expires true": ("jwt", [bearer(token(exp=True))]),
    "expires negative": ("jwt", [bearer(token(exp=-1))]),
    "not yet": ("jwt", [bearer(token(nbf=NOW + DAY))]),
    "made tomorrow": ("jwt", [bearer(token(iat=NOW + DAY))]),
    # for whom, by whom
    "wrong audience": ("jwt", [bearer(token(aud="elsewhere"))]),
    "audience a prefix": ("jwt", [bearer(token(aud=AUDIENCE[:-1]))]),
    "audience longer": ("jwt", [bearer(token(aud=AUDIENCE + "x"))]),
    "audience in capitals": ("jwt", [bearer(token(aud=AUDIENCE.upper()))]),
    "wrong audiences": ("jwt", [bearer(token(aud=["a", "b"]))]),
    "no audience": ("jwt", [bearer(token(aud=None))]),
    "empty audience": ("jwt", [bearer(token(aud=[]))]),
    "audience an object": ("jwt", [bearer(token(aud={AUDIENCE: 1}))]),
    "audience of numbers": ("jwt", [bearer(token(aud=[AUDIENCE, 1]))]),
    "wrong issuer": ("jwt", [bearer(token(iss="https://elsewhere.test"))]),
    "issuer with a slash": ("jwt", [bearer(token(iss=ISSUER + "/"))]),
    "no issuer": ("jwt", [bearer(token(iss=None))]),
    "no subject": ("jwt", [bearer(token(sub=None))]),
    "empty subject": ("jwt", [bearer(token(sub=""))]),
    "roles an object": ("jwt", [bearer(token(roles={"admin": True}))]),
    # passwords
    "basic nothing": ("basic", []),
    "basic wrong": ("basic", [basic("alice:wrong")]),
    "basic of another": ("basic", [basic("alice:other")]),
    "basic unknown": ("basic", [basic(f"carol:{PASSWORD}")]),
    "basic empty": ("basic", [basic("alice:")]),
    "basic no colon": ("basic", [basic("alice")]),
    "basic no name": ("basic", [basic(f":{PASSWORD}")]),
    "basic name in capitals": ("basic", [basic(f"Alice:{PASSWORD}")]),
    "basic longer": ("basic", [basic(f"alice:{PASSWORD} ")]),
    "basic twice": ("basic", [basic(f"alice:{PASSWORD}"), basic(f"alice:{PASSWORD}")]),
    "basic no base64": ("basic", [("authorization", f"Basic alice:{PASSWORD}")]),
    "basic no utf-8": ("basic", [basic(b"alice:\xff\xfe")]),
    "basic the hash": ("basic", [basic(f"alice:{USERS['alice']}")]),
    "bearer for basic": ("basic", [bearer(GOOD)]),
    # keys
    "key nothing": ("api key", []),
    "key empty": ("api key", [("x-api-key", "")]),
    "key wrong": ("api key", [("x-api-key", KEY[:-1] + "8")]),
    "key cut": ("api key", [("x-api-key", KEY[:-1])]),
    "key longer": ("api key", [("x-api-key", KEY + "9")]),
    "key in capitals": ("api key", [("x-api-key", KEY.upper())]),
    "key twice": ("api key", [("x-api-key", KEY), ("x-api-key", KEY)]),
    "key and another": ("api key", [("x-api-key", "x"), ("x-api-key", KEY)]),
    "key the hash": ("api key", [("x-api-key", hash_key(KEY))]),
    "key in authorization": ("api key", [bearer(KEY)]),
    "key in bytes": ("api key", [("x-api-key-bin", KEY.encode())]),
    # certificates
    "no certificate": ("mtls", []),
    "said in a header": ("mtls", [("x-forwarded-client-cert", "URI=spiffe://example.org/a"), ("x-principal", "root")]),
}

GOOD_ONES: dict[str, list[tuple[str, str]]] = {
    "jwt": [bearer(GOOD)],
    "basic": [basic(f"alice:{PASSWORD}")],
    "api key": [("x-api-key", KEY)],
}


def test_the_matrix_is_large_enough() -> None:
    """At least 60, and no two alike."""
    assert len(BAD) >= 60
    assert len({repr(bad) for bad in BAD.values()}) == len(BAD)


@pytest.mark.parametrize("kind", list(Kind), ids=lambda kind: kind.value)
@pytest.mark.parametrize("link", list(GOOD_ONES))
async def test_good_ones_reach_the_handler(link: str, kind: Kind) -> None:
    """Else the rest of this would prove nothing."""
    servicer = Reached()
    async with pair(servicer.register, middleware=[LINKS[link]]) as ends:
        await call(ends, kind, GOOD_ONES[link])
    assert servicer.reached in (["alice"], ["batch"])


@over_both
@pytest.mark.parametrize("kind", list(Kind), ids=lambda kind: kind.value)
@pytest.mark.parametrize("bad", list(BAD))
async def test_none_reaches_a_handler(bad: str, kind: Kind, over: Over) -> None:
    """UNAUTHENTICATED; and neither the credentials nor the body are in the log, the error or a repr."""
    name, metadata = BAD[bad]
    servicer, log = Reached(), Log()
    async with pair(servicer.register, over=over, middleware=[*standard(log.telemetry), LINKS[name]]) as ends:
        with pytest.raises(CallError) as caught:
            await call(ends, kind, metadata)
        shown = [log.text, repr(ends.server), repr(LINKS[name])]
    assert servicer.reached == []
    error = caught.value
    assert error.error.code is Code.UNAUTHENTICATED
    assert error.reason in {"MISSING_CREDENTIALS", "INVALID_CREDENTIALS", "EXPIRED_CREDENTIALS"}
    assert log.line["code"] == "UNAUTHENTICATED"
    shown += [repr(error), str(error), repr(error.error), repr(error.trailing_metadata())]
    for secret in (BODY, *(value for _, given in metadata if (value := _secret(given)))):
        assert not [text for text in shown if secret in text]


def _secret(given: str | bytes) -> str | None:
    """What must not be seen of a credential: all but its scheme, unless it is too short to be told from other text."""
    text = given.decode() if isinstance(given, bytes) else given
    secret = text.partition(" ")[2] or text
    return secret if len(secret) > 8 else None
