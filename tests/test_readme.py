"""The README keeps its word: what it shows runs, as it stands."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from servicekit.middleware import standard, standard_client
from servicekit.telemetry import Telemetry

README = (Path(__file__).parent.parent / "README.md").read_text()
EXAMPLES = dict(re.findall(r"<!-- (\S+\.py) -->\n```python\n(.*?)```", README, re.DOTALL))
ADDRESS = "127.0.0.1:50051"


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
    (tmp_path / name).write_text(EXAMPLES[name])
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-o",
        "asyncio_mode=auto",
        "-k",
        "not socket",
        name,
    ]
    shown = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=50, check=False)
    assert re.search(f"^{passed}", shown.stdout, re.MULTILINE), shown.stdout + shown.stderr
    assert "failed" not in shown.stdout


@pytest.mark.parametrize("name", ["middleware.py", "adopt.py"])
def test_a_fragment_can_be_executed(name: str) -> None:
    """What is shown in pieces has at least its imports and its names right."""
    names: dict[str, object] = {}
    exec(compile(EXAMPLES[name], name, "exec"), names)
    assert any(callable(thing) for key, thing in names.items() if key in {"slow_calls", "your_server"})


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
