"""Channel arguments of grpc core: what every server and channel gets, and what the ``production`` profile adds.

Core ignores a name that it does not know without a word. Names are those of grpc_types.h.
"""

from __future__ import annotations

from typing import Final, TypeAlias

Options: TypeAlias = tuple[tuple[str, int | str], ...]

KIB: Final = 1024
MIB: Final = 1024 * KIB

SERVER: Final[Options] = (
    # A second server on the same port would get half of the traffic without an error.
    ("grpc.so_reuseport", 0),
    # A client that pings every 30 s is alive, not abusive; core's own limit is five minutes.
    ("grpc.http2.min_ping_interval_without_data_ms", 30_000),
    # It may do so between two calls too: behind a NAT that is how a connection stays open.
    ("grpc.keepalive_permit_without_calls", 1),
)
"""What every listener sets."""

SERVER_PRODUCTION: Final[Options] = (
    # One client cannot hold all of a worker with one connection.
    ("grpc.max_concurrent_streams", 100),
    # Nor with many connections: what is over is refused at accept.
    ("grpc.max_allowed_incoming_connections", 1000),
    # Who connects and says nothing is cut off.
    ("grpc.server_handshake_timeout_ms", 5_000),
    # As above, for the first SETTINGS frame.
    ("grpc.http2.settings_timeout", 5_000),
    # Idle connections are given back.
    ("grpc.max_connection_idle_ms", 300_000),
    # Long-lived ones move on, so that new instances get their share; core spreads this by 10 %.
    ("grpc.max_connection_age_ms", 1_800_000),
    # What is in flight then has this long to end.
    ("grpc.max_connection_age_grace_ms", 60_000),
    # Peers that vanished without a FIN are noticed. The kernel gives up on what nobody acknowledges after the second
    # time, core on a ping that nobody answers after the third: its own default is a minute, whatever the second says.
    ("grpc.keepalive_time_ms", 120_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.ping_timeout_ms", 20_000),
    # Core's own default, said aloud: a request is a message, not a file.
    ("grpc.max_receive_message_length", 4 * MIB),
    # A response of more than this is a bug of ours, and better ours to see than every client's.
    ("grpc.max_send_message_length", 16 * MIB),
    # Above the first, headers are refused more and more often; above the second, always.
    ("grpc.max_metadata_size", 8 * KIB),
    ("grpc.absolute_max_metadata_size", 16 * KIB),
)
"""What the ``production`` profile adds for a listener."""

SERVER_EDGE: Final[Options] = (
    # Behind a proxy that many clients share, one request with a bad grpc-timeout otherwise leaves the connection's
    # compression table out of step, and breaks the others' calls. Costs up to a quarter of the throughput.
    ("grpc.http2.hpack_table_size.decoder", 0),
)
"""What a listener behind a shared L7 proxy adds on top."""

CHANNEL: Final[Options] = (
    # One layer retries, and it is not this one.
    ("grpc.enable_retries", 0),
    # Back quickly after a restart: core's own first wait is a whole second.
    ("grpc.initial_reconnect_backoff_ms", 100),
)
"""What every channel sets."""

CHANNEL_PRODUCTION: Final[Options] = (
    # Connections that a middlebox dropped are noticed before the next call is lost on them.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.ping_timeout_ms", 20_000),
)
"""What the ``production`` profile adds for a channel."""


_NUMBERS: Final = frozenset(
    name for name, _ in (*SERVER, *SERVER_PRODUCTION, *SERVER_EDGE, *CHANNEL, *CHANNEL_PRODUCTION)
) | {
    "grpc.client_idle_timeout_ms",
    "grpc.default_compression_algorithm",
    "grpc.default_compression_level",
    "grpc.dns_min_time_between_resolutions_ms",
    "grpc.enable_http_proxy",
    "grpc.http2.bdp_probe",
    "grpc.http2.hpack_table_size.encoder",
    "grpc.http2.lookahead_bytes",
    "grpc.http2.max_frame_size",
    "grpc.http2.max_ping_strikes",
    "grpc.http2.max_pings_without_data",
    "grpc.http2.write_buffer_size",
    "grpc.max_reconnect_backoff_ms",
    "grpc.min_reconnect_backoff_ms",
    "grpc.per_rpc_retry_buffer_size",
    "grpc.use_local_subchannel_pool",
}
"""Options whose value is a number, as grpc_types.h says it."""

_LARGEST: Final = 2**31 - 1  # a C int


def merged(*layers: Options) -> Options:
    """Return all options, a later layer's value in the place of an earlier one's for the same name.

    Raises TypeError for what should be a number and is none: core would take its default, and tell nobody but its log.
    Raises ValueError for a number that core cannot hold.
    """
    options = {name: value for layer in layers for name, value in layer}
    for name, value in options.items():
        if name in _NUMBERS and not isinstance(value, int):
            msg = f"options: {name}={value!r} is no whole number"
            raise TypeError(msg)
        if isinstance(value, int) and not -_LARGEST <= value <= _LARGEST:
            msg = f"options: {name}={value!r} is not in {-_LARGEST} … {_LARGEST}"
            raise ValueError(msg)
    return tuple(options.items())
