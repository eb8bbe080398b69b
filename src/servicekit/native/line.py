"""What an RPC needs of the connection that it came over."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from servicekit.http2.connection import Connection
    from servicekit.wire import Security

    from .shared import Shared


class Answered(Protocol):
    """An RPC that was answered."""

    stream_id: int

    def gone(self) -> None:
        """Take note that nothing of it is left."""


class Gathering(Protocol):
    """An RPC that has messages to send."""

    def push(self) -> None:
        """Hand what was gathered to HTTP/2."""


class Line(Protocol):
    """A connection, as its RPCs know it. ``protocol.ClientLine`` is it."""

    shared: Shared
    http2: Connection
    peer: str
    now: float
    held: int
    credit: int

    def wake(self) -> None:
        """Write what there is, in the loop's next turn."""

    def push_soon(self, call: Gathering) -> None:
        """Ask ``call`` for what it has gathered before the next write, in the loop's next turn."""

    def ended(self, call: Answered, *, done: bool) -> None:
        """Take note that ``call`` is answered; ``done`` when nothing of it waits for the client."""

    def hold(self, more: int) -> None:
        """Count ``more`` bytes of requests that are not whole. Raises Error when there are too many of them."""

    def security(self) -> Security:
        """Return what TLS knows of the peer."""
