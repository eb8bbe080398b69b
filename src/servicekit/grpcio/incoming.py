"""One RPC over grpc core, seen by the server.

``serve`` runs in a task of its own beside core's handler. What cancels the handler is then the RPC's end and nothing
else (inside one task it could not be told from a time-out of the servicer's own), core is answered at ``finish``
whoever calls it and whatever ``serve`` does afterwards, and a servicer that swallows its cancellation holds nothing up.
The task costs a microsecond of a call's 250.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final

import grpc

from servicekit.errors import Code
from servicekit.wire import END, Ended, Head, Received, Security, Serve, Status

from .kept import Kept
from .outcome import STATUS_CODES

if TYPE_CHECKING:
    from collections.abc import Callable

    from servicekit.clock import Clock
    from servicekit.metadata import Pairs

    from .running import Tally, Tasks

_LOGGER = logging.getLogger(__name__)

_ENCODINGS: Final = {
    None: grpc.Compression.NoCompression,
    "identity": grpc.Compression.NoCompression,
    "deflate": grpc.Compression.Deflate,
    "gzip": grpc.Compression.Gzip,
}

_BUSY: Final = "TOO_MANY_OPERATIONS"  # one message at a time, says core
_LOOK: Final = 0.001  # seconds between the first two looks at whether it has sent the one before
_LONGEST_LOOK: Final = 0.1

_UNFINISHED = Status(code=Code.INTERNAL, message="internal error")


class GrpcioIncoming:
    """An Incoming over a servicer context of grpc.aio, whichever server that belongs to."""

    # Defaults of the class: most RPCs never set most of these.
    _reply: bytes | None = None
    _status: Status | None = None  # what finish() was first called with
    _started = False  # headers are on their way
    _headed = False  # a message is out, and the headers with it
    _flowing = False  # ... and core holds none that nobody waits for
    _compressing = False
    _plain = False
    _reading: Kept[Any] | None = None
    _writing: Kept[None] | None = None
    _callbacks: tuple[Callable[[], None], ...] = ()

    def __init__(  # noqa: PLR0913, PLR0917 - made in one place, for every RPC
        self,
        context: Any,
        data: bytes | None,
        path: str,
        clock: Clock,
        loop: asyncio.AbstractEventLoop,
        tally: Tally,
    ) -> None:
        """Take the context of an RPC whose handler has just begun; ``data`` is None where requests are a stream."""
        remaining = context.time_remaining()
        self.head = Head(
            path=path,
            metadata=context.invocation_metadata(),
            peer=context.peer(),
            deadline=None if remaining is None else clock.time() + remaining,
        )
        self.data = data
        self._context: Any = context  # None once it is over for core, which frees the call then
        self._loop = loop  # given, for to ask for it is a system call (until Python 3.12)
        self._decided: asyncio.Future[None] = loop.create_future()  # cancelled at a reset
        self._half_closed = data is not None
        self._tally = tally
        tally.count += 1
        context.add_done_callback(self._end)

    async def receive(self) -> Received:
        """Return the next request message, or END once the client has half-closed. Cancel-safe.

        Raises Ended when the RPC is over: a stream that was cut off does not look complete.
        """
        if self._decided.done():
            raise Ended
        if self._half_closed:
            return END
        message = await self._read()
        if message is grpc.aio.EOF:
            # grpc.aio says the same of a stream that was cut off, just before it cancels the handler. A second read
            # comes back through the same queue as that news, and so after it.
            if not self._decided.done():
                await self._read()
            if self._decided.done():
                raise Ended
            self._half_closed = True
            return END
        return message  # type: ignore[no-any-return]

    def send_headers(self, metadata: Pairs) -> None:
        """Send the initial metadata at once; raises RuntimeError when headers were sent before, nothing after the end."""
        if self._decided.done():
            return
        if self._started:
            raise RuntimeError("the initial metadata was sent before, explicitly or with the first message")
        self._send_headers(metadata)

    async def send(self, data: bytes) -> None:
        """Send one response message; returns when core wants more. Raises Ended after the end of the RPC."""
        if self._writing is not None:
            await self._written()
        if self._decided.done():
            raise Ended
        if self._plain:
            self._context.disable_next_message_compression()
        self._started = True
        if not self._flowing:  # the first carries the headers, and core must be seen to have sent them
            self._writing = Kept(self._written_again(data) if self._headed else self._context.write(data))
            await self._written()
            self._headed = self._flowing = True
            return
        # Kept would cost more than all else about a message. What a cancellation leaves with core is made good by the next
        # message, which waits for it; a task that still waits here when the RPC is over does so until core lets go of it.
        self._flowing = False
        try:
            await self._context.write(data)
        except grpc.aio.BaseError:  # over: aborted, reset, or the server was stopped
            raise Ended from None
        self._flowing = True

    async def finish(self, status: Status, data: bytes | None = None) -> None:
        """End the RPC; the first call wins. Core is told in the loop's next turn, after what is still being sent."""
        if not self._decided.done():
            self._status = status
            self._reply = data
            self._decided.set_result(None)

    def on_end(self, callback: Callable[[], None]) -> None:
        """Run ``callback`` once when core was given all and has ended the RPC, or it was reset; at once if it is over."""
        if self._context is None:
            callback()
        else:
            self._callbacks = (*self._callbacks, callback)

    def security(self) -> Security:
        """Return what core's auth context says of the peer; nothing once the RPC is over."""
        if self._context is None:
            return Security()
        return Security(properties=self._context.auth_context(), identity_key=self._context.peer_identity_key())

    def compress(self, encoding: str | None) -> None:
        """Compress with ``encoding`` from here on, or not at all.

        Which encoding there is, is said in the headers: after them only None has an effect. Unknown ones have none.
        """
        if encoding not in _ENCODINGS or self._context is None:
            return
        if not self._started:
            self._context.set_compression(_ENCODINGS[encoding])
            self._compressing = True
        self._plain = encoding is None

    async def run(self, serve: Serve, serving: Tasks, *, answers: bool) -> bytes | None:
        """Serve the RPC in a task, kept in ``serving`` while it runs, and end it as core wants it: return or raise.

        ``answers`` says that OK needs a response in ``finish``.
        """
        task = self._loop.create_task(serve(self))
        self._running = serving
        serving.add(task)
        task.add_done_callback(self._served)
        try:
            try:
                await self._decided
            except asyncio.CancelledError:
                serving.cancel(task)
                self._end(None)
                raise
            return await self._answer(answers=answers)
        finally:  # a task of the servicer's may wait for them yet, and asyncio logs what failed and nobody looked at
            if self._reading is not None:
                self._reading.drop()
            if self._writing is not None:
                self._writing.drop()

    async def _answer(self, *, answers: bool) -> bytes | None:
        status = self._status or _UNFINISHED
        if status.code is Code.OK and answers and self._reply is None:
            _LOGGER.error("%s was finished with OK and no response", self.head.path)
            status = _UNFINISHED
        if status.code is Code.OK and self._compressing and not self._started:
            # grpc.aio leaves the encoding out of the headers that it sends by itself with a unary response.
            self._send_headers(())
        if self._writing is not None:
            try:
                await self._written()
            except Ended:
                return None
        if status.code is not Code.OK:
            message = status.message.encode(
                errors="replace"
            ).decode()  # a lone surrogate would leave the client waiting
            await self._context.abort(STATUS_CODES[status.code], message, tuple(status.trailers))
        if status.trailers:
            self._context.set_trailing_metadata(tuple(status.trailers))
        return self._reply

    def _served(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not (isinstance(error, Ended) and self._decided.done()):
            _LOGGER.error("%s left the wire's serving task with an exception", self.head.path, exc_info=error)
        if not self._decided.done():  # it has to be answered, or the client waits for ever
            if error is None:
                _LOGGER.error("%s was left unfinished by the wire's serving task", self.head.path)
            self._decided.set_result(None)

    async def _written_again(self, data: bytes) -> None:
        """Write ``data`` once core has sent what it still held when the write before was cancelled."""
        pause = _LOOK
        while True:
            try:
                await self._context.write(data)
            except grpc.aio.BaseError as error:
                if _BUSY not in str(error):
                    raise
            else:
                return
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_LOOK)  # it takes as long as the client does to read

    def _send_headers(self, metadata: Pairs) -> None:
        self._started = True
        self._writing = Kept(self._context.send_initial_metadata(tuple(metadata)))
        self._writing.advance()  # starts core's batch; whoever sends next waits for its end

    async def _written(self) -> None:
        writing = self._writing
        assert writing is not None  # noqa: S101 - asked before
        try:
            await writing
        except Ended:  # aborted, reset, or the server was stopped
            self._writing = None
            raise
        if self._writing is writing:
            self._writing = None

    async def _read(self) -> Any:
        if self._reading is None:
            self._reading = Kept(self._context.read())
        try:
            message = await self._reading
        except Ended:
            message = grpc.aio.EOF
        self._reading = None
        return message

    def _end(self, _: Any) -> None:
        if self._context is None:
            return
        self._context = None  # and the cycle through core's list of callbacks is cut
        self._decided.cancel()
        for callback in self._callbacks:
            try:
                callback()
            except Exception:
                _LOGGER.exception("a callback at the end of %s failed", self.head.path)
        self._callbacks = ()
        self._tally.leave()
