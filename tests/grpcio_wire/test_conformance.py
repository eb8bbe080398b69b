"""The seam's conformance suite over a real loopback socket."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from servicekit.clock import SystemClock
from servicekit.grpcio.client import GrpcioWire
from servicekit.grpcio.options import CHANNEL
from servicekit.grpcio.server import GrpcioListener
from servicekit.testing.pair import ALONE
from servicekit.testing.wire_conformance import CASES, Case, check
from servicekit.wire import Listener, Wire

IMPOSSIBLE = {
    "a_unary_request_without_a_message_is_refused": "grpc.aio reads a unary request itself, and drops the RPC without a "
    "word when there is none: no handler runs, so nobody can answer",
    "a_unary_request_of_two_messages_is_refused": "grpc.aio reads one message of a unary request and never looks for "
    "another; looking for it here would be one more batch, a tenth of the price of every call",
}
"""Cases that this wire does not pass, each with the reason."""


class OverGrpcio:
    clock = SystemClock()
    address = "127.0.0.1:0"

    def listener(self) -> Listener:
        return GrpcioListener(self.clock)

    def wire(self, address: str) -> Wire:
        return GrpcioWire(grpc.aio.insecure_channel(address, options=(*CHANNEL, *ALONE)), self.clock)

    async def pass_time(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
async def test_conformance(case: Case) -> None:
    """The wire keeps every rule of the seam."""
    if case.__name__ in IMPOSSIBLE:
        pytest.skip(IMPOSSIBLE[case.__name__])
    await check(case, OverGrpcio())
