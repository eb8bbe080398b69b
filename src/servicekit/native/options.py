"""What the native wire holds back, turns away and cuts off: its limits, all of them checked, with honest defaults."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Final

from servicekit.http2.limits import SERVER, Limits
from servicekit.policy.checked import count, flag, kind, seconds, whole

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
        """Raise TypeError or ValueError, naming setting and value, for a limit that nothing could pass."""
        for name in ("connections", "received", "sent", "buffered"):
            count(name, getattr(self, name))
        for name in ("handshake", "turn"):
            seconds(name, getattr(self, name))
        flag("reuse_port", self.reuse_port)
        kind("http2", self.http2, Limits, "Limits")


_NO_LIMIT: Final = 2**31 - 1  # grpc core's largest number, which means never or any; -1 says the same of a size


def _size(name: str, value: int) -> int:
    return _NO_LIMIT if whole(name, value) < 0 else value


def _most(name: str, value: int) -> int:
    return _NO_LIMIT if whole(name, value) < 0 else count(name, value)


def _never_or(name: str, value: int) -> float | None:
    return value / 1000 if count(name, value) < _NO_LIMIT else None


def _time(name: str, value: int) -> float:
    return count(name, value) / 1000


def _time_or_none(name: str, value: int) -> float:
    return count(name, value, least=0) / 1000


def _switch(name: str, value: int) -> bool:
    return bool(value if isinstance(value, bool) else whole(name, value))


_OURS: Final[Mapping[str, tuple[str, Callable[[str, int], object]]]] = MappingProxyType(
    {
        "grpc.max_receive_message_length": ("received", _most),
        "grpc.max_send_message_length": ("sent", _most),
        "grpc.max_allowed_incoming_connections": ("connections", _most),
        "grpc.so_reuseport": ("reuse_port", _switch),
        "grpc.server_handshake_timeout_ms": ("handshake", _time),
    }
)
_OF_HTTP2: Final[Mapping[str, tuple[str, Callable[[str, int], object]]]] = MappingProxyType(
    {
        "grpc.max_concurrent_streams": ("max_concurrent_streams", _size),
        "grpc.http2.settings_timeout": ("preface_timeout", _never_or),
        "grpc.max_connection_idle_ms": ("idle_timeout", _never_or),
        "grpc.max_connection_age_ms": ("max_age", _never_or),
        "grpc.max_connection_age_grace_ms": ("age_grace", _time_or_none),
        "grpc.keepalive_time_ms": ("keepalive_time", _never_or),
        "grpc.keepalive_timeout_ms": ("keepalive_timeout", _time),
        "grpc.http2.min_ping_interval_without_data_ms": ("min_ping_interval", _time_or_none),
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

    Raises ValueError for one that means nothing here, TypeError or ValueError for one whose value does, naming it.
    """
    ours: dict[str, Any] = {}
    http2: dict[str, Any] = {}
    for name, value in arguments:
        if name in _OURS:
            field, convert = _OURS[name]
            ours[field] = convert(name, value)
        elif name in _OF_HTTP2:
            field, convert = _OF_HTTP2[name]
            http2[field] = convert(name, value)
        elif name in _NEEDLESS:
            _switch(name, value)
        else:
            raise ValueError(f"wire='native' has nothing like the option {name!r}")
    return NativeOptions(**ours, http2=replace(SERVER, **http2))
