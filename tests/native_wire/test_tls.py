from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import resource
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, TypeAlias

import grpc
import pytest
from cryptography import x509

from servicekit import Server, Telemetry, connect
from servicekit.native.options import NativeOptions
from servicekit.native.tls import Certificates, TlsCredentials
from servicekit.testing.v1.echo_pb2 import EchoRequest, EchoResponse
from servicekit.testing.v1.echo_pb2_grpc import EchoServiceStub
from servicekit.wire import BindError
from tests.security.certificates import Authority, Signed
from tests.transport.servers import Context, service

Credentials: TypeAlias = "grpc.ServerCredentials | TlsCredentials | None"

AUTHORITY = Authority()
LOCAL = (x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1")))
OWN = AUTHORITY.sign(*LOCAL)
RENEWED = AUTHORITY.sign(*LOCAL, common="renewed")


def certificates(own: Signed = OWN, *, ask: bool = False) -> Certificates:
    return Certificates(key=own.key, chain=own.certificate, client_authorities=AUTHORITY.certificate if ask else None)


@contextlib.asynccontextmanager
async def serving(
    credentials: Credentials, echo: Callable[..., Any] | None = None, options: Sequence[tuple[str, Any]] = ()
) -> AsyncIterator[str]:
    async def answer(request: EchoRequest, _context: Context) -> EchoResponse:
        return EchoResponse(text=request.text)

    server = Server(
        "127.0.0.1:0",
        middleware=[],
        telemetry=Telemetry(log=None),
        credentials=credentials,
        wire="native",
        options=options,
    )
    service(Echo=echo or answer)(server)
    async with server:
        yield server.addresses[0]


async def ask(address: str, client: Signed | None = None) -> str:
    own = (None, None) if client is None else (client.key, client.certificate)
    credentials = grpc.ssl_channel_credentials(AUTHORITY.certificate, *own)
    async with connect(address, middleware=[], credentials=credentials) as channel:
        reply = await EchoServiceStub(channel).Echo(EchoRequest(text="hello"), timeout=5)
        return str(reply.text)


async def shown(address: str, *protocols: str) -> tuple[str | None, bytes | None]:
    """Return the protocol that was agreed upon, and the certificate that the server showed."""
    context = ssl.create_default_context(cadata=AUTHORITY.certificate.decode())
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT  # from Python 3.13 on; the tests' authority keeps it short
    context.set_alpn_protocols(list(protocols))
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port), ssl=context)
    try:
        connection = writer.get_extra_info("ssl_object")
        agreed = connection.selected_alpn_protocol()
        if agreed is None:
            assert await reader.read() == b""
        return agreed, connection.getpeercert(binary_form=True)
    finally:
        writer.close()


async def test_a_call_over_tls() -> None:
    """A client of grpcio that trusts the authority is served."""
    async with serving(TlsCredentials(certificates=certificates())) as address:
        assert await ask(address) == "hello"


async def test_who_does_not_agree_on_h2_is_sent_away() -> None:
    """ALPN is not optional: without "h2" the connection is closed before a word of HTTP (RFC 9113, section 3.3)."""
    async with serving(TlsCredentials(certificates=certificates())) as address:
        assert (await shown(address, "http/1.1", "h2"))[0] == "h2"
        assert (await shown(address, "http/1.1"))[0] is None


async def test_certificates_may_change_while_the_server_runs() -> None:
    """The provider is asked at each handshake; connections that there are stay."""
    current = [certificates()]
    async with serving(TlsCredentials(certificates=lambda: current[0])) as address:
        channel = connect(address, middleware=[], credentials=grpc.ssl_channel_credentials(AUTHORITY.certificate))
        async with channel:
            stub: Any = EchoServiceStub(channel)
            await stub.Echo(EchoRequest(), timeout=5)
            _, before = await shown(address, "h2")
            current[0] = certificates(RENEWED)
            _, after = await shown(address, "h2")
            await stub.Echo(EchoRequest(), timeout=5)
            assert before == ssl.PEM_cert_to_DER_cert(OWN.certificate.decode())
            assert after == ssl.PEM_cert_to_DER_cert(RENEWED.certificate.decode())


