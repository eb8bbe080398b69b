"""A wire made of what stands inside a client interceptor of somebody else's channel.

Messages pass as they are, not as bytes: the channel's own call object encodes them further in.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import grpc

from servicekit.errors import By, Code
from servicekit.wire import END, Ended, Head, Reply, Status, error_of

from .status import as_tuple, code_from
from .writes import Writes

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from servicekit.clock import Clock
    from servicekit.metadata import Pairs


_LATE_WRITE = "Internal error from Core"
"""What grpc.aio puts in the place of the status when a write has failed, until all messages were read."""


class ContinuationWire:
    """Makes calls with an interceptor's ``continuation``, which may be asked any number of times."""

    def __init__(self, continuation: Callable[..., Awaitable[Any]], details: Any, clock: Clock) -> None:
        """Send what ``details`` says with ``continuation``, but for metadata and time, which a call's head brings."""
        self._continuation = continuation
        self._details = details
        self._clock = clock

    def _details_of(self, head: Head) -> grpc.aio.ClientCallDetails:
        left = None if head.deadline is None else max(0.0, head.deadline - self._clock.time())
        given = self._details
        return grpc.aio.ClientCallDetails(
            given.method, left, grpc.aio.Metadata(*head.metadata), given.credentials, given.wait_for_ready
        )

    async def unary(self, head: Head, data: Any) -> Reply:
        """Make one unary call. Raises Error for any status but OK."""
        call: Any = None
        try:
            call = await self._continuation(self._details_of(head), data)
            response = await call
            return Reply(
                data=response,
                headers=as_tuple(await call.initial_metadata()),
                trailers=as_tuple(await call.trailing_metadata()),
            )
        except grpc.aio.AioRpcError as error:
            raise error_of(_status_of(error), as_tuple(error.initial_metadata())) from None
        except asyncio.CancelledError:
            if call is not None:
                call.cancel()
            raise

    def open(self, head: Head, data: Any) -> ContinuationStream:
        """Begin a call; ``data`` None means that its requests will be sent."""
        return ContinuationStream(self._continuation, self._details_of(head), data)

    async def close(self, grace: float) -> None:
        """Do nothing: the channel is somebody else's."""


def _status_of(error: grpc.aio.AioRpcError) -> Status:
    return Status(
        code=code_from(error.code()), message=error.details() or "", trailers=as_tuple(error.trailing_metadata())
    )


