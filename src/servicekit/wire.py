"""The seam: what a transport must be able to do, and all that it needs to know.

Above it stand codecs, metadata rules, errors, the request pump and the call objects, written once. Below it stand
framing, compression, size limits, connections and the task that runs ``serve``. A wire moves bytes; it knows neither
messages nor middleware. ``servicekit.testing.wire_conformance`` is the suite that every wire passes.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, TypeAlias

from .errors import By, Code, Error

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping, Sequence

    from .metadata import Pairs
    from .method import Kind


class End(enum.Enum):
    """The type of END."""

    END = "END"


END: Final = End.END
"""What ``receive`` returns when no more messages will come."""


class Ended(Exception):
    """Raised when something is sent on a stream that is over. Not an error by itself: ``ended()`` says how it ended."""


class BindError(OSError):
    """Raised when a server cannot listen on an address; the message names it."""


# Head, Reply and Status are made for every RPC: freezing them would cost more than everything else about them. Nobody
# writes to one after it was made.


class Head:
    """What opens an RPC.

    ``deadline`` is in the seconds of the wire's clock. The client's fields after it pass through to wires that know
    them: ``wait_for_ready`` None means the wire's default, ``credentials`` and ``compression`` are grpcio's objects.
    """

    wait_for_ready: bool | None = None
    credentials: object = None
    compression: object = None

    def __init__(  # noqa: PLR0913 - a record, of keywords
        self,
        *,
        path: str,
        metadata: Pairs = (),
        peer: str = "",
        deadline: float | None = None,
        wait_for_ready: bool | None = None,
        credentials: object = None,
        compression: object = None,
    ) -> None:
        """Hold what is given."""
        self.path = path
        self.metadata = metadata
        self.peer = peer
        self.deadline = deadline
        if wait_for_ready is not None:
            self.wait_for_ready = wait_for_ready
        if credentials is not None:
            self.credentials = credentials
        if compression is not None:
            self.compression = compression

    def __repr__(self) -> str:
        """Return path, peer and deadline; never metadata."""
        return f"Head({self.path!r}, peer={self.peer!r}, deadline={self.deadline!r})"


@dataclass(slots=True, kw_only=True)
class Reply:
    """The answer to a unary RPC that succeeded. ``peer`` is the address that answered, where the wire knows it."""

    data: bytes
    headers: Pairs = ()
    trailers: Pairs = ()
    peer: str = ""


@dataclass(slots=True, kw_only=True)
class Status:
    """How an RPC ended. ``begun`` is False only when the peer cannot have started the work."""

    code: Code = Code.OK
    message: str = ""
    trailers: Pairs = ()
    begun: bool = True
    by: By = By.PEER


@dataclass(frozen=True, slots=True, kw_only=True)
class Security:
    """What the wire knows of the peer's identity, in grpcio's words: properties by name, and which one names it."""

    properties: Mapping[str, Sequence[bytes]] = field(default_factory=dict)
    identity_key: str | None = None

    @property
    def identities(self) -> Sequence[bytes] | None:
        """The values of the identity property, or None for an unauthenticated peer."""
        return None if self.identity_key is None else self.properties.get(self.identity_key)


Received: TypeAlias = "bytes | Literal[End.END]"


class Stream(Protocol):
    """One attempt, seen by the client. One sender and one receiver may be at work at a time."""

    async def send(self, data: bytes) -> None:
        """Send one message; returns when more is welcome. Raises Ended after the end of the RPC.

        When the caller cancels here, the message may or may not have been sent, and the stream stays usable.
        """

    async def half_close(self) -> None:
        """Say that no more messages will be sent; idempotent, and harmless after the end."""

    async def receive(self) -> Received:
        """Return the next message, or END at any end (also a failed one, also after ``cancel``).

        Cancel-safe: no message is lost, and a cancelled receive never looks like the end.
        """

    async def headers(self) -> Pairs:
        """Return the response's initial metadata once it is there; () when the RPC ended without any."""

    async def ended(self) -> Status:
        """Return how the RPC ended, once all its messages were taken, or once it failed and the rest was dropped.

        Any number of tasks may wait here; a cancelled wait changes nothing. Never raises Error.
        """

    @property
    def peer(self) -> str:
        """The address at the other end, or "" while it is not known."""

    def cancel(self) -> None:
        """End the RPC from this side (CANCELLED, by the caller) if it is not over; idempotent."""


