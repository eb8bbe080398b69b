"""The reflection service: which services are here, for tools like grpcurl."""

from __future__ import annotations

from typing import TYPE_CHECKING

from grpc_reflection.v1alpha import reflection

if TYPE_CHECKING:
    from collections.abc import Iterable

    import grpc


def enable(services: Iterable[str], server: grpc.aio.Server) -> None:
    """Add the reflection service to ``server``, telling of ``services`` and of itself."""
    reflection.enable_server_reflection([*services, reflection.SERVICE_NAME], server)
