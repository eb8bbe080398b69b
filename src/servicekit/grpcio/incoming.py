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
        "_ended",
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
        self._context = context
        self._status: Status | None = None  # what finish() was first called with
        self._aborted: BaseException | None = None  # core's own exception, which has to end the handler
        self._over = data is not None  # there are no (more) requests to read
        self._started = False  # headers are on their way
        self._compressing = False
        self._plain = False
        self._ended = False
        self._reading: Kept[Any] | None = None
        self._writing: Kept[None] | None = None
        self._callbacks: list[Callable[[], None]] | None = None

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
        self._started = True
        self._writing = Kept(self._context.send_initial_metadata(tuple(metadata)))
        self._writing.advance()  # starts core's batch; whoever sends next waits for its end

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
        if self._ended:
            callback()
        elif self._callbacks is None:
            self._callbacks = [callback]
            self._context.add_done_callback(self._end)
        else:
            self._callbacks.append(callback)

    def security(self) -> Security:
        """Return what core's auth context says of the peer."""
        return Security(properties=self._context.auth_context(), identity_key=self._context.peer_identity_key())

    def compress(self, encoding: str | None) -> None:
        """Compress with ``encoding`` from here on, or not at all.

        Which encoding there is, is said in the headers: after them only None has an effect. Unknown ones have none.
        """
        if encoding not in _ENCODINGS:
            return
        if not self._started:
            self._context.set_compression(_ENCODINGS[encoding])
            self._compressing = True
        self._plain = encoding is None

    async def run(self, serve: Serve) -> bytes | None:
        """Serve the RPC and return what core's handler returns; raise what it has to raise."""
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
            return await self._conclude()
        finally:
            for kept in (self._reading, self._writing):
                if kept is not None:
                    kept.drop()

    def _owes(self) -> bool:
        """Whether a failure was decided on that core was not told yet."""
        return self._status is not None and self._status.code is not Code.OK and not self._context.done()

    async def _conclude(self) -> bytes | None:
        if self._status is None:
            await self.finish(_UNFINISHED)
        elif self._owes():
            await self._abort(self._status)
        elif self._status.code is Code.OK:
            await self._flushed()
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

    async def _flushed(self) -> None:
        if self._compressing and not self._started:
            # grpc.aio leaves the encoding out of the headers that it sends by itself with a unary response.
            self.send_headers(())
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
            raise Ended from None
        finally:
            if self._writing is writing and writing.advance():
                self._writing = None

    async def _read(self) -> Any:
        if self._reading is None:
            self._reading = Kept(self._context.read())
        reading = self._reading
        try:
            return await reading
        except grpc.aio.BaseError:
            return grpc.aio.EOF
        finally:
            if self._reading is reading and reading.advance():
                self._reading = None

    def _end(self, _: Any) -> None:
        self._ended = True
        for callback in self._callbacks or ():
            try:
                callback()
            except Exception:
                _LOGGER.exception("a callback at the end of %s failed", self.head.path)
