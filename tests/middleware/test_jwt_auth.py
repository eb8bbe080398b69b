"""Who calls, by a signed token."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeAlias

import pytest

from servicekit.clock import MovableClock
from servicekit.endpoint import Message, Middleware
from servicekit.errors import Code, Error
from servicekit.method import Kind
from servicekit.middleware import AccessLog, JwtAuth, Recovery
from servicekit.principal import Principal, principal_of
from servicekit.testing import RecordedCall, make_call, no_leaks, run, scripted
from tests.security.tokens import (
    AUDIENCE,
    DAY,
    ISSUER,
    SECRET,
    bearer,
    changed,
    claims,
    ec_key,
    ed_key,
    forged,
    jwks,
    pem,
    rsa_key,
    token,
)

from .probes import Log

Untyped: TypeAlias = Any
"""What is one of several things, or wrong on purpose."""


def link(keys: Untyped = None, **settings: Untyped) -> JwtAuth:
    given: dict[str, Untyped] = {"issuer": ISSUER, "audience": AUDIENCE} | settings
    return JwtAuth(None if "jwks_url" in settings else keys or jwks(), **given)


async def passed(auth: Middleware, *metadata: tuple[str, str], **call: Untyped) -> Principal | None:
    """Who the endpoint sees."""
    seen: list[Principal | None] = []

    async def endpoint(_request: Message, call: Untyped) -> str:
        seen.append(principal_of(call))
        return "ok"

    made = make_call(metadata=metadata, **call)
    assert await run(auth, scripted(endpoint), "hi", made) == "ok"
    return seen[0]


async def refused(auth: Middleware, *metadata: tuple[str, str], call: RecordedCall | None = None) -> Error:
    """Why the endpoint was not reached."""
    with pytest.raises(Error) as caught:
        await run(auth, scripted(), "hi", call or make_call(metadata=metadata))
    return caught.value


@pytest.mark.parametrize(
    "good",
    [
        token(),
        token(key=ec_key(), algorithm="ES256", kid="ec"),
        token(key=ed_key(), algorithm="EdDSA", kid="ed"),
        token(aud=["other", AUDIENCE]),
    ],
    ids=["RS256", "ES256", "EdDSA", "one of several audiences"],
)
async def test_a_good_token_names_the_caller(good: str) -> None:
    """Name, scheme, roles and claims are there for the links inside, and for the servicer."""
    principal = await passed(link(), bearer(good))
    assert principal == Principal(name="alice", scheme="bearer", roles=frozenset({"reader"}))
    assert principal is not None
    assert principal.claims["iss"] == ISSUER
    assert "iss" not in repr(principal)


async def test_clocks_may_differ_by_the_leeway() -> None:
    """Either way, and by no more; half a minute unless it is set."""
    auth, strict = link(), link(leeway=0)
    near: list[Untyped] = [{"exp": int(time.time()) - 15}, {"nbf": int(time.time()) + 15}]
    for times in near:
        assert await passed(auth, bearer(token(**times))) is not None
        assert (await refused(strict, bearer(token(**times)))).code is Code.UNAUTHENTICATED
    far: list[Untyped] = [{"exp": int(time.time()) - 45}, {"nbf": int(time.time()) + 45}]
    for times in far:
        assert (await refused(auth, bearer(token(**times)))).code is Code.UNAUTHENTICATED


async def test_where_roles_come_from_is_a_setting() -> None:
    """A claim of words is as good as a list, and another claim can be the name."""
    principal = await passed(
        link(name="client_id", roles="scope"), bearer(token(client_id="batch", scope="read write", sub=None))
    )
    assert principal == Principal(name="batch", scheme="bearer", roles=frozenset({"read", "write"}))


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ([], "MISSING_CREDENTIALS"),
        ([("authorization", "")], "INVALID_CREDENTIALS"),
        ([("authorization", token())], "INVALID_CREDENTIALS"),
        ([("authorization", f"Basic {token()}")], "INVALID_CREDENTIALS"),
        ([bearer(token()), bearer(token())], "INVALID_CREDENTIALS"),
        ([bearer("x" * 20_000)], "INVALID_CREDENTIALS"),
        ([bearer(token(exp=int(time.time()) - 60))], "EXPIRED_CREDENTIALS"),
        ([bearer(token(nbf=int(time.time()) + DAY))], "INVALID_CREDENTIALS"),
        ([bearer(token(key=rsa_key("another"), exp=1))], "INVALID_CREDENTIALS"),
        ([bearer(token(sub=None))], "INVALID_CREDENTIALS"),
        ([bearer(token(exp=str(int(time.time()) + DAY)))], "INVALID_CREDENTIALS"),
        ([bearer(token(roles={"a": 1}))], "INVALID_CREDENTIALS"),
        ([bearer(changed(token(), sub="root"))], "INVALID_CREDENTIALS"),
        ([bearer(forged({"alg": ["RS256"], "kid": "rsa"}, claims()))], "INVALID_CREDENTIALS"),
    ],
)
async def test_anything_else_is_nobody(metadata: list[tuple[str, str]], reason: str) -> None:
    """UNAUTHENTICATED, with a reason for programs; that a token has expired is said of genuine ones only."""
    error = await refused(link(), *metadata)
    assert (error.code, error.reason) == (Code.UNAUTHENTICATED, reason)


async def test_the_algorithm_is_allowed_before_a_key_is_used() -> None:
    """A public key is no shared secret, and no signature is no algorithm."""
    import hmac  # noqa: PLC0415 - here only

    from tests.security.tokens import encoded  # noqa: PLC0415 - here only

    body = f"{encoded({'alg': 'HS256', 'kid': 'rsa'})}.{encoded(claims())}"
    confused = f"{body}.{encoded(hmac.digest(pem(rsa_key()).encode(), body.encode(), 'sha256'))}"
    for bad in (
        confused,
        forged({"alg": "none", "kid": "rsa"}, claims(), b""),
        token(key=ec_key(), algorithm="ES256", kid="rsa"),
        token(algorithm="RS512"),
        token(algorithm="PS256"),
    ):
        assert (await refused(link({"rsa": pem(rsa_key())}), bearer(bad))).code is Code.UNAUTHENTICATED


async def test_shared_secrets_are_a_kind_of_their_own() -> None:
    """HS256 works where it alone is allowed."""
    import base64  # noqa: PLC0415 - here only

    key = {"kty": "oct", "kid": "k", "k": base64.urlsafe_b64encode(SECRET.encode()).rstrip(b"=").decode()}
    auth = link({"keys": [key]}, algorithms=["HS256"])
    assert await passed(auth, bearer(token(key=SECRET, algorithm="HS256", kid="k"))) is not None
    assert (await refused(auth, bearer(token()))).code is Code.UNAUTHENTICATED


async def test_a_token_without_a_kid_needs_a_set_of_one_key() -> None:
    """Nothing is tried out."""
    assert await passed(link({"k": pem(rsa_key())}), bearer(token(kid=None))) is not None
    assert (await refused(link(), bearer(token(kid=None)))).code is Code.UNAUTHENTICATED


async def test_the_servers_own_methods_pass() -> None:
    """Health and reflection need no token, unless the setting says so."""
    assert await passed(link(), auxiliary=True) is None
    call = make_call(auxiliary=True)
    assert (await refused(link(auxiliary=True), call=call)).code is Code.UNAUTHENTICATED


@pytest.mark.parametrize("kind", list(Kind))
async def test_every_decision_is_told(kind: Kind) -> None:
    """In words of a small fixed set, for every kind."""
    for metadata, decision in (
        ([bearer(token())], "accepted"),
        ([], "missing"),
        ([bearer("x")], "refused"),
        ([bearer(token(exp=1))], "expired"),
    ):
        call = make_call(kind=kind, metadata=metadata)
        told: list[tuple[str, str]] = []
        call.on_decision(lambda *said, told=told: told.append(said))
        with_errors = run(link(), scripted("ok"), [] if kind.request_streaming else "hi", call)
        await asyncio.gather(with_errors, return_exceptions=True)
        assert told == [("jwt_auth", decision)]


async def test_an_exception_inside_is_a_refusal_and_its_text_is_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client gets UNAUTHENTICATED and an id, the log the same id, the type and the place."""
    auth, log = link(), Log()
    secret = token()

    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError(secret)

    monkeypatch.setattr(auth, "_decode", fail)
    error = await refused([AccessLog(log.telemetry), Recovery(), auth], bearer(secret))  # type: ignore[arg-type]
    assert error.code is Code.UNAUTHENTICATED
    assert ("x-error-id", log.line["error_id"]) in error.trailers
    assert "ZeroDivisionError" in str(log.line["exception"])
    assert "in fail" in str(log.line["exception"])
    assert secret not in log.text + repr(error) + repr(error.__cause__)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"keys": None}, "either keys or jwks_url"),
        ({"jwks_url": "https://x"}, "either keys or jwks_url"),
        ({"keys": {"keys": []}}, "none of the 0"),
        ({"keys": {"k": "canary"}}, r"keys\['k'\] is no public key"),
        ({"keys": {"k": 7}}, r"keys\['k'\] is neither"),
        ({"keys": {"keys": [{"kty": "RSA", "n": "canary", "e": "AQAB"}]}}, "none of the 1"),
        ({"keys": None, "jwks_url": "http://example.org/keys"}, "use https"),
        ({"keys": None, "jwks_url": "file:///etc/passwd"}, "use https"),
        ({"keys": None, "jwks_url": "https://x", "interval": 0}, "interval=0"),
        ({"keys": None, "jwks_url": "https://x", "refresh": 10, "expire": 5}, "refresh=10"),
        ({"algorithms": ["none"]}, "algorithms"),
        ({"algorithms": []}, "algorithms"),
        ({"algorithms": ["HS256", "RS256"]}, "mixes"),
        ({"leeway": -1}, "leeway=-1"),
        ({"leeway": 3600}, "leeway=3600"),
        ({"issuer": ""}, "issuer=''"),
        ({"audience": []}, "audience"),
    ],
)
def test_a_wrong_setting_is_named_and_no_key_is_shown(settings: dict[str, Untyped], words: str) -> None:
    """Where it is written, not at the first call."""
    given: dict[str, Untyped] = {"keys": jwks(), "issuer": ISSUER, "audience": AUDIENCE} | settings
    with pytest.raises((TypeError, ValueError), match=words) as caught:
        JwtAuth(given.pop("keys"), **given)
    assert "canary" not in str(caught.value)


