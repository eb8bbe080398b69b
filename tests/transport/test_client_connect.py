"""What ``connect`` passes on to grpcio, and what it refuses."""

from __future__ import annotations

import asyncio
import datetime as dt
import ipaddress
import socket
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from servicekit import CallError, Server, Telemetry, client_interceptors, connect
from servicekit.endpoint import Chain, Message
from servicekit.errors import By, Code, Error
from servicekit.method import Kind
from servicekit.process.drain import Drain
from servicekit.testing import pair
from servicekit.testing.pair import Over
from servicekit.testing.v1.echo_pb2 import EchoRequest, EchoResponse, ExpandRequest, ExpandResponse

from .clients import (
    ANSWERS,
    Context,
    Untyped,
    _nothing_is_left,  # noqa: F401 - a fixture for every test here
    ask,
    begin,
    both,
    echo,
    every_kind,
    finish,
    stub_of,
)


def serve(address: str = "127.0.0.1:0", *, methods: dict[str, Any] | None = None, **settings: Untyped) -> Server:
    """Return a server with nothing around its methods."""
    given: dict[str, Any] = {"telemetry": Telemetry(log=None), "drain": Drain(delay=0.0, grace=0.0), "middleware": []}
    server = Server(address, **(given | settings))
    echo(**(methods or {}))(server)
    return server


