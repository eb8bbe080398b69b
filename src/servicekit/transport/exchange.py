"""One call on the client: the task that runs its chain, and the attempt that its caller takes messages from.

How a call *ended* comes from the chain alone. Messages do not pass through it: the caller takes them straight from
the attempt that is bound, and each attempt is bound by the innermost endpoint for as long as it may still succeed.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

from servicekit.call import Call, deadline_error
from servicekit.errors import By, Code, Error
from servicekit.metadata import Metadata
from servicekit.wire import END, End, Ended, Head, Security

from .codec import Codec, malformed_request, malformed_response, size_of
from .requests import Requests
from .status import enrich

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Callable

    from servicekit.clock import Clock, Timer
    from servicekit.endpoint import Endpoint
    from servicekit.wire import Reply, Status, Stream, Wire

SLACK = 0.01
"""Seconds that a wire has to end a call at its deadline before its chain is ended from here."""

Taken: TypeAlias = "Any | Literal[End.END]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What one call of a stub asks of the wire beyond its metadata and deadline, in grpcio's objects."""

    wait_for_ready: bool | None = None
    credentials: object = None
    compression: object = None


class Source(Protocol):
    """Where the caller's messages come from: an attempt on a wire, or a middleware that answers in its place."""

    async def take(self) -> Taken:
        """Return the next message, or END when no more will come from here. Cancel-safe."""

    async def headers(self) -> Metadata:
        """Return the response's initial metadata once it is there."""


