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
import asyncio, os, signal, sys, time

from servicekit import Drain, Server, Telemetry, connect
from servicekit.process import signals
from servicekit.testing.v1 import echo_pb2, echo_pb2_grpc

signals.HELD_UP = 0.2


class Echo(echo_pb2_grpc.EchoServiceServicer):
    if sys.argv[1] == "plain":

        def Echo(self, request, context):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)

    else:

        async def Echo(self, request, context):
            os.kill(os.getpid(), signal.SIGTERM)
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
    )
    echo_pb2_grpc.add_EchoServiceServicer_to_server(Echo(), server)
    running = asyncio.create_task(server.run())
    while not server.addresses:
        await asyncio.sleep(0)
    calling = echo_pb2_grpc.EchoServiceStub(connect(server.addresses[0], middleware=[])).Echo(echo_pb2.EchoRequest())
    try:
        await running
    finally:
        print("closed", flush=True)


asyncio.run(main())
"""


@pytest.mark.parametrize("servicer", ["plain", "stubborn"])
async def test_a_process_that_abandoned_calls_ends_whatever_their_servicers_do(servicer: str) -> None:
    """A thread cannot be stopped, and a loop waits for a task that swallows its cancellation; the exit code stays."""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", HELD_UP, servicer, stdout=PIPE, stderr=PIPE)
    try:
        out, errors = await asyncio.wait_for(process.communicate(), 20)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert (process.returncode, out) == (3, b"closed\n"), errors


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
