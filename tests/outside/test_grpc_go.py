"""grpc-go's own interop client, against a server of ours."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from .judges import judge
from .serving import LOOPBACK, certificates_in, served

pytestmark = pytest.mark.conformance

CASES = [
    "empty_unary",
    "large_unary",
    "client_streaming",
    "server_streaming",
    "ping_pong",
    "empty_stream",
    "timeout_on_sleeping_server",
    "cancel_after_begin",
    "cancel_after_first_response",
    "status_code_and_message",
    "special_status_message",
    "custom_metadata",
    "unimplemented_method",
    "unimplemented_service",
    "pick_first_unary",
    "rpc_soak",
    "channel_soak",
    "orca_per_rpc",
    "orca_oob",
]
"""All that the client has but for those that ask Google for credentials."""

BALANCER = '{"loadBalancingConfig": [{"test_backend_metrics_load_balancer": {}}]}'
"""What hands reports of load to the client's cases about them; it picks as pick_first does."""


@dataclass(frozen=True)
class Address:
    port: int
    flags: tuple[str, ...] = ()


@pytest.fixture(scope="module", params=["plain", "tls"])
def address(request: pytest.FixtureRequest, wire: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Address]:
    judge("client")
    if request.param == "plain":
        with served(wire, None) as port:
            yield Address(port)
        return
    folder = certificates_in(tmp_path_factory.mktemp("tls"))
    flags = ("--use_tls", "--use_test_ca", f"--ca_file={folder / 'authority.pem'}", "--server_host_override=localhost")
    with served(wire, folder) as port:
        yield Address(port, flags)


@pytest.fixture(scope="module", params=["grpcio", "native"])
def wire(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("case", CASES)
def test_interop(case: str, address: Address) -> None:
    """The client finds what the interop test descriptions say."""
    command = [
        judge("client"),
        f"--server_host={LOOPBACK}",
        f"--server_port={address.port}",
        f"--test_case={case}",
        "--soak_iterations=50",
        "--soak_num_threads=5",
        *([f"--service_config_json={BALANCER}"] if case.startswith("orca") else []),
        *address.flags,
    ]
    ran = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=50, check=False)
    assert ran.returncode == 0, ran.stdout