NAMES = (
    x509.DNSName("client.local"),
    x509.UniformResourceIdentifier("spiffe://a/b"),
    x509.IPAddress(ipaddress.ip_address("10.0.0.1")),
    x509.RFC822Name("a@b.c"),
)


@pytest.mark.parametrize("names", [NAMES, ()])
@pytest.mark.parametrize("ask_for", [True, False])
async def test_the_peer_is_described_as_grpc_core_does(names: tuple[x509.GeneralName, ...], *, ask_for: bool) -> None:
    """``auth_context()``, ``peer_identities()`` and ``peer_identity_key()`` are what they are over grpcio."""
    seen: dict[str, tuple[Any, Any, Any]] = {}

    def looking(wire: str) -> Callable[..., Any]:
        async def echo(request: EchoRequest, context: Context) -> EchoResponse:
            seen[wire] = (context.auth_context(), context.peer_identities(), context.peer_identity_key())
            assert context.peer().startswith("ipv4:127.0.0.1:")
            return EchoResponse()

        return echo

    client = AUTHORITY.sign(*names)
    ours = TlsCredentials(certificates=certificates(ask=ask_for), client="required" if ask_for else "none")
    async with serving(ours, looking("native")) as address:
        await ask(address, client)
    server = Server(
        "127.0.0.1:0",
        middleware=[],
        telemetry=Telemetry(log=None),
        credentials=grpc.ssl_server_credentials(
            [(OWN.key, OWN.certificate)], AUTHORITY.certificate if ask_for else None, require_client_auth=ask_for
        ),
    )
    service(Echo=looking("grpcio"))(server)
    async with server:
        await ask(server.addresses[0], client)
    properties, identities, key = seen["native"]
    assert (identities, key) == seen["grpcio"][1:]
    # What the standard library does not tell: the name that was asked for, and the group of the key exchange.
    known = {
        name: list(values)
        for name, values in seen["grpcio"][0].items()
        if name not in {"ssl_requested_server_name", "ssl_negotiated_key_exchange_group"}
    }
    assert {name: list(values) for name, values in properties.items()} == known


async def test_a_plaintext_peer_is_described_as_grpc_core_does() -> None:
    """Without TLS there is no identity, in grpcio's words."""
    seen: list[Any] = []

    async def echo(request: EchoRequest, context: Context) -> EchoResponse:
        seen.append((context.auth_context(), context.peer_identities(), context.peer_identity_key()))
        return EchoResponse()

    async with serving(None, echo) as address, connect(address, middleware=[]) as channel:
        await EchoServiceStub(channel).Echo(EchoRequest())
    assert seen == [({"transport_security_type": [b"insecure"], "security_level": [b"TSI_SECURITY_NONE"]}, None, None)]


async def test_a_client_must_show_what_is_required() -> None:
    """Without a certificate, or with one of another authority, there is no connection; "optional" lets the first in."""
    stranger = Authority().sign(*NAMES)
    required = TlsCredentials(certificates=certificates(ask=True), client="required")
    async with serving(required) as address:
        for client in (None, stranger):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await ask(address, client)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert await ask(address, AUTHORITY.sign(*NAMES)) == "hello"
    async with serving(TlsCredentials(certificates=certificates(ask=True), client="optional")) as address:
        assert await ask(address) == "hello"


async def test_a_silent_handshake_is_cut_off() -> None:
    """Who connects and never speaks TLS is gone after the time for the handshake."""
    options = [("grpc.server_handshake_timeout_ms", 100)]
    async with serving(TlsCredentials(certificates=certificates()), options=options) as address:
        host, _, port = address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        async with asyncio.timeout(5):
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
        writer.close()
        assert await ask(address) == "hello"


async def until_closed(reader: asyncio.StreamReader) -> None:
    async with asyncio.timeout(5):
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""