@pytest.fixture
def dead_port() -> Iterator[int]:
    """A port that is taken, and where nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


@pytest.mark.parametrize("scheme", ["srv", "etcd", "consul", "zk", "k8s"])
async def test_a_registry_as_target(scheme: str) -> None:
    """What cannot be resolved yet is one clear error, and no channel that never connects."""
    with pytest.raises(ValueError, match=f"'{scheme}'.*not there yet.*host:port"):
        connect(f"{scheme}://127.0.0.1/service")


async def test_a_wire_that_is_not_there() -> None:
    """The same for wires, on both sides; the error names what was asked for, and what there is."""
    with pytest.raises(ValueError, match=r"carrier-pigeon.*none of 'grpcio', 'native'"):
        connect("127.0.0.1:1", wire="carrier-pigeon")
    with pytest.raises(ValueError, match=r"carrier-pigeon.*none of 'grpcio', 'native'"):
        Server(wire="carrier-pigeon")


async def test_a_wire_that_only_serves() -> None:
    """The native wire has no client yet, and says which one to take."""
    with pytest.raises(ValueError, match=r"'native' has no client yet.*'grpcio'"):
        connect("127.0.0.1:1", wire="native")


@pytest.mark.parametrize("target", ["", " ", "http://127.0.0.1:1", "foo:///bar"])
async def test_a_target_that_nobody_resolves_is_refused(target: str) -> None:
    """Core takes all of it for the name of a host, and every call waits for an answer about that."""
    with pytest.raises(ValueError, match=f"'{target}'.*host:port"):
        connect(target)


async def test_a_middleware_that_is_none() -> None:
    """What is no middleware is refused when the channel is made."""
    not_one: Any = 5
    with pytest.raises(TypeError, match="not 5"):
        connect("127.0.0.1:1", middleware=[not_one])


@every_kind
@pytest.mark.parametrize("form", ["127.0.0.1:{}", "ipv4:127.0.0.1:{}", "dns:///localhost:{}", "localhost:{}"])
async def test_targets_that_core_resolves(form: str, kind: Kind) -> None:
    """They go to core as they are."""
    async with serve() as server:
        port = server.addresses[0].rpartition(":")[2]
        async with connect(form.format(port), middleware=[]) as channel:
            assert await ask(channel, kind) == ANSWERS[kind]
            assert form.format(port) in repr(channel)


@every_kind
async def test_a_unix_socket(kind: Kind, tmp_path: Path) -> None:
    """A path of the file system, on both sides."""
    address = f"unix:{tmp_path}/s"
    async with serve(address), connect(address, middleware=[]) as channel:
        assert await ask(channel, kind) == ANSWERS[kind]


@every_kind
async def test_a_dead_port(kind: Kind, dead_port: int) -> None:
    """UNAVAILABLE at once, and known not to have been begun: it is safe to ask somebody else."""
    async with connect(f"127.0.0.1:{dead_port}", middleware=[]) as channel:
        with pytest.raises(CallError) as caught:
            await ask(channel, kind)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert not caught.value.error.begun
        assert caught.value.error.by is By.LOCAL


@every_kind
async def test_wait_for_ready_waits_for_the_deadline(kind: Kind, dead_port: int) -> None:
    """Asked to wait, a call to a dead port ends when its time is over."""
    async with connect(f"127.0.0.1:{dead_port}", middleware=[]) as channel:
        with pytest.raises(CallError) as caught:
            await ask(channel, kind, wait_for_ready=True, timeout=0.05)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


@every_kind
async def test_wait_for_ready_waits_for_the_server(kind: Kind) -> None:
    """The call that was made before the server was there is served by it."""
    async with pair(echo()) as ends:
        assert ends.network is not None
        late = Server(
            "memory:late",
            wire=ends.network.listener(),
            clock=ends.movable,
            middleware=[],
            telemetry=Telemetry(log=None),
            drain=Drain(delay=0.0, grace=0.0),
        )
        echo()(late)
        async with connect("late", wire=ends.network.wire("memory:late"), clock=ends.movable, middleware=[]) as channel:
            call = begin(channel, kind, wait_for_ready=True)
            await ends.clock.advance(1.0)
            assert not call.done()
            await late.start()
            await ends.clock.advance(1.0)
            assert await call.code() is grpc.StatusCode.OK if not kind.response_streaming else not call.done()
            call.cancel()
        await late.stop(0.0)


@both
async def test_a_message_that_is_too_large(over: Over) -> None:
    """Over 4 MiB either way is RESOURCE_EXHAUSTED, and the connection goes on."""
    big = bytes(4 * 1024 * 1024 + 1)

    async def growing(request: EchoRequest, context: Context) -> EchoResponse:
        return EchoResponse(payload=big)

    async with pair(echo(Store=growing), over=over) as ends:
        stub: Any = stub_of(ends.channel)
        for method, request in ((stub.Echo, EchoRequest(payload=big)), (stub.Store, EchoRequest())):
            with pytest.raises(CallError) as caught:
                await method(request)
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await ask(ends.channel, Kind.UNARY) == ["a"]


async def test_options_go_to_core() -> None:
    """A limit on messages given to ``connect`` is core's own."""
    options = [("grpc.max_receive_message_length", 100)]
    async with serve() as server, connect(server.addresses[0], middleware=[], options=options) as channel:
        stub = stub_of(channel)
        assert len((await stub.Echo(EchoRequest(payload=bytes(50)))).payload) == 50
        with pytest.raises(CallError) as caught:
            await stub.Echo(EchoRequest(payload=bytes(200)))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


@every_kind
@pytest.mark.parametrize("place", ["channel", "call"])
async def test_compression(place: str, kind: Kind) -> None:
    """Asked for on the channel or for one call, messages arrive as they were sent."""
    gzip = grpc.Compression.Gzip
    settings: dict[str, Any] = {"compression": gzip} if place == "channel" else {}
    async with serve(compression=gzip) as server, connect(server.addresses[0], middleware=[], **settings) as channel:
        extra = {"compression": gzip} if place == "call" else {}
        assert await ask(channel, kind, **extra) == ANSWERS[kind]
        text = "a" * 100_000
        assert (await stub_of(channel).Echo(EchoRequest(text=text), **extra)).text == text


