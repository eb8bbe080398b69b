"""One method on the server: its chain, its codecs, and the edge where every way to end becomes a status."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import grpc

from servicekit.call import Call, Side, deadline_error, serving
from servicekit.clock import SystemClock
from servicekit.endpoint import Chain
from servicekit.errors import Code, Error
from servicekit.mapping import ErrorMapping, error_id, to_error
from servicekit.metadata import Metadata
from servicekit.wire import END, Ended, Route, Status

from .call_error import CallError
from .codec import Codec, malformed_request
from .context import Context
from .in_flight import InFlight
from .requests import Reader, Requests
from .status import status_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from servicekit.call import Method
    from servicekit.clock import Clock, Timer
    from servicekit.endpoint import Endpoint
    from servicekit.wire import Incoming

    from .shapes import Behaviour

LAST_WORD = 0.25
"""Seconds that a servicer has to end after its call was ended over its head; then the client is answered without it."""

log = logging.getLogger("servicekit")


@dataclass(slots=True, kw_only=True)
class Serving:
    """What all methods of one server share."""

    links: Chain = field(default_factory=lambda: Chain(()))
    errors: ErrorMapping = field(default_factory=ErrorMapping)
    clock: Clock = field(default_factory=SystemClock)
    in_flight: InFlight = field(default_factory=InFlight)


class Handler:
    """Serves one method. Made once; the chain is composed here, and never again."""

    __slots__ = ("_behaviour", "_codec", "_endpoint", "_serving", "method", "route")

    def __init__(self, method: Method, behaviour: Behaviour, codec: Codec, shared: Serving) -> None:
        """Compose the chain of ``shared`` around ``behaviour``."""
        self.method = method
        self._behaviour = behaviour
        self._codec = codec
        self._serving = shared
        self._endpoint: Endpoint = shared.links.around(self._innermost, method)
        self.route = Route(kind=method.kind, serve=self.serve)

    async def serve(self, incoming: Incoming) -> None:
        """Serve one RPC. It is always finished on return; raises only CancelledError, when nobody waits any more."""
        shared = self._serving
        head = incoming.head
        exchange = _Exchange(self, incoming)
        call = Call(
            self.method,
            side=Side.SERVER,
            exchange=exchange,
            clock=shared.clock,
            metadata=Metadata(head.metadata),
            peer=head.peer,
            path=head.path,
            deadline=head.deadline,
        )
        exchange.root = exchange.call = call
        shared.in_flight.enter(call, incoming)
        with serving(call):
            try:
                response = await self._endpoint(exchange.request(), call)
                data = None if self.method.kind.response_streaming else self._codec.encode(response)
            except asyncio.CancelledError:
                if exchange.task.cancelling() and not exchange.stopping:
                    exchange.close(call.outcome(asyncio.CancelledError()), "")
                    raise  # the client is gone, or its deadline has passed: nobody reads an answer
                status = self._failed(call, exchange.ended_by(call))
            except Exception as error:  # noqa: BLE001 - the last place where a failure can become an answer
                status = self._failed(call, error)
            except BaseException:
                # The process is ending, but the client shall not wait for it.
                await incoming.finish(self._failed(call, Error(Code.UNAVAILABLE, "shutting down")))
                raise
            else:
                status = Status(trailers=call.trailers.pairs())
                await exchange.finish(status, data)
                return
            await exchange.finish(status)

    def _failed(self, call: Call, error: Exception) -> Status:
        known = to_error(error, self._serving.errors)
        reference = error_id(known.trailers)
        if reference is not None and not call.logged:
            # No access log stood in the chain, and the client gets nothing but the reference: write the reason down.
            log.error("%r failed, error_id %s", call.path[:200], reference, exc_info=known.__cause__)
        return status_of(known, call.trailers)

    async def _innermost(self, request: Any, call: Call) -> Any:
        exchange = call._exchange  # noqa: SLF001 - transport made it
        assert isinstance(exchange, _Exchange)  # noqa: S101 - one chain, one transport
        exchange.begin(call)
        if call.origin is not None:
            with serving(call):
                return await self._attempt(request, call, exchange)
        return await self._attempt(request, call, exchange)

    async def _attempt(self, request: Any, call: Call, exchange: _Exchange) -> Any:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a coroutine that runs has one
        before = task.cancelling()
        reader = Reader(request) if self.method.kind.request_streaming else None
        context = exchange.context = Context(call, exchange, reader)
        response = None
        error: Exception | None
        try:
            response = await self._answer(request if reader is None else reader, call, context, exchange.size)
            error = context.verdict()
        except asyncio.CancelledError:
            if call.failure is None and task.cancelling() > before:
                raise
            # Nobody cancelled this call: a task of the servicer's own was, and it did not look.
            error = RuntimeError("the servicer raised CancelledError, but its call was not cancelled")
        except Exception as raised:  # noqa: BLE001 - sorted out in one place
            error = self._translated(raised, call, context)
        finally:
            if reader is not None:
                await reader.aclose()
        if call.failure is not None:
            error = call.failure
            exchange.answered(task)
        elif task.cancelling() > before:
            raise asyncio.CancelledError  # a servicer that swallowed its cancellation has nobody to answer
        if error is not None:
            exchange.note(error, call)
            raise error
        call.settle()
        return response

    async def _answer(self, request: Any, call: Call, context: Context, size: int) -> Any:
        if not self.method.kind.request_streaming:
            call.received(request, size)
        response = await self._behaviour(request, context)
        if not self.method.kind.response_streaming and call.failure is None and context.verdict() is None:
            call.sent(response, len(self._encoded(response)))
        return response

    def _encoded(self, response: object) -> bytes:
        try:
            return self._codec.encode(response)
        except Exception as error:
            msg = f"the servicer of {self.method.path} returned what cannot be encoded: {type(response).__name__}"
            raise TypeError(msg) from error

    def _translated(self, error: Exception, call: Call, context: Context) -> Exception:
        """Return what the servicer's exception means, before any middleware sees it."""
        if isinstance(error, grpc.aio.AbortError) and call.failure is not None:
            return call.failure
        if isinstance(error, grpc.aio.AioRpcError):
            return _downstream(error, call)
        verdict = context.verdict()
        if verdict is not None and not isinstance(error, Error):
            # The servicer had said how its call ends: generated defaults set UNIMPLEMENTED, and then raise.
            if not isinstance(error, NotImplementedError):
                verdict.__cause__ = error
            return verdict
        # Innermost, so that every link sees the code that the client will, whatever chain the server was given.
        return self._serving.errors.find(error) or error


