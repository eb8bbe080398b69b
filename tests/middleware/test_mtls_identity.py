"""Who calls, by the certificate of the connection."""

from __future__ import annotations

import ipaddress
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import grpc
import pytest
from cryptography import x509

from servicekit.call import Call
from servicekit.client import connect
from servicekit.current import current_call
from servicekit.endpoint import Message
from servicekit.errors import Code, Error
from servicekit.middleware import MtlsIdentity
from servicekit.principal import Principal, principal_of
from servicekit.server import Server
from servicekit.telemetry import Telemetry
from servicekit.testing import make_call, run, scripted
from servicekit.testing.v1.echo_pb2 import EchoRequest, EchoResponse
from servicekit.testing.v1.echo_pb2_grpc import EchoServiceStub, add_EchoServiceServicer_to_server
from servicekit.transport.call_error import CallError
from servicekit.wire import Security
from tests.security.certificates import Authority, Signed
from tests.security.echo import Reached

Untyped: TypeAlias = Any
"""What is one of several things, or wrong on purpose."""


WORKLOAD = "spiffe://example.org/ns/shop/cart"
AUTHORITY = Authority()


def security(*, uri: tuple[str, ...] = (), dns: tuple[str, ...] = (), certificate: bool = True) -> Security:
    properties = {"peer_uri": [name.encode() for name in uri], "peer_dns": [name.encode() for name in dns]}
    return Security(properties=properties | ({"x509_pem_cert": [b"PEM"]} if certificate else {}))


async def outcome(link: MtlsIdentity, peer: Security, *metadata: tuple[str, str], **settings: Untyped) -> Untyped:
    """Who the endpoint sees and with which metadata, or why it was not reached."""
    call = make_call(metadata=metadata, **settings)
    call.recorder.peer_security = peer
    told: list[str] = []
    call.on_decision(lambda _link, decision: told.append(decision))

    async def endpoint(_request: Message, call: Call) -> Message:
        return principal_of(call), dict(call.metadata), told

    try:
        return await run(link, scripted(endpoint), "hi", call)
    except Error as error:
        return error


async def test_a_spiffe_id_names_a_workload() -> None:
    """With its roles, and with all names of the certificate as claims."""
    link = MtlsIdentity(spiffe=["example.org"], roles={WORKLOAD: ["cart"]})
    principal, _, told = await outcome(link, security(uri=(WORKLOAD,), dns=("cart.internal",)))
    assert principal == Principal(name=WORKLOAD, scheme="mtls", roles=frozenset({"cart"}))
    assert principal.claims == {"uri": (WORKLOAD,), "dns": ("cart.internal",)}
    assert told == ["accepted"]


async def test_a_dns_name_names_a_host() -> None:
    """The first one that is known; a star stands for one label."""
    link = MtlsIdentity(dns=["cart.internal", "*.web.internal"])
    for names, name in (
        (("cart.internal",), "cart.internal"),
        (("elsewhere.test", "Cart.Internal"), "cart.internal"),
        (("a.web.internal",), "a.web.internal"),
    ):
        assert (await outcome(link, security(dns=names)))[0].name == name


@pytest.mark.parametrize(
    "peer",
    [
        security(uri=("spiffe://elsewhere.org/ns/shop/cart",)),
        security(uri=(WORKLOAD, "spiffe://example.org/other")),
        security(uri=("spiffe://example.org",)),
        security(uri=("spiffe://example.org/",)),
        security(uri=("spiffe://example.org/a/../b",)),
        security(uri=("spiffe://example.org/a//b",)),
        security(uri=("spiffe://example.org/a?b",)),
        security(uri=("spiffe://example.org@evil.org/a",)),
        security(uri=("https://example.org/ns/shop/cart",)),
        security(uri=("spiffe://example.org/" + "a" * 2048,)),
        security(dns=("example.org",)),
        security(dns=("web.internal",)),
        security(dns=("a.b.web.internal",)),
        security(dns=("*.web.internal",)),
        security(dns=("",)),
        security(),
    ],
)
async def test_a_certificate_that_names_nobody_known_here(peer: Security) -> None:
    """UNAUTHENTICATED, whoever has signed it."""
    error = await outcome(MtlsIdentity(spiffe=["example.org"], dns=["*.web.internal"]), peer)
    assert isinstance(error, Error)
    assert (error.code, error.reason) == (Code.UNAUTHENTICATED, "INVALID_CREDENTIALS")


async def test_no_certificate() -> None:
    """UNAUTHENTICATED, also if something else is known of the peer."""
    for peer in (Security(), security(uri=(WORKLOAD,), certificate=False)):
        error = await outcome(MtlsIdentity(spiffe=["example.org"]), peer)
        assert (error.code, error.reason) == (Code.UNAUTHENTICATED, "MISSING_CREDENTIALS")


