"""A call that interceptors of the channel stand around, made to look like the core object of a bare one."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc

from servicekit.errors import By, Code, Error

from .outcome import BROKEN

if TYPE_CHECKING:
    from servicekit.metadata import Pairs


def core_of(call: Any) -> Any:
    """Return the core object of a call of grpc.aio, or what stands in for it where there are interceptors."""
    return getattr(call, "_cython_call", None) or InterceptedCore(call)


@dataclass(frozen=True, slots=True)
class _Final:
    _code: int
    _details: str
    _trailers: Pairs

    def code(self) -> int:
        return self._code

    def details(self) -> str:
        return self._details

    def trailing_metadata(self) -> Pairs:
        return self._trailers


def _final_of(error: Exception) -> _Final:
    if isinstance(error, grpc.aio.AioRpcError):
        return _Final(error.code().value[0], error.details() or "", tuple(error.trailing_metadata() or ()))
    if isinstance(error, Error):
        return _Final(error.code.value, error.message, error.trailers)
    return _Final(Code.INTERNAL.value, _told(error), ())


def _told(error: Exception) -> str:
    return f"{BROKEN}{type(error).__name__}"  # without its text, which may hold secrets


async def answer_of(call: Any) -> Any:
    """Return the answer of a unary call with interceptors around it. Raises what grpc.aio does, or Error."""
    try:
        return await call
    except (grpc.aio.AioRpcError, grpc.aio.BaseError, Error):
        raise
    except Exception as error:
        raise Error(Code.INTERNAL, _told(error), by=By.LOCAL) from error


class InterceptedCore:
    """The few methods of core's call object that a stream needs, and of the call itself, by what grpc.aio offers in public.

    What an interceptor raises ends the RPC with INTERNAL, as its status. Traps of grpc.aio remain: a write that fails
    takes the messages with it that were still to be read.
    """

    __slots__ = ("_call", "_ended_well", "_failure", "_left", "_read_out", "_reading")

    def __init__(self, call: Any) -> None:
        """Take a call that nobody has read from or written to."""
        self._call = call
        self._reading: asyncio.Task[Any] | None = None
        self._read_out = asyncio.Event()
        self._failure: _Final | None = None
        self._ended_well = False
        self._left = False

    async def receive_serialized_message(self) -> Any:
        """Return the next message, or EOF at any end."""
        self._begin_read()
        assert self._reading is not None  # noqa: S101 - begun just now
        try:
            message = await self._reading
        except asyncio.CancelledError:
            return grpc.aio.EOF
        self._reading = None
        if self._ended_well and message is not grpc.aio.EOF:
            self._begin_read()  # status() waits until all was read, and nobody else may ask
        return message

    def _begin_read(self) -> None:
        if self._reading is None:
            self._reading = asyncio.ensure_future(self._next())

    async def _next(self) -> Any:
        message: Any = grpc.aio.EOF
        try:
            message = await self._call.read()
        except asyncio.CancelledError:
            self._call.cancel()
        except grpc.aio.AioRpcError as error:
            if not self._call.done() or await self._call.code() is grpc.StatusCode.OK:  # an interceptor's own
                self._fail(error)
        except Exception as error:  # noqa: BLE001 - an interceptor may raise anything
            self._fail(error)
        if message is grpc.aio.EOF:
            self._read_out.set()
        return message

    def _fail(self, error: Exception) -> None:
        if not self._left:
            self._failure = _final_of(error)
            self._call.cancel()

    async def send_serialized_message(self, data: bytes) -> None:
        """Send one message; raise UsageError when the RPC is over."""
        try:
            await self._call.write(data)
        except (Exception, asyncio.CancelledError):  # noqa: BLE001 - what an interceptor has raised: status() tells
            raise grpc.aio.UsageError from None

    async def send_receive_close(self) -> None:
        """Half-close; raise UsageError when the RPC is over."""
        try:
            await self._call.done_writing()
        except (Exception, asyncio.CancelledError):  # noqa: BLE001 - as above
            raise grpc.aio.UsageError from None

    async def initial_metadata(self) -> Pairs:
        """Return the headers once they are there."""
        try:
            return tuple(await self._call.initial_metadata() or ())
        except Exception:  # noqa: BLE001 - what an interceptor has raised: status() tells
            return ()

    async def status(self) -> _Final:
        """Return how it ended, once it has, and once all messages were taken if it ended well."""
        try:
            code = await self._call.code()
            if code is grpc.StatusCode.OK and not self._left:
                # That is the wire's word, and an interceptor around it may not be at its end. Where there is nothing to
                # read, nobody may ask for it: this read is kept for whoever does.
                self._ended_well = True
                if not self._read_out.is_set():
                    self._begin_read()
                await self._read_out.wait()
            return self._failure or _Final(
                code.value[0], await self._call.details() or "", tuple(await self._call.trailing_metadata() or ())
            )
        except Exception as error:  # noqa: BLE001 - an interceptor has raised it before there was a call
            self._failure = self._failure or _final_of(error)
            return self._failure

    def is_locally_cancelled(self) -> bool:
        """Return whether it ended by a cancellation; whose cannot be seen from here, and is taken for this side's."""
        return self._failure is None and bool(self._call.cancelled())

    def done(self) -> bool:
        """Return whether the RPC is over, as far as the wire goes."""
        return bool(self._call.done())

    def cancel(self) -> bool:
        """End the RPC, and what interceptors have yet to make of its answer; returns False when all of it is over."""
        self._left = True
        if not self._call.cancel() and (self._read_out.is_set() or not self._ended_well):
            return False
        self._read_out.set()
        if self._reading is not None:
            self._reading.cancel()
        return True
