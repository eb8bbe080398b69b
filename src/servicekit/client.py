"""The client: a channel to a target, with a chain around every call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .checked import check, in_a_loop
from .clock import SystemClock
from .endpoint import Chain, chain
from .middleware import Credentials, standard_client
from .telemetry import Telemetry
from .transport import otel
from .transport.channel import Channel
from .wires import is_local, wire_to

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
    an event loop runs. Raises TypeError for a setting that cannot work, naming it, and ValueError for a target whose
    scheme this version cannot resolve, for a chain in a wrong order, and where ``Credentials`` would travel in
    plaintext to another machine.
    """
    check(
        target=target,
        middleware=middleware,
        telemetry=telemetry,
        channel_credentials=credentials,
        interceptors=interceptors,
        options=options,
        compression=compression,
        wire=wire,
        clock=clock,
    )
    in_a_loop("connect(…)")
    clock = clock if clock is not None else SystemClock()
    links = chain(*(standard_client(telemetry or Telemetry(), target=target) if middleware is None else middleware))
    if isinstance(wire, str) and credentials is None and not is_local(target):
        _check_secrets(links, target)
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


def _check_secrets(links: Chain, target: str) -> None:
    if any(isinstance(link, Credentials) and not link.plaintext for link in links.every()):
        msg = (
            f"Credentials would travel in plaintext to {target!r}: give connect() credentials="
            "grpc.ssl_channel_credentials(), or Credentials plaintext=True where something else encrypts what is sent"
        )
        raise ValueError(msg)
