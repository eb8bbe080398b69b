"""The README keeps its word: what it shows runs, as it stands."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import AsyncIterator
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest
from cryptography import x509

from servicekit import CallError, Server, Telemetry, current_call
from servicekit.middleware import hash_key, new_key, principal_of, standard, standard_client
from servicekit.testing import pair
from servicekit.testing.v1.echo_pb2 import ChatRequest, EchoRequest, EchoResponse, SumRequest
from servicekit.testing.v1.echo_pb2_grpc import (
    EchoServiceServicer,
    EchoServiceStub,
    add_EchoServiceServicer_to_server,
)
from tests.security.certificates import Authority

PROJECT = Path(__file__).parent.parent
README = (PROJECT / "README.md").read_text()
EXAMPLES = dict(re.findall(r"<!-- (\S+) -->\n```\w+\n(.*?)```", README, re.DOTALL))
ADDRESS = "127.0.0.1:50051"


# The programs that the page calls are those of the environment, as when it is activated.
PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])


def free_address() -> str:
    """Return an address of the loopback interface that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


@pytest.mark.parametrize("name", ["server.py", "client.py"])
def test_an_example_is_short_and_names_the_address(name: str) -> None:
    """A server and a client take twenty lines each, blank ones not counted."""
    assert ADDRESS in EXAMPLES[name]
    assert len([line for line in EXAMPLES[name].splitlines() if line.strip()]) <= 20


def test_the_server_and_the_client_run_as_written(tmp_path: Path) -> None:
    """Copied from the page into two files, they talk to each other, and the server goes with 0 at SIGTERM."""
    address = free_address()
    for name in ("server.py", "client.py"):
        (tmp_path / name).write_text(EXAMPLES[name].replace(ADDRESS, address))
    env = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        [sys.executable, "server.py"], cwd=tmp_path, stdout=subprocess.PIPE, text=True, env=env
    ) as server:
        try:
            assert server.stdout is not None
            assert "serving" in server.stdout.readline()
            client = subprocess.run(
                [sys.executable, "client.py"],
                cwd=tmp_path,
                capture_output=True,
                text=True,
                timeout=50,
                check=True,
                env=env,
            )
            said = [line for line in client.stdout.splitlines() if not line.startswith("{")]
            assert said == ["hello", "INVALID_ARGUMENT TEXT_EMPTY"]
            server.send_signal(signal.SIGTERM)
            rest = server.stdout.read()
            assert server.wait(timeout=50) == 0, rest
        finally:
            server.kill()


@pytest.mark.parametrize(("name", "passed"), [("test_echo.py", r"1 passed"), ("test_tenant.py", r"\d\d passed")])
def test_the_test_example_passes(name: str, passed: str, tmp_path: Path) -> None:
    """The tests of the page are tests: pytest runs them."""
    for file in (name, "pyproject.toml"):
        (tmp_path / file).write_text(EXAMPLES[file])
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "not socket", name]
    shown = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=50, check=False)
    assert re.search(f"^{passed}", shown.stdout, re.MULTILINE), shown.stdout + shown.stderr
    assert "failed" not in shown.stdout


def executed(name: str, **replaced: tuple[str, str]) -> dict[str, Any]:
    """Return what an example defines."""
    text = EXAMPLES[name]
    for old, new in replaced.values():
        assert old in text
        text = text.replace(old, new)
    names: dict[str, Any] = {}
    exec(compile(text, name, "exec"), names)
    return names


@pytest.mark.parametrize("name", ["middleware.py", "adopt.py"])
def test_a_fragment_can_be_executed(name: str) -> None:
    """What is shown in pieces has at least its imports and its names right."""
    assert any(callable(thing) for key, thing in executed(name).items() if key in {"slow_calls", "your_server"})


def test_every_example_is_known_here() -> None:
    """What is added to the page is tried too: each of these is run by a test of this file."""
    python = "server client streams middleware observed secured adopt test_echo test_tenant"
    files = "pyproject.toml buf.yaml buf.gen.yaml generate.sh"
    assert sorted(EXAMPLES) == sorted([*(f"{name}.py" for name in python.split()), *files.split()])
    assert README.count("\n```") == 2 * len(EXAMPLES)