def test_a_weak_key_is_no_key() -> None:
    """An RSA key of 1024 bits can be broken."""
    with pytest.raises(ValueError, match="none of the 1"):
        link({"k": pem(rsa_key("weak", 1024))})


def test_the_repr_has_no_key() -> None:
    """But the settings that tell which tokens are good."""
    assert repr(link()) == (
        "JwtAuth(issuer='https://issuer.test', audience=['echo'], "
        "algorithms=['ES256', 'EdDSA', 'RS256'], leeway=30.0, keys=3 fixed)"
    )


class KeyServer:
    """An issuer's JWKS endpoint on the loopback interface: ``keys`` is what it answers, None fails."""

    def __init__(self) -> None:
        self.keys: dict[str, Untyped] | None = jwks()
        self.asked = 0
        self.url = ""

    def answer(self) -> tuple[int, bytes]:
        self.asked += 1
        return (500, b"") if self.keys is None else (200, json.dumps(self.keys).encode())


@contextmanager
def serving() -> Iterator[KeyServer]:
    issuer = KeyServer()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = issuer.answer()
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        issuer.url = f"http://127.0.0.1:{server.server_address[1]}/keys"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield issuer
        finally:
            server.shutdown()
            thread.join()


async def test_keys_are_fetched_once_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a real HTTP request, with the first call, for all who come at once; a rotated key is found by one more."""
    monkeypatch.setenv("NO_PROXY", "*")
    clock = MovableClock()
    async with no_leaks():
        with serving() as issuer:
            auth = link(jwks_url=issuer.url)
            calls = [passed(auth, bearer(token()), clock=clock) for _ in range(20)]
            assert all(await asyncio.gather(*calls))
            assert issuer.asked == 1
            new = token(key=rsa_key("new"), kid="new")
            soon = make_call(clock=clock, metadata=[bearer(new)])
            assert (await refused(auth, call=soon)).code is Code.UNAUTHENTICATED  # just fetched, and not in it
            assert issuer.asked == 1
            await clock.advance(10.0)
            issuer.keys = {"keys": [*jwks()["keys"], _public("new")]}
            assert await passed(auth, bearer(new), clock=clock) is not None
            assert issuer.asked == 2
            for _ in range(5):
                stranger = make_call(clock=clock, metadata=[bearer(token(kid="nobody's"))])
                assert (await refused(auth, call=stranger)).code is Code.UNAUTHENTICATED
            assert issuer.asked == 2


async def test_keys_that_cannot_be_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody passes without keys: UNAVAILABLE, with the time to come back. Those that are there serve for a while."""
    monkeypatch.setenv("NO_PROXY", "*")
    clock = MovableClock()
    with serving() as issuer:
        auth = link(jwks_url=issuer.url, refresh=100, expire=200)
        issuer.keys = None
        for _ in range(3):
            error = await refused(auth, call=make_call(clock=clock, metadata=[bearer(token())]))
            assert (error.code, error.reason, error.retry_after) == (
                Code.UNAVAILABLE,
                "AUTHENTICATION_UNAVAILABLE",
                10.0,
            )
        assert issuer.asked == 1
        await clock.advance(10.0)
        issuer.keys = jwks()
        assert await passed(auth, bearer(token()), clock=clock) is not None
        issuer.keys = None
        await clock.advance(150.0)
        assert await passed(auth, bearer(token()), clock=clock) is not None  # and fetches behind
        await _until(lambda: issuer.asked == 3)
        await clock.advance(50.0)
        error = await refused(auth, call=make_call(clock=clock, metadata=[bearer(token())]))
        assert error.code is Code.UNAVAILABLE
        issuer.keys = {"keys": []}
        await clock.advance(10.0)
        error = await refused(auth, call=make_call(clock=clock, metadata=[bearer(token())]))
        assert error.code is Code.UNAVAILABLE


