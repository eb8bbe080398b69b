"""grpc.aio's own ways to make a server and a channel, where opentelemetry-instrumentation-grpc has put its in their place.

Its interceptors, put around handlers and calls that are bytes on a wire, fail on every stream. Where they are wanted,
``transport.otel`` puts them into the chain instead. Everybody else's patches stay in force.
"""

from __future__ import annotations

from typing import Any, Literal

import grpc
from grpc.aio import _channel, _server

PATCHER = "opentelemetry.instrumentation.grpc"
_HOMES: dict[str, Any] = {"server": _server, "insecure_channel": _channel, "secure_channel": _channel}


def patched(name: Literal["server", "insecure_channel", "secure_channel"]) -> Any:
    """Return what that package has put in the place of ``grpc.aio.<name>``, or None."""
    factory = getattr(grpc.aio, name)
    return factory if getattr(factory, "__module__", None) == PATCHER else None


def own(name: Literal["server", "insecure_channel", "secure_channel"]) -> Any:
    """Return ``grpc.aio.<name>``, but for that package's."""
    return getattr(grpc.aio if patched(name) is None else _HOMES[name], name)