async def test_the_streams_flow() -> None:
    """The servicer of the page takes a stream, and makes one."""
    servicer = executed("streams.py")["Streams"]()

    async def numbers() -> AsyncIterator[SumRequest]:
        for number in (1, 2, 3):
            yield SumRequest(number=number)

    async def talk() -> AsyncIterator[ChatRequest]:
        for text in ("a", "b"):
            yield ChatRequest(text=text)

    async with pair(lambda server: add_EchoServiceServicer_to_server(servicer, server)) as ends:
        stub = EchoServiceStub(ends.channel)
        assert (await stub.Sum(numbers())).total == 6
        assert [reply.text async for reply in stub.Chat(talk())] == ["a", "b"]


def test_the_observed_server_is_seen(tmp_path: Path) -> None:
    """It logs JSON to standard error, of calls and of itself, and its figures are on the page that it opens."""
    port = free_address().rpartition(":")[2]
    (tmp_path / "observed.py").write_text(EXAMPLES["observed.py"].replace("9464", port))
    (tmp_path / "seen.py").write_text(
        textwrap.dedent(f"""
            import asyncio, urllib.request
            from servicekit import Telemetry, connect
            from servicekit.testing.v1 import echo_pb2, echo_pb2_grpc
            from observed import your_server

            class Echo(echo_pb2_grpc.EchoServiceServicer):
                async def Echo(self, request, context):
                    return echo_pb2.EchoResponse()

            async def main():
                server = your_server("127.0.0.1:0")
                echo_pb2_grpc.add_EchoServiceServicer_to_server(Echo(), server)
                async with server, connect(server.addresses[0], telemetry=Telemetry(log=None)) as channel:
                    await echo_pb2_grpc.EchoServiceStub(channel).Echo(echo_pb2.EchoRequest(), timeout=30)
                    page = await asyncio.to_thread(urllib.request.urlopen, "http://127.0.0.1:{port}/metrics")
                    print(page.read().decode())

            asyncio.run(main())
        """)
    )
    seen = subprocess.run(
        [sys.executable, "seen.py"], cwd=tmp_path, capture_output=True, text=True, timeout=50, check=True
    )
    assert "rpc_server_call_duration_seconds_count{" in seen.stdout
    assert re.findall(r'"event":"(\w+)"', seen.stderr) == ["serving", "rpc", "stopped"]


class Who(EchoServiceServicer):
    async def Echo(self, request: EchoRequest, context: object) -> EchoResponse:
        principal = principal_of(current_call())
        return EchoResponse(text="nobody" if principal is None else principal.name)


async def test_the_secured_server_knows_who_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over TLS, who has the key is known by name, and who has another one is refused."""
    authority = Authority()
    own = authority.sign(x509.DNSName("localhost"))
    files = {"key.pem": own.key, "chain.pem": own.certificate, "authorities.pem": authority.certificate}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    monkeypatch.chdir(tmp_path)
    silent, key = Telemetry(log=None), new_key()
    server: Server = executed("secured.py", address=("0.0.0.0:50051", "localhost:0"))["your_server"](
        silent, hash_key(key)
    )
    add_EchoServiceServicer_to_server(Who(), server)  # type: ignore[abstract]  # what is not called is left out
    async with server:
        port = server.addresses[0].rpartition(":")[2]
        your_channel = executed("secured.py", target=("localhost:50051", f"localhost:{port}"))["your_channel"]
        async with your_channel(silent, key) as channel:
            assert (await EchoServiceStub(channel).Echo(EchoRequest(), timeout=30)).text == "billing"
        async with your_channel(silent, new_key()) as channel:
            with pytest.raises(CallError, match="UNAUTHENTICATED"):
                await EchoServiceStub(channel).Echo(EchoRequest(), timeout=30)


PROTO = """
syntax = "proto3";

package greet.v1;

service GreetService {
  rpc Greet(GreetRequest) returns (GreetResponse);
}

message GreetRequest {
  string name = 1;
}

message GreetResponse {
  string text = 1;
}
"""

USE = """
import asyncio

from greet.v1.greet_pb2 import GreetRequest, GreetResponse
from greet.v1.greet_pb2_grpc import GreetServiceServicer, GreetServiceStub, add_GreetServiceServicer_to_server
from servicekit.testing import pair