async def test_who_has_not_finished_the_handshake_counts_as_connected() -> None:
    """A handshake costs more memory than a connection: at the cap nobody may begin one, and it is free again after."""
    options = [("grpc.server_handshake_timeout_ms", 300), ("grpc.max_allowed_incoming_connections", 2)]
    async with serving(TlsCredentials(certificates=certificates()), options=options) as address:
        host, _, port = address.rpartition(":")
        silent = [await asyncio.open_connection(host, int(port)) for _ in range(2)]
        await asyncio.sleep(0)
        one_more, writer = await asyncio.open_connection(host, int(port))
        await until_closed(one_more)
        assert not any(reader.at_eof() for reader, _ in silent)
        for reader, _ in silent:
            await until_closed(reader)
        assert await ask(address) == "hello"
        for _, each in (*silent, (one_more, writer)):
            each.close()


@pytest.mark.parametrize(
    "said", [b"", b"\x16\x03\x01", b"GET / HTTP/1.1\r\n\r\n"], ids=["nothing", "a little", "no TLS"]
)
async def test_who_leaves_in_the_handshake_is_forgotten(said: bytes) -> None:
    """However a handshake fails, its place is free again."""
    options = [("grpc.max_allowed_incoming_connections", 2)]
    async with serving(TlsCredentials(certificates=certificates()), options=options) as address:
        host, _, port = address.rpartition(":")
        for _ in range(10):
            _, writer = await asyncio.open_connection(host, int(port))
            writer.write(said)
            await asyncio.sleep(0.005)
            writer.transport.abort()
        assert await ask(address) == "hello"


async def test_a_process_without_files_left_accepts_again_later(caplog: pytest.LogCaptureFixture) -> None:
    """It says so, does not go round and round on it, and goes on when there are some again."""
    async with serving(TlsCredentials(certificates=certificates())) as address:
        host, _, port = address.rpartition(":")
        most = resource.getrlimit(resource.RLIMIT_NOFILE)
        with socket.socket() as sock:
            sock.settimeout(0.0)
            resource.setrlimit(resource.RLIMIT_NOFILE, (sock.fileno() + 1, most[1]))
            try:
                await asyncio.get_running_loop().sock_connect(sock, (host, int(port)))
                await asyncio.sleep(0.05)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, most)
        assert [record.getMessage() for record in caplog.records if "accepted" in record.getMessage()] == [
            "no client can be accepted for 1.0 s: [Errno 24] Too many open files"
        ]
        assert await ask(address) == "hello"


async def test_a_handshake_does_not_hold_up_the_end() -> None:
    """Who is at the door when the server goes is sent away."""
    async with asyncio.timeout(5):
        async with serving(TlsCredentials(certificates=certificates())) as address:
            host, _, port = address.rpartition(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(b"\x16\x03\x01")  # the beginning of a ClientHello
            await asyncio.sleep(0.01)
        await until_closed(reader)
        writer.close()


async def test_credentials_of_another_wire_are_refused() -> None:
    """Grpcio's cannot be read back: one clear error says what to give."""
    credentials = grpc.ssl_server_credentials([(OWN.key, OWN.certificate)])
    with pytest.raises(TypeError, match=r"native.*TlsCredentials.*grpcio"):
        async with serving(credentials):
            pass


async def test_certificates_that_cannot_be_used() -> None:
    """They are refused where the address is bound, and the key is in no message and no repr."""
    bad = Certificates(key=OWN.key, chain=RENEWED.certificate)
    with pytest.raises(BindError, match="certificates") as caught:
        async with serving(TlsCredentials(certificates=bad)):
            pass
    assert OWN.key.decode().splitlines()[1] not in f"{caught.value} {caught.value.__cause__} {bad!r}"
    with pytest.raises(ValueError, match="'sometimes'"):
        TlsCredentials(certificates=bad, client="sometimes")  # type: ignore[arg-type]  # that is the test
    with pytest.raises(BindError, match="client_authorities"):
        async with serving(TlsCredentials(certificates=certificates(), client="required")):
            pass


def test_options_that_nothing_could_pass() -> None:
    """They are refused where they are written, by name."""
    for setting in ("connections", "received", "sent", "buffered", "handshake", "turn"):
        wrong: dict[str, Any] = {setting: 0}
        with pytest.raises(ValueError, match=f"{setting}=0"):
            NativeOptions(**wrong)
