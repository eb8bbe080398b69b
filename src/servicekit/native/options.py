"""What the native wire holds back, turns away and cuts off: its limits, all of them checked, with honest defaults."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Final

from servicekit.http2.limits import SERVER, Limits

KIB: Final = 1024
MIB: Final = 1024 * KIB

READ: Final = 64 * KIB
"""Bytes that are read at once, at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NativeOptions:
    """Limits of a native listener. Sizes are bytes, times are seconds.

    ``connections`` is how many clients may be connected; more are accepted, closed at once and counted. ``received``
    and ``sent`` are the most bytes of one message. ``buffered`` is what the requests of one connection may hold while
    they are not whole, beyond one message of the largest size. ``handshake`` is the time for TLS. ``reuse_port`` lets
    other processes listen on the same ports, which is never done unasked: two servers that share one by mistake would
    each get a part of the calls. ``turn`` is the time after which a connection gives way to the others. ``http2`` are the
    limits of a connection.
    """

    connections: int = 1000
    received: int = 4 * MIB
    sent: int = 16 * MIB
    buffered: int = 4 * MIB
    handshake: float = 5.0
    reuse_port: bool = False
    turn: float = 0.002
    http2: Limits = SERVER

    def __post_init__(self) -> None:
        """Raise ValueError for a limit that nothing could pass, naming it."""
        for name in ("connections", "received", "sent", "buffered"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)!r}")
        for name in ("handshake", "turn"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0 seconds, not {getattr(self, name)!r}")


_NO_LIMIT: Final = 2**31 - 1  # grpc core's largest number, which means never or any; -1 says the same of a size


def _size(value: int) -> int:
    return _NO_LIMIT if value < 0 else value


def _seconds(value: int) -> float | None:
    return value / 1000 if value < _NO_LIMIT else None


_OURS: Final[Mapping[str, tuple[str, Callable[[int], object]]]] = MappingProxyType(
    {
        "grpc.max_receive_message_length": ("received", _size),
        "grpc.max_send_message_length": ("sent", _size),
        "grpc.max_allowed_incoming_connections": ("connections", _size),
        "grpc.so_reuseport": ("reuse_port", bool),
        "grpc.server_handshake_timeout_ms": ("handshake", lambda value: value / 1000),
    }
)
_OF_HTTP2: Final[Mapping[str, tuple[str, Callable[[int], object]]]] = MappingProxyType(
    {
        "grpc.max_concurrent_streams": ("max_concurrent_streams", _size),
        "grpc.http2.settings_timeout": ("preface_timeout", _seconds),
        "grpc.max_connection_idle_ms": ("idle_timeout", _seconds),
        "grpc.max_connection_age_ms": ("max_age", _seconds),
        "grpc.max_connection_age_grace_ms": ("age_grace", lambda value: value / 1000),
        "grpc.keepalive_time_ms": ("keepalive_time", _seconds),
        "grpc.keepalive_timeout_ms": ("keepalive_timeout", lambda value: value / 1000),
        "grpc.http2.min_ping_interval_without_data_ms": ("min_ping_interval", lambda value: value / 1000),
        "grpc.absolute_max_metadata_size": ("max_header_list_size", _size),
        "grpc.http2.hpack_table_size.decoder": ("header_table_size", _size),
    }
)
_NEEDLESS: Final = frozenset(
    {
        "grpc.keepalive_permit_without_calls",  # always
        "grpc.max_metadata_size",  # the softer of two limits, where there is one here
    }
)


def options_of(arguments: Iterable[tuple[str, Any]]) -> NativeOptions:
    """Return what grpc core's channel arguments mean here, so that a server's ``options`` serve both wires.

    Raises ValueError for one that means nothing here, naming it.
    """
    ours: dict[str, Any] = {}
    http2: dict[str, Any] = {}
    for name, value in arguments:
        if name in _OURS:
            field, convert = _OURS[name]
            ours[field] = convert(value)
        elif name in _OF_HTTP2:
            field, convert = _OF_HTTP2[name]
            http2[field] = convert(value)
        elif name not in _NEEDLESS:
            raise ValueError(f"wire='native' has nothing like the option {name!r}")
    return NativeOptions(**ours, http2=replace(SERVER, **http2))
