"""One method on the server: its chain, its codecs, and the edge where every way to end becomes a status."""

from __future__ import annotations

import asyncio
import functools
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
    from servicekit.wire import Incoming, Security

    from .shapes import Behaviour

LAST_WORD = 0.25
"""Seconds that a servicer has to end after its call has failed or was ended over its head; then the client is answered
without it."""

log = logging.getLogger("servicekit")


@dataclass(slots=True, kw_only=True)
class Serving:
    """What all methods of one server share."""

    links: Chain = field(default_factory=lambda: Chain(()))
    errors: ErrorMapping = field(default_factory=ErrorMapping)
    clock: Clock = field(default_factory=SystemClock)
    in_flight: InFlight = field(default_factory=InFlight)
    draining: asyncio.Event = field(default_factory=asyncio.Event)


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
        call = _Served(
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
        incoming.on_end(exchange.ended)
        with serving(call):
            try:
                response = await self._endpoint(exchange.request(), call)
                data = None if self.method.kind.response_streaming else self._codec.encode(response)
            except asyncio.CancelledError:
                if exchange.gone is not None or (exchange.task.cancelling() and not exchange.stopping):
                    exchange.close(call.outcome(asyncio.CancelledError()), "")
                    raise  # the client is gone, or its deadline has passed: nobody reads an answer
                status = self._failed(call, exchange.ended_by())
            except BaseException as error:  # the last place where a failure can become an answer
                if _ends_the_process(error):  # but the client shall not wait for it
                    await exchange.finish(self._failed(call, Error(Code.UNAVAILABLE, "shutting down")))
                    raise
                status = self._failed(call, error)
            else:
                status = Status(trailers=call.trailers.pairs())
                await exchange.finish(status, data)
                return
            await exchange.finish(status)

    def _failed(self, call: Call, error: BaseException) -> Status:
        known = to_error(error, self._serving.errors)
        reference = error_id(known.trailers)
        if reference is not None and (known is not error or not call.logged):
            # No access log stood in the chain, or none outside of where this came from, and the client gets nothing
            # but the reference: write the reason down.
            log.error("%r failed, error_id %s", call.path[:200], reference, exc_info=known.__cause__)
        exchange = call._exchange  # noqa: SLF001 - transport made it
        assert isinstance(exchange, _Exchange)  # noqa: S101 - one chain, one transport
        return status_of(known, exchange.trailers_of(error))

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
        reader = None
        if self.method.kind.request_streaming:
            reader = Reader(request, functools.partial(exchange.check, call))
        context = exchange.context = Context(call, exchange, reader)
        response = None
        error: BaseException | None
        try:
            response = await self._answer(request if reader is None else reader, call, context, exchange.size)
            error = context.verdict()
        except asyncio.CancelledError:
            if call.failure is None and task.cancelling() > before:
                raise
            # Nobody cancelled this call: a task of the servicer's own was, and it did not look.
            error = RuntimeError("the servicer raised CancelledError, but its call was not cancelled")
        except BaseException as raised:
            if _ends_the_process(raised):
                raise
            error = self._translated(raised, call, context)
        finally:
            unclosed = None if reader is None else await _closed(reader)
        if exchange.gone is not None:
            # A servicer that swallowed its cancellation has nobody to answer. Not asked of task.cancelling(): up to
            # Python 3.12 a TaskGroup that fails leaves its own cancellation counted there.
            raise asyncio.CancelledError
        if call.failure is not None:
            error = call.failure
            exchange.answered(task)
        error = error or unclosed
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

    def _translated(self, error: BaseException, call: Call, context: Context) -> BaseException:
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


def _ends_the_process(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return error.subgroup((KeyboardInterrupt, SystemExit)) is not None
    return isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit)


async def _closed(reader: Reader) -> Exception | None:
    """Close the request stream; return what it raises, which must not take the place of how the call has ended."""
    try:
        await reader.aclose()
    except Exception as error:  # noqa: BLE001 - a middleware's own stream may raise anything
        return error
    return None


class _Served(Call):
    """A call whose wire may end it, and then knows best how."""

    __slots__ = ()

    def outcome(self, error: BaseException | None) -> Code:
        exchange = self._exchange
        assert isinstance(exchange, _Exchange)  # noqa: S101 - transport made it
        if isinstance(error, asyncio.CancelledError) and exchange.gone is not None:
            return exchange.gone  # as it was when the client went: the servicer's clean-up may have taken its time
        return super().outcome(error)


class _Exchange:
    """One RPC on the server between its chain and its wire."""

    __slots__ = (
        "_attempts",
        "_finishing",
        "_handler",
        "_insisting",
        "_last_word",
        "_overdue",
        "_stopped",
        "_timer",
        "call",
        "committed",
        "context",
        "failure",
        "gone",
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
        self.gone: Code | None = None  # how the client's part ended, if it did before the servicer's
        self.failure: BaseException | None = None
        self.malformed: Error | None = None
        self.size = 0
        self._attempts: list[Call] = []
        self._stopped: Call | None = None
        self._finishing = False
        self._timer: Timer | None = None
        self._last_word: Timer | None = None
        self._overdue: Timer | None = None
        self._insisting: asyncio.Task[None] | None = None

    @property
    def draining(self) -> asyncio.Event:
        """Set when the server begins to go."""
        return self._handler._serving.draining  # noqa: SLF001 - one module

    def security(self) -> Security:
        """Return what the wire knows of the peer's identity."""
        return self.incoming.security()

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
        if self.malformed is not None:
            raise self.malformed
        if self.committed and self._attempts:  # messages of an earlier attempt are out: there is no second one
            raise self.failure or RuntimeError("next() was called again after messages were sent")
        self.call = call
        self._attempts.append(call)

    def note(self, error: BaseException, call: Call) -> None:
        """Remember how an attempt failed."""
        self.failure = error
        self.call = call
        if self._overdue is not None:
            self._overdue.cancel()
            self._overdue = None

    def trailers_of(self, error: BaseException) -> Metadata:
        """Return what goes with the status of ``error``: of the attempts' trailers, those of the one that raised it.

        The error itself is left alone: it may be one that the servicer raises again and again.
        """
        if error is not self.failure or self.call is self.root:
            return self.root.trailers
        trailers = self.root.trailers.copy()
        trailers.extend(pair for pair in self.call.trailers if pair not in list(self.root.trailers))
        return trailers

    async def send(self, call: Call, message: object) -> None:
        """Send one response message."""
        await self.check(call)
        data = self._outgoing(message, call)
        self.committed = True
        if not self.headers_sent:
            self.send_headers(call)
        try:
            await self.incoming.send(data)
        except Ended:
            await asyncio.sleep(0)  # as above; most are cancelled here
            raise self.over(call) from None

    def _outgoing(self, message: object, call: Call) -> bytes:
        try:
            data = self._encoded(message, call)
            call.sent(message, len(data))
        except Exception as error:
            self.fail(call, error)
            raise
        return data

    def _encoded(self, message: object, call: Call) -> bytes:
        if not call.method.kind.response_streaming:  # a second message leaves clients of grpc core waiting for ever
            msg = f"{call.path} has one response, which is returned, not sent"
            raise RuntimeError(msg)
        try:
            return self._handler._codec.encode(message)  # noqa: SLF001 - one module
        except Exception as error:
            msg = f"{call.path} sent what cannot be encoded: {type(message).__name__}"
            raise TypeError(msg) from error

    async def check(self, call: Call) -> None:
        """Raise what ``call`` has failed with; whoever swallowed that, and comes here again, is cancelled.

        Going round and round on a failure, a servicer would neither end nor let anybody else run.
        """
        if call.failure is not None:
            self.stop(call)
            await asyncio.sleep(0)
            raise call.failure

    def fail(self, call: Call, error: Exception) -> None:
        """Make ``error`` how ``call`` ends. The client hears of it soon, also while the servicer still cleans up."""
        call.fail(error)
        if self._overdue is None and call.origin is None:  # a link that made a fork may have another attempt in mind
            clock = call.clock
            self._overdue = clock.call_at(clock.time() + LAST_WORD, lambda: self._insist(call))

    def over(self, call: Call) -> Exception:
        """Return what is raised to those who are at work for a call that is over; most are cancelled before they see it."""
        if call.failure is not None:
            return call.failure
        code = self.root.outcome(asyncio.CancelledError())
        return deadline_error() if code is Code.DEADLINE_EXCEEDED else Error(code, "the call is over")

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
        self._timer = call.clock.call_at(call.deadline, lambda: self._expire(call))

    def _expire(self, call: Call) -> None:
        call.end(deadline_error())
        self.stop(call)  # also one that has failed before, and whose servicer does not end

    def stop(self, call: Call) -> None:
        """Cancel what is at work, and answer without it if it does not end."""
        if self._finishing or self.stopping:
            return
        self._stopped = call
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
        if not self._finishing and self._insisting is None and call.failure is not None:
            # From here on it is an Error, so that links and log will know it by the reference that the client gets.
            call.failure = to_error(call.failure, self._handler._serving.errors)  # noqa: SLF001 - one module
            status = self._handler._failed(call, call.failure)  # noqa: SLF001 - one module
            if self.context is not None:
                self.context.ended_with(status.code, status.message)
            self._insisting = asyncio.ensure_future(self.incoming.finish(status))

    def answered(self, task: asyncio.Task[Any]) -> None:
        """Take back the cancellation that ``stop`` made: it has become the call's failure."""
        if not self.stopping or task is not self.task or not task.cancelling():
            return
        task.uncancel()
        if self._stopped is not self.root:
            # One attempt was ended: the call goes on, and so may another attempt.
            self.stopping = False
            if self._last_word is not None:
                self._last_word.cancel()

    def ended_by(self) -> Exception:
        """Return why the chain was cancelled, when the client was not the reason."""
        stopped = self.root if self._stopped is None else self._stopped
        self.answered(self.task)
        if stopped.failure is not None:
            return stopped.failure
        return RuntimeError("a middleware raised CancelledError, but the call was not cancelled")

    def ended(self) -> None:
        """Take note that the wire has ended the call: by itself, unless that was asked of it."""
        if not self._finishing and self._insisting is None:
            self.gone = self.root.outcome(asyncio.CancelledError())
            if self.context is not None:
                self.context.ended_with(self.gone, "")

    def close(self, code: Code, message: str) -> None:
        """Stop every timer: from here on the call is over."""
        self._finishing = True
        for call in (self.root, *self._attempts):
            call.over = True
        if self.context is not None:
            self.context.ended_with(code, message)
        for timer in (self._timer, self._last_word, self._overdue):
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
        exchange = self._exchange
        try:
            data = await exchange.incoming.receive()
        except Ended:
            await asyncio.sleep(0)  # a servicer that swallows this, over and over, must not hold the loop
            raise exchange.over(exchange.call) from None
        if data is END:
            raise StopAsyncIteration
        call = exchange.call
        try:
            message = self._decoded(data)
            call.received(message, len(data))
        except Exception as error:
            exchange.fail(call, error)
            raise
        return message

    def _decoded(self, data: bytes) -> Any:
        try:
            return self._codec.decode(data)
        except Exception as error:  # a decoder may raise anything, and its text may quote the input
            raise malformed_request() from error


def _current_task() -> asyncio.Task[Any] | None:
    # Timers run outside of any task.
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None
