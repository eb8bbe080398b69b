"""The conformance suite of middleware, for every link of ours."""

from __future__ import annotations

import base64
import functools
import io
from collections.abc import Mapping

import pytest
from opentelemetry.sdk.trace import TracerProvider

from servicekit.call import Call, Side
from servicekit.endpoint import Endpoint, Message, Middleware
from servicekit.errors import Code
from servicekit.method import Kind
from servicekit.middleware import (
    Access,
    AccessLog,
    AdaptiveThrottle,
    ApiKeyAuth,
    AttemptTracing,
    Authorize,
    BasicAuth,
    Bulkhead,
    CircuitBreaker,
    Credentials,
    Deadline,
    Faults,
    Hedge,
    JwtAuth,
    LoadShedding,
    Metrics,
    MtlsIdentity,
    RateLimit,
    Recovery,
    RequestId,
    Retry,
    StreamIdle,
    Token,
    Tracing,
    Validation,
    hash_key,
    hash_password,
)
from servicekit.middleware.criticality import Criticality
from servicekit.telemetry import Telemetry
from servicekit.testing.middleware_conformance import Refuses, Run, Subject, check, middleware_cases
from servicekit.testing.middleware_passing import a_hundred_calls_at_once_are_not_mixed_up
from servicekit.wire import Security
from tests.security.tokens import AUDIENCE, ISSUER, bearer, jwks, token

SERVER, CLIENT = [Side.SERVER], [Side.CLIENT]
ECHO = "/servicekit.testing.v1.EchoService/*"
MANY = 1000

TELEMETRY = Telemetry(log="json", stream=io.BytesIO(), traces=TracerProvider(shutdown_on_exit=False))
KEY = "canary-key-of-many-random-characters"
PASSWORD = "canary-password"
TOKEN = token()
BASIC = ("authorization", "Basic " + base64.b64encode(f"alice:{PASSWORD}".encode()).decode())
HASH = hash_password(PASSWORD, cost=10, parallel=1)


def metrics() -> Metrics:
    return Metrics(Telemetry(log=None, metrics="prometheus"))


def counts_none(link: Metrics) -> bool:
    """Whether the gauges are back at zero."""
    registry = link.telemetry.metrics.registry  # type: ignore[union-attr]
    samples = [sample for family in registry.collect() for sample in family.samples]
    return all(sample.value == 0 for sample in samples if sample.name.endswith("_in_flight"))


def certified() -> list[Middleware]:
    """What stands around a check of certificates where there is no TLS: a wire that has seen one."""

    async def tls(request: Message, call: Call, next: Endpoint) -> Message:  # noqa: A002 - the term
        properties = {"x509_pem_cert": [b"-"], "peer_uri": [b"spiffe://example.org/echo"]}
        call.security = lambda: Security(properties=properties)  # type: ignore[method-assign]
        return await next(request, call)

    return [tls]


def authenticated() -> list[Middleware]:
    return [ApiKeyAuth({"alice": hash_key(KEY)}, roles={"alice": ["reader"]})]


def each(name: str, *values: object) -> list[Mapping[str, object]]:
    return [{name: value} for value in values]


unauthenticated = functools.partial(Refuses, code=Code.UNAUTHENTICATED, pushback=False)

with_jwt = functools.partial(JwtAuth, jwks(), issuer=ISSUER, audience=AUDIENCE)
with_password = functools.partial(BasicAuth, {"alice": HASH})
with_key = functools.partial(ApiKeyAuth, {"alice": hash_key(KEY)})

