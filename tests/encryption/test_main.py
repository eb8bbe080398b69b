import asyncio
import json
import os
import signal
import socket
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest, ServerReflectionResponse

from encryption.demo import TEXT
from encryption.main import BadSetting, main, read_address, read_keyring, read_wire
from encryption.v1.encryption_pb2 import EncryptRequest, EncryptStreamRequest, EncryptStreamStart
from encryption.v1.encryption_pb2_grpc import EncryptionServiceStub
from servicekit import connect

SERVICE = "encryption.v1.EncryptionService"
KEY = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
SETTINGS = ("ADDRESS", "ALLOW_PLAINTEXT", "ENCRYPTION_KEYRING", "GRPC_VERBOSITY", "WIRE")

both = pytest.mark.parametrize("wire", ["grpcio", "native"])


@asynccontextmanager
async def running(module: str, **settings: str) -> AsyncGenerator[Process, None]:
    """Run a module of the reference service as `python -m` does; killed at the end of the block, if it is still there."""
    environment = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", f"encryption.{module}", stdout=PIPE, stderr=PIPE, env=environment | settings
    )
    try:
        async with asyncio.timeout(15):
            yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def ended(process: Process) -> tuple[int | None, str, str]:
    """Exit code, and the rest of both outputs."""
    out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


async def line(process: Process) -> dict[str, Any]:
    """The next line of the log."""
    assert process.stdout is not None
    fields: dict[str, Any] = json.loads(await process.stdout.readline())
    return fields


async def serving(process: Process, wire: str = "grpcio") -> str:
    """Where it serves, once it does. It is safe to send signals after the first answer, not before."""
    fields = await line(process)
    assert (fields["event"], fields.get("wire")) == ("serving", wire), fields
    (address,) = fields["addresses"]
    async with connect(address, middleware=[]) as channel:
        check = channel.unary_unary(
            "/grpc.health.v1.Health/Check", HealthCheckRequest.SerializeToString, HealthCheckResponse.FromString
        )
        for service in ("", SERVICE):
            answer = await check(HealthCheckRequest(service=service))
            assert answer.status == HealthCheckResponse.SERVING
    return str(address)


def events(log: str) -> list[str]:
    return [json.loads(line)["event"] for line in log.splitlines()]


# Serving


@both
async def test_it_serves_the_demo_until_it_is_told_to_go(wire: str) -> None:
    """Health and reflection know the service, the demo gets its text back, and SIGTERM ends it with 0."""
    async with running("main", ADDRESS="127.0.0.1:0", ENCRYPTION_KEYRING=f"k1:{KEY}", WIRE=wire) as server:
        address = await serving(server, wire)
        assert not address.endswith(":0")
        async with connect(address, middleware=[]) as channel:
            reflection = channel.stream_stream(
                "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
                ServerReflectionRequest.SerializeToString,
                ServerReflectionResponse.FromString,
            )
            (told,) = [answer async for answer in reflection(iter([ServerReflectionRequest(list_services="")]))]
            assert SERVICE in [service.name for service in told.list_services_response.service]
            reply = await EncryptionServiceStub(channel).Encrypt(EncryptRequest(key_id="k1", text="text"))
            assert reply.envelope.startswith("enc_")
        async with running("demo", ADDRESS=address) as demo:
            code, said, logged = await ended(demo)
        assert code == 0
        assert f"decrypted: {TEXT}, the same as before\n" in said
        assert "120,000 bytes in 3 chunks, the same as before\n" in said
        assert events(logged) == ["rpc"] * 4
        server.send_signal(signal.SIGTERM)
        code, log, errors = await ended(server)
    assert (code, errors) == (0, "")
    assert events(log) == [*["rpc"] * 5, "draining", "stopped"]
    assert KEY not in log


@both
async def test_it_serves_on_a_unix_socket(tmp_path: Path, wire: str) -> None:
    """Which no other machine can reach, so it needs no leave; SIGINT ends it like SIGTERM."""
    address = f"unix:{tmp_path}/s"
    async with running("main", ADDRESS=address, WIRE=wire) as server:
        assert await serving(server, wire) == address
        server.send_signal(signal.SIGINT)
        code, log, errors = await ended(server)
    assert (code, events(log), errors) == (0, ["draining", "stopped"], "")


@both
async def test_a_second_signal_ends_it_at_once(wire: str) -> None:
    """With 128 + the signal's number, while a call is under way that would never end."""
    async with running("main", ADDRESS="127.0.0.1:0", WIRE=wire) as server:
        async with connect(await serving(server, wire), middleware=[]) as channel:
            call = EncryptionServiceStub(channel).EncryptStream()
            await call.write(EncryptStreamRequest(start=EncryptStreamStart(key="correct horse battery staple")))
            await anext(aiter(call))
            server.send_signal(signal.SIGTERM)
            assert (await line(server))["event"] == "draining"
            server.send_signal(signal.SIGTERM)
            code, log, _ = await ended(server)
        assert (code, events(log)) == (128 + signal.SIGTERM, ["told twice, ending at once"])