class Greet(GreetServiceServicer):
    async def Greet(self, request: GreetRequest, context: object) -> GreetResponse:
        return GreetResponse(text=f"hello {request.name}")


async def main() -> None:
    async with pair(lambda server: add_GreetServiceServicer_to_server(Greet(), server)) as ends:
        print((await GreetServiceStub(ends.channel).Greet(GreetRequest(name="you"))).text)


asyncio.run(main())
"""


def ran(command: list[str], folder: Path) -> str:
    """Return what a program says that has only ``folder`` to work in, its home too. Fails with all of it."""
    env = {**os.environ, "PATH": PATH, "HOME": str(folder), "XDG_CACHE_HOME": str(folder), "PYTHONPATH": "src"}
    shown = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=55, check=False)
    assert shown.returncode == 0, shown.stdout + shown.stderr
    return shown.stdout


@pytest.mark.parametrize("command", [["buf", "generate"], ["sh", "-e", "generate.sh"]], ids=["buf", "protoc"])
def test_code_is_generated_in_a_project_of_ones_own(command: list[str], tmp_path: Path) -> None:
    """With the page's files and a proto, in a folder that has nothing else, either way makes code that works."""
    for name in ("buf.yaml", "buf.gen.yaml") if command[0] == "buf" else ("generate.sh",):
        (tmp_path / name).write_text(EXAMPLES[name])
    proto = tmp_path / "protos" / "greet" / "v1" / "greet.proto"
    proto.parent.mkdir(parents=True)
    proto.write_text(PROTO)
    (tmp_path / "use.py").write_text(USE)
    ran(command, tmp_path)
    made = sorted(path.name for path in (tmp_path / "src" / "greet" / "v1").iterdir())
    assert made == ["greet_pb2.py", "greet_pb2.pyi", "greet_pb2_grpc.py", "greet_pb2_grpc.pyi"]
    assert ran([sys.executable, "use.py"], tmp_path) == "hello you\n"


def test_the_code_that_is_generated_is_typed(tmp_path: Path) -> None:
    """mypy, strict, knows the messages, the servicer and the stub of a project of one's own."""
    proto = tmp_path / "protos" / "greet" / "v1" / "greet.proto"
    proto.parent.mkdir(parents=True)
    proto.write_text(PROTO)
    (tmp_path / "use.py").write_text(USE + "wrong: int = GreetResponse().text\n")
    (tmp_path / "generate.sh").write_text(EXAMPLES["generate.sh"])
    ran(["sh", "-e", "generate.sh"], tmp_path)
    env = {**os.environ, "MYPYPATH": "src"}
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", "cache", "use.py"]
    shown = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=55, check=False)
    assert re.findall(r"error: .*", shown.stdout) == [
        'error: Incompatible types in assignment (expression has type "str", variable has type "int")  [assignment]'
    ], shown.stdout + shown.stderr


def test_the_extras_are_those_that_there_are() -> None:
    """The page has a row for each extra that does something, and a word about all others."""
    page = README.split("## Install")[1].split("\n## ")[0]
    told = re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)
    others = re.findall(r"`(\w+)`", page.split("The extras ")[1])
    extras = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert sorted(told + others) == sorted(extras)


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`(servicekit(?:\.\w+)+)`", README))))
def test_what_the_page_names_is_there(name: str) -> None:
    """A module or a name of ours that the page writes out in full can be imported."""
    assert resolve_name(name) is not None


def test_the_order_is_the_one_that_is_made() -> None:
    """The links that the page marks as there are those of the standard chains, in its order."""
    rows = [
        row.strip("| ").split("|")
        for row in re.findall(r"^\|[^-].*\|$", README.split("### The order")[1], re.MULTILINE)
    ]
    telemetry = Telemetry(log="json", traces="auto", metrics="prometheus")
    for column, made in ((0, standard(telemetry)), (1, standard_client(telemetry))):
        cells = [row[column].strip() for row in rows[1:12] if len(row) > column]
        marked = [cell.split(" *")[0].replace(" ", "") for cell in cells if " *" in cell]
        assert marked == [type(link).__name__.lower() for link in made]
