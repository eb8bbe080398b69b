"""What a connection consists of: the state that its receiving, its sending and its life have in common."""

from __future__ import annotations

from .hpack_decoder import HeaderDecoder
from .hpack_static import DEFAULT_TABLE_SIZE
from .limits import Limits
from .output import Output
from .streams import Streams
from .timers import Timers
from .windows import Credit


class Parts:
    """One of each, made once for a connection; nobody replaces any of them."""

    __slots__ = ("credit", "decoder", "limits", "output", "server", "streams", "timers")

    def __init__(self, *, server: bool, limits: Limits, now: float, chance: float) -> None:
        """Make them all, as they are before the first octet. ``chance``, in [0, 1), spreads the maximal age."""
        self.server = server
        self.limits = limits
        self.streams = Streams(server=server, now=now)
        self.output = Output(limits, self.streams, server=server)
        self.credit = Credit(limits.connection_window, limits.stream_window)
        self.timers = Timers(limits, now, chance)
        # A smaller table holds once the peer has acknowledged it: until then it may use the default.
        self.decoder = HeaderDecoder(
            max_table_size=max(limits.header_table_size, DEFAULT_TABLE_SIZE), max_list_size=limits.max_header_list_size
        )
