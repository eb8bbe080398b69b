"""A call that interceptors of the channel stand around, made to look like the core object of a bare one."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc

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


class InterceptedCore:
    """The few methods of core's call object that a stream needs, by what grpc.aio offers in public.

    Here its traps remain: a write that fails takes the messages with it that were still to be read.
    """

    __slots__ = ("_call",)

    def __init__(self, call: Any) -> None:
        """Take a call that nobody has read from or written to."""
        self._call = call

    async def receive_serialized_message(self) -> Any:
        """Return the next message, or EOF at any end."""
        try:
            return await self._call.read()
        except (grpc.aio.AioRpcError, asyncio.CancelledError):
            return grpc.aio.EOF

    async def send_serialized_message(self, data: bytes) -> None:
        """Send one message; raise UsageError when the RPC is over."""
        try:
            await self._call.write(data)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError, asyncio.CancelledError):
            raise grpc.aio.UsageError from None

    async def send_receive_close(self) -> None:
        """Half-close; raise UsageError when the RPC is over."""
        try:
            await self._call.done_writing()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError, asyncio.CancelledError):
            raise grpc.aio.UsageError from None

    async def initial_metadata(self) -> Pairs:
        """Return the headers once they are there."""
        return tuple(await self._call.initial_metadata() or ())

    async def status(self) -> _Final:
        """Return how it ended, once it has."""
        code = await self._call.code()
        return _Final(
            code.value[0], await self._call.details() or "", tuple(await self._call.trailing_metadata() or ())
        )

    def is_locally_cancelled(self) -> bool:
        """Return whether it ended by a cancellation; whose cannot be seen from here, and is taken for this side's."""
        return bool(self._call.cancelled())
