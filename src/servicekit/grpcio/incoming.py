"""One RPC over grpc core, seen by the server."""

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

_LOGGER = logging.getLogger(__name__)

_ENCODINGS: Final = {
    None: grpc.Compression.NoCompression,
    "identity": grpc.Compression.NoCompression,
    "deflate": grpc.Compression.Deflate,
    "gzip": grpc.Compression.Gzip,
}

_UNFINISHED = Status(code=Code.INTERNAL, message="internal error")


class GrpcioIncoming:
    """An Incoming over a servicer context of grpc.aio, whichever server that belongs to."""

    __slots__ = (
        "_aborted",
        "_callbacks",
        "_compressing",
        "_context",
        "_over",
        "_plain",
        "_reading",
        "_started",
        "_status",
        "_writing",
        "data",
        "head",
        "reply",
    )

    def __init__(self, context: Any, data: bytes | None, path: str, metadata: Pairs, clock: Clock) -> None:
        """Take the context of an RPC whose handler has just begun; ``data`` is None where requests are a stream."""
        remaining = context.time_remaining()
        self.head = Head(
            path=path,
            metadata=metadata,
            peer=context.peer(),
            deadline=None if remaining is None else clock.time() + remaining,
        )
        self.data = data
        self.reply: bytes | None = None
        self._context: Any = context  # None once it is over: core frees the call then
        self._status: Status | None = None  # what finish() was first called with
        self._aborted: BaseException | None = None  # core's own exception, which has to end the handler
        self._over = data is not None  # there are no (more) requests to read
        self._started = False  # headers are on their way
        self._compressing = False
        self._plain = False
        self._reading: Kept[Any] | None = None
        self._writing: Kept[None] | None = None
        self._callbacks: list[Callable[[], None]] = []
        context.add_done_callback(self._end)

    async def receive(self) -> Received:
        """Return the next request message, or END once the client has half-closed. Cancel-safe."""
        if self._over or self._status is not None:
            return END
        message = await self._read()
        if message is grpc.aio.EOF:
            # grpc.aio says the same of a stream that broke, just before it cancels the handler. A second read comes
            # back through the same queue as that news, so it comes after it: whoever is still here was half-closed.
            await self._read()
            self._over = True
            return END
        return message  # type: ignore[no-any-return]

    def send_headers(self, metadata: Pairs) -> None:
        """Send the initial metadata at once; raises RuntimeError when headers were sent before, nothing after the end."""
        if self._status is not None:
            return
        if self._started:
            raise RuntimeError("the initial metadata was sent before, explicitly or with the first message")
        self._send_headers(metadata)

    async def send(self, data: bytes) -> None:
        """Send one response message; returns when core wants more. Raises Ended after the end of the RPC."""
        if self._writing is not None:
            await self._written()
        if self._status is not None:
            raise Ended
        if self._plain:
            self._context.disable_next_message_compression()
        self._started = True
        self._writing = Kept(self._context.write(data))
        await self._written()

    async def finish(self, status: Status, data: bytes | None = None) -> None:
        """End the RPC; the first call wins. A failure is sent at once, OK when the handler returns."""
        if self._status is not None:
            return
        self._status = status
        self.reply = data
        if status.code is Code.OK:
            if status.trailers:
                self._context.set_trailing_metadata(tuple(status.trailers))
            await self._flushed()
        else:
            await self._abort(status)

    def on_end(self, callback: Callable[[], None]) -> None:
        """Run ``callback`` once when the handler has ended and core was given all; at once when that was before."""
        if self._context is None:
            callback()
        else:
            self._callbacks.append(callback)

    def security(self) -> Security:
        """Return what core's auth context says of the peer."""
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

    async def run(self, serve: Serve, *, answers: bool) -> bytes | None:
        """Serve the RPC; return what core's handler has to return, or raise what it has to raise.

        ``answers`` says that OK needs a response in ``finish``.
        """
        try:
            try:
                await serve(self)
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if task is not None and task.cancelling() and not self._owes():
                    raise
                if self._status is None:
                    _LOGGER.error("%s was cancelled by its own work", self.head.path)
            except Exception:
                if self._aborted is None and self._status is None:
                    _LOGGER.exception("%s left the wire's serving task with an exception", self.head.path)
            return await self._conclude(answers=answers)
        finally:
            for kept in (self._reading, self._writing):
                if kept is not None:
                    kept.drop()

    def _owes(self) -> bool:
        """Whether a failure was decided on that core was not told yet."""
        return self._status is not None and self._status.code is not Code.OK and not self._context.done()

    async def _conclude(self, *, answers: bool) -> bytes | None:
        status = self._status
        if status is None or (status.code is Code.OK and answers and self.reply is None):
            if status is not None:
                _LOGGER.error("%s was finished with OK and no response", self.head.path)
            self._status = _UNFINISHED
            await self._abort(_UNFINISHED)
        elif status.code is Code.OK:
            await self._flushed()
        elif self._owes():
            await self._abort(status)
        if self._aborted is not None:
            raise self._aborted
        return self.reply

    async def _abort(self, status: Status) -> None:
        message = status.message.encode(errors="replace").decode()  # a lone surrogate would leave the client waiting
        try:
            await self._flushed()
            await self._context.abort(STATUS_CODES[status.code], message, tuple(status.trailers))
        except grpc.aio.AbortError as error:
            self._aborted = error
        except grpc.aio.BaseError:  # the client is gone
            return

    def _send_headers(self, metadata: Pairs) -> None:
        self._started = True
        self._writing = Kept(self._context.send_initial_metadata(tuple(metadata)))
        self._writing.advance()  # starts core's batch; whoever sends next waits for its end

    async def _flushed(self) -> None:
        if self._compressing and not self._started:
            # grpc.aio leaves the encoding out of the headers that it sends by itself with a unary response.
            self._send_headers(())
        if self._writing is not None:
            try:
                await self._written()
            except Ended:
                return

    async def _written(self) -> None:
        writing = self._writing
        assert writing is not None  # noqa: S101 - asked before
        try:
            await writing
        except grpc.aio.BaseError:  # over: aborted, reset, or the server was stopped
            self._writing = None
            raise Ended from None
        if self._writing is writing:
            self._writing = None

    async def _read(self) -> Any:
        if self._reading is None:
            self._reading = Kept(self._context.read())
        try:
            message = await self._reading
        except grpc.aio.BaseError:
            message = grpc.aio.EOF
        self._reading = None
        return message

    def _end(self, _: Any) -> None:
        self._context = self._aborted = None  # and the cycle through core's list of callbacks is cut
        if self._status is None:
            self._status = _UNFINISHED
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            try:
                callback()
            except Exception:
                _LOGGER.exception("a callback at the end of %s failed", self.head.path)
