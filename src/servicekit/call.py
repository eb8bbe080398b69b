"""One RPC as every layer sees it: what is called, by whom, until when, and what may be added to it."""

from __future__ import annotations

import asyncio
import enum
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self, TypeAlias

from .errors import Code, Error, code_of
from .metadata import Metadata

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping, Sequence

    from .clock import Clock
    from .errors import Attempt
    from .metadata import Pairs
    from .method import Method

Hook: TypeAlias = "Callable[[object, int], None]"
DecisionHook: TypeAlias = "Callable[[str, str], None]"
Note: TypeAlias = tuple[str, str, float, float]
"""A link, what it decided ("" for a wait), when, and for how many seconds it waited."""


class Side(enum.Enum):
    """Which end of an RPC a chain runs on."""

    SERVER = "server"
    CLIENT = "client"


class PeerSecurity(Protocol):
    """What the wire has proved of the peer's identity, in grpcio's words. ``wire.Security`` is one."""

    @property
    def properties(self) -> Mapping[str, Sequence[bytes]]:
        """What is known, by name; the names of a TLS peer are those of gRPC core's auth context."""

    @property
    def identity_key(self) -> str | None:
        """Which property names the peer; None for one that is not authenticated."""


class Exchange(Protocol):
    """What a call asks of the transport that carries it. Implemented by ``transport``; middleware use the Call."""

    committed: bool

    @property
    def draining(self) -> asyncio.Event | None:
        """Set when the server begins to go; None on the client."""

    def security(self) -> PeerSecurity:
        """Return what is known of the peer's identity."""

    async def send(self, call: Call, message: object) -> None:
        """Hand a response message on; returns when more is welcome."""

    def limit(self, call: Call) -> None:
        """Take note that the call's deadline has come nearer."""

    def stop(self, call: Call) -> None:
        """Make the call's work stop: its failure is set."""


