"""Wrong settings of ``Server`` and ``connect``."""

from __future__ import annotations

import functools
import io
import json
import re
from typing import Any

import grpc
import pytest

from servicekit import CallError, Code, Server, Telemetry, TlsCredentials, connect, only, standard, standard_client
from servicekit.call import Call
from servicekit.endpoint import Endpoint, Message
from servicekit.middleware import Recovery
from servicekit.native.tls import Certificates
from servicekit.testing import pair
from servicekit.testing.v1.echo_pb2 import EchoRequest, EchoResponse
from servicekit.testing.v1.echo_pb2_grpc import (
    EchoServiceServicer,
    EchoServiceStub,
    add_EchoServiceServicer_to_server,
)
from servicekit.wire import BindError

from .transport.servers import service

BOTH: dict[str, list[Any]] = {
    "middleware": ["standard", 5, print],
    "telemetry": ["json"],
    "interceptors": [5],
    "options": [5, {"grpc.x": 1}, [("grpc.x",)], [(5, 5)], [("grpc.x", None)], [("grpc.x", 4e6)], "xy"],
    "compression": ["gzip", 2],
    "wire": [5, object()],
    "clock": [5],
}
SERVER: dict[str, list[Any]] = {
    "drain": [5],
    "threads": [5],
    "health": ["no", None],
    "reflection": ["no"],
}


def cases(*settings: dict[str, list[Any]]) -> list[tuple[str, Any]]:
    return [(name, value) for some in settings for name, values in some.items() for value in values]


@pytest.mark.parametrize(("name", "value"), cases(BOTH, SERVER))
async def test_a_wrong_setting_of_a_server_is_named_where_it_is_given(name: str, value: object) -> None:
    """Not when the server starts, and not at its end: a wrong ``drain`` would lose the calls that it is for."""
    settings: Any = {name: value}
    with pytest.raises(TypeError, match=re.escape(f"{name}={value!r}")):
        Server("127.0.0.1:0", **settings)


@pytest.mark.parametrize(("name", "value"), cases(BOTH))
async def test_a_wrong_setting_of_a_channel_is_named_where_it_is_given(name: str, value: object) -> None:
    """Not at its first call, or when it is closed."""
    settings: Any = {name: value}
    with pytest.raises(TypeError, match=re.escape(f"{name}={value!r}")):
        connect("127.0.0.1:1", **settings)


@pytest.mark.parametrize("wire", ["grpcio", "native"])
async def test_an_option_whose_value_is_none_is_named(wire: str) -> None:
    """Core would take its default, and tell nobody but its log."""
    size: Any = ("grpc.max_receive_message_length", "big")
    with pytest.raises(TypeError, match=r"grpc\.max_receive_message_length='big'"):
        Server("127.0.0.1:0", options=[size], wire=wire)
    if wire == "grpcio":
        with pytest.raises(TypeError, match=r"grpc\.max_receive_message_length='big'"):
            connect("127.0.0.1:1", options=[size])
        with pytest.raises(ValueError, match=f"grpc.x={2**40}"):
            connect("127.0.0.1:1", options=[("grpc.x", 2**40)])


@pytest.mark.parametrize("address", [None, 5, [5], {"127.0.0.1:0": 1}])
async def test_an_address_is_text(address: object) -> None:
    """So is a target."""
    given: Any = address
    with pytest.raises(TypeError, match=re.escape(f"address={address!r}")):
        Server(given)
    with pytest.raises(TypeError, match=re.escape(f"target={address!r}")):
        connect(given)


async def test_wrong_credentials_are_not_shown() -> None:
    """They may be the key itself."""
    secret: Any = "-----BEGIN PRIVATE KEY-----"
    for make in (Server, connect):
        with pytest.raises(TypeError, match="credentials of type str") as raised:
            make("127.0.0.1:0", credentials=secret)
        assert "PRIVATE" not in str(raised.value)


