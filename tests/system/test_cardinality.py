"""What strangers ask for does not fill the metrics: however many paths, on a real server there is one more method."""

from __future__ import annotations

import asyncio
import random
import re
import string

import grpc
import pytest
from prometheus_client import CollectorRegistry

from servicekit import Kind, Telemetry
from servicekit.metrics.prometheus import PrometheusMetrics
from servicekit.middleware import standard
from servicekit.testing import pair
from tests.system.load import Untyped
from tests.transport.clients import NAMES, ask, echo

PATHS, AT_ONCE = 10_000, 50
SERVICE = "servicekit.testing.v1.EchoService"


@pytest.mark.system
@pytest.mark.timeout(200)
async def test_strange_paths_are_one() -> None:
    """After 10,000 random paths the page has as many methods as are registered and were called, and one more."""
    metrics = PrometheusMetrics(CollectorRegistry())
    telemetry = Telemetry(log=None, metrics=metrics)
    rng = random.Random(4)  # the same paths each time
    async with (
        pair(echo(), over="socket", middleware=standard(telemetry)) as ends,
        grpc.aio.insecure_channel(ends.server.addresses[0]) as plain,
    ):
        for kind in Kind:
            await ask(ends.channel, kind)

        async def stray() -> None:
            service, name = ("".join(rng.choices(string.ascii_letters + ".", k=12)) for _ in range(2))
            method: Untyped = plain.unary_unary(f"/{service}/{name}")
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await method(b"")
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED

        for _ in range(PATHS // AT_ONCE):
            await asyncio.gather(*(stray() for _ in range(AT_ONCE)))
    page, _ = metrics.render()
    text = page.decode()
    named = set(re.findall(r'rpc_method="([^"]*)"', text))
    lines = text.count("\n")
    print(f"\n{PATHS} random paths: {len(named)} methods on a page of {lines} lines")
    assert named == {f"{SERVICE}/{name}" for name in NAMES.values()} | {"_OTHER"}