class Call:
    """One RPC, or one attempt at it.

    On both sides ``metadata`` is what the request carries, ``headers`` and ``trailers`` what the response carries
    before and after its messages. On the server the first is read and the others are written (merged, sent once);
    on the client it is the other way round. ``peer`` is the other end's address as the wire spells it, ``path`` what
    was asked for, also where the method is unknown. ``deadline`` is in the seconds of ``clock``. ``state`` is the
    call's own dictionary, shared by all attempts.

    What belongs to one attempt (metadata, hooks, failure, ``instance``, ``tried``) is apart from what belongs to the call:
    whoever calls ``next`` more than once passes ``call.fork()``.
    """

    # Most calls never set most of these: as defaults of the class they cost a call nothing.
    failure: Exception | None = None
    instance: str | None = None
    tried: tuple[str, ...] = ()  # instances of earlier attempts: the next one had better go elsewhere
    attempt = 0
    origin: Call | None = None
    over = False
    answers_none = False  # whether None is a message of the method's own codec
    logged = False  # whether somebody wrote down why it failed
    used = False
    began = 0.0  # when the attempt was handed to the wire
    ended: float | None = None
    again = ""  # the link that makes this attempt after or beside an earlier one
    waited = 0.0  # for how many seconds that link has waited first
    attempts: tuple[Call | Attempt | Succeeded, ...] = ()  # on the call itself, from transport: a Call is still at work
    _notes: list[Note] | None = None
    _state: dict[str, object] | None = None
    _headers: Metadata | None = None
    _trailers: Metadata | None = None
    _on_received: tuple[Hook, ...] = ()
    _on_sent: tuple[Hook, ...] = ()
    _on_decision: tuple[DecisionHook, ...] = ()

    def __init__(  # noqa: PLR0913 - made in three places, all of them in transport and testing
        self,
        method: Method,
        *,
        side: Side,
        exchange: Exchange,
        clock: Clock,
        metadata: Metadata,
        peer: str = "",
        path: str = "",
        deadline: float | None = None,
        parent: Call | None = None,
    ) -> None:
        """Describe a call that begins now."""
        self.method = method
        self.side = side
        self.clock = clock
        self.started = clock.time()
        self.metadata = metadata
        self.peer = peer
        self.path = path or method.path
        self.deadline = deadline
        self.parent = parent
        self._exchange = exchange

    @property
    def state(self) -> dict[str, object]:
        """What links and servicer have to tell each other about this call; all attempts share it."""
        if self._state is None:
            self._state = {}
        return self._state

    @property
    def headers(self) -> Metadata:
        """The response's initial metadata: written on the server, read on the client."""
        if self._headers is None:
            self._headers = Metadata()
        return self._headers

    @headers.setter
    def headers(self, headers: Metadata) -> None:
        self._headers = headers

    @property
    def trailers(self) -> Metadata:
        """The metadata that goes with the status: written on the server, read on the client."""
        if self._trailers is None:
            self._trailers = Metadata()
        return self._trailers

    @trailers.setter
    def trailers(self, trailers: Metadata) -> None:
        self._trailers = trailers

    def sending(self) -> tuple[Pairs, Pairs]:
        """Return headers and trailers as they stand, for the wire. Called by transport."""
        headers, trailers = self._headers, self._trailers
        return () if headers is None else headers.pairs(), () if trailers is None else trailers.pairs()

    def remaining(self) -> float | None:
        """Return the seconds left until the deadline, at least 0.0, or None when there is none."""
        return None if self.deadline is None else max(0.0, self.deadline - self.clock.time())

    def limit(self, deadline: float) -> None:
        """Bring the deadline forward to ``deadline``; a later one changes nothing.

        When it passes, the call ends with DEADLINE_EXCEEDED wherever it is, as if the caller had asked for it.
        """
        if self.deadline is None or deadline < self.deadline:
            self.deadline = deadline
            self._exchange.limit(self)

    def on_received(self, hook: Hook) -> None:
        """Have ``hook(message, size_in_bytes)`` run for each message that comes in, before anyone sees it.

        A hook observes or raises; what it raises becomes the call's failure. On the server these are the requests,
        on the client the responses.
        """
        self._on_received = (*self._on_received, hook)

    def on_sent(self, hook: Hook) -> None:
        """Have ``hook(message, size_in_bytes)`` run for each message that goes out, just before it does."""
        self._on_sent = (*self._on_sent, hook)

    def on_decision(self, hook: DecisionHook) -> None:
        """Have ``hook(link, decision)`` run for each decision that a link further in takes about this call."""
        self._on_decision = (*self._on_decision, hook)

    def decide(self, link: str, decision: str) -> None:
        """Tell the observers further out what ``link`` decided: ``call.decide("rate_limit", "refused")``.

        Both are words of a small fixed set, for they become labels of a metric: what varies is in the error.
        """
        if self.side is Side.CLIENT:
            self._note(link, decision, self.clock.time(), 0.0)
        for hook in self._on_decision:
            hook(link, decision)

    def waiting(self, link: str) -> Waiting:
        """Return a context manager around what ``link`` lets the call wait for, so that its report can tell."""
        return Waiting(self, link)

    def note_wait(self, link: str, since: float, seconds: float) -> None:
        """Take note that ``link`` made the call wait so long: what ``waiting`` does at its end."""
        if self.side is Side.CLIENT:
            self._note(link, "", since, seconds)

    def _note(self, link: str, decision: str, when: float, seconds: float) -> None:
        if self._notes is None:
            self._notes = []
        self._notes.append((link, decision, when, seconds))

    @property
    def notes(self) -> Sequence[Note]:
        """What links have decided about this call, and how long they let it wait; all attempts share it."""
        return self._notes or ()

    @property
    def root(self) -> Call:
        """The call itself: what this attempt was forked from, or what that one was."""
        call = self
        while call.origin is not None:
            call = call.origin
        return call

    def send(self, message: object) -> Coroutine[Any, Any, None]:
        """Send one message of a streaming response; to be awaited, returns when more is welcome.

        This is how the endpoint of a response-streaming method answers, and how a middleware does that answers in
        its place: on the client too, where the message reaches the caller.
        """
        return self._exchange.send(self, message)  # no coroutine of its own: all of them are gone through per message

    def fork(self, *, again: str = "", waited: float = 0.0) -> Call:
        """Return another attempt at this call, to be given to ``next`` in its place.

        A link that makes one after or beside an earlier one names itself in ``again``, and says for how many seconds it
        has waited before: both are for the report. The attempt begins with this call's metadata and hooks, and with
        nothing received, sent or failed. Attempts do not see each other's changes; the one that succeeds hands its
        headers, trailers and instance back.
        """
        attempt = Call(
            self.method,
            side=self.side,
            exchange=self._exchange,
            clock=self.clock,
            metadata=self.metadata.copy(),
            peer=self.peer,
            path=self.path,
            deadline=self.deadline,
            parent=self.parent,
        )
        root = self.root
        root.attempt += 1  # on the call itself this counts its attempts
        attempt.attempt = root.attempt
        attempt.origin = self
        attempt.tried = self.tried
        attempt.again, attempt.waited = again, waited
        if self._notes is None:
            self._notes = []
        attempt._notes = self._notes
        if self._headers is not None:
            attempt._headers = self._headers.copy()
        if self._trailers is not None:
            attempt._trailers = self._trailers.copy()
        attempt._state = self.state
        attempt._on_received, attempt._on_sent = self._on_received, self._on_sent
        attempt._on_decision = self._on_decision
        return attempt

    @property
    def committed(self) -> bool:
        """Whether a response message has reached the caller: from then on there is no second attempt."""
        return self._exchange.committed

    @property
    def draining(self) -> asyncio.Event | None:
        """Set when the server begins to go: a stream that could last for ever ends itself then. None on the client."""
        return self._exchange.draining

    def security(self) -> PeerSecurity:
        """Return what the wire has proved of the peer: on the server who calls, by TLS; nothing at all on the client."""
        return self._exchange.security()

    def fail(self, error: Exception) -> None:
        """Make ``error`` the way this attempt ends, whatever the servicer returns or swallows; the first one wins."""
        if self.failure is None:
            self.failure = error

    def end(self, error: Exception) -> None:
        """End the call now with ``error``: what is at work for it is cancelled. Harmless when it has failed already.

        May be called from a timer. This is how a limit on time ends a call, never by a time-out around a read.
        """
        if self.failure is None:
            self.failure = error
            self._exchange.stop(self)

    def outcome(self, error: BaseException | None) -> Code:
        """Return the code that the other side sees when this call ends with ``error`` (None: it returned).

        Tells a cancellation by the client from a deadline that has passed, which both arrive as CancelledError.
        """
        if isinstance(error, asyncio.CancelledError):
            if self.failure is not None:
                return code_of(self.failure)
            if self.deadline is not None and self.clock.time() >= self.deadline - self._uncertainty():
                return Code.DEADLINE_EXCEEDED
        return code_of(error)

    def _uncertainty(self) -> float:
        if self.side is Side.CLIENT:
            return 0.0
        # A client that gives up at its deadline says so with a reset, and this end believes in a later deadline: by the
        # time that the request was under way, and by what the encoding of grpc-timeout rounds up, up to a hundredth.
        assert self.deadline is not None  # noqa: S101 - asked before
        return 0.01 + 0.01 * max(0.0, self.deadline - self.started)

    def settle(self) -> None:
        """Hand what this attempt brought back to the call it was forked from. Called by transport on success."""
        origin = self.origin
        while origin is not None:
            origin.headers, origin.trailers = self.headers, self.trailers
            origin.instance, origin.peer = self.instance, self.peer
            origin = origin.origin

    def received(self, message: object, size: int) -> None:
        """Run the hooks for a message that came in. Called by transport; a failing hook fails the call."""
        if self._on_received:
            self._run(self._on_received, message, size)

    def sent(self, message: object, size: int) -> None:
        """Run the hooks for a message about to go out. Called by transport; a failing hook fails the call."""
        if self._on_sent:
            self._run(self._on_sent, message, size)

    def _run(self, hooks: tuple[Hook, ...], message: object, size: int) -> None:
        try:
            for hook in hooks:
                hook(message, size)
        except Exception as error:
            self.fail(error)
            raise

    def __repr__(self) -> str:
        """Return the method, side, attempt and time left; never metadata or messages."""
        left = self.remaining()
        time = "" if left is None else f", {left:.3f}s left"
        attempt = f", attempt {self.attempt}" if self.origin is not None else ""
        return f"<Call {self.path} {self.method.kind.value} on the {self.side.value}{attempt}{time}>"


class Succeeded(NamedTuple):
    """An attempt that went well: what is told of it, without holding the Call, which would be a circle."""

    number: int
    instance: str
    again: str
    waited: float
    began: float
    ended: float


class Waiting:
    """Takes note of how long a link makes a call wait, however the wait ends: then it is in ``seconds``."""

    __slots__ = ("_call", "_link", "_since", "seconds")

    def __init__(self, call: Call, link: str) -> None:
        """Wait on behalf of ``link``."""
        self._call = call
        self._link = link
        self.seconds = 0.0

    def __enter__(self) -> Self:
        """Begin."""
        self._since = self._call.clock.time()
        return self

    def __exit__(self, *_: object) -> None:
        """Tell the call."""
        self.seconds = self._call.clock.time() - self._since
        self._call.note_wait(self._link, self._since, self.seconds)


def deadline_error(*, begun: bool = True) -> Error:
    """Return the error of a deadline that has passed; ``begun`` says whether the peer can have started the work."""
    return Error(Code.DEADLINE_EXCEEDED, "deadline exceeded", begun=begun)