@every_kind
async def test_grpc_aios_own_interceptors(kind: Kind) -> None:
    """They stand inside of the chain, on bytes, and see every kind of call: streams of requests as streams."""
    seen: list[type] = []

    async def looking(request: Message, call: Untyped, next: Untyped, /) -> Untyped:  # noqa: A002 - the term
        seen.append(type(request))
        call.metadata.add("looked", "yes")
        return await next(request, call)

    arrived: list[Any] = []

    async def noting(request: Message, call: Untyped, next: Untyped, /) -> Untyped:  # noqa: A002 - the term
        arrived.append(call.metadata.get("looked"))
        return await next(request, call)

    async with serve(middleware=[noting]) as server:
        inside = client_interceptors([looking])
        async with connect(server.addresses[0], middleware=[], interceptors=inside) as channel:
            assert await ask(channel, kind) == ANSWERS[kind]
    assert arrived == ["yes"]
    assert len(seen) == 1


def refusing(kind: Kind) -> Untyped:
    """Return an interceptor that raises in the place of a call; to the wire all streams of requests are of one kind."""
    base, name = {
        Kind.UNARY: (grpc.aio.UnaryUnaryClientInterceptor, "intercept_unary_unary"),
        Kind.SERVER_STREAM: (grpc.aio.UnaryStreamClientInterceptor, "intercept_unary_stream"),
    }.get(kind, (grpc.aio.StreamStreamClientInterceptor, "intercept_stream_stream"))

    async def refuse(self: Untyped, continuation: Untyped, details: Untyped, request: Message) -> Untyped:
        raise ZeroDivisionError("a secret")

    return type("Refusing", (base,), {name: refuse})()


class After(grpc.aio.UnaryStreamClientInterceptor):
    """An interceptor that passes on ``count`` messages, or all of them, and then raises or adds some of its own."""

    def __init__(self, count: int | None, error: Exception | None = None, extra: int = 0) -> None:
        self.count, self.error, self.extra = count, error, extra

    async def intercept_unary_stream(self, continuation: Untyped, details: Untyped, request: Message) -> Untyped:
        call = await continuation(details, request)

        async def messages() -> AsyncIterator[bytes]:
            passed = 0
            async for message in call:
                yield message
                passed += 1
                if passed == self.count:
                    break
            if self.error is not None:
                raise self.error
            for index in range(self.extra):
                await asyncio.sleep(0)
                yield ExpandResponse(index=100 + index).SerializeToString()

        return messages()


MINE = grpc.aio.AioRpcError(grpc.StatusCode.ABORTED, grpc.aio.Metadata(), grpc.aio.Metadata(("t", "1")), "mine")
BROKEN = pytest.mark.parametrize(
    ("error", "code", "details"),
    [
        (ZeroDivisionError("a secret"), grpc.StatusCode.INTERNAL, "an interceptor raised ZeroDivisionError"),
        (MINE, grpc.StatusCode.ABORTED, "mine"),
        (Error(Code.NOT_FOUND, "ours"), grpc.StatusCode.NOT_FOUND, "ours"),
    ],
    ids=["stranger", "status", "error"],
)


@every_kind
async def test_an_interceptor_that_raises_in_the_place_of_a_call(kind: Kind) -> None:
    """It is a failure as others are, which the chain sees and the caller gets as a CallError."""
    seen: list[BaseException] = []
    async with (
        serve() as server,
        connect(server.addresses[0], middleware=[watching(seen)], interceptors=[refusing(kind)]) as channel,
    ):
        with pytest.raises(CallError) as caught:
            await ask(channel, kind)
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert caught.value.details() == "an interceptor raised ZeroDivisionError"
    (error,) = seen
    assert isinstance(error, Error)
    assert error.by is By.LOCAL


