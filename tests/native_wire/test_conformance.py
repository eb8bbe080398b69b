"""The seam's conformance suite: the native server, called through the grpcio wire's client."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from servicekit.clock import SystemClock
from servicekit.grpcio.client import GrpcioWire
from servicekit.grpcio.options import CHANNEL
from servicekit.native.server import NativeListener
from servicekit.testing.pair import ALONE
from servicekit.testing.wire_conformance import CASES, Case, check
from servicekit.wire import Listener, Wire

UNGROWN = [("grpc.http2.bdp_probe", 0)]
"""Core's client lets its windows grow with what comes: a server as fast as this one may fill 32 MiB of them, unread."""


class NativeServer:
    clock = SystemClock()
    address = "127.0.0.1:0"

    def listener(self) -> Listener:
        return NativeListener(self.clock)

    def wire(self, address: str) -> Wire:
        return GrpcioWire(grpc.aio.insecure_channel(address, options=(*CHANNEL, *UNGROWN, *ALONE)), self.clock)

    async def pass_time(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
async def test_conformance(case: Case) -> None:
    """The wire keeps every rule of the seam."""
    await check(case, NativeServer())
