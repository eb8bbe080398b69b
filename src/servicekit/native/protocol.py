"""One connection: between a transport of asyncio and the RPCs on it, with HTTP/2 without I/O in the middle.

What comes in is handled as it comes, tens of calls to a read; what goes out is written once in the loop's turn, when
all who had something to say have said it. While the peer does not read, it is not read from.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from typing import TYPE_CHECKING, Final

from servicekit.errors import Code, Error
from servicekit.http2.connection import Connection, Role
from servicekit.http2.errors import ErrorCode
from servicekit.http2.events import Data, RequestReceived, StreamReset, Terminated, Trailers
from servicekit.wire import Security, Status

from .heads import Opening
from .heap import LARGE
from .options import KIB, READ
from .requests import ManyRequests, OneRequest
from .sockets import peer_name
from .statuses import REFUSED, refusal, trailers_only
from .tls import H2, PLAINTEXT, security_of

if TYPE_CHECKING:
    from servicekit.clock import Timer
    from servicekit.http2.events import Event
    from servicekit.wire import Route

    from .incoming import NativeIncoming
    from .line import Answered, Gathering
    from .shared import Shared
    from .wheel import Slot

_LOGGER = logging.getLogger(__name__)

_FIRST_READ: Final = 8 * KIB  # nobody knows yet how much there is to do for a client's bytes
_LEAST_READ: Final = 2 * KIB
_NO_ROUTE: Final = Status(code=Code.INTERNAL, message="internal error")
_GOING: Final = Status(code=Code.UNAVAILABLE, message="the server is shutting down")
_QUIET: Final = frozenset({ErrorCode.NO_ERROR})  # codes that are nobody's fault
_NEVER: Final = float("inf")
_LINGER: Final = 1.0
"""Seconds that a client has to close a connection that is over for us."""
_LAST_WORDS: Final = 1.0  # seconds to take them, for a client that was cut off


class ClientLine(asyncio.BufferedProtocol):
    """A connection of a client. It belongs to its listener, whose limits and routes it serves by."""

    deadline = 0.0
    slot: Slot | None = None

    def __init__(self, shared: Shared) -> None:
        """Wait for the transport."""
        self.shared = shared
        self.http2: Connection
        self.peer = ""
        self.now = 0.0
        self.held = 0
        """Bytes of requests that are not whole."""
        self.credit = 0
        """Of the connection's window, to be given back after the read that is being handled."""
        self._loop = shared.loop
        self._clock = shared.clock
        self._transport: asyncio.Transport
        self._calls: dict[int, NativeIncoming] = {}
        self._refused: dict[int, int] = {}  # the HTTP status of what is no gRPC, said once the request has ended
        self._gathering: list[Gathering] = []  # they have messages to send
        self._ended: list[Answered] = []  # all of them is in the output, which is to be taken
        self._ending: dict[int, Answered] = {}  # some of it waits for the client
        self._security: Security | None = None
        self._most = _FIRST_READ
        self._awake = False  # a flush is on its way
        self._paused = False  # the transport wants no more
        self._resting = False  # nothing is read, so that others have their turn
        self._lost = False
        self._parting = False  # nothing more is said, nor listened to
        self._accused = False  # of what ended the connection
        self._end: Timer | None = None  # of a connection that is over, whether the client reads the last of it or not
        self._context = contextvars.copy_context()

    # asyncio's side

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # a stream's always is one
        """Begin, or turn the client away when there are too many."""
        self._transport = transport
        secured = transport.get_extra_info("ssl_object")
        if secured is not None and secured.selected_alpn_protocol() != H2:  # RFC 9113, section 3.3
            self._lost = True
            transport.abort()
            return
        if not self.shared.admit(self):
            self._lost = True
            transport.abort()
            return
        self.peer = peer_name(transport.get_extra_info("peername"))
        now = self.now = self._clock.time()
        self.http2 = Connection(
            role=Role.SERVER, limits=self.shared.options.http2, now=now, chance=self._clock.random()
        )
        if self.shared.stopping:
            self.http2.drain(now)
        self.wake()
        self._schedule()

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - how much is read is decided here
        """Return where the next read goes: one place for all connections, for it is copied at once."""
        return self.shared.buffer[: self._most]

    def buffer_updated(self, nbytes: int) -> None:
        """Handle what was read."""
        if self._lost or self._parting:
            return
        clock, calls = self._clock, self._calls
        now = self.now = clock.time()
        http2 = self.http2
        for event in http2.receive(bytes(self.shared.buffer[:nbytes]), now):
            # By exact type, for this is asked for every event; isinstance would be twice the price.
            if type(event) is Data:
                call = calls.get(event.stream_id)
                if call is None:
                    self._ignore(event)
                else:
                    call.feed(event.data, event.credit, end=event.end_stream)
            elif type(event) is RequestReceived:
                self._request(event)
            else:
                self._other(event)
        if self.credit:
            credit, self.credit = self.credit, 0
            http2.acknowledge(0, credit)
        if not self._awake:
            self._awake = True
            self._loop.call_soon(self._flush, context=self._context)
        if http2.next_tick() < self.deadline:
            self._schedule()
        spent = clock.time() - now
        if spent > self.shared.options.turn or nbytes == self._most < READ:
            self._pace(spent)

    def _ignore(self, event: Data) -> None:
        """Let content go that belongs to no RPC: to one that is over, or to what is no gRPC."""
        self.http2.acknowledge(event.stream_id, event.credit)
        if event.end_stream:
            self._refuse(event.stream_id)

    def _pace(self, spent: float) -> None:
        """Read less at once from a client that gives much to do for its bytes, and let the others have their turn."""
        if spent <= self.shared.options.turn:
            if spent < self.shared.options.turn / 4:  # for as much as was asked for
                self._most = min(READ, self._most * 2)
            return
        self._most = max(_LEAST_READ, int(self._most * self.shared.options.turn / spent / 2))
        if not self._resting and not self._paused and not self._lost:
            self._resting = True
            self._transport.pause_reading()
            self._loop.call_soon(self._rested, context=self._context)

    def _rested(self) -> None:
        self._resting = False
        if not self._paused and not self._lost:
            self._transport.resume_reading()

    def pause_writing(self) -> None:
        """Take no more, and read no more: who does not read is not read from."""
        self._paused = True
        if not self._lost:
            self.http2.pause(self._clock.time())
            if not self._resting:
                self._transport.pause_reading()

    def resume_writing(self) -> None:
        """Go on."""
        self._paused = False
        if not self._lost:
            self.http2.resume(self._clock.time())
            if not self._resting:
                self._transport.resume_reading()
            self._flush()

    def eof_received(self) -> bool:
        """Let the transport close: HTTP/2 knows no half-closed connections."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - however it ended, it ended
        """End every RPC that was under way."""
        if self._lost:
            return
        self._lost = True
        self._leave()
        if self._end is not None:
            self._end.cancel()
        calls = list(self._calls.values())
        self._calls.clear()
        self._gathering.clear()
        for call in calls:
            call.reset()
        answered = [*self._ended, *self._ending.values()]
        self._ended.clear()
        self._ending.clear()
        for gone in answered:
            gone.gone()
        self.shared.lost(self)

    # HTTP/2's side

    def _request(self, event: RequestReceived) -> None:
        headers = event.headers
        opening = headers.memo
        if type(opening) is not Opening:
            opening = headers.memo = Opening.of(headers)
        stream_id = event.stream_id
        if opening.http:
            self._refused[stream_id] = opening.http
            if event.end_stream:
                self._refuse(stream_id)
            return
        if opening.status is not None:
            self.http2.send_headers(stream_id, trailers_only(opening.status), end_stream=True)
            return
        try:
            route = self.shared.route(opening.path)
        except Exception:
            _LOGGER.exception("no route for %r", opening.path)
            self.http2.send_headers(stream_id, trailers_only(_NO_ROUTE), end_stream=True)
            return
        self._begin(stream_id, opening, route, ended=event.end_stream)

    def _refuse(self, stream_id: int) -> None:
        """Answer what is no gRPC, with a text for people.

        Not before the request has ended: whoever judges our HTTP/2 by what comes behind its first frame is told.
        """
        http = self._refused.pop(stream_id, 0)
        if http:
            self.http2.send_headers(stream_id, refusal(http))
            self.http2.send_data(stream_id, REFUSED, end_stream=True)

    def _begin(self, stream_id: int, opening: Opening, route: Route, *, ended: bool) -> None:
        call: NativeIncoming
        if route.kind.request_streaming:
            call = ManyRequests(self, stream_id, opening, route)
            call.start()
        else:
            call = OneRequest(self, stream_id, opening, route)
        self._calls[stream_id] = call
        if opening.timeout is not None:
            self.shared.wheel.add(call, self.now)
        if ended:
            call.feed(b"", 0, end=True)

    def _other(self, event: Event) -> None:
        if isinstance(event, StreamReset):
            call = self._calls.pop(event.stream_id, None)
            self._refused.pop(event.stream_id, None)
            if call is not None:
                call.reset()
            elif (answered := self._ending.pop(event.stream_id, None)) is not None:
                answered.gone()
        elif isinstance(event, Trailers):
            call = self._calls.get(event.stream_id)
            if call is not None:
                call.feed(b"", 0, end=True)
            else:
                self._refuse(event.stream_id)
        elif isinstance(event, Terminated):
            if event.code not in _QUIET:
                self.shared.accuse(self.peer, event.reason)
                self._accused = True
                self._end_within(_LAST_WORDS)
            else:
                self._end_within(self.shared.options.http2.stall_timeout)

    def _end_within(self, seconds: float | None) -> None:
        """Close in the end also when the client reads nothing: what is left to write would keep it for ever."""
        if self._end is None and not self._lost and seconds is not None:
            self._end = self._clock.call_at(self._clock.time() + seconds, self._transport.abort)

    def _tick(self) -> None:
        for event in self.http2.tick(self._clock.time()):
            self._other(event)
        self.wake()
        self._schedule()

    def expire(self) -> None:
        """Do what time demands. Called by the wheel."""
        if self._parting and not self._lost:
            self._transport.close()
        elif not self._lost:
            self._tick()

    def _schedule(self) -> None:
        """Let the wheel come when HTTP/2 next needs the time, and not before."""
        if self._parting:
            return
        self._leave()
        when = self.http2.next_tick()
        self.deadline = when
        if when < _NEVER:
            self.shared.wheel.add(self, self.now)

    def _leave(self) -> None:
        if self.slot is not None:
            self.slot.discard(self)
            self.slot = None

    # The RPCs' side

    def wake(self) -> None:
        """Write what there is, in the loop's next turn."""
        if not self._awake:
            self._awake = True
            self._loop.call_soon(self._flush, context=self._context)

    def push_soon(self, call: Gathering) -> None:
        """Ask ``call`` for what it has gathered before the next write, in the loop's next turn."""
        self._gathering.append(call)
        self.wake()

    def _flush(self) -> None:
        self._awake = False
        if self._paused or self._lost:
            return
        http2, transport = self.http2, self._transport
        if self._gathering:
            for gathering in self._gathering:
                gathering.push()
            self._gathering.clear()
        while octets := http2.take():
            transport.write(octets)
            if self._paused:
                break
        self._tell()
        if http2.closed and not self._parting and not http2.pending:
            self._parting = True
            # In a turn of its own: asyncio loses count when a transport is closed while it lets its protocol go on.
            self._loop.call_soon(self._part, context=self._context)

    def _tell(self) -> None:
        """Let RPCs know what has left: who may send on, and who is gone."""
        for stream_id in self.http2.drained():
            call = self._calls.get(stream_id)
            if call is not None:
                call.drained()
            elif (answered := self._ending.pop(stream_id, None)) is not None:
                answered.gone()
        if not self._paused and self._ended:
            ended, self._ended = self._ended, []
            for answered in ended:
                answered.gone()

    def _part(self) -> None:
        """Close, and lose nothing that is on its way.

        A socket that is closed answers whatever still comes with a reset, and forgets what it has not sent: a client
        that reads a large response, and opens its windows while it does, would lose the rest. So our half is closed
        first, and the rest when the client has closed its own, as RFC 9112, section 9.6 advises.
        """
        if self._lost:
            return
        if self._accused:
            self._transport.close()
            return
        if self._transport.can_write_eof():
            try:
                self._transport.write_eof()
            except OSError:  # reset just now, and the loop has not seen it
                self._transport.abort()
                return
        self._leave()
        self.now = self._clock.time()
        self.deadline = self.now + _LINGER
        self.shared.wheel.add(self, self.now)

    def ended(self, call: Answered, *, done: bool) -> None:
        """Take note that ``call`` is answered; ``done`` when nothing of it waits for the client."""
        self._calls.pop(call.stream_id, None)
        if self._lost:
            call.gone()
        elif done:
            self._ended.append(call)
        else:
            self._ending[call.stream_id] = call
        if not self._awake:
            self._awake = True
            self._loop.call_soon(self._flush, context=self._context)

    def hold(self, more: int) -> None:
        """Count ``more`` bytes of requests that are not whole. Raises Error when there are too many of them."""
        self.held += more
        if self.held > LARGE:
            self.shared.large()
        if more > 0 and self.held > self.shared.options.buffered + self.shared.options.received:
            self.held -= more
            raise Error(Code.RESOURCE_EXHAUSTED, "the requests of this connection that are not whole are too large")

    def security(self) -> Security:
        """Return what TLS knows of the peer."""
        if self._security is None:
            secured = None if self._lost else self._transport.get_extra_info("ssl_object")
            if secured is None:
                return PLAINTEXT
            self._security = security_of(secured)
        return self._security

    # The listener's side

    @property
    def busy(self) -> bool:
        """Whether there are RPCs that are not answered, those among them whose requests are not whole."""
        return bool(self._calls)

    def drain(self) -> None:
        """Tell the client that this server goes; what is under way goes on."""
        self.http2.drain(self._clock.time())
        self.wake()
        self._schedule()

    def cut(self) -> None:
        """End every RPC that is still under way."""
        for call in list(self._calls.values()):
            call.end(_GOING)
        for stream_id in list(self._refused):
            self._refuse(stream_id)

    def close(self) -> None:
        """Say goodbye, and close once all is written."""
        if not self._lost:
            self.http2.close()
            self._flush()

    def abort(self) -> None:
        """Close at once."""
        if not self._lost:
            self._transport.abort()