async def test_what_a_client_says_of_itself_is_taken_out() -> None:
    """Unless it is a proxy that is known by name; all else stays."""
    proxy = "spiffe://example.org/proxy"
    link = MtlsIdentity(spiffe=["example.org"], proxies=[proxy])
    said = [("x-principal", "root"), ("x-forwarded-client-cert", "Hash=1"), ("x-principal", "admin"), ("x-other", "1")]
    _, metadata, told = await outcome(link, security(uri=(WORKLOAD,)), *said)
    assert (metadata, told) == ({"x-other": "1"}, ["accepted", "stripped"])
    _, metadata, told = await outcome(link, security(uri=(proxy,)), *said)
    assert (metadata["x-principal"], told) == ("admin", ["accepted"])
    principal, metadata, told = await outcome(link, Security(), *said, auxiliary=True)
    assert (principal, metadata, told) == (None, {"x-other": "1"}, ["stripped"])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "give spiffe or dns"),
        ({"spiffe": "example.org"}, "one text"),
        ({"spiffe": ["spiffe://example.org"]}, "trust domain"),
        ({"dns": ["*"]}, "DNS name"),
        ({"dns": ["Cart.Internal"]}, "DNS name"),
        ({"dns": ["a"], "headers": ["X-Principal"]}, "X-Principal"),
        ({"dns": ["a"], "proxies": "a"}, "one text"),
        ({"dns": ["a"], "roles": {"a": "admin"}}, "one text"),
    ],
)
def test_a_wrong_setting_is_named(settings: dict[str, Untyped], words: str) -> None:
    """Where it is written."""
    with pytest.raises((TypeError, ValueError), match=words):
        MtlsIdentity(**settings)


def test_the_repr_tells_who_may_call() -> None:
    """All of it is public."""
    assert repr(MtlsIdentity(dns=["a"])) == "MtlsIdentity(spiffe=[], dns=['a'], proxies=[])"


# On the real wire


class Whoami(Reached):
    """Answers with the name of its caller, and what came in the metadata."""

    async def Echo(self, request: EchoRequest, context: Untyped) -> EchoResponse:
        principal = principal_of(current_call())
        headers = {key for key, _ in context.invocation_metadata()} & {"x-principal"}
        return EchoResponse(text=f"{principal.name if principal else None} {sorted(headers)}")


@asynccontextmanager
async def serving(*, ask: bool = True) -> AsyncIterator[str]:
    own = AUTHORITY.sign(x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1")))
    credentials = grpc.ssl_server_credentials(
        [(own.key, own.certificate)], AUTHORITY.certificate if ask else None, require_client_auth=ask
    )
    server = Server(
        "127.0.0.1:0",
        middleware=[MtlsIdentity(spiffe=["example.org"], dns=["*.web.internal"])],
        credentials=credentials,
        telemetry=Telemetry(log=None),
    )
    add_EchoServiceServicer_to_server(Whoami(), server)
    async with server:
        yield server.addresses[0]


async def whoami(address: str, client: Signed | None) -> str:
    own = (None, None) if client is None else (client.key, client.certificate)
    credentials = grpc.ssl_channel_credentials(AUTHORITY.certificate, *own)
    async with connect(address, middleware=[], credentials=credentials) as channel:
        stub = EchoServiceStub(channel)
        reply = await stub.Echo(EchoRequest(), metadata=[("x-principal", "root")], timeout=10)
        return str(reply.text)


async def test_it_reads_what_grpc_core_has_verified() -> None:
    """A workload, a host, somebody unknown, and a common name that claims to be a host."""
    async with serving() as address:
        workload = AUTHORITY.sign(x509.UniformResourceIdentifier(WORKLOAD))
        assert await whoami(address, workload) == f"{WORKLOAD} []"
        host = AUTHORITY.sign(x509.DNSName("other.test"), x509.DNSName("a.web.internal"))
        assert await whoami(address, host) == "a.web.internal []"
        for nobody in (
            AUTHORITY.sign(x509.DNSName("other.test")),
            AUTHORITY.sign(common="a.web.internal"),
            AUTHORITY.sign(x509.UniformResourceIdentifier("spiffe://elsewhere.org/a")),
            AUTHORITY.sign(x509.DNSName(WORKLOAD)),
        ):
            with pytest.raises(CallError) as caught:
                await whoami(address, nobody)
            assert caught.value.error.code is Code.UNAUTHENTICATED


async def test_a_server_that_does_not_ask_lets_nobody_in() -> None:
    """TLS without a client certificate is no identity."""
    async with serving(ask=False) as address:
        for client in (None, AUTHORITY.sign(x509.UniformResourceIdentifier(WORKLOAD))):
            with pytest.raises(CallError) as caught:
                await whoami(address, client)
            assert (caught.value.error.code, caught.value.reason) == (Code.UNAUTHENTICATED, "MISSING_CREDENTIALS")