@BROKEN
async def test_an_interceptor_that_raises_in_mid_stream(error: Exception, code: grpc.StatusCode, details: str) -> None:
    """It ends the RPC, and is how the call failed: for the chain, for the reader, and for who asks for the code."""
    seen: list[BaseException] = []
    left = asyncio.Event()

    async def endless(request: Message, context: Context) -> None:
        try:
            await context.write(ExpandResponse())
            await asyncio.Event().wait()
        finally:
            left.set()

    async with (
        serve(methods={"Expand": endless}) as server,
        connect(server.addresses[0], middleware=[watching(seen)], interceptors=[After(1, error)]) as channel,
    ):
        call = begin(channel, Kind.SERVER_STREAM)
        assert (await call.read()).index == 0
        with pytest.raises(CallError) as caught:
            await call.read()
        assert (caught.value.code(), caught.value.details()) == (code, details)
        assert await call.code() is code
        await left.wait()
    assert [type(error) for error in seen] == [Error]


@BROKEN
async def test_an_interceptor_that_raises_after_the_last_message(
    error: Exception, code: grpc.StatusCode, details: str
) -> None:
    """What the wire has said by then does not hide it."""
    async with (
        serve() as server,
        connect(server.addresses[0], middleware=[], interceptors=[After(None, error)]) as channel,
    ):
        call = begin(channel, Kind.SERVER_STREAM)
        with pytest.raises(CallError) as caught:
            await finish(call, Kind.SERVER_STREAM)
        assert (caught.value.code(), caught.value.details()) == (code, details)


async def test_an_interceptor_that_adds_messages_at_the_end() -> None:
    """They are the caller's too, though the wire has long said OK; and nobody has to take them."""
    async with (
        serve() as server,
        connect(server.addresses[0], middleware=[], interceptors=[After(None, extra=3)]) as channel,
    ):
        call = begin(channel, Kind.SERVER_STREAM)
        assert await finish(call, Kind.SERVER_STREAM) == [0, 1, 2, 100, 101, 102]
        assert await call.code() is grpc.StatusCode.OK
        call = begin(channel, Kind.SERVER_STREAM)
        assert [(await call.read()).index for _ in range(4)] == [0, 1, 2, 100]
        assert call.cancel()
        assert await call.code() is grpc.StatusCode.CANCELLED
        nothing = stub_of(channel).Expand(ExpandRequest(count=0))
        assert (await nothing.read()).index == 100
        del nothing


def watching(seen: list[BaseException]) -> Untyped:
    """Return a link that notes what calls fail with."""

    async def watch(request: Message, call: Untyped, next: Untyped, /) -> Untyped:  # noqa: A002 - the term
        try:
            return await next(request, call)
        except BaseException as error:
            seen.append(error)
            raise

    return watch


@dataclass
class Identity:
    """A self-signed certificate, which is its own authority."""

    key: bytes
    certificate: bytes