@pytest.mark.parametrize(
    ("target", "told"),
    [
        ("localhost:99999", "'99999' is no port"),
        ("localhost:0", "'0' is no port"),
        ("localhost:", "'' is no port"),
        ("localhost:abc", "'abc' is no port"),
        ("dns:///localhost:abc", "'abc' is no port"),
        ("ipv4:127.0.0.1:1,127.0.0.1:70000", "'70000' is no port"),
        ("[::1]:70000", "'70000' is no port"),
        ("ipv6:%5B::1%5D:0", "'0' is no port"),
        ("unix:", "no name after unix:"),
        ("dns://localhost:50051", "dns:///host:port"),
    ],
)
async def test_a_target_that_leads_nowhere_is_refused_where_it_is_given(target: str, told: str) -> None:
    """Core takes the port 99999 for 34463, and what follows dns:// for the server that is asked for names."""
    with pytest.raises(ValueError, match=re.escape(f"target {target!r}: ")) as raised:
        connect(target)
    assert told in str(raised.value)


@pytest.mark.parametrize(
    "target", ["localhost", "dns:///localhost", "[::1]", "[::1]:1", "dns://127.0.0.1/localhost:1", "unix:/tmp/s"]
)
async def test_a_target_that_may_lead_somewhere_is_taken(target: str) -> None:
    """A name without a port is one with 443, as gRPC's naming document has it."""
    await connect(target).close()


def test_outside_of_a_loop_it_is_said_where_to_go() -> None:
    """A server or a channel belongs to a loop; both say so in the same words, whatever the wire."""
    for make in (lambda: connect("127.0.0.1:1"), Server, lambda: Server(wire="native")):
        with pytest.raises(RuntimeError, match=r"inside of a coroutine: async def main\(\)"):
            make()


async def test_credentials_of_the_other_wire_are_refused_where_they_are_given() -> None:
    """Each says what this wire takes; so does what is no PEM, and shows nothing of it."""
    pem = b"-----BEGIN PRIVATE KEY-----"
    ours = TlsCredentials(certificates=Certificates(key=pem, chain=pem))
    theirs = grpc.ssl_server_credentials([(pem, pem)])
    with pytest.raises(TypeError, match=re.escape("wire='grpcio' takes grpc.ssl_server_credentials")):
        Server("127.0.0.1:0", credentials=ours)
    with pytest.raises(TypeError, match="wire='native' takes TlsCredentials"):
        Server("127.0.0.1:0", credentials=theirs, wire="native")
    text: Any = pem.decode()
    for wrong in ({"key": text}, {"chain": text}, {"client_authorities": text}):
        with pytest.raises(TypeError, match=f"{next(iter(wrong))} is PEM as bytes, not str") as raised:
            Certificates(**{"key": pem, "chain": pem, **wrong})
        assert "PRIVATE" not in str(raised.value)


async def test_certificates_that_cannot_be_used_are_named_when_it_starts() -> None:
    """On either wire the error is about them, and not only about the address."""
    pem = b"no certificate"
    credentials = grpc.ssl_server_credentials([(pem, pem)])
    with pytest.raises(BindError, match="or its certificates cannot be used"):
        await Server("127.0.0.1:0", credentials=credentials).start()

    def nothing() -> Any:  # noqa: ANN401 - that is the mistake
        return None

    with pytest.raises(TypeError, match="returned no Certificates but NoneType"):
        await Server("127.0.0.1:0", credentials=TlsCredentials(certificates=nothing), wire="native").start()


@pytest.mark.parametrize("wire", ["grpcio", "native"])
@pytest.mark.parametrize(
    "address", ["127.0.0.1:99999", "unix:", "unix-abstract:", "http://127.0.0.1:0", "[::1]:0,[::1]:0"]
)
async def test_an_address_that_is_none_is_named_when_it_starts(wire: str, address: str) -> None:
    """It is refused by its own text, not by what the system makes of it."""
    with pytest.raises(BindError, match=re.escape(f"cannot listen on {address!r}: ")) as raised:
        await Server(address, wire=wire).start()
    assert "taken" not in str(raised.value)
    assert "bind()" not in str(raised.value)


async def echo(request: EchoRequest, _context: object) -> EchoResponse:
    return EchoResponse(text=request.text)


async def test_a_class_in_the_place_of_a_servicer_is_refused_when_it_is_added() -> None:
    """Every call would lack its last argument."""
    given: Any = EchoServiceServicer
    with pytest.raises(TypeError, match="is the servicer a class, no object"):
        add_EchoServiceServicer_to_server(given, Server("127.0.0.1:0"))


async def passing(request: Message, call: Call, next: Endpoint) -> Message:  # noqa: A002 - the term
    return await next(request, call)


