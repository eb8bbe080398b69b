"""The client: a channel to a target, with a chain around every call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .clock import SystemClock
from .endpoint import chain
from .middleware import standard_client
from .telemetry import Telemetry
from .transport import otel
from .transport.channel import Channel
from .wires import wire_to

if TYPE_CHECKING:
    from collections.abc import Sequence

    import grpc

    from .clock import Clock
    from .endpoint import Middleware
    from .wire import Wire


def connect(  # noqa: PLR0913 - keywords with defaults, each of them asked for by somebody who runs grpc.aio now
    target: str,
    *,
    middleware: Sequence[Middleware] | None = None,
    telemetry: Telemetry | None = None,
    credentials: grpc.ChannelCredentials | None = None,
    interceptors: Sequence[grpc.aio.ClientInterceptor] = (),
    options: Sequence[tuple[str, Any]] = (),
    compression: grpc.Compression | None = None,
    wire: str | Wire = "grpcio",
    clock: Clock | None = None,
) -> Channel:
    """Return a channel to ``target``, a ``grpc.aio.Channel`` that every generated stub takes.

    ``target`` is "host:port", "dns:///…", "ipv4:…", "unix:…" or "xds:///…", as gRPC core understands it.
    ``middleware``, outermost first, is the whole chain of every call; None means ``standard_client(telemetry)``.
    ``credentials`` are grpcio's channel credentials: None is plaintext. ``interceptors`` are grpc.aio ones and run
    inside the chain, on messages that are bytes already. ``options`` and ``compression`` go to grpcio as they are.

    It connects with the first call. Close it, or use it as ``async with connect(…) as channel``. Must be called where
    an event loop runs. Raises ValueError for a target whose scheme this version cannot resolve.
    """
    clock = clock if clock is not None else SystemClock()
    links = chain(*(standard_client(telemetry or Telemetry(), target=target) if middleware is None else middleware))
    links, interceptors = otel.on_client(links, interceptors)
    over = wire_to(
        target,
        wire,
        credentials=credentials,
        interceptors=interceptors,
        options=options,
        compression=compression,
        clock=clock,
    )
    return Channel(over, links, clock=clock, target=target, interceptors=interceptors)