def identity(name: str) -> Identity:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    names = [x509.DNSName(name), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    return Identity(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
        certificate.public_bytes(serialization.Encoding.PEM),
    )


@pytest.fixture(scope="module")
def server_identity() -> Identity:
    return identity("server.test")


@pytest.fixture(scope="module")
def client_identity() -> Identity:
    return identity("client.test")


@every_kind
async def test_tls(kind: Kind, server_identity: Identity) -> None:
    """Credentials go to core on both sides; who does not trust the server, or speaks no TLS, is not served."""
    server_credentials = grpc.ssl_server_credentials([(server_identity.key, server_identity.certificate)])
    trusting = grpc.ssl_channel_credentials(server_identity.certificate)
    async with serve(credentials=server_credentials) as server:
        async with connect(server.addresses[0], middleware=[], credentials=trusting) as channel:
            assert await ask(channel, kind) == ANSWERS[kind]
        async with connect(server.addresses[0], middleware=[]) as channel:
            with pytest.raises(CallError) as caught:
                await ask(channel, kind)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_mutual_tls(server_identity: Identity, client_identity: Identity) -> None:
    """The client's certificate is what the servicer finds in its context."""
    seen: list[Any] = []

    async def looking(request: Message, context: Context) -> EchoResponse:
        seen.append((context.auth_context(), context.peer_identities(), context.peer_identity_key()))
        return EchoResponse()

    server_credentials = grpc.ssl_server_credentials(
        [(server_identity.key, server_identity.certificate)], client_identity.certificate, require_client_auth=True
    )
    credentials = grpc.ssl_channel_credentials(
        server_identity.certificate, client_identity.key, client_identity.certificate
    )
    async with serve(methods={"Echo": looking}, credentials=server_credentials) as server:
        async with connect(server.addresses[0], middleware=[], credentials=credentials) as channel:
            await stub_of(channel).Echo(EchoRequest())
        anonymous = grpc.ssl_channel_credentials(server_identity.certificate)
        async with connect(server.addresses[0], middleware=[], credentials=anonymous) as channel:
            with pytest.raises(CallError) as caught:
                await stub_of(channel).Echo(EchoRequest())
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    ((properties, identities, key),) = seen
    assert properties["x509_common_name"] == [b"client.test"]
    assert properties["transport_security_type"] == [b"ssl"]
    assert key == "x509_subject_alternative_name"
    assert b"client.test" in identities


@every_kind
async def test_call_credentials(kind: Kind, server_identity: Identity) -> None:
    """A token given with one call arrives as its metadata; the next call has none."""
    seen: list[Any] = []

    async def noting(request: Message, call: Untyped, next: Untyped, /) -> Untyped:  # noqa: A002 - the term
        seen.append(call.metadata.get("authorization"))
        return await next(request, call)

    server_credentials = grpc.ssl_server_credentials([(server_identity.key, server_identity.certificate)])
    trusting = grpc.ssl_channel_credentials(server_identity.certificate)
    async with (
        serve(credentials=server_credentials, middleware=[noting]) as server,
        connect(server.addresses[0], middleware=[], credentials=trusting) as channel,
    ):
        token = grpc.access_token_call_credentials("secret")
        assert await ask(channel, kind, credentials=token) == ANSWERS[kind]
        assert await ask(channel, kind) == ANSWERS[kind]
    assert seen == ["Bearer secret", None]


@both
async def test_connectivity(over: Over) -> None:
    """A channel says whether it is there, as grpc.aio's does."""
    async with pair(echo(), over=over) as ends:
        channel = ends.connect()
        await channel.channel_ready()
        assert channel.get_state() is grpc.ChannelConnectivity.READY
        await channel.close()
        assert channel.get_state(try_to_connect=True) is grpc.ChannelConnectivity.SHUTDOWN


async def test_the_standard_chain_is_the_default() -> None:
    """No list of middleware means the standard one; an empty list means none."""
    async with connect("127.0.0.1:1", telemetry=Telemetry(log=None)) as channel:
        assert "RequestId" in repr(channel)
        assert "Deadline" in repr(channel)
    async with connect("127.0.0.1:1", middleware=[]) as channel:
        assert repr(Chain(())) in repr(channel)


class Buffering(grpc.aio.UnaryStreamClientInterceptor):
    """An interceptor that reads all before it passes on the first."""

    async def intercept_unary_stream(self, continuation: Untyped, details: Untyped, request: Message) -> Untyped:
        call = await continuation(details, request)

        async def messages() -> AsyncIterator[bytes]:
            for message in [each async for each in call]:
                yield message

        return messages()


async def test_the_code_behind_an_interceptor_that_reads_ahead() -> None:
    """Who has taken every message may ask for the code; that another read would say so is nobody's to know."""
    async with (
        serve() as server,
        connect(server.addresses[0], middleware=[], interceptors=[Buffering()]) as channel,
    ):
        call = begin(channel, Kind.SERVER_STREAM)
        assert [(await call.read()).index for _ in range(3)] == [0, 1, 2]
        async with asyncio.timeout(10):
            assert await call.code() is grpc.StatusCode.OK
