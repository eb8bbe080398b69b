"""Choosing a wire by one word: what ``Server`` and ``connect`` make of ``wire=`` and of a target."""

from __future__ import annotations

import re
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from .grpcio.channel import channel_to
from .grpcio.client import GrpcioWire
from .grpcio.server import GrpcioListener
from .grpcio.sockets import wrong_target
from .native.options import options_of
from .native.server import NativeListener

if TYPE_CHECKING:
    from collections.abc import Sequence

    import grpc

    from .clock import Clock
    from .telemetry import Logger
    from .wire import Listener, Wire

WIRES = ("grpcio", "native")
"""The wires there are, by name."""

_ENCODINGS = {"NoCompression": None, "Deflate": "deflate", "Gzip": "gzip"}

RESOLVED = ("dns", "ipv4", "ipv6", "unix", "unix-abstract", "vsock", "xds", "google-c2p", "google-c2p-experimental")
"""Schemes that grpc core resolves. It takes a target of any other one for a name, and looks that up."""

DISCOVERED = ("srv", "etcd", "consul", "zk", "k8s")
"""Schemes that name a registry, not an address."""


def listener_of(
    wire: str | Listener,
    *,
    options: Sequence[tuple[str, Any]],
    compression: grpc.Compression | None,
    clock: Clock,
    log: Logger,
) -> Listener:
    """Return what listens for a server: a Listener as it is, or a new one of the wire of that name.

    Raises ValueError for a name that is none.
    """
    if not isinstance(wire, str):
        return wire
    _check(wire)
    if wire == "native":
        return NativeListener(clock, options=options_of(options), compression=_encoding(compression))
    listener: GrpcioListener

    def on_restart(reason: BaseException) -> None:
        log.error("a request ended grpcio's loop, a fresh one serves", reason=repr(reason), restarts=listener.restarts)

    listener = GrpcioListener(clock, options=tuple(options), compression=compression, on_restart=on_restart)
    return listener


def wire_to(  # noqa: PLR0913 - one of each that grpcio's own channel takes
    target: str,
    wire: str | Wire,
    *,
    credentials: grpc.ChannelCredentials | None,
    interceptors: Sequence[grpc.aio.ClientInterceptor],
    options: Sequence[tuple[str, Any]],
    compression: grpc.Compression | None,
    clock: Clock,
) -> Wire:
    """Return a wire to ``target``: a Wire as it is, or a new one of the wire of that name.

    Raises ValueError for a name or a scheme that this version does not know.
    """
    if not isinstance(wire, str):
        return wire
    _check(wire)
    if wire == "native":
        msg = "wire='native' has no client yet: connect over 'grpcio', which speaks to native servers too"
        raise ValueError(msg)
    scheme, mark, _ = target.partition("://")
    if mark and scheme in DISCOVERED:
        msg = (
            f"target {target!r}: discovery by {scheme!r} is not there yet; "
            "targets are host:port, dns:///, ipv4:, unix: or xds:///"
        )
        raise ValueError(msg)
    if not target.strip() or (mark and scheme not in RESOLVED):
        msg = f"target {target!r}: targets are host:port, dns:///, ipv4:, unix: or xds:///"
        raise ValueError(msg)
    if (wrong := wrong_target(target)) is not None:
        msg = f"target {target!r}: {wrong}"
        raise ValueError(msg)
    channel = channel_to(
        target, credentials, options=tuple(options), compression=compression, interceptors=interceptors
    )
    return GrpcioWire(channel, clock)


def is_local(target: str) -> bool:
    """Return whether every address of ``target`` is on this machine, as far as the text itself says so.

    A name other than localhost stands for whatever a resolver makes of it.
    """
    if target.startswith(("unix:", "unix-abstract:")):
        return True
    plain = re.sub(r"^(dns|passthrough):(//[^/]*/)?|^ipv[46]:(///?)?", "", target)
    return all(_is_loopback(address) for address in unquote(plain).split(","))


def _is_loopback(address: str) -> bool:
    host = re.sub(r"(?<=[^:]):\d+$", "", address)
    try:
        return host.lower() == "localhost" or ip_address(host.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return False


def _check(wire: str) -> None:
    if wire not in WIRES:
        msg = f"wire={wire!r} is none of {', '.join(map(repr, WIRES))}"
        raise ValueError(msg)


def _encoding(compression: grpc.Compression | None) -> str | None:
    return None if compression is None else _ENCODINGS[compression.name]