class ContinuationStream:
    """One call of a continuation as a stream."""

    def __init__(self, continuation: Callable[..., Awaitable[Any]], details: Any, data: Any) -> None:
        """Begin the call in a task, which lasts as long as the interceptors inside take to let it through."""
        self._writes = Writes() if data is None else None
        request = data if data is not None else self._writes
        self._starting: asyncio.Task[Any] = asyncio.ensure_future(_started(continuation, details, request))
        self._iterator: Any = None
        self._reading: asyncio.Task[Any] | None = None
        self._read_out = asyncio.Event()
        self._failure: Status | None = None
        self._cancelled = False
        self._watching = False

    async def send(self, data: Any) -> None:
        """Send one message; returns when more is welcome. Raises Ended after the end, once all its messages were taken.

        Before, what comes too late goes nowhere: the caller may be inside of ``write()`` of an intercepted call, which
        is grpc.aio's own and ends with its message taken or with the whole call, and read only then.
        """
        call = await self._call()
        if call is None or self._writes is None or self._read_out.is_set():
            raise Ended
        if (call.done() or not await self._writes.put(data)) and self._read_out.is_set():
            raise Ended

    def _over(self, _: Any) -> None:
        if self._writes is not None:
            self._writes.close()
            self._writes.finish()  # or grpc.aio's task that takes from them waits for ever: it ends with its iterator only

    async def half_close(self) -> None:
        """Say that no more messages will be sent."""
        if self._writes is not None:
            self._writes.finish()

    async def receive(self) -> Any:
        """Return the next message, or END. The read outlives a waiter that is cancelled."""
        if self._cancelled:
            return END
        if self._reading is None:
            self._reading = asyncio.ensure_future(self._read())
        await asyncio.wait([self._reading])
        reading, self._reading = self._reading, None
        return END if reading.cancelled() or self._cancelled else reading.result()

    async def _read(self) -> Any:
        message = await self._next()
        if message is END:
            self._read_out.set()
        return message

    async def _next(self) -> Any:
        call = await self._call()
        if call is None:
            return END
        if self._iterator is None:
            # Some interceptors answer with a bare iterator; one response of a client stream is awaited.
            self._iterator = aiter(call) if hasattr(call, "__aiter__") else aiter(_One(call))
        try:
            return await anext(self._iterator, END)
        except grpc.aio.AioRpcError as error:
            self._failure = _status_of(error)
        except Exception as error:  # noqa: BLE001 - an interceptor inside may raise anything
            self._failure = _broken(error)
        return END

    async def _call(self) -> Any:
        await asyncio.wait([self._starting])
        if self._starting.cancelled():
            return None
        error = self._starting.exception()
        if error is not None:
            self._failure = _status_of(error) if isinstance(error, grpc.aio.AioRpcError) else _broken(error)
            return None
        call = self._starting.result()
        if self._writes is not None and not self._watching:
            self._watching = True
            call.add_done_callback(self._over)
        return call

    async def headers(self) -> Pairs:
        """Return the initial metadata, () when the call never came so far."""
        call = await self._call()
        try:
            return as_tuple(await call.initial_metadata()) if call is not None else ()
        except Exception:  # noqa: BLE001 - what an intercepted call ended with; ended() tells
            return ()

    async def ended(self) -> Status:
        """Return how the call ended."""
        call = await self._call()
        if call is not None and not self._cancelled:
            try:
                code = code_from(await call.code())
                details = await call.details()
                if code is Code.OK:  # it may be the wire's, and an iterator around it not at its end
                    await self._all_read()
                elif code is Code.INTERNAL and details == _LATE_WRITE:
                    await self._all_read()
                    code = code_from(await call.code())
                    details = await call.details()
                if not self._cancelled and (self._failure is None or code is not Code.OK):
                    return Status(code=code, message=details or "", trailers=as_tuple(await call.trailing_metadata()))
            except grpc.aio.AioRpcError as error:
                return _status_of(error)
            except asyncio.CancelledError:
                if not call.cancelled():
                    raise
            except Exception as error:  # noqa: BLE001 - code() of an intercepted call raises what its chain raised
                return _broken(error)
        return self._failure or Status(code=Code.CANCELLED, message="cancelled", by=By.CALLER)

    async def _all_read(self) -> None:
        # Where there is nothing to read, nobody may ask for it: this read is kept for whoever does.
        if self._reading is None and not self._read_out.is_set():
            self._reading = asyncio.ensure_future(self._read())
        await self._read_out.wait()

    @property
    def peer(self) -> str:
        """Nothing: grpc.aio does not tell a client."""
        return ""

    def cancel(self) -> None:
        """End the call if it is not over."""
        done = self._starting.done() and not self._starting.cancelled() and self._starting.exception() is None
        if done and self._starting.result().done() and self._read_out.is_set():
            return
        self._cancelled = True
        self._read_out.set()
        if done:
            self._starting.result().cancel()
        self._starting.cancel()
        if self._reading is not None:
            self._reading.cancel()
        if self._writes is not None:
            self._writes.close()


async def _started(continuation: Callable[..., Awaitable[Any]], details: Any, request: Any) -> Any:
    return await continuation(details, request)


def _broken(error: BaseException) -> Status:
    return Status(code=Code.INTERNAL, message=f"an interceptor raised {type(error).__name__}", by=By.LOCAL)


class _One:
    """The response of a client stream as an iterator of one."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self._over = False

    def __aiter__(self) -> _One:
        return self

    async def __anext__(self) -> Any:
        if self._over:
            raise StopAsyncIteration
        self._over = True
        return await self._call
