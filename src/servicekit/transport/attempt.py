"""One attempt at a call: what it sends on the wire, and what comes back for the caller or is the chain's failure."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from servicekit.call import deadline_error
from servicekit.errors import By, Code, Error
from servicekit.metadata import Metadata
from servicekit.wire import END, Ended, Head

from .codec import malformed_response, size_of, unencodable
from .exchange import Exchange
from .requests import Opened
from .status import enrich

if TYPE_CHECKING:
    from servicekit.call import Call
    from servicekit.clock import Clock
    from servicekit.wire import Received, Reply, Status, Stream, Wire

    from .codec import Codec
    from .handover import Taken


class Sender:
    """The innermost endpoint of one method on the client: one attempt on the wire."""

    __slots__ = ("_clock", "_codec", "_wire")

    def __init__(self, wire: Wire, codec: Codec, clock: Clock) -> None:
        """Send over ``wire`` what ``codec`` makes of messages."""
        self._wire = wire
        self._codec = codec
        self._clock = clock

    async def __call__(self, request: Any, call: Call) -> Any:
        """Make one attempt. Raises Error for every way to fail but the caller's own iterator's."""
        exchange = call._exchange  # noqa: SLF001 - transport made it
        if not isinstance(exchange, Exchange):
            raise Error(Code.CANCELLED, "the call is over")
        exchange.begin(call)
        kind = call.method.kind
        response = None
        try:
            if call.deadline is not None and call.began >= call.deadline:
                raise deadline_error(begun=False)  # noqa: TRY301 - it ends the attempt as any other error does
            data = None if kind.request_streaming else self._encoded(request, call)
            head = Head(
                path=call.path,
                metadata=call.metadata.pairs(),
                deadline=call.deadline,
                wait_for_ready=exchange.options.wait_for_ready,
                credentials=exchange.options.credentials,
                compression=exchange.options.compression,
            )
            try:
                if data is not None and not kind.response_streaming:
                    response = await self._unary(head, data, call)
                else:
                    response = await self._stream(head, data, request, call, exchange)
            except (asyncio.CancelledError, Error):
                if call.failure is None:
                    raise
            if call.failure is not None:
                task = asyncio.current_task()
                if exchange.stopping and task is exchange.task_of(call) and task.cancelling() and task.uncancel():
                    raise asyncio.CancelledError  # noqa: TRY301 - what is left of the count is somebody else's: the caller's, mostly
                raise call.failure  # noqa: TRY301 - it ends the attempt as any other error does
        except BaseException as error:
            exchange.failed(call, error)
            raise
        call.settle()
        exchange.succeeded(call)
        return response

    def _encoded(self, request: Any, call: Call) -> bytes:
        try:
            data = self._codec.encode(request)
        except Exception as error:
            raise unencodable(request, begun=False) from error
        call.sent(request, size_of(data))
        return data

    async def _unary(self, head: Head, data: bytes, call: Call) -> Any:
        try:
            reply: Reply = await self._wire.unary(head, data)
        except Error as error:
            call.headers, call.trailers = Metadata(error.headers), Metadata(error.trailers)
            raise enrich(error) from None
        call.headers, call.trailers, call.peer = Metadata(reply.headers), Metadata(reply.trailers), reply.peer
        return self._decoded(reply.data, call)

    def _decoded(self, data: bytes, call: Call) -> Any:
        try:
            response = self._codec.decode(data)
        except Exception as error:
            raise malformed_response() from error
        if response is None:
            call.root.answers_none = True
        call.received(response, size_of(data))
        return response

    async def _stream(self, head: Head, data: bytes | None, request: Any, call: Call, exchange: Exchange) -> Any:
        stream = self._wire.open(head, data)
        attempt = Attempt(stream, self._codec, call, exchange)
        exchange.bind(attempt)
        opened = None if data is not None else Opened(request)
        pump = None if opened is None else asyncio.ensure_future(self._pump(opened, call, attempt, exchange))
        response: Any = END
        failure: Exception | None = None
        try:
            if not call.method.kind.response_streaming:
                response = await self._one(stream, call)
            status = await stream.ended()
            if attempt.ahead is not None and status.by is By.PEER:
                await attempt.caught_up()
            call.headers, call.trailers = Metadata(await stream.headers()), Metadata(status.trailers)
            call.peer = stream.peer
            failure = call.failure or _failure_of(status, call)
            if failure is None and response is END and not call.method.kind.response_streaming:
                failure = Error(Code.UNIMPLEMENTED, "the server sent no response to a call that has one")
        except Exception as error:  # noqa: BLE001 - raised below, when nothing of the attempt is left
            failure = error
        finally:
            stream.cancel()
            if pump is not None:
                # What the caller's own iterator raised is why the stream ended, whatever its status says.
                failure = await _ended(pump) or failure
            if opened is not None:
                await opened.aclose()
        if failure is not None:
            exchange.unbind(attempt, failure)
            try:
                raise failure
            finally:
                del failure  # it holds this frame, which must not hold it
        attempt.on_the_wire = False
        return None if response is END else response

    async def _one(self, stream: Stream, call: Call) -> Any:
        """Return the one response of a client stream, or END when there is none: its status will say why."""
        data = await stream.receive()
        if data is END:
            return END
        response = self._decoded(data, call)
        if await stream.receive() is not END:
            raise Error(Code.UNIMPLEMENTED, "the server sent more than one response to a call that has one")
        return response

    async def _pump(self, opened: Opened, call: Call, attempt: Attempt, exchange: Exchange) -> None:
        stream = attempt.stream
        try:
            async for message in opened:
                try:
                    data = self._codec.encode(message)
                except Exception as error:
                    raise unencodable(message) from error
                call.sent(message, size_of(data))
                await stream.send(data)
            await stream.half_close()
        except Ended:
            # The peer has said its last word. stream.ended() knows it once its messages were read: a caller who writes
            # all before it reads would wait for itself.
            writes = exchange.writes
            if writes is not None and call.method.kind.response_streaming and await attempt.unread():
                writes.refuse()
        except asyncio.CancelledError:
            stream.cancel()  # and no more: the attempt that this is a part of is over, or is by now
        except BaseException:
            stream.cancel()
            raise


async def _ended(pump: asyncio.Task[None]) -> Exception | None:
    """Return what the pump raised; end it if it is still at work, whatever it makes of that."""
    if not pump.done():
        pump.cancel()
        await asyncio.wait([pump])
        if not pump.cancelled():
            pump.exception()  # what a generator raises for being closed is not why the call ended
        return None
    if pump.cancelled():
        return None
    error = pump.exception()
    if error is not None and not isinstance(error, Exception):
        raise error
    return error


def _failure_of(status: Status, call: Call) -> Error | None:
    if status.code is Code.OK:
        return None
    return enrich(
        Error(
            status.code,
            status.message,
            begun=status.begun,
            by=status.by,
            headers=call.headers.pairs(),
            trailers=status.trailers,
        )
    )


class Attempt:
    """The messages of one attempt on a wire."""

    __slots__ = ("_call", "_changed", "_codec", "_exchange", "_looking", "_taking", "ahead", "on_the_wire", "stream")

    def __init__(self, stream: Stream, codec: Codec, call: Call, exchange: Exchange) -> None:
        """Take from ``stream`` what ``codec`` makes of it."""
        self.on_the_wire = True
        self.stream = stream
        self.ahead: Received | None = None  # what was read before the caller asked for it
        self._taking = False
        self._looking = False
        self._changed: asyncio.Future[None] | None = None  # resolved, if someone waits for it, when a receive is over
        self._codec = codec
        self._call = call
        self._exchange = exchange

    async def take(self) -> Taken:
        """Return the next message; END when the stream has ended, or broke here: then the chain knows why."""
        if self._looking:
            await self._change()
        self._taking = True
        try:
            data = await self.stream.receive() if self.ahead is None else self.ahead
            self.ahead = None
        finally:
            self._taking = False
            if self._changed is not None:
                self._wake()
        bound = self._exchange.bound
        if data is END or (bound is not self and bound is not None):  # too late: another attempt has begun
            return END
        try:
            message = self._codec.decode(data)
        except Exception as error:  # noqa: BLE001 - a decoder may raise anything; the chain is told
            malformed = malformed_response()
            malformed.__cause__ = error
            self._call.fail(malformed)
            self.stream.cancel()
            return END
        try:
            self._call.received(message, size_of(data))
        except Exception:  # noqa: BLE001 - it is the call's failure now, and comes to the caller through the chain
            self.stream.cancel()
            return END
        self._exchange.committed = True
        return message

    async def unread(self) -> bool:
        """Return True once there is a message that nobody has asked for, False when there will be none. Cancel-safe."""
        while self._taking:  # one receiver at a time
            await self._change()
        self._looking = True
        try:
            self.ahead = await self.stream.receive()
        finally:
            self._looking = False
            self._wake()
        return self.ahead is not END

    async def caught_up(self) -> None:
        """Return when the caller has taken what was read ahead of it."""
        while self.ahead is not None and self.ahead is not END:
            await self._change()

    async def _change(self) -> None:
        if self._changed is None:
            self._changed = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._changed)

    def _wake(self) -> None:
        if self._changed is not None:
            self._changed.set_result(None)
            self._changed = None

    async def headers(self) -> Metadata:
        """Return the response's initial metadata once it is there."""
        return Metadata(await self.stream.headers())
