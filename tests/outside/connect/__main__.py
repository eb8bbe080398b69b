"""The server for connectrpc's conformance runner: ``python -m tests.outside.connect WIRE``, started by the runner.

Each way round there is one message, behind its length in four octets.
"""

from __future__ import annotations

import asyncio
import struct
import sys
from typing import Any

from servicekit import Server
from tests.outside.serving import Tls, server_on, until_told

from .conformance_pb2 import ServerCompatRequest, ServerCompatResponse
from .conformance_pb2_grpc import add_ConformanceServiceServicer_to_server
from .servicer import ConformanceServicer

LENGTH = struct.Struct(">I")


async def main(wire: str) -> None:
    (size,) = LENGTH.unpack(sys.stdin.buffer.read(LENGTH.size))
    request = ServerCompatRequest.FromString(sys.stdin.buffer.read(size))
    tls, given = None, request.server_creds
    if request.use_tls:
        tls = Tls(key=given.key, chain=given.cert, client_authorities=request.client_tls_cert or None)
    options: list[tuple[str, Any]] = []
    if request.message_receive_limit:
        options.append(("grpc.max_receive_message_length", request.message_receive_limit))
    server = server_on(wire, tls, options=options)
    servicer = ConformanceServicer()  # type: ignore[abstract] # one method is left out on purpose
    add_ConformanceServiceServicer_to_server(servicer, server)

    def say(server: Server) -> None:
        host, _, port = server.addresses[0].rpartition(":")
        answer = ServerCompatResponse(host=host, port=int(port), pem_cert=given.cert if request.use_tls else b"")
        sys.stdout.buffer.write(LENGTH.pack(answer.ByteSize()) + answer.SerializeToString())
        sys.stdout.buffer.flush()

    await until_told(server, say)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
