"""The end of ``run()``, whatever brings it about."""

from __future__ import annotations

import asyncio
import signal
import sys
from asyncio.subprocess import PIPE
from typing import Any

import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest
from grpc_health.v1.health_pb2_grpc import HealthStub

from servicekit import Drain, Server, Telemetry, connect

HELD_UP = """
import asyncio, contextlib, os, signal, sys, time

import grpc

from servicekit import Drain, Server, Telemetry, connect
from servicekit.process import signals
from servicekit.testing.v1 import echo_pb2, echo_pb2_grpc

signals.HELD_UP = 0.2
servicer, client, wire = sys.argv[1:]


def go():
    os.kill(os.getpid(), signal.SIGTERM)


def begun():
    if client == "waits":
        go()


class Echo(echo_pb2_grpc.EchoServiceServicer):
    if servicer == "plain":

        def Echo(self, request, context):
            begun()
            time.sleep(60)

    else:

        async def Echo(self, request, context):
            begun()
            while True:
                try:
                    await asyncio.sleep(60)
                except asyncio.CancelledError:
                    pass


async def main():
    server = Server(
        "127.0.0.1:0",
        middleware=[],
        reflection=False,
        drain=Drain(delay=0.0, grace=0.0, flush=0.0),
        telemetry=Telemetry(log=None),
        wire=wire,
    )
    echo_pb2_grpc.add_EchoServiceServicer_to_server(Echo(), server)
    running = asyncio.create_task(server.run())
    while not server.addresses:
        await asyncio.sleep(0.001)
    channel = connect(server.addresses[0], middleware=[])
    patience = None if client == "waits" else 0.2
    calling = echo_pb2_grpc.EchoServiceStub(channel).Echo(echo_pb2.EchoRequest(), timeout=patience)
    if client == "leaves":
        with contextlib.suppress(grpc.RpcError):
            await calling
        while server.in_flight:
            await asyncio.sleep(0.001)
        go()
    try:
        await running
    finally:
        print("closed", flush=True)


asyncio.run(main())
"""


@pytest.mark.parametrize("wire", ["grpcio", "native"])
@pytest.mark.parametrize("servicer", ["plain", "stubborn"])
@pytest.mark.parametrize(("client", "code"), [("waits", 3), ("leaves", 0)])
async def test_a_process_ends_whatever_its_servicers_do(client: str, code: int, servicer: str, wire: str) -> None:
    """A thread cannot be stopped, and a loop waits for a task that swallows its cancellation; the exit code stays.

    It is that of calls that were abandoned only where there were any: a client that had left before was none.
    """
    command = [sys.executable, "-c", HELD_UP, servicer, client, wire]
    process = await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=PIPE)
    try:
        out, errors = await asyncio.wait_for(process.communicate(), 20)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert (process.returncode, out) == (code, b"closed\n"), errors


async def test_a_run_that_is_cancelled_leaves_nobody_serving() -> None:
    """Its caller has nothing else in hand that would end the server; signals are the program's own again."""
    server = Server("127.0.0.1:0", telemetry=Telemetry(log=None), drain=Drain(delay=0.0, grace=0.0))
    running = asyncio.create_task(server.run())
    async with asyncio.timeout(5):
        while not server.addresses:  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0)
        async with connect(server.addresses[0], middleware=[]) as channel:
            health: Any = HealthStub(channel)
            await health.Check(HealthCheckRequest(), wait_for_ready=True)
        running.cancel()
        await asyncio.wait([running])
        assert running.cancelled()
        assert not await server.wait_for_termination()
    async with Server(server.addresses[0], telemetry=Telemetry(log=None)) as again:
        assert again.addresses == server.addresses
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