def _downstream(error: grpc.aio.AioRpcError, call: Call) -> Exception:
    """Return what a failed call of the servicer's own means to its caller: never the other service's words."""
    code = error.code()
    if code is grpc.StatusCode.DEADLINE_EXCEEDED and (
        (isinstance(error, CallError) and error.inherited) or (call.deadline is not None and not call.remaining())
    ):
        translated = deadline_error()
    elif code in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED}:
        translated = Error(Code.UNAVAILABLE, "a service behind this one is unavailable")
    else:
        return error  # a stranger, INTERNAL like any other; recovery or the edge logs its text and hides it
    translated.__cause__ = error
    return translated


class _Exchange:
    """One RPC on the server between its chain and its wire."""

    __slots__ = (
        "_finishing",
        "_handler",
        "_insisting",
        "_last_word",
        "_timer",
        "call",
        "committed",
        "context",
        "failure",
        "headers_sent",
        "incoming",
        "malformed",
        "root",
        "size",
        "stopping",
        "task",
    )

    def __init__(self, handler: Handler, incoming: Incoming) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a coroutine that runs has one
        self._handler = handler
        self.incoming = incoming
        self.task: asyncio.Task[Any] = task
        self.call: Call
        self.root: Call
        self.context: Context | None = None
        self.committed = False
        self.headers_sent = False
        self.stopping = False
        self.failure: Exception | None = None
        self.malformed: Error | None = None
        self.size = 0
        self._finishing = False
        self._timer: Timer | None = None
        self._last_word: Timer | None = None
        self._insisting: asyncio.Task[None] | None = None

    def request(self) -> Any:
        """Return the request as the chain gets it. One that cannot be decoded is blank, and never reaches the servicer."""
        data = self.incoming.data
        codec = self._handler._codec  # noqa: SLF001 - one module
        if self._handler.method.kind.request_streaming:
            return Requests(self._received(), cancel_safe=True)
        if data is None:  # a wire that has nothing says so itself; this is for those that cannot
            self.malformed = malformed_request()
            return codec.blank()
        self.size = len(data)
        try:
            return codec.decode(data)
        except Exception as error:  # noqa: BLE001 - a decoder may raise anything, and its text may quote the input
            self.malformed = malformed_request()
            self.malformed.__cause__ = error
            return codec.blank()

    def _received(self) -> AsyncIterator[Any]:
        return _Received(self, self._handler._codec)  # noqa: SLF001 - one module

    def begin(self, call: Call) -> None:
        """Let ``call`` be the attempt that is under way. Raises what stands in its way."""
        if call.used:
            msg = "next() was called twice with the same call: every further attempt takes call.fork()"
            raise RuntimeError(msg)
        call.used = True
        self.call = call
        if self.malformed is not None:
            raise self.malformed
        if self.committed and self.failure is not None:
            raise self.failure  # messages of an earlier attempt are out: there is no second one

    def note(self, error: Exception, call: Call) -> None:
        """Remember how an attempt failed; its trailers go with its error, the call's own stay clean."""
        self.failure = error
        if call.origin is not None and isinstance(error, Error):
            error.trailers += tuple(pair for pair in call.trailers if pair not in error.trailers)

    async def send(self, call: Call, message: object) -> None:
        """Send one response message."""
        if call.failure is not None:
            raise call.failure
        try:
            data = self._handler._codec.encode(message)  # noqa: SLF001 - one module
        except Exception as error:
            msg = f"{call.path} sent what cannot be encoded: {type(message).__name__}"
            failure = TypeError(msg)
            failure.__cause__ = error
            call.fail(failure)
            raise failure from error
        call.sent(message, len(data))
        self.committed = True
        if not self.headers_sent:
            self.send_headers(call)
        try:
            await self.incoming.send(data)
        except Ended:
            if call.failure is not None:
                raise call.failure from None
            raise Error(Code.CANCELLED, "the call is over") from None

    def send_headers(self, call: Call) -> None:
        """Send the initial metadata that ``call`` has collected. Raises RuntimeError when it is out already."""
        if self.headers_sent:
            msg = "initial metadata was sent already"
            raise RuntimeError(msg)
        self.headers_sent = True
        if call.headers:
            self.incoming.send_headers(call.headers.pairs())

    def limit(self, call: Call) -> None:
        """Set the timer that ends the call at its deadline."""
        if call.origin is not None or call.deadline is None:
            return  # an attempt's own limit is the client's affair
        if self._timer is not None:
            self._timer.cancel()
        self._timer = call.clock.call_at(call.deadline, lambda: call.end(deadline_error()))

    def stop(self, call: Call) -> None:
        """Cancel what is at work, and answer without it if it does not end."""
        if self._finishing or self.stopping:
            return
        if self.task is _current_task():
            # A task that cancels itself would be hit later, at an await that is none of the servicer's.
            asyncio.get_running_loop().call_soon(self._cancel)
        else:
            self._cancel()
        clock = call.clock
        self._last_word = clock.call_at(clock.time() + LAST_WORD, lambda: self._insist(call))

    def _cancel(self) -> None:
        if not self._finishing and not self.stopping:
            self.stopping = True
            self.task.cancel()

    def _insist(self, call: Call) -> None:
        if not self._finishing and call.failure is not None:
            status = self._handler._failed(call, call.failure)  # noqa: SLF001 - one module
            self._insisting = asyncio.ensure_future(self.incoming.finish(status))

    def answered(self, task: asyncio.Task[Any]) -> None:
        """Take back the cancellation that ``stop`` made: it has become the call's failure."""
        if self.stopping and task is self.task and task.cancelling():
            task.uncancel()

    def ended_by(self, call: Call) -> Exception:
        """Return why the chain was cancelled, when the client was not the reason."""
        self.answered(self.task)
        if call.failure is not None:
            return call.failure
        return RuntimeError("a middleware raised CancelledError, but the call was not cancelled")

    def close(self, code: Code, message: str) -> None:
        """Stop every timer: from here on the call is over."""
        self._finishing = True
        self.root.over = self.call.over = True
        if self.context is not None:
            self.context.ended_with(code, message)
        for timer in (self._timer, self._last_word):
            if timer is not None:
                timer.cancel()

    async def finish(self, status: Status, data: bytes | None = None) -> None:
        """Send the last word, unless it was sent without the servicer."""
        self.close(status.code, status.message)
        if not self.headers_sent:
            self.send_headers(self.root)
        await self.incoming.finish(status, data)
        if self._insisting is not None:
            await self._insisting


class _Received:
    """The request messages as they come from the wire, decoded. A cancelled read loses nothing."""

    __slots__ = ("_codec", "_exchange")

    def __init__(self, exchange: _Exchange, codec: Codec) -> None:
        self._exchange = exchange
        self._codec = codec

    def __aiter__(self) -> _Received:
        return self

    async def __anext__(self) -> Any:
        data = await self._exchange.incoming.receive()
        if data is END:
            raise StopAsyncIteration
        call = self._exchange.call
        try:
            message = self._codec.decode(data)
        except Exception as error:  # a decoder may raise anything, and its text may quote the input
            malformed = malformed_request()
            call.fail(malformed)
            raise malformed from error
        call.received(message, len(data))
        return message


def _current_task() -> asyncio.Task[Any] | None:
    # Timers run outside of any task.
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None
