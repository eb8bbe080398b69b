"""The call objects that a stub's caller holds: grpc.aio's interfaces over an exchange.

They are handed over at once. Dropping the last reference ends the RPC, ``break`` and a cancelled read do not: the next
read goes on where the last one stopped. ``CancelledError`` leaves only when the caller cancelled. On somebody else's
channel, behind grpc.aio's own call object, a cancelled read does end the RPC, as it does without a chain.
"""

from __future__ import annotations

import asyncio
import weakref
from typing import TYPE_CHECKING, Any

import grpc

from servicekit.call_report import report
from servicekit.errors import Code, Error
from servicekit.finalizer import leave_to
from servicekit.wire import END

from .call_error import CallError
from .exchange import by_caller
from .status import GRPC_CODES
from .writes import Writes

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Generator

    from servicekit.errors import CallReport

    from .exchange import Exchange
    from .handover import Source


class _Call:
    """What all four have in common."""

    def __init__(self, exchange: Exchange) -> None:
        """Stand for ``exchange``, whose chain has begun."""
        self._exchange = exchange
        self._callbacks: list[Callable[[Any], None]] = []

    def __del__(self) -> None:
        """End the RPC: nobody can take its answer any more."""
        exchange = getattr(self, "_exchange", None)
        if exchange is not None and not exchange.over:
            loop = exchange.task.get_loop()
            if asyncio._get_running_loop() is loop:  # noqa: SLF001 - get_running_loop() raises where there is none
                exchange.cancel()  # at once: a call that nobody took is never made
            else:
                leave_to(loop, exchange.cancel)

    def cancel(self) -> bool:
        """End the RPC; returns False, changing nothing, when it is over or was cancelled before."""
        return self._exchange.cancel()

    def cancelled(self) -> bool:
        """Return whether the RPC ended with CANCELLED."""
        return self._exchange.error is not None and self._ended_with().code is Code.CANCELLED

    def done(self) -> bool:
        """Return whether the RPC is over."""
        return self._exchange.over

    def time_remaining(self) -> float | None:
        """Return the seconds left until the deadline, or None when there is none."""
        return self._exchange.call.remaining()

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        """Run ``callback(call)`` once the RPC is over; at once if it is."""
        if self._exchange.over:
            callback(self)
            return
        if not self._callbacks:
            # The exchange must not hold this object, or dropping it would not end the RPC.
            self._exchange.when_done(_firing(weakref.ref(self)))
        self._callbacks.append(callback)

    def fire(self) -> None:
        """Run the done callbacks."""
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            try:
                callback(self)
            except Exception as error:  # noqa: BLE001 - the others run all the same, and so does whoever awaits
                context = {"message": f"a done callback of {self!r} failed", "exception": error}
                self._exchange.task.get_loop().call_exception_handler(context)

    async def initial_metadata(self) -> grpc.aio.Metadata:
        """Return the response's initial metadata once it is there."""
        source: Source | None = None
        while not self._exchange.over and (source := await self._exchange.source(source)) is not None:
            headers = await source.headers()
            if self._exchange.bound is source:
                return grpc.aio.Metadata(*headers)
        error = self._exchange.error
        if isinstance(error, Error) and error.headers:  # those of the attempt that failed
            return grpc.aio.Metadata(*error.headers)
        return grpc.aio.Metadata(*self._exchange.call.headers)

    async def trailing_metadata(self) -> grpc.aio.Metadata:
        """Return the metadata that came with the status, once the RPC is over."""
        await self._exchange.done()
        error = self._exchange.error
        if error is None:
            return grpc.aio.Metadata(*self._exchange.call.trailers)
        return grpc.aio.Metadata(*self._ended_with().trailers)

    async def code(self) -> grpc.StatusCode:
        """Return the RPC's code, once it is over."""
        await self._exchange.done()
        return GRPC_CODES[Code.OK if self._exchange.error is None else self._ended_with().code]

    async def details(self) -> str:
        """Return the RPC's status message, once it is over."""
        await self._exchange.done()
        return "" if self._exchange.error is None else self._ended_with().message

    async def debug_error_string(self) -> str:
        """Return what there is to know for debugging, once the RPC is over."""
        await self._exchange.done()
        return "" if self._exchange.error is None else str(self._ended_with())

    async def wait_for_connection(self) -> None:
        """Return once an answer has begun or the RPC is over. Raises what it failed with."""
        await self.initial_metadata()
        self._raise_for_failure()

    def _ended_with(self) -> Error:
        error = self._exchange.error
        if isinstance(error, Error):
            return error
        if isinstance(error, asyncio.CancelledError):
            return by_caller()
        # An exception of the caller's own iterator, or of a middleware: it leaves as itself, and has no code of its own.
        return Error(Code.UNKNOWN, type(error).__name__)

    def _raise_for_failure(self) -> None:
        error = self._exchange.error
        if not self._exchange.over or error is None:
            return
        if isinstance(error, Error):
            raise CallError(error, inherited=self._exchange.inherited)
        if isinstance(error, asyncio.CancelledError):
            raise asyncio.CancelledError  # a new one: each raise adds its frames, which hold this
        raise error

    @property
    def report(self) -> CallReport:
        """What became of the RPC until now: every attempt, what links decided, and where the time went."""
        return report(self._exchange.call)

    def __repr__(self) -> str:
        """Return the method, and how the RPC ended or that it goes on."""
        state = "under way" if not self._exchange.over else "OK"
        if self._exchange.error is not None:
            state = self._ended_with().code.name
        return f"<{type(self).__name__} {self._exchange.call.path}: {state}>"


