"""What ``explain`` shows: each method's own chain, with settings and without secrets."""

from __future__ import annotations

from typing import Any, TypeAlias

import grpc
import pytest

from servicekit import Server, Telemetry, connect, only, standard, standard_client
from servicekit.call import Call
from servicekit.endpoint import Message, Middleware
from servicekit.errors import Code, Error
from servicekit.middleware import (
    Access,
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
from servicekit.middleware.redis_limit import RedisLimit
from servicekit.testing import pair
from servicekit.testing.v1.echo_pb2_grpc import EchoServiceStub
from tests.transport.clients import echo

ECHO = "/servicekit.testing.v1.EchoService/Echo"
CANARY = "canary-9d1f"

Untyped: TypeAlias = Any


def block(text: str, head: str) -> str:
    """The block in which ``head`` begins a line."""
    return next(part for part in text.split("\n\n") if any(line.startswith(head) for line in part.splitlines()))


async def fallback(request: Message, call: Call, error: Error) -> Message:
    raise error


async def test_a_server_shows_the_chain_of_each_method() -> None:
    """Methods with the same links share a block, links come outermost first, with their settings."""
    links: list[Middleware] = [Recovery(), Deadline(default=3.0), only(ECHO, Validation())]
    async with pair(echo(), middleware=links) as ends:
        text = ends.server.explain()
    assert block(text, f"{ECHO} ").splitlines() == [
        f"{ECHO} (unary, no_side_effects)",
        "   1. Recovery(ErrorMapping())",
        "   2. Deadline(default=3.0, cap=300.0)",
        "   3. Validation(first_only=False)",
        "   -> the servicer",
    ]
    others = block(text, "/servicekit.testing.v1.EchoService/Sum (client_stream, idempotent)")
    assert "/servicekit.testing.v1.EchoService/Chat (bidi_stream)" in others.splitlines()
    assert "Validation" not in others
    assert block(text, "Any other path").splitlines()[-1] == "   -> UNIMPLEMENTED"
    assert "Validation" not in block(text, "Any other path")


async def test_it_tells_what_is_no_link() -> None:
    """In-flight tracking, the last error mapping, inherited deadlines and who is exempt are there without a link."""
    async with pair(echo(), errors={KeyError: Code.NOT_FOUND}) as ends:
        text = ends.server.explain()
    always = block(text, "Always")
    for word in ("in flight", "KeyError: NOT_FOUND", "inherit", "health and reflection", "0.0 s for calls to finish"):
        assert word in always
    assert "the server's own: limits on load and time let it pass" in block(text, "/grpc.health.v1.Health/Check")
    assert block(text, "/grpc.health.v1.Health/Check") is not block(text, ECHO)


async def test_it_tells_what_is_around_nothing() -> None:
    """A path that no method has is shown: most of the time it is mistyped."""
    async with pair(echo(), middleware=[only("/servicekit.testing.v1.EchoService/echo", Validation())]) as ends:
        text = ends.server.explain()
    assert "only('/servicekit.testing.v1.EchoService/echo', Validation" in block(text, "Around none of these methods:")


async def test_interceptors_stand_inside() -> None:
    """Interceptors of grpc.aio are shown where they run: inside of the links, asked at every call."""

    class Theirs(grpc.aio.ServerInterceptor):
        async def intercept_service(self, continuation: Untyped, details: Untyped) -> Untyped:
            return await continuation(details)

    async with pair(echo(), middleware=[Recovery()], interceptors=[Theirs()]) as ends:
        lines = block(ends.server.explain(), f"{ECHO} ").splitlines()
    assert [line.strip() for line in lines[-2:]] == [
        f"-> {Theirs.__qualname__}, which is asked at every call",
        "-> the servicer",
    ]


async def test_a_channel_shows_the_chain_of_each_method() -> None:
    """Before there is a stub the links as they were given, then those of each method that a stub has."""
    links: list[Middleware] = [Deadline(default=3.0, cap=None), only(ECHO, Retry(attempts=2))]
    async with connect("127.0.0.1:1", middleware=links) as channel:
        assert f"   2. only({ECHO!r}, Retry(attempts=2" in block(channel.explain(), "Any method")
        EchoServiceStub(channel)
        text = channel.explain()
    assert text.startswith("Channel to 127.0.0.1:1\n")
    assert "   2. Retry(attempts=2, " in block(text, f"{ECHO} ")
    assert "Retry" not in block(text, "/servicekit.testing.v1.EchoService/Append")
    assert "CallError" in block(text, "Always")
    assert "Any method" not in text


async def test_a_chain_given_in_no_words_is_the_standard_one() -> None:
    """None means the standard chains, whose links are all named."""
    server = Server("127.0.0.1:0", telemetry=Telemetry(log=None))
    async with connect("127.0.0.1:1", telemetry=Telemetry(log=None)) as channel:
        shown = server.explain(), channel.explain()
    for text, links in zip(shown, (standard(Telemetry(log=None)), standard_client(Telemetry(log=None))), strict=True):
        for link in links:
            assert f". {link!r}\n" in text


SECRETIVE: list[Middleware] = [
    RequestId(),
    Tracing(Telemetry(traces="auto"), target="a:1"),
    Metrics(Telemetry(metrics="prometheus")),
    Recovery(),
    Deadline(),
    LoadShedding(),
    RateLimit(per_second=1, store=RedisLimit(f"redis://:{CANARY}@127.0.0.1:1")),
    Bulkhead(concurrency=1),
    JwtAuth({"keys": [{"kty": "OKP", "crv": "Ed25519", "kid": CANARY, "x": "A" * 43}]}, issuer="i", audience="a"),
    BasicAuth({CANARY: hash_password(CANARY, cost=10, parallel=1)}),
    ApiKeyAuth({CANARY: hash_key(CANARY * 4)}),
    MtlsIdentity(spiffe=["example.org"]),
    Authorize({ECHO: Access.PUBLIC}),
    Validation(),
    StreamIdle(seconds=1.0),
    Faults(),
    Retry(),
    AttemptTracing(Telemetry(traces="auto")),
    AdaptiveThrottle(),
    CircuitBreaker(fallback=fallback),
    Credentials(lambda: Token(value=CANARY)),
]


@pytest.mark.parametrize("link", [*SECRETIVE, Hedge()], ids=lambda link: type(link).__name__)
async def test_a_link_shows_its_name_and_no_secret(link: Middleware) -> None:
    """The repr of every link begins with its class, and has nothing in it that is worth stealing."""
    async with pair(echo(), middleware=[link]) as ends:
        text = ends.server.explain()
    assert f"   1. {type(link).__name__}(" in text
    assert CANARY not in text
    assert " object at 0x" not in text
