"""The standard health service (grpc.health.v1), with every service and "" in step with the server's own state."""

from __future__ import annotations

from typing import TYPE_CHECKING

from grpc_health.v1 import health, health_pb2
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server

if TYPE_CHECKING:
    from collections.abc import Iterable

    import grpc


class Health:
    """What a server says of itself. "" stands for the whole of it."""

    def __init__(self, server: grpc.aio.Server) -> None:
        """Add the service to ``server``."""
        self._servicer = health.aio.HealthServicer()
        add_HealthServicer_to_server(self._servicer, server)

    async def serving(self, services: Iterable[str]) -> None:
        """Say SERVING for each of ``services`` and for ""."""
        for service in ("", *services):
            await self._servicer.set(service, health_pb2.HealthCheckResponse.SERVING)

    async def draining(self) -> None:
        """Say NOT_SERVING for all of them, for good."""
        await self._servicer.enter_graceful_shutdown()

    async def set(self, service: str, *, serving: bool) -> None:
        """Say of one service whether it can serve. Does nothing while draining."""
        word = health_pb2.HealthCheckResponse
        await self._servicer.set(service, word.SERVING if serving else word.NOT_SERVING)