def _firing(call: weakref.ref[_Call]) -> Callable[[], None]:
    def fire() -> None:
        held = call()
        if held is not None:
            held.fire()

    return fire


class _OneResponse(_Call):
    def __await__(self) -> Generator[Any, None, Any]:
        """Return the response. Raises CallError; a caller that is cancelled here cancels the RPC."""
        if not self._exchange.over:
            caller = asyncio.current_task()
            cancelled = caller.cancelling() if caller is not None else 0
            yield from self._exchange.task.__await__()
            if not self._exchange.over:  # cancelled before its first step: its callbacks come next
                yield from asyncio.sleep(0).__await__()
            if caller is not None and caller.cancelling() > cancelled:
                # asyncio gave the cancellation to the chain; whatever a middleware made of it, the caller was cancelled.
                raise asyncio.CancelledError
        self._raise_for_failure()
        return self._exchange.response


class _ManyResponses(_Call):
    _reading = False
    ends_with_a_cancelled_read = False
    """Whether what stands around this call cannot go on after one."""

    def __aiter__(self) -> AsyncIterator[Any]:
        """Return itself: a second loop goes on where the first one stopped."""
        return self

    async def __anext__(self) -> Any:
        """Return the next response message. Raises CallError, or StopAsyncIteration after the last."""
        message = await self._read()
        if message is grpc.aio.EOF:
            raise StopAsyncIteration
        return message

    def read(self) -> Coroutine[Any, Any, Any]:
        """Return the next response message, or ``grpc.aio.EOF`` after the last. Raises CallError.

        A read that is cancelled loses nothing and leaves the RPC as it is. One task reads at a time: raises UsageError
        when another one does.
        """
        return self._read()  # no coroutine of its own: all of them are gone through per message

    async def _read(self) -> Any:
        if self._reading:
            msg = "this call is being read already: one task reads at a time"
            raise grpc.aio.UsageError(msg)
        self._reading = True
        try:
            exchange = self._exchange
            source = exchange.bound or await exchange.source()
            while source is not None:
                message = await source.take()
                if message is not END:
                    return message
                source = await exchange.source(after=source)
        except asyncio.CancelledError:
            if self.ends_with_a_cancelled_read:
                self._exchange.cancel()
            raise
        finally:
            self._reading = False
        self._raise_for_failure()
        return grpc.aio.EOF


class _ManyRequests(_Call):
    # grpc.aio's own intercepted calls look at this when one of ours is inside; they keep the writes to themselves.
    _done_writing_flag = False

    def __init__(self, exchange: Exchange, writes: Writes | None) -> None:
        """Stand for ``exchange``; ``writes`` is where ``write()`` puts messages, None when an iterator was given."""
        super().__init__(exchange)
        self._writes = writes
        if writes is not None:
            exchange.writes = writes
            exchange.when_done(writes.close)

    async def wait_for_connection(self) -> None:
        """Return once an attempt is on its way or the RPC is over. Raises what it failed with.

        No later: a server may send nothing before it has read a message.
        """
        await self._exchange.source()
        self._raise_for_failure()

    async def write(self, request: Any) -> None:
        """Send one request message; returns when more is welcome.

        Raises CallError when the RPC has failed, InvalidStateError when it is over otherwise or was half-closed. Also
        when the server has ended it and messages of its answer are still to be read: how it ended is known after them.
        """
        if not await self._writer().put(request):
            self._raise_for_failure()
            why = "the RPC is over" if self._exchange.over else "the server has ended the RPC: its answer is to be read"
            raise asyncio.InvalidStateError(why)

    async def done_writing(self) -> None:
        """Say that no more messages will be written; idempotent."""
        self._writer().finish()

    def _writer(self) -> Writes:
        if self._writes is None:
            msg = "this call sends what its request iterator yields: write() needs a call made without one"
            raise grpc.aio.UsageError(msg)
        return self._writes


class UnaryCall(_OneResponse, grpc.aio.UnaryUnaryCall[Any, Any]):
    """A call with one request and one response."""


class ServerStreamCall(_ManyResponses, grpc.aio.UnaryStreamCall[Any, Any]):
    """A call with one request and a stream of responses."""


class ClientStreamCall(_ManyRequests, _OneResponse, grpc.aio.StreamUnaryCall[Any, Any]):
    """A call with a stream of requests and one response."""


class BidiStreamCall(_ManyRequests, _ManyResponses, grpc.aio.StreamStreamCall[Any, Any]):
    """A call with a stream each way."""