# Not serving


@both
async def test_a_port_that_is_taken_is_named(wire: str) -> None:
    """One line of log that names the address, no traceback, nothing that core says of it by itself, and 1."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        async with running("main", ADDRESS=address, WIRE=wire) as server:
            code, log, errors = await ended(server)
    assert code == 1
    assert events(log) == ["cannot start"]
    assert address in log
    assert errors == ""


async def test_a_wrong_setting_is_one_line() -> None:
    """No traceback either, and 1."""
    async with running("main", ADDRESS="0.0.0.0:0") as server:
        code, log, errors = await ended(server)
    assert (code, events(log), errors) == (1, ["cannot start"], "")
    assert "ALLOW_PLAINTEXT=1" in log


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"ADDRESS": "[::]:0"}, "set ALLOW_PLAINTEXT=1"),
        ({"ADDRESS": "nowhere"}, "ADDRESS='nowhere' is neither host:port nor unix:path"),
        ({"ENCRYPTION_KEYRING": KEY}, "ENCRYPTION_KEYRING: keyring entry 1: expected id:key"),
        ({"ENCRYPTION_KEYRING": f"k1:{KEY[:-4]}"}, "ENCRYPTION_KEYRING: keyring entry 1: the key has 30 bytes, not 32"),
        ({"ENCRYPTION_KEYRING": f"k1:{KEY},{KEY}:k2"}, "ENCRYPTION_KEYRING: keyring entry 2: the key is not"),
    ],
)
async def test_a_wrong_setting_is_named_and_its_keys_are_not_shown(
    monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes], settings: dict[str, str], reason: str
) -> None:
    """The variable and its rule, as the one line of the log; nothing of a keyring, good or bad."""
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as exit_:
        await main()
    assert exit_.value.code == 1
    out, err = capfdbinary.readouterr()
    assert events(out.decode()) == ["cannot start"]
    assert reason in json.loads(out)["reason"]
    assert KEY[:20].encode() not in out + err


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1:0", "127.8.9.10:1", "[::1]:65535", "localhost:50051", "LocalHost:1", "unix:a/b", "unix-abstract:a"],
)
def test_an_address_of_this_machine_alone_needs_no_leave(address: str) -> None:
    """Loopback addresses, localhost and Unix sockets."""
    assert read_address({"ADDRESS": address}) == address


@pytest.mark.parametrize(
    "address",
    ["0.0.0.0:1", "[::]:1", "10.0.0.1:1", "[fe80::1]:1", "example.org:1", "localhost.example.org:1", "127.1:1", "*:1"],
)
def test_any_other_address_needs_leave(address: str) -> None:
    """Every name that is not localhost too, whatever it stands for today."""
    with pytest.raises(BadSetting, match="ALLOW_PLAINTEXT=1"):
        read_address({"ADDRESS": address, "ALLOW_PLAINTEXT": "yes"})
    assert read_address({"ADDRESS": address, "ALLOW_PLAINTEXT": "1"}) == address


@pytest.mark.parametrize("address", ["", "localhost", "::1", ":1", "127.0.0.1:", "127.0.0.1:http", "127.0.0.1:65536"])
def test_what_is_no_address_is_refused(address: str) -> None:
    """With leave, too: gRPC would make something of each of them."""
    with pytest.raises(BadSetting, match=r"neither host:port nor unix:path|ALLOW_PLAINTEXT"):
        read_address({"ADDRESS": address})


def test_nothing_needs_to_be_set() -> None:
    """The default is the loopback interface, and no keys."""
    assert read_address({}) == "127.0.0.1:50051"
    assert read_keyring({}) is None
    assert read_wire({}) == "grpcio"


def test_a_wire_that_is_none_is_named() -> None:
    """With those that there are."""
    assert read_wire({"WIRE": "native"}) == "native"
    with pytest.raises(BadSetting, match="WIRE='pigeon' is none of grpcio, native"):
        read_wire({"WIRE": "pigeon"})


async def test_the_demo_says_that_nobody_is_there() -> None:
    """In one line, and soon; 1."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # and nobody listens, nor can
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        async with asyncio.timeout(10), running("demo", ADDRESS=address) as demo:
            code, _, errors = await ended(demo)
    assert code == 1
    *log, last = errors.splitlines()
    assert [json.loads(line)["code"] for line in log] == ["UNAVAILABLE"]
    assert last == f"demo: nobody answers at {address} (UNAVAILABLE): `make run` starts a server there"