class Wire(Protocol):
    """The client's end: something that RPCs can be sent over. A balanced pool of wires is one too."""

    async def unary(self, head: Head, data: bytes) -> Reply:
        """Make one unary RPC: the hot path. Raises Error for any status but OK (``error_of``).

        When the caller cancels here, the RPC is cancelled.
        """

    def open(self, head: Head, data: bytes | None) -> Stream:
        """Begin an RPC and return at once. With ``data`` the request is that one message, already half-closed.

        Never raises: on a wire that is closed the RPC has ended, UNAVAILABLE and not begun.
        """

    async def close(self, grace: float) -> None:
        """Let calls in flight finish for ``grace`` seconds, end the rest, and let go of every connection."""


class Incoming(Protocol):
    """One RPC, seen by the server. ``data`` is the request message, already read, unless requests are a stream."""

    head: Head
    data: bytes | None

    async def receive(self) -> Received:
        """Return the next request message, or END once the client has half-closed.

        Cancel-safe, as ``Stream.receive`` is. An RPC that broke does not look complete: the serving task is cancelled,
        and receive raises Ended from then on, as it does after ``finish``.
        """

    def send_headers(self, metadata: Pairs) -> None:
        """Send the initial metadata at once; raises RuntimeError when headers were sent, alone or with a message."""

    async def send(self, data: bytes) -> None:
        """Send one response message; returns when more is welcome. Raises Ended after the end of the RPC."""

    async def finish(self, status: Status, data: bytes | None = None) -> None:
        """End the RPC, with ``data`` as the one response of a unary one; the first call wins, later ones do nothing."""

    def on_end(self, callback: Callable[[], None]) -> None:
        """Run ``callback`` once when the RPC is over for the wire: all was handed to the transport, or it was reset."""

    def security(self) -> Security:
        """Return what is known of the peer's identity."""

    def compress(self, encoding: str | None) -> None:
        """Compress the messages from here on with ``encoding`` ("gzip", "deflate"), or none with None, where known."""


Serve: TypeAlias = "Callable[[Incoming], Coroutine[Any, Any, None]]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """How one method is to be served: the wire reads a unary request before it runs ``serve`` in a task.

    That task is cancelled when the client cancels, vanishes or its deadline passes. ``serve`` always finishes the
    RPC; should it fail to, the wire answers INTERNAL.
    """

    kind: Kind
    serve: Serve


class Listener(Protocol):
    """The server's end: what binds addresses and runs a Route for each RPC that comes in.

    One that does not send messages of any size may say so by an attribute ``largest``, in bytes: larger ones then fail
    above it, where they are logged as what they are. One that knows of RPCs before their requests are read has a pair
    of others: ``busy``, True while any RPC is open, and ``idle()``, which returns, after ``stop`` was called, once none
    is. A drain then gives those RPCs the time that it gives to calls under way.
    """

    def bind(self, address: str, credentials: object = None) -> str:
        """Listen on ``address`` (with grpcio's server credentials: TLS) and return it with the port that was bound.

        Nothing is answered before ``start``. Raises BindError, naming the address, when it is taken or not ours.
        """

    async def start(self, route: Callable[[str], Route]) -> None:
        """Begin to serve: ``route(path)`` is asked once for each RPC, also for paths that nobody registered."""

    async def stop(self, grace: float) -> None:
        """Accept nothing new, let RPCs in flight finish for ``grace`` seconds, cancel the rest; return when all is over.

        Idempotent; a later call with less grace shortens the wait.
        """

    async def failed(self) -> BaseException:
        """Return why the listener can no longer serve, when that happens; wait for ever while it can."""


def error_of(status: Status, headers: Pairs = ()) -> Error:
    """Return the bare Error of a status that is not OK; ``transport`` reads reason, details and pushback into it."""
    return Error(
        status.code,
        status.message,
        begun=status.begun,
        by=status.by,
        headers=headers,
        trailers=status.trailers,
    )