class Exchange:
    """A call under way. Its chain's task holds this, never the call object: dropping that one ends the call."""

    draining = None  # a word of servers

    __slots__ = (
        "_changed",
        "_left",
        "_on_done",
        "_timer",
        "_under_way",
        "bound",
        "call",
        "committed",
        "error",
        "failure",
        "inherited",
        "options",
        "over",
        "request",
        "response",
        "stopping",
        "task",
    )

    def __init__(
        self, call_of: Callable[[Exchange], Call], options: Options, under_way: set[Exchange], *, inherited: bool
    ) -> None:
        """Make the call with ``call_of``; be in ``under_way`` until it is over.

        ``inherited`` says that its deadline is a served call's.
        """
        self._under_way = under_way
        self.options = options
        self.inherited = inherited
        self.bound: Source | None = None
        self.committed = False
        self.over = False
        self.stopping = False
        self._left = False
        self.response: Any = None
        self.error: BaseException | None = None
        self.failure: Exception | None = None
        self.request: Requests | None = None
        self.task: asyncio.Task[None]
        self._changed: asyncio.Future[None] | None = None
        self._on_done: list[Callable[[], None]] = []
        self._timer: Timer | None = None
        self.call = call_of(self)

    def start(self, endpoint: Endpoint, request: Any) -> None:
        """Run the chain in a task of its own."""
        if isinstance(request, Requests):
            self.request = request
        self._under_way.add(self)
        self.limit(self.call)
        self.task = asyncio.get_running_loop().create_task(self._run(endpoint, request))
        self.task.add_done_callback(self._never_ran)

    async def _run(self, endpoint: Endpoint, request: Any) -> None:
        error: BaseException | None = None
        try:
            self.response = await endpoint(request, self.call)
        except asyncio.CancelledError:
            error = self._cancelled()
        except BaseException as raised:  # noqa: BLE001 - raised to the caller, who holds the call object
            error = raised
        if self.request is not None:
            await self._close(self.request)
        self._conclude(error)

    @staticmethod
    async def _close(request: Requests) -> None:
        # The caller's generator may raise while it is closed, or be running elsewhere: the call has ended all the same.
        with contextlib.suppress(Exception, asyncio.CancelledError):
            await request.aclose()

    def _cancelled(self) -> BaseException:
        if self.stopping and self.call.failure is not None:
            return self.call.failure
        if self.task.cancelling():
            return asyncio.CancelledError()
        return Error(Code.INTERNAL, "a middleware raised CancelledError, but nobody cancelled the call")

    def _never_ran(self, _: asyncio.Task[None]) -> None:
        # A task that is cancelled before its first step does not enter its coroutine.
        if not self.over:
            self._conclude(self.call.failure if self.stopping else asyncio.CancelledError())

    def _conclude(self, error: BaseException | None) -> None:
        if self.over:
            return
        self.over = self.call.over = True
        self.error = error
        self._under_way.discard(self)
        if self._timer is not None:
            self._timer.cancel()
        self.wake()
        callbacks, self._on_done = self._on_done, []
        for callback in callbacks:
            callback()

    def when_done(self, callback: Callable[[], None]) -> None:
        """Run ``callback`` once the chain has ended; at once if it has."""
        if self.over:
            callback()
        else:
            self._on_done.append(callback)

    def cancel(self) -> bool:
        """Cancel the chain on the caller's behalf; False when it is over, or was cancelled so before."""
        if self.over or self._left:
            return False
        self._left = True
        self.task.cancel()
        return True

    # What the caller's side waits for.

    async def done(self) -> None:
        """Return once the chain has ended. Cancel-safe: waiting for a call is not the call."""
        while not self.over:
            await self.change()

    async def source(self, after: Source | None = None) -> Source | None:
        """Return what is bound, once that is another one than ``after``; None once the chain has ended."""
        while True:
            if self.bound is not None and self.bound is not after:
                return self.bound
            if self.over:
                return None
            await self.change()

    async def change(self) -> None:
        """Return at the next change: something was bound or put in, or the chain has ended. Cancel-safe."""
        if self._changed is None:
            self._changed = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._changed)

    def wake(self) -> None:
        """Let those who wait for a change look again."""
        if self._changed is not None:
            self._changed.set_result(None)
            self._changed = None

    # What the chain's side does.

    def begin(self, call: Call) -> None:
        """Let ``call`` be an attempt. Raises what stands in its way."""
        if call.used:
            msg = "next() was called twice with the same call: every further attempt takes call.fork()"
            raise RuntimeError(msg)
        call.used = True
        if self.stopping and self.call.failure is not None:
            raise self.call.failure  # the call was ended as a whole: no attempt can change that
        self._check_uncommitted()

    def _check_uncommitted(self) -> None:
        if self.committed and self.failure is not None:
            raise self.failure  # the caller has messages of an earlier attempt: there is no second one

    def bind(self, source: Source) -> None:
        """Let the caller take its messages from ``source``."""
        self.bound = source
        self.wake()

    def unbind(self, source: Source, failure: Exception) -> None:
        """Take a failed attempt out of the caller's sight, before its error is raised."""
        self.failure = failure
        if self.bound is source:
            self.bound = None

    @staticmethod
    def security() -> Security:
        """Return nothing: a wire does not tell who answers."""
        return Security()

    async def send(self, call: Call, message: object) -> None:
        """Hand the caller a message that a middleware made; returns when it was taken."""
        if not call.method.kind.response_streaming:
            msg = f"{call.path} has one response: a middleware that answers in its place returns it"
            raise TypeError(msg)
        if call.failure is not None:
            raise call.failure
        source = self.bound
        if not isinstance(source, _Local) or source.call is not call:
            self._check_uncommitted()
            if isinstance(source, _Attempt) and not source.over:
                msg = (
                    "call.send() while an attempt is under way, whose messages go to the caller: before or after next()"
                )
                raise RuntimeError(msg)
            source = _Local(call, self)
            self.bind(source)
        await source.put(message)

    def limit(self, call: Call) -> None:
        """Set the timer that ends the chain when the deadline has passed and the wire has not ended the call."""
        if call.origin is not None or call.deadline is None:
            return  # one attempt's limit goes to the wire with its head
        if self._timer is not None:
            self._timer.cancel()
        when = (
            max(call.deadline, call.clock.time()) + SLACK
        )  # also when it has passed: the wire knows that nothing was sent
        self._timer = call.clock.call_at(when, lambda: call.end(deadline_error()))

    def stop(self, call: Call) -> None:  # noqa: ARG002 - all attempts share the chain that is stopped
        """Cancel the chain: the call's failure is what it ends with."""
        if not self.over:
            self.stopping = True
            self.task.cancel()


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
        assert isinstance(exchange, Exchange)  # noqa: S101 - one chain, one transport
        exchange.begin(call)
        kind = call.method.kind
        data = None if kind.request_streaming else self._encoded(request, call)
        head = Head(
            path=call.path,
            metadata=call.metadata.pairs(),
            deadline=call.deadline,
            wait_for_ready=exchange.options.wait_for_ready,
            credentials=exchange.options.credentials,
            compression=exchange.options.compression,
        )
        response = None
        try:
            if data is not None and not kind.response_streaming:
                response = await self._unary(head, data, call)
            else:
                response = await self._stream(head, data, request, call, exchange)
        except asyncio.CancelledError:
            if call.failure is None:
                raise
        except Error:
            if call.failure is None:
                raise
        if call.failure is not None:
            task = asyncio.current_task()
            if exchange.stopping and task is exchange.task and task.cancelling():
                task.uncancel()
            raise call.failure
        call.settle()
        return response

    def _encoded(self, request: Any, call: Call) -> bytes:
        try:
            data = self._codec.encode(request)
        except Exception as error:
            malformed = malformed_request()
            malformed.begun = False
            raise malformed from error
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
        call.received(response, size_of(data))
        return response

    async def _stream(self, head: Head, data: bytes | None, request: Any, call: Call, exchange: Exchange) -> Any:
        stream = self._wire.open(head, data)
        attempt = _Attempt(stream, self._codec, call, exchange)
        exchange.bind(attempt)
        pump = None if data is not None else asyncio.ensure_future(self._pump(request, call, stream))
        response: Any = END
        failure: Exception | None = None
        try:
            if not call.method.kind.response_streaming:
                response = await self._one(stream, call)
            status = await stream.ended()
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
        if failure is not None:
            exchange.unbind(attempt, failure)
            raise failure
        attempt.over = True
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

    async def _pump(self, request: AsyncIterable[Any], call: Call, stream: Stream) -> None:
        try:
            async for message in request:
                try:
                    data = self._codec.encode(message)
                except Exception as error:
                    raise malformed_request() from error
                call.sent(message, size_of(data))
                await stream.send(data)
            await stream.half_close()
        except Ended:
            pass  # the peer has said its last word: stream.ended() knows it
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


