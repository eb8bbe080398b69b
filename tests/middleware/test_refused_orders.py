"""The four orders that are always a mistake: refused where a chain is made, with the rule and the way out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeAlias

import grpc
import pytest

from servicekit import Server, client_interceptors, connect, server_interceptor
from servicekit.call import Call
from servicekit.endpoint import Endpoint, Message, Middleware, chain, only
from servicekit.errors import Error
from servicekit.method import Idempotency, Kind, Method
from servicekit.middleware import (
    AccessLog,
    ApiKeyAuth,
    AttemptTracing,
    Authorize,
    BasicAuth,
    CircuitBreaker,
    Credentials,
    Hedge,
    JwtAuth,
    Metrics,
    MtlsIdentity,
    Recovery,
    Retry,
    Token,
    Tracing,
    hash_key,
    hash_password,
    standard,
    standard_client,
)
from servicekit.telemetry import Telemetry
from servicekit.testing import pair
from servicekit.testing.v1.echo_pb2 import EchoRequest
from servicekit.testing.v1.echo_pb2_grpc import EchoServiceStub
from tests.transport.clients import echo

from .probes import Log

Untyped: TypeAlias = Any

ECHO, STORE = "/servicekit.testing.v1.EchoService/Echo", "/servicekit.testing.v1.EchoService/Store"
ALL = "/servicekit.testing.v1.EchoService/*"
TELEMETRY = Telemetry(log="json", traces="auto", metrics="prometheus")


async def fallback(request: Message, call: Call, error: Error) -> Message:
    return request


def cached() -> Middleware:
    """A plain function says what it is like any link."""

    async def cache(request: Message, call: Call, next: Endpoint) -> Message:  # noqa: A002 - the term
        return await next(request, call)

    cache.answers_by_itself = True  # type: ignore[attr-defined] # a function may have any
    return cache


def is_echo(method: Method) -> bool:
    return method.name == "Echo"


def is_safe(method: Method) -> bool:
    return method.idempotency is not Idempotency.UNKNOWN


class Balancer:
    """Stands for what picks an instance: what further in is there for that one."""

    one_attempt: ClassVar[bool] = True

    async def __call__(self, request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        return await next(request, call)


CHECKING: list[Middleware] = [
    ApiKeyAuth({"a": hash_key("x" * 40)}),
    BasicAuth({"a": hash_password("x" * 9, cost=10, parallel=1)}),
    JwtAuth({"keys": [{"kty": "OKP", "crv": "Ed25519", "kid": "1", "x": "A" * 43}]}, issuer="i", audience="a"),
    MtlsIdentity(spiffe=["example.org"]),
    Authorize({ALL: ["admin"]}),
]
MISTAKES: list[tuple[Middleware, Middleware, str, str]] = [
    *((CircuitBreaker(fallback=fallback), link, "nobody has checked", "put it after") for link in CHECKING),
    (cached(), CHECKING[0], "nobody has checked", "put it after ApiKeyAuth"),
    (Recovery(), Tracing(TELEMETRY), "what the client gets", "put it after all that observe"),
    (Recovery(), AccessLog(TELEMETRY), "what the client gets", "put it after all that observe"),
    (Recovery(), Metrics(TELEMETRY), "what the client gets", "put it after all that observe"),
    (CircuitBreaker(), Retry(), "one attempt at one instance", "put Retry before it"),
    (CircuitBreaker(), Hedge(), "one attempt at one instance", "put Hedge before it"),
    (AttemptTracing(TELEMETRY), Retry(), "one attempt at one instance", "put Retry before it"),
    (Credentials(lambda: Token(value="t")), Hedge(), "one attempt at one instance", "put Hedge before it"),
    (Balancer(), Retry(), "one attempt at one instance", "put Retry before it"),
    (Retry(), Retry(), "attempts multiply", "only(...)"),
    (Retry(), Hedge(), "attempts multiply", "only(...)"),
    (Hedge(), Retry(), "attempts multiply", "only(...)"),
]
WRONG: list[Middleware] = [CircuitBreaker(), Retry()]
WRONG_FOR_ECHO: list[Middleware] = [only(is_echo, CircuitBreaker()), only(is_safe, Retry())]
"""Only who asks the predicates about Echo can see it."""


async def nothing(request: Message, call: Call, next: Endpoint) -> Message:  # noqa: A002 - the term
    return await next(request, call)


def name_of(link: Middleware) -> str:
    return getattr(link, "__qualname__", type(link).__name__)


@pytest.mark.parametrize(("outer", "inner", "rule", "remedy"), MISTAKES, ids=name_of)
def test_each_mistake_is_refused(outer: Middleware, inner: Middleware, rule: str, remedy: str) -> None:
    """Whatever stands between them, the message names both, the rule and what to do."""
    with pytest.raises(ValueError, match="wrong order") as raised:
        chain(nothing, outer, nothing, chain(nothing, inner), nothing)
    assert all(word in str(raised.value) for word in (name_of(outer), name_of(inner), rule, remedy))


@pytest.mark.parametrize(
    ("outer", "inner"),
    [(inner, outer) for outer, inner, *_ in MISTAKES if not getattr(outer, "tries_again", False)],
    ids=name_of,
)
def test_the_other_way_round_is_right(outer: Middleware, inner: Middleware) -> None:
    """Each rule is about the order, never about having both."""
    assert len(chain(outer, inner).links) == 2


def test_a_breaker_without_a_fallback_may_stand_outside() -> None:
    """It answers nobody: that it can is a matter of its settings."""
    chain(CircuitBreaker(), *CHECKING)


def test_the_standard_chains_are_right() -> None:
    """Also with all that has its place by them."""
    chain(*standard(TELEMETRY), *CHECKING, CircuitBreaker(fallback=fallback))
    chain(*standard_client(TELEMETRY), CircuitBreaker(), Credentials(lambda: "t"))


@pytest.mark.parametrize(
    "links",
    [
        [only(ECHO, Retry()), Hedge()],
        [Retry(), only(ECHO, Hedge())],
        [Retry(), only(is_echo, Hedge())],
        [only(ECHO, Retry()), only(ECHO, Hedge())],
        [only(ECHO, Retry()), only(ALL, Hedge())],
        [only(ALL, Retry()), only(ALL, Hedge())],
        [only(ALL, only(ECHO, Retry())), only(ALL, chain(nothing, Hedge()))],
        [only(is_echo, chain(nothing, only(is_safe, Retry()), only(ECHO, nothing))), Hedge()],
    ],
)
def test_what_the_paths_show_is_refused_at_once(links: list[Middleware]) -> None:
    """No method need be known where one of the choices holds the other, or the paths have a method in common."""
    with pytest.raises(ValueError, match="attempts multiply"):
        chain(*links)


@pytest.mark.parametrize(
    "links",
    [
        [only(ECHO, Retry()), only(STORE, Hedge())],
        [only(ALL, Retry()), only("/servicekit.testing.v1.Other/*", Hedge())],
        [only(ALL, only(STORE, Retry())), only(ECHO, Hedge())],
        [only(is_echo, Hedge()), only(lambda method: not is_echo(method), Retry())],
    ],
)
def test_they_may_share_a_chain_but_no_method(links: list[Middleware]) -> None:
    """Two that try again stand in one chain as long as each has methods of its own."""
    links_of_all = chain(*links)
    for name in ("Echo", "Store", "Sum"):
        links_of_all.around(endpoint, Method(service="servicekit.testing.v1.EchoService", name=name, kind=Kind.UNARY))


async def endpoint(request: Message, call: Call) -> Message:
    return request


def test_what_predicates_choose_is_seen_with_the_method() -> None:
    """Composing a method that both choose fails, naming it; all others are composed."""
    links = chain(*WRONG_FOR_ECHO)
    echo, store = (
        Method(service="a.B", name=name, kind=Kind.UNARY, idempotency=Idempotency.IDEMPOTENT)
        for name in ("Echo", "Store")
    )
    with pytest.raises(ValueError, match=r"the chain of /a\.B/Echo is in a wrong order"):
        links.around(endpoint, echo)
    links.around(endpoint, store)


MAKERS: dict[str, Callable[[Sequence[Middleware]], object]] = {
    "Server": lambda links: Server("127.0.0.1:0", middleware=links),
    "connect": lambda links: connect("127.0.0.1:1", middleware=links),
    "server_interceptor": server_interceptor,
    "client_interceptors": client_interceptors,
}


@pytest.mark.parametrize("maker", MAKERS)
async def test_wherever_a_chain_is_made(maker: str) -> None:
    """On both sides, and as interceptors of what somebody already runs: at once, before anything is bound or called."""
    with pytest.raises(ValueError, match="put Retry before it"):
        MAKERS[maker](WRONG)


async def test_a_server_fails_when_the_method_is_added() -> None:
    """What only a method shows fails where a server gets it, before it starts; nobody reaches that method."""
    server = Server("127.0.0.1:0", middleware=WRONG_FOR_ECHO, telemetry=Telemetry(log=None))
    with pytest.raises(ValueError, match=f"the chain of {ECHO} is in a wrong order"):
        echo()(server)


async def test_a_channel_fails_when_the_stub_is_made() -> None:
    """And where a client asks for it, before any call."""
    async with connect("127.0.0.1:1", middleware=WRONG_FOR_ECHO) as channel:
        with pytest.raises(ValueError, match=f"the chain of {ECHO} is in a wrong order"):
            EchoServiceStub(channel)


async def test_on_a_bare_server_the_method_is_closed() -> None:
    """A bare server tells an interceptor of a method with its first call: that gets INTERNAL, and the log the reason."""
    log = Log()

    reached: list[Untyped] = []

    async def reach(request: Untyped, context: object) -> Untyped:
        reached.append(request)

    links: list[Middleware] = [AccessLog(log.telemetry), *WRONG_FOR_ECHO]
    server = grpc.aio.server(interceptors=[server_interceptor(links)])
    echo(Echo=reach)(server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            for _ in range(2):
                with pytest.raises(grpc.aio.AioRpcError) as raised:
                    await EchoServiceStub(channel).Echo(EchoRequest(text="hi"))
                assert (raised.value.code(), raised.value.details()) == (grpc.StatusCode.INTERNAL, "internal error")
    finally:
        await server.stop(0)
    assert reached == []
    assert "wrong order" in log.text


async def test_on_a_bare_channel_the_call_fails() -> None:
    """A bare channel tells of a method with its first call: that raises, and nothing is sent."""
    async with pair(echo(), over="socket") as ends:
        target = ends.server.addresses[0]
        async with grpc.aio.insecure_channel(target, interceptors=client_interceptors(WRONG_FOR_ECHO)) as channel:
            with pytest.raises(ValueError, match=f"the chain of {ECHO} is in a wrong order"):
                await EchoServiceStub(channel).Echo(EchoRequest(text="hi"))