async def test_a_link_for_a_path_that_is_not_there_is_told_of() -> None:
    """A misspelled ``only`` would switch off what it is for without a word: the log has path and link."""
    stream = io.StringIO()
    links = [
        only("/servicekit.testing.v1.EchoServce/*", passing),
        only("/servicekit.testing.v1.EchoService/Ecko", passing),
        only("/servicekit.testing.v1.EchoService/*", only("/servicekit.testing.v1.EchoService/Echo", passing)),
        only("/grpc.health.v1.Health/*", passing),
    ]
    server = Server("127.0.0.1:0", middleware=links, telemetry=Telemetry(log="json", stream=stream))
    service(Echo=echo)(server)
    async with server:
        lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    told = [(line["path"], line["link"]) for line in lines if line["level"] == "warning"]
    assert told == [
        ("/servicekit.testing.v1.EchoServce/*", "passing"),
        ("/servicekit.testing.v1.EchoService/Ecko", "passing"),
    ]


class Unknown(Exception):
    pass


async def test_the_errors_of_a_server_hold_for_its_links_too() -> None:
    """A ``Recovery`` without rules takes those of the server; one with its own keeps them."""

    async def link(request: Message, call: Call, next: Endpoint) -> Message:  # noqa: A002 - the term
        raise Unknown

    quiet = Telemetry(log=None)
    for links, code in (
        (standard(quiet), grpc.StatusCode.NOT_FOUND),
        (standard(quiet, errors={Unknown: Code.ABORTED}), grpc.StatusCode.ABORTED),
    ):
        async with pair(
            service(Echo=echo),
            middleware=[*links, link],
            errors={Unknown: Code.NOT_FOUND},
        ) as ends:
            with pytest.raises(CallError) as caught:
                await EchoServiceStub(ends.channel).Echo(EchoRequest())
            assert caught.value.code() is code


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"timeout": "5"}, "timeout='5' is no number of seconds"),
        ({"timeout": float("nan")}, "timeout=nan is no number of seconds"),
        ({"metadata": {"k": "v"}}, "metadata is a sequence of (key, value), not dict"),
        ({"metadata": "kv"}, "metadata is a sequence of (key, value), not str"),
    ],
)
async def test_what_a_call_is_given_is_checked_by_name(settings: dict[str, Any], told: str) -> None:
    """Before anything is sent."""
    async with pair(service(Echo=echo)) as ends:
        with pytest.raises(TypeError, match=re.escape(told)):
            await EchoServiceStub(ends.channel).Echo(EchoRequest(), **settings)


async def test_a_servicer_may_be_decorated() -> None:
    """What the decorator takes counts, not what it gives on."""

    async def stored(request: EchoRequest, _context: object, store: str) -> EchoResponse:
        return EchoResponse(text=request.text + store)

    @functools.wraps(stored)
    async def decorated(request: EchoRequest, context: object) -> EchoResponse:
        return await stored(request, context, "!")

    async with pair(service(Echo=decorated)) as ends:
        assert (await EchoServiceStub(ends.channel).Echo(EchoRequest(text="a"))).text == "a!"


async def test_a_recovery_of_ones_own_stays() -> None:
    """Only one of ours is given the rules of the server: a subclass may do otherwise."""
    ran: list[str] = []

    class Mine(Recovery):
        async def __call__(self, request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
            ran.append(call.method.name)
            return await super().__call__(request, call, next)

    async with pair(service(Echo=echo), middleware=[Mine()], errors={Unknown: Code.NOT_FOUND}) as ends:
        await EchoServiceStub(ends.channel).Echo(EchoRequest())
    assert ran == ["Echo"]


async def test_a_codec_may_take_none_for_a_message() -> None:
    """JSON's null is one: only a link that forgot to return it is told so."""
    raw = grpc.method_handlers_generic_handler(
        "a.B", {"C": grpc.unary_unary_rpc_method_handler(_nothing, json.loads, lambda each: json.dumps(each).encode())}
    )
    async with pair(
        lambda server: server.add_generic_rpc_handlers((raw,)),
        middleware=standard(Telemetry(log=None)),
        client=standard_client(Telemetry(log=None)),
    ) as ends:
        call = ends.channel.unary_unary("/a.B/C", lambda each: json.dumps(each).encode(), json.loads)
        assert await call(None) is None


async def _nothing(request: object, _context: object) -> None:
    assert request is None