class _Attempt:
    """The messages of one attempt on a wire."""

    __slots__ = ("_call", "_codec", "_exchange", "_stream", "over")

    def __init__(self, stream: Stream, codec: Codec, call: Call, exchange: Exchange) -> None:
        self.over = False
        self._stream = stream
        self._codec = codec
        self._call = call
        self._exchange = exchange

    async def take(self) -> Taken:
        data = await self._stream.receive()
        if data is END or self._exchange.bound not in (self, None):  # too late: another attempt has begun
            return END
        try:
            message = self._codec.decode(data)
        except Exception as error:  # noqa: BLE001 - a decoder may raise anything; the chain is told
            malformed = malformed_response()
            malformed.__cause__ = error
            self._call.fail(malformed)
            self._stream.cancel()
            return END
        try:
            self._call.received(message, size_of(data))
        except Exception:  # noqa: BLE001 - it is the call's failure now, and comes to the caller through the chain
            self._stream.cancel()
            return END
        self._exchange.committed = True
        return message

    async def headers(self) -> Metadata:
        return Metadata(await self._stream.headers())


class _Local:
    """The messages of a middleware that answers in the wire's place, handed over one by one."""

    __slots__ = ("_exchange", "_slot", "_taken", "call")

    def __init__(self, call: Call, exchange: Exchange) -> None:
        self.call = call
        self._exchange = exchange
        self._slot: list[Any] = []
        self._taken = asyncio.Event()

    async def put(self, message: object) -> None:
        self._slot.append(message)
        self._taken.clear()
        self._exchange.wake()
        try:
            await self._taken.wait()
        except asyncio.CancelledError:
            self._slot.clear()
            raise
        if self.call.failure is not None:
            raise self.call.failure

    async def take(self) -> Taken:
        while not self._slot:
            if self._exchange.over or self._exchange.bound is not self:
                return END
            await self._exchange.change()
        message = self._slot.pop()
        self._taken.set()
        try:
            self.call.received(message, size_of(message))
        except Exception:  # noqa: BLE001 - it is the call's failure now, and comes to the caller through the chain
            return END
        self._exchange.committed = True
        return message

    async def headers(self) -> Metadata:
        return self.call.headers


def by_caller() -> Error:
    """Return the error that a cancelled call has, for those who ask for its code."""
    return Error(Code.CANCELLED, "cancelled by the caller", by=By.CALLER)
