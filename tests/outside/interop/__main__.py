"""The server for grpc's interop clients: ``python -m tests.outside.interop WIRE [FOLDER]`` prints its port.

``FOLDER`` has the key and the certificate, where it serves with TLS.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from servicekit import Server
from tests.outside.serving import Tls, server_on, until_told

from .interop_pb2_grpc import add_TestServiceServicer_to_server
from .orca_pb2_grpc import add_OpenRcaServiceServicer_to_server
from .servicer import InteropServicer, LoadServicer


def say(server: Server) -> None:
    print(server.addresses[0].rpartition(":")[2], flush=True)


async def main(wire: str, folder: Path | None) -> None:
    tls = None
    if folder is not None:
        tls = Tls(key=(folder / "key.pem").read_bytes(), chain=(folder / "chain.pem").read_bytes())
    server, load = server_on(wire, tls), LoadServicer()
    add_TestServiceServicer_to_server(InteropServicer(load), server)
    add_OpenRcaServiceServicer_to_server(load, server)
    await until_told(server, say)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2]) if len(sys.argv) > 2 else None))
