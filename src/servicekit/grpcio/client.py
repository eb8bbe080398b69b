"""The client's end of the seam over a channel of grpc core."""

from __future__ import annotations

import asyncio
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import grpc

from servicekit.errors import By, Code, Error
from servicekit.wire import Head, Reply, Status, Stream, error_of

from .intercepted import answer_of
from .outcome import CLOSED, CODES, CUT_OFF, PASSED, ended_by, never_sent
from .stream import GrpcioStream, Stillborn

if TYPE_CHECKING:
    from servicekit.clock import Clock
    from servicekit.metadata import Pairs

_PATHS = 1024


class GrpcioWire:
    """A Wire over one ``grpc.aio.Channel``, which it owns: ``close`` closes it.

    Multicallables are kept for the last 1,024 paths of each kind. Core tells a client nothing of the address that
    answered, so ``peer`` is "" everywhere.
    """

    def __init__(self, channel: grpc.aio.Channel, clock: Clock) -> None:
        """Send over ``channel``; deadlines are in the seconds of ``clock``."""
        self._channel = channel
        self._clock = clock
        self._unary = lru_cache(_PATHS)(channel.unary_unary)
        self._download = lru_cache(_PATHS)(channel.unary_stream)
        self._bidi = lru_cache(_PATHS)(channel.stream_stream)

    @property
    def channel(self) -> grpc.aio.Channel:
        """The channel underneath, for its connectivity."""
        return self._channel

    async def unary(self, head: Head, data: bytes) -> Reply:
        """Make one unary RPC. Raises Error for any status but OK; CancelledError only when the caller cancelled."""
        timeout = None
        if head.deadline is not None:
            timeout = head.deadline - self._clock.time()
            if timeout <= 0:
                raise error_of(PASSED)
        task = asyncio.current_task()
        cancelled = task.cancelling() if task is not None else 0
        failure: Error
        try:
            call: Any = self._unary(head.path)(data, timeout=timeout, **_passed_on(head))
            answer = await (call if hasattr(call, "_cython_call") else answer_of(call))
            headers, trailers = await _metadata(call)
        except grpc.aio.AioRpcError as error:
            failure = self._error(error)
        except asyncio.CancelledError:
            if task is None or task.cancelling() > cancelled or not self._closed():
                raise
            failure = error_of(CUT_OFF)
        except grpc.aio.UsageError:
            if not self._closed():
                raise
            failure = error_of(CLOSED)
        except grpc.aio.InternalError as error:  # core refused the batch, so nothing was sent
            raise Error(Code.INTERNAL, "core refused the call", begun=False) from error
        else:
            return _reply(answer, headers, trailers)
        try:
            raise failure  # out here it has no context, whose traceback would hold all frames of the call
        finally:
            del failure  # it holds this frame

    def open(self, head: Head, data: bytes | None) -> Stream:
        """Begin an RPC and return at once; one that cannot begin has ended before its first message."""
        timeout = None
        if head.deadline is not None:
            timeout = head.deadline - self._clock.time()
            if timeout <= 0:
                return Stillborn(PASSED)
        try:
            if data is None:
                call: Any = self._bidi(head.path)(timeout=timeout, **_passed_on(head))
            else:
                call = self._download(head.path)(data, timeout=timeout, **_passed_on(head))
        except grpc.aio.UsageError:
            if not self._closed():
                raise
            return Stillborn(CLOSED)
        return GrpcioStream(call, self._channel)

    async def close(self, grace: float) -> None:
        """Let calls in flight finish for ``grace`` seconds, end the rest, and close the channel. Idempotent."""
        await self._channel.close(grace)

    def _closed(self) -> bool:
        return self._channel.get_state() is grpc.ChannelConnectivity.SHUTDOWN

    def _error(self, error: grpc.aio.AioRpcError) -> Error:
        code, message = CODES[error.code()], error.details() or ""
        status = Status(
            code=code, message=message, trailers=_pairs(error.trailing_metadata()), by=ended_by(code, message)
        )
        if never_sent(code, message, self._channel):
            status.begun, status.by = False, By.LOCAL
        return error_of(status, _pairs(error.initial_metadata()))


def _reply(data: bytes | None, headers: Pairs, trailers: Pairs) -> Reply:
    if data is None:  # core calls it OK; in gRPC's list of status codes too few responses are UNIMPLEMENTED
        message = "the server sent no response to a call that has one"
        raise Error(Code.UNIMPLEMENTED, message, headers=headers, trailers=trailers)
    return Reply(data=data, headers=headers, trailers=trailers)


def _passed_on(head: Head) -> dict[str, Any]:
    return {
        "metadata": head.metadata,
        "credentials": head.credentials,
        "wait_for_ready": head.wait_for_ready,
        "compression": head.compression,
    }


async def _metadata(call: Any) -> tuple[Pairs, Pairs]:
    core = getattr(call, "_cython_call", None)
    if core is not None:  # as core has it, which keeps the order of keys; grpc.aio makes a mapping of each, for 10 us
        return core._initial_metadata, core._status.trailing_metadata()  # noqa: SLF001 - see above
    return _pairs(await call.initial_metadata()), _pairs(await call.trailing_metadata())


def _pairs(metadata: Any) -> Pairs:
    return tuple(metadata) if metadata else ()
