"""One RPC on the native wire, seen by the server: how it is answered, and every way it can end."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from servicekit.errors import Code
from servicekit.http2.hpack_encoder import encode_stateless
from servicekit.wire import Ended, Head, Received, Status

from .bell import Bell
from .codings import compressed
from .heap import LARGE
from .messages import PREFIX, framed, framed_compressed, prefix
from .options import KIB
from .statuses import HEADERS, TRAILERS, headers_of, trailers_of, trailers_only

if TYPE_CHECKING:
    from collections.abc import Callable

    from servicekit.metadata import Pairs
    from servicekit.wire import Route, Security

    from .heads import Opening
    from .line import Line
    from .statuses import Fields
    from .wheel import Slot

_LOGGER = logging.getLogger(__name__)

_HEADERS: Final = encode_stateless(HEADERS)
_TRAILERS: Final = encode_stateless(TRAILERS)

_TOGETHER: Final = 12 * KIB  # of messages for one frame, which may have 16
_FIRST: Final = 16 * KIB - PREFIX  # what fills a frame of the default size
_TURN_MESSAGES: Final = 256
_LOOK_MESSAGES: Final = 16  # between two looks at the clock
_TURN_SECONDS: Final = 0.002

_UNFINISHED: Final = Status(code=Code.INTERNAL, message="internal error")
_TOO_LATE: Final = Status(code=Code.DEADLINE_EXCEEDED, message="Deadline Exceeded")  # as grpc core says it


class NativeIncoming:
    """An RPC, from its header block to its end. Who asks with one message and who with many are subclasses.

    ``over`` is True once it was finished, ended by the wire, or reset; what the transport has not taken by then is the
    connection's affair, which says ``gone`` when that is done.
    """

    # Defaults of the class: most RPCs never set most of these.
    data: bytes | None = None
    over = False
    deadline = 0.0
    slot: Slot | None = None
    task: asyncio.Task[None] | None = None
    _begun = False
    _cancelled = False
    _started = False  # headers are on their way
    _full = False
    _encoding: str | None = None
    _compressing = False
    _room: Bell | None = None
    _callbacks: tuple[Callable[[], None], ...] | None = ()  # None once they have run
    _held = 0  # bytes of its request that the connection counts, for they are not whole
    _sent = 0
    _outgoing: list[bytes] | None = None  # messages that HTTP/2 has not got yet
    _gathered = 0  # their bytes
    _since = 0.0

    def __init__(self, line: Line, stream_id: int, opening: Opening, route: Route) -> None:
        """Take an RPC that came over ``line``; nothing runs yet."""
        self.stream_id = stream_id
        self._line = line
        self._shared = shared = line.shared
        self._route = route
        self._opening = opening
        deadline = None
        if opening.timeout is not None:
            deadline = self.deadline = line.now + opening.timeout
        self.head = Head(path=opening.path, metadata=opening.metadata, peer=line.peer, deadline=deadline)
        # What every RPC sets in the end. Of names that come up later, when there were many instances, CPython makes a
        # dictionary for each instance: half a KiB, and slower.
        self.task = None
        self.over = False
        self._begun = False
        self._callbacks = ()
        if shared.compression is not None:
            self.compress(shared.compression)

    # What comes in

    def feed(self, data: bytes, credit: int, *, end: bool) -> None:
        """Take content of the request, worth ``credit`` of flow control; ``end`` says that it was the last."""
        raise NotImplementedError

    async def receive(self) -> Received:
        """Return the next request message, or END; see ``wire.Incoming``."""
        raise NotImplementedError

    def start(self) -> None:
        """Let the serving task begin."""
        shared = self._shared
        shared.serving.add(self)
        self.task = shared.loop.create_task(self._run())

    async def _run(self) -> None:
        self._begun = True
        try:
            await self._route.serve(self)
        except asyncio.CancelledError:
            if not self.over:
                _LOGGER.error("%s: the serving task was cancelled, but not by the wire", self.head.path)  # noqa: TRY400
            raise
        except Ended:
            if not self.over:
                _LOGGER.exception("%s left the wire's serving task with Ended before its end", self.head.path)
        except Exception:
            _LOGGER.exception("%s left the wire's serving task with an exception", self.head.path)
        finally:
            self.task = None  # it has its context, and with it whatever knows of this: a circle, cut at every call
            self._shared.left(self)
            if not self.over:  # it has to be answered, or the client waits for ever
                self._answer(_UNFINISHED, None)

    # What goes out

    def send_headers(self, metadata: Pairs) -> None:
        """Send the initial metadata at once; raises RuntimeError when headers were sent before, nothing after the end."""
        if self.over:
            return
        if self._started:
            raise RuntimeError(f"{self.head.path}: the initial metadata was sent before")
        self._send_headers(metadata)

    def _send_headers(self, metadata: Pairs) -> None:
        self._started = True
        plain = not metadata and self._encoding is None
        self._line.http2.send_headers(self.stream_id, _HEADERS if plain else headers_of(metadata, self._encoding))
        self._line.wake()

    async def send(self, data: bytes) -> None:
        """Send one response message, once there is room for it. Raises Ended after the end of the RPC.

        One that was cancelled while it waited was not sent.
        """
        if self._full:
            await self._emptied()
        if self.over:
            raise Ended
        size = len(data)
        if size > self._shared.options.sent:
            self.end(self._oversized(data))
            raise Ended
        if not self._started:
            self._send_headers(())
        # Messages that are sent in one turn of the loop travel together: a frame for each would be half of their price.
        outgoing = self._outgoing
        if outgoing is None:
            outgoing = self._outgoing = []
        if not outgoing:
            self._line.push_soon(self)
        if self._compressing:
            data = self._framed(data)
            outgoing.append(data)
        else:
            outgoing += (prefix(0, size), data)
        self._gathered += size
        if self._gathered >= _TOGETHER:
            self.push()
        self._sent += 1
        if not self._sent % _LOOK_MESSAGES:
            await self._give_way()

    def push(self) -> None:
        """Hand what was gathered to HTTP/2. Called at the latest when the connection writes."""
        outgoing = self._outgoing
        if outgoing:
            if self._gathered >= LARGE:
                self._shared.large()
            self._gathered = 0
            data = b"".join(outgoing)
            outgoing.clear()
            if not self._line.http2.send_data(self.stream_id, data):
                self._full = True

    async def _emptied(self) -> None:
        if self._room is None:
            self._room = Bell(self._shared.loop)
        while self._full and not self.over:
            await self._room.wait()

    async def _give_way(self) -> None:
        now = self._shared.clock.time()
        if not self._sent % _TURN_MESSAGES or now - self._since > _TURN_SECONDS:
            await asyncio.sleep(0)
            now = self._shared.clock.time()
        self._since = now

    def drained(self) -> None:
        """Let who waits for room go on. Called by the connection."""
        self._full = False
        if self._room is not None:
            self._room.ring()

    def compress(self, encoding: str | None) -> None:
        """Compress with ``encoding`` from here on, or not at all.

        Which encoding there is, is said in the headers: after them only that one and None have an effect. What this end
        does not know, or the client has not said that it does, has none.
        """
        if encoding is None or encoding == "identity":
            self._compressing = False
        elif encoding in self._opening.accepts and (not self._started or encoding == self._encoding):
            self._encoding = encoding
            self._compressing = True

    def _framed(self, data: bytes) -> bytes:
        if self._compressing and self._encoding is not None:
            return framed_compressed(compressed(data, self._encoding))
        return framed(data)

    def security(self) -> Security:
        """Return what TLS knows of the peer."""
        return self._line.security()

    # How it ends

    async def finish(self, status: Status, data: bytes | None = None) -> None:
        """End the RPC, with ``data`` as the one response of a unary one; the first call wins."""
        if self.over:
            return
        if status.code is Code.OK:
            if data is None:
                if not self._route.kind.response_streaming:
                    _LOGGER.error("%s was finished with OK and no response", self.head.path)
                    status = _UNFINISHED
            elif len(data) > self._shared.options.sent:
                status, data = self._oversized(data), None
            elif len(data) < LARGE and not self._started and not self._encoding and not status.trailers:
                # What nearly every unary call ends with, in one go.
                line = self._line
                self._close()
                line.ended(self, done=line.http2.respond(self.stream_id, _HEADERS, framed(data), _TRAILERS))
                return
        else:
            data = None
        self._answer(status, data)

    def end(self, status: Status) -> None:
        """End the RPC over the head of who serves it: the client is told, the serving task cancelled."""
        if not self.over:
            self._answer(status, None)
            self.cancel()

    def expire(self) -> None:
        """End the RPC: its deadline has passed. Called by the wheel."""
        self.end(_TOO_LATE)

    def reset(self) -> None:
        """Take note that the client is gone, or has cancelled: there is nobody to answer."""
        if not self.over:
            self._outgoing = None
            self._close()
            self.cancel()
        self.gone()

    def _answer(self, status: Status, data: bytes | None) -> None:
        http2, stream_id = self._line.http2, self.stream_id
        self.push()
        if data is not None:
            if not self._started:
                self._send_headers(())
            if len(data) >= LARGE:
                self._shared.large()
            if len(data) < LARGE or self._compressing:
                http2.send_data(stream_id, self._framed(data))
            else:  # the frames cut their pieces out of it, which spares a copy of all of it behind its prefix
                http2.send_data(stream_id, prefix(0, len(data)) + data[:_FIRST])
                http2.send_data(stream_id, memoryview(data)[_FIRST:])
        fields: Fields | bytes
        if not self._started:
            fields = trailers_only(status)
        elif status.code is Code.OK and not status.trailers and not status.message:
            fields = _TRAILERS
        else:
            fields = trailers_of(status)
        self._end(done=http2.send_headers(stream_id, fields, end_stream=True))

    def _end(self, *, done: bool) -> None:
        self._close()
        self._line.ended(self, done=done)

    def _close(self) -> None:
        self.over = True
        if self.slot is not None:
            self._leave()
        if self._held:
            self._line.held -= self._held
            self._held = 0
        if self._room is not None:
            self._room.ring()
        if self._shared.stopping:
            self._shared.changed.ring()

    def _leave(self) -> None:
        if self.slot is not None:
            self.slot.discard(self)
            self.slot = None

    def cancel(self) -> None:
        """Cancel the serving task, once: what cleans up after the first time is not to be disturbed."""
        if self.task is not None and not self._cancelled:
            self._cancelled = True
            self.task.cancel()
            if not self._begun:  # it never will
                self._shared.left(self)

    def on_end(self, callback: Callable[[], None]) -> None:
        """Run ``callback`` once when the RPC is over: all was handed to the transport, or it was reset."""
        if self._callbacks is None:
            self._shared.loop.call_soon(callback)
        else:
            self._callbacks = (*self._callbacks, callback)

    def gone(self) -> None:
        """Take note that nothing of this RPC is left. Called by the connection."""
        callbacks, self._callbacks = self._callbacks or (), None
        for callback in callbacks:
            try:
                callback()
            except Exception:
                _LOGGER.exception("a callback at the end of %s failed", self.head.path)

    def _oversized(self, data: bytes) -> Status:
        limit = self._shared.options.sent
        return Status(
            code=Code.RESOURCE_EXHAUSTED, message=f"the response is a message of {len(data)} bytes, more than {limit}"
        )

    def __repr__(self) -> str:
        """Return the path and whether it is over."""
        return f"<NativeIncoming {self.head.path} from {self.head.peer}, {'over' if self.over else 'open'}>"
