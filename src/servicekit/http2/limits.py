"""What a connection allows its peer: sizes, numbers, times. The defaults are for a server that faces strangers."""

from __future__ import annotations

from dataclasses import dataclass

from .settings import DEFAULT_FRAME_SIZE, MOST_FRAME_SIZE, MOST_WINDOW


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Sizes are octets, times are seconds; a time of None never comes."""

    max_concurrent_streams: int = 100
    """Streams that the peer may have open at once; a client, whose peer opens none, does not send it."""
    max_frame_size: int = DEFAULT_FRAME_SIZE
    max_header_list_size: int = 16_384
    header_table_size: int = 4096
    """The peer's dynamic table, in this side's memory."""
    encoder_table_size: int = 4096
    """This side's dynamic table, in the peer's memory: at most, the peer may allow less."""

    connection_window: int = 1 << 20
    stream_window: int = 1 << 16
    max_stream_window: int = 1 << 20
    """Stream windows grow up to here while the path carries more than they let through; the connection's with them."""

    stream_queue: int = 1 << 16
    """Octets of one stream that may wait to be sent before its sender is told to wait."""
    output: int = 4 << 20
    """Octets of all streams that may wait to be sent before every sender is told to wait."""
    control_output: int = 1 << 18
    """Octets of answers (acknowledgements, resets) that a peer may leave unread before the connection ends."""

    resets: tuple[float, float] = (100, 50)
    """Resets by the peer and refusals of what it sends: at once, and per second (CVE-2023-44487)."""
    control_frames: tuple[float, float] = (500, 250)
    """SETTINGS, PING, PRIORITY, WINDOW_UPDATE, empty DATA: at once, and per second (CVE-2019-9512, -9515, -9518)."""
    continuations: int = 8
    """CONTINUATION frames for one header block (CVE-2024-27316)."""

    preface_timeout: float | None = 5.0
    """For the peer's preface, with its first SETTINGS."""
    settings_timeout: float | None = 5.0
    """For the acknowledgement of SETTINGS."""
    header_timeout: float | None = 5.0
    """For a header block, from its first frame to its last."""
    stall_timeout: float | None = 20.0
    """For a peer that reads nothing while reads from it are paused in turn (``Connection.pause``)."""
    idle_timeout: float | None = 300.0
    """Without an open stream, after which the connection drains."""
    max_age: float | None = 1800.0
    """After which the connection drains, ± 10 %."""
    age_grace: float = 60.0
    """For the streams of a connection that drains for its age."""
    drain_timeout: float = 5.0
    """For the PING between the two GOAWAYs of a drain."""
    keepalive_time: float | None = 120.0
    """Without a word from the peer, after which it is asked by a PING."""
    keepalive_timeout: float = 20.0
    """For its answer."""
    min_ping_interval: float = 30.0
    """Between two PINGs of a client, if nothing was sent to it in between; a third one too early ends it."""

    def __post_init__(self) -> None:
        """Refuse what the wire cannot say."""
        if not DEFAULT_FRAME_SIZE <= self.max_frame_size <= MOST_FRAME_SIZE:
            raise ValueError(f"max_frame_size is {self.max_frame_size}, not from 16,384 to 2^24-1")
        if not 0 < self.stream_window <= self.max_stream_window <= MOST_WINDOW // 2:
            raise ValueError(f"stream_window {self.stream_window}, max_stream_window {self.max_stream_window}")
        if not 0xFFFF <= self.connection_window <= MOST_WINDOW // 2:
            raise ValueError(f"connection_window is {self.connection_window}, not from 65,535 to 2^30-1")
        for name in ("max_concurrent_streams", "header_table_size", "encoder_table_size", "max_header_list_size"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}, below 0")


SERVER: Limits = Limits()
CLIENT: Limits = Limits(idle_timeout=None, max_age=None, keepalive_time=None)
"""A client decides in its pool how long it keeps a connection, and pings no server that did not agree to it."""