SUBJECTS = [
    Subject(make=RequestId, wrong=each("header", "X Request", ""), shown=["header='x-request-id'"]),
    Subject(make=functools.partial(Tracing, TELEMETRY), name="Tracing", shown=["auxiliary=False"]),
    Subject(make=functools.partial(AttemptTracing, TELEMETRY), name="AttemptTracing", sides=CLIENT),
    Subject(
        make=functools.partial(AccessLog, TELEMETRY),
        name="AccessLog",
        shown=["success_ratio=1.0"],
        wrong=[*each("success_ratio", -0.1, 1.1), *each("slow", 0.0, -1.0), *each("auxiliary", "loud")],
    ),
    Subject(make=metrics, name="Metrics", is_idle=counts_none),
    Subject(
        make=Recovery,
        sides=SERVER,
    ),
    Subject(
        make=functools.partial(Deadline, default=30.0),
        name="Deadline",
        shown=["default=30.0", "cap=300.0"],
        wrong=[*each("default", 0.0, -1.0, float("nan"), 301.0), *each("cap", 0.0)],
    ),
    Subject(
        make=functools.partial(RateLimit, per_second=1e6),
        name="RateLimit",
        shown=["per_second=1000000.0", "key='peer'"],
        wrong=[*each("per_second", 0, -1.0), *each("burst", 0), *each("max_keys", 0), *each("key", "colour")],
        refusals=[Refuses(make=lambda: RateLimit(per_second=0.01, burst=2), code=Code.RESOURCE_EXHAUSTED)],
    ),
    Subject(make=functools.partial(RateLimit, per_second=1e6, wait=True), name="RateLimit-wait"),
    Subject(
        make=functools.partial(Bulkhead, concurrency=MANY),
        name="Bulkhead",
        shown=[f"concurrency={MANY}"],
        wrong=[*each("concurrency", 0, -1), *each("wait", -1.0), *each("retry_after", -1.0), *each("key", "colour")],
        is_idle=lambda link: not link._rooms,
        refusals=[Refuses(make=lambda: Bulkhead(concurrency=2), code=Code.RESOURCE_EXHAUSTED, when="busy")],
    ),
    Subject(
        make=functools.partial(Bulkhead, concurrency=4, wait=60.0),
        name="Bulkhead-wait",
        is_idle=lambda link: not link._rooms,
        unkept={
            "a_hundred_calls_at_once_are_not_mixed_up": "it makes them wait for each other: that is what it is for"
        },
    ),
    Subject(
        make=functools.partial(LoadShedding, initial=MANY, most=MANY),
        name="LoadShedding",
        sides=SERVER,
        shown=[f"initial={MANY}"],
        wrong=[*each("least", 0), *each("lag", -1.0), *each("lag_time", 0.0), *each("retry_after", -1.0)],
        is_idle=lambda link: link.running == 0,
        refusals=[
            Refuses(
                make=lambda: LoadShedding(initial=4, least=4),
                code=Code.UNAVAILABLE,
                when="busy",
                kinds=[Kind.UNARY],
            )
        ],
    ),
    Subject(make=Criticality, wrong=each("default", "urgent"), shown=["default=None"]),
    Subject(make=functools.partial(StreamIdle, 3600.0), name="StreamIdle", shown=["seconds=3600.0"]),
    Subject(
        make=Faults,
        wrong=[*each("probability", 1.1), *each("delay", -1.0), *each("abort", "UNAVAILABLE"), *each("drop_after", -1)],
        shown=["seed=0"],
        refusals=[Refuses(make=lambda: Faults(abort=Code.ABORTED), code=Code.ABORTED, pushback=False)],
    ),
    Subject(
        make=Retry,
        sides=CLIENT,
        wrong=[*each("attempts", 0), *each("keep", -1)],
        shown=["attempts=3"],
    ),
    Subject(
        make=Hedge,
        sides=CLIENT,
        wrong=[*each("quantile", 0.0, 1.0), *each("least", -1.0)],
        shown=["quantile=0.95"],
    ),
    Subject(
        make=CircuitBreaker,
        shown=["failures=0.5"],
        wrong=[*each("failures", 0.0, 1.5), *each("calls", 0), *each("fallback", "none"), *each("max_keys", 0)],
        refusals=[Refuses(make=lambda: CircuitBreaker(calls=3), code=Code.UNAVAILABLE, when="failing")],
    ),
    Subject(
        make=AdaptiveThrottle,
        sides=CLIENT,
        shown=["k=2.0"],
        unkept={
            "a_call_passes_after_a_failed_one": "where few are made, a failed one makes it likely that the next is refused"
        },
        wrong=[*each("k", 0.5), *each("window", 0.0), *each("retry_after", -1.0)],
        refusals=[Refuses(make=lambda: AdaptiveThrottle(k=1.1), code=Code.UNAVAILABLE, when="failing")],
    ),
    Subject(
        make=with_jwt,
        name="JwtAuth",
        sides=SERVER,
        metadata=(bearer(TOKEN),),
        shown=[ISSUER],
        secrets=[TOKEN],
        wrong=[*each("leeway", -1.0), *each("audience", ""), *each("algorithms", ["none"])],
        refusals=[
            unauthenticated(make=with_jwt),
            unauthenticated(make=with_jwt, metadata=(bearer(token(aud="elsewhere")),)),
        ],
    ),
    Subject(
        make=with_password,
        name="BasicAuth",
        sides=SERVER,
        metadata=(BASIC,),
        shown=["1 users"],
        secrets=[PASSWORD, HASH],
        wrong=[*each("remember", -1.0), *each("threads", 0), *each("queue", -1)],
        refusals=[unauthenticated(make=with_password), unauthenticated(make=with_password, metadata=(bearer("x"),))],
    ),
    Subject(
        make=with_key,
        name="ApiKeyAuth",
        sides=SERVER,
        metadata=(("x-api-key", KEY),),
        shown=["1 keys"],
        secrets=[KEY, hash_key(KEY)],
        refusals=[unauthenticated(make=with_key), unauthenticated(make=with_key, metadata=(("x-api-key", KEY[::-1]),))],
    ),
    Subject(
        make=functools.partial(MtlsIdentity, spiffe=["example.org"]),
        name="MtlsIdentity",
        sides=SERVER,
        outside=certified,
        shown=["example.org"],
        wrong=[*each("spiffe", ["Example Org"]), *each("dns", ["a b"])],
        refusals=[unauthenticated(make=lambda: MtlsIdentity(spiffe=["example.com"]))],
    ),
    Subject(
        make=lambda: Authorize({ECHO: ["reader"]}),
        name="Authorize",
        sides=SERVER,
        outside=authenticated,
        metadata=(("x-api-key", KEY),),
        shown=[ECHO],
        refusals=[
            Refuses(
                make=lambda: Authorize({ECHO: ["writer"]}),
                code=Code.PERMISSION_DENIED,
                pushback=False,
                metadata=(("x-api-key", KEY),),
            ),
            Refuses(
                make=lambda: Authorize({}),
                code=Code.PERMISSION_DENIED,
                pushback=False,
                metadata=(("x-api-key", KEY),),
            ),
        ],
    ),
    Subject(make=lambda: Authorize({ECHO: Access.PUBLIC}), name="Authorize-public", sides=SERVER),
    Subject(
        make=lambda: Credentials(lambda: Token(value=f"Bearer {KEY}", expires_in=3600.0)),
        name="Credentials",
        sides=CLIENT,
        shown=["authorization"],
        secrets=[KEY],
        refusals=[Refuses(make=lambda: Credentials(lambda: ""), code=Code.UNAVAILABLE)],
    ),
    Subject(make=Validation, shown=["first_only=False"]),
]


@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda subject: subject.name or subject.make.__name__)
async def test_a_link_of_ours_keeps_the_rules(subject: Subject) -> None:
    """Around a method with streams both ways, in virtual time: what goes wrong anywhere mostly goes wrong there."""
    for run in middleware_cases(subject, over=["memory"], kinds=[Kind.BIDI_STREAM]):
        if run.case is not a_hundred_calls_at_once_are_not_mixed_up:  # which takes as long as all others together
            await check(run)


@pytest.mark.conformance
@pytest.mark.parametrize("run", middleware_cases(*SUBJECTS), ids=str)
async def test_a_link_of_ours_keeps_the_rules_everywhere(run: Run) -> None:
    """On every side that it is for, around methods of every kind, over both wires."""
    await check(run)
