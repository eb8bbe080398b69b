"""The server that is judged: made in its own process on the wire of a name, with TLS or without."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509

from servicekit import Server, Telemetry
from servicekit.middleware import Deadline, Recovery, RequestId
from servicekit.native.tls import Certificates, TlsCredentials
from tests.security.certificates import Authority

LOOPBACK = "127.0.0.1"
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, kw_only=True)
class Tls:
    """What the server shows, in PEM, and whom it asks to show something too."""

    key: bytes
    chain: bytes
    client_authorities: bytes | None = None


def server_on(wire: str, tls: Tls | None = None, *, options: Sequence[tuple[str, Any]] = ()) -> Server:
    """Return a server on a free port that says nothing and has the standard chain, but no deadline of its own.

    The judges look at deadlines, and know of none that they did not set.
    """
    return Server(
        f"{LOOPBACK}:0",
        wire=wire,
        credentials=None if tls is None else _credentials(wire, tls),
        middleware=[RequestId(), Recovery(), Deadline(default=None, cap=None)],
        telemetry=Telemetry(log=None),
        options=options,
    )


def _credentials(wire: str, tls: Tls) -> grpc.ServerCredentials | TlsCredentials:
    required = tls.client_authorities is not None
    if wire == "native":
        certificates = Certificates(key=tls.key, chain=tls.chain, client_authorities=tls.client_authorities)
        return TlsCredentials(certificates=certificates, client="required" if required else "none")
    return grpc.ssl_server_credentials([(tls.key, tls.chain)], tls.client_authorities, require_client_auth=required)


async def until_told(server: Server, say: Callable[[Server], None]) -> None:
    """Serve, ``say`` so once it does, and go without delay at SIGTERM."""
    told = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.set)
    async with server:
        say(server)
        await told.wait()
        await server.stop(0.0)


def certificates_in(folder: Path) -> Path:
    """Write a fresh key, its certificate for the loopback address, and the authority's; return the folder."""
    authority = Authority()
    signed = authority.sign(x509.DNSName("localhost"), common="localhost")
    (folder / "key.pem").write_bytes(signed.key)
    (folder / "chain.pem").write_bytes(signed.certificate)
    (folder / "authority.pem").write_bytes(authority.certificate)
    return folder


@contextlib.contextmanager
def served(wire: str, tls: Path | None) -> Iterator[int]:
    """Serve grpc's interop services in a process; gives the port. ``tls`` is a folder of ``certificates_in``.

    Raises AssertionError at the end when the process did not live until then.
    """
    command = [sys.executable, "-m", "tests.outside.interop", wire, *([] if tls is None else [str(tls)])]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
            assert process.poll() is None, "the server did not outlive its judge"
        finally:
            process.terminate()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