async def test_a_caller_who_leaves_does_not_stop_the_fetch_for_others() -> None:
    """It belongs to no call, and ends after its own time."""
    clock = MovableClock()
    auth = link(jwks_url="http://127.0.0.1:1/keys")
    begun, gone = asyncio.Event(), asyncio.Event()

    async def never() -> Untyped:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            gone.set()

    assert auth._remote is not None
    auth._remote._fetch = never
    first = asyncio.create_task(refused(auth, call=make_call(clock=clock, metadata=[bearer(token())])))
    second = asyncio.create_task(refused(auth, call=make_call(clock=clock, metadata=[bearer(token())])))
    await begun.wait()
    first.cancel()
    await asyncio.wait([first])
    assert not gone.is_set()
    await clock.advance(5.0)
    assert (await second).code is Code.UNAVAILABLE
    assert gone.is_set()


def _public(name: str) -> dict[str, Untyped]:
    from jwt.algorithms import RSAAlgorithm  # noqa: PLC0415 - here only

    return {**RSAAlgorithm.to_jwk(rsa_key(name).public_key(), as_dict=True), "kid": name}


async def _until(true: Untyped) -> None:
    async with asyncio.timeout(5):
        while not true():  # noqa: ASYNC110 - another thread sets no event here
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)


@pytest.mark.parametrize("absent", ["jwt", "cryptography"])
def test_the_extra_is_named_when_it_is_missing(monkeypatch: pytest.MonkeyPatch, absent: str) -> None:
    """By the part that needs it, when it is made: importing the package needs no extra."""
    monkeypatch.setitem(sys.modules, absent, None)
    with pytest.raises(ImportError, match=r"servicekit\[auth\]"):
        link()
