"""One streaming RPC over grpc core, seen by the client."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import grpc

from servicekit.errors import By, Code
from servicekit.finalizer import leave_to
from servicekit.wire import END, Ended, Received, Status

from .intercepted import InterceptedCore, core_of
from .kept import Kept
from .outcome import CANCELLED, CUT_OFF, ended_by, never_sent

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from servicekit.metadata import Pairs


class _State:
    """What a stream and those who wait for its end have in common; it does not hold the stream."""

    __slots__ = ("cancelled", "channel", "core", "reading", "taken")

    def __init__(self, core: Any, channel: grpc.aio.Channel) -> None:
        self.core = core
        self.channel = channel
        self.cancelled = False
        self.reading: Kept[Any] | None = None  # a read that was begun and whose message nobody has taken yet
        self.taken: asyncio.Future[None] | None = None  # resolved, if someone waits for it, when it was taken


class GrpcioStream:
    """A Stream over one call object of grpc.aio.

    Messages go through the call's core object, not through ``read`` and ``write``: a ``write`` that fails because the
    server has answered early puts INTERNAL in the place of the status, and makes the messages that are still to be read
    unreadable. Each message is a turn of the loop, for core hands it over from a thread of its own.

    Headers of an RPC that ends without a message are lost, as they are by grpc.aio itself, where the status is there
    too before the loop gets its turn: nobody can hold it back.
    """

    __slots__ = ("_begun", "_call", "_core", "_half_closed", "_loop", "_opening", "_over", "_state", "_writing")

    def __init__(self, call: Any, channel: grpc.aio.Channel) -> None:
        """Take a call that was just made: no turn of the loop may have passed."""
        self._core = core_of(call)
        self._call = self._core if isinstance(self._core, InterceptedCore) else call
        self._state = _State(self._core, channel)
        self._loop = asyncio.get_running_loop()
        self._writing: Kept[None] | None = None
        self._opening: asyncio.Task[Any] | None = _opening_of(call)
        self._half_closed = False
        self._over = False
        self._begun = False

    async def send(self, data: bytes) -> None:
        """Send one message; returns when core wants more. Raises Ended after the end of the RPC."""
        if self._half_closed:
            raise RuntimeError("a message was sent after half_close()")
        await self._written()
        if self._call.done():
            raise Ended
        await self._write(self._core.send_serialized_message(data))

    async def half_close(self) -> None:
        """Say that no more messages will be sent; idempotent, and harmless after the end."""
        if self._half_closed:
            return
        try:
            await self._written()
            if self._half_closed or self._call.done():
                return
            self._half_closed = True
            await self._write(self._core.send_receive_close())
        except Ended:
            return

    async def receive(self) -> Received:
        """Return the next message, or END at any end. Cancel-safe: a read that was begun is kept for the next one."""
        state = self._state
        if self._over or state.cancelled:
            return END
        if not self._begun:
            await self._begin()
        if self._opening is not None:
            await self._opened(self._opening)
        if state.reading is None:
            state.reading = Kept(self._core.receive_serialized_message())
        try:
            message = await state.reading
        except Ended:
            message = grpc.aio.EOF
        state.reading = None
        if state.taken is not None and not state.taken.done():
            state.taken.set_result(None)
        if message is grpc.aio.EOF or state.cancelled:
            self._over = True
            return END
        return message  # type: ignore[no-any-return]

    # The next two are coroutines of the state, not of the stream: whoever waits there does not keep the stream alive.

    def headers(self) -> Coroutine[Any, Any, Pairs]:
        """Return the response's initial metadata once it is there; () when the RPC ended without any."""
        return _headers(self._core)

    def ended(self) -> Coroutine[Any, Any, Status]:
        """Return how the RPC ended, once all its messages were taken, or once it failed. Cancel-safe."""
        return _ended(self._state)

    @property
    def peer(self) -> str:
        """Nothing: core does not tell the client of grpc.aio."""
        return ""

    def cancel(self) -> None:
        """End the RPC from this side if it is not over; idempotent."""
        if self._call.cancel():
            self._state.cancelled = True

    async def _begin(self) -> None:
        # The call's own first task, made with it, starts the first batch; it runs before this goes on. That batch need
        # not be over for a message to be sent: waiting for it would cost a round trip through core's thread.
        await asyncio.sleep(0)
        self._begun = True

    async def _opened(self, opening: asyncio.Task[Any]) -> None:
        # That first batch brings the headers. Core holds the status back until the last message is read, and grpc.aio
        # throws headers away that come to it after the status: so no message is read before they are there.
        if not opening.done():
            await asyncio.wait([opening])
        self._opening = None

    async def _written(self) -> None:
        if not self._begun:
            await self._begin()
        if self._writing is not None:  # a cancelled one: core takes one message at a time
            await self._finish_write()

    async def _write(self, operation: Coroutine[Any, Any, None]) -> None:
        self._writing = Kept(operation)
        await self._finish_write()

    async def _finish_write(self) -> None:
        writing = self._writing
        assert writing is not None  # noqa: S101 - see the callers
        try:
            await writing
        except Ended:
            self._writing = None
            raise
        if self._writing is writing:
            self._writing = None

    def __del__(self) -> None:
        """Cancel the RPC. grpc.aio does not: its call objects are cycles, and its tasks hold them."""
        if self._writing is not None or self._state.reading is not None or not self._over:
            leave_to(self._loop, _dropped, self._call, self._state, self._writing)


def _dropped(call: Any, state: _State, writing: Kept[None] | None) -> None:
    if call.cancel():
        state.cancelled = True
    for kept in (state.reading, writing):
        if kept is not None:
            kept.drop()


def _opening_of(call: Any) -> asyncio.Task[Any] | None:
    # The first is of a stream of requests, the second of a single one; an intercepted call has neither.
    opening: asyncio.Task[Any] | None = getattr(call, "_initializer", None)
    return opening or getattr(call, "_send_unary_request_task", None)


async def _headers(core: Any) -> Pairs:
    return await core.initial_metadata()  # type: ignore[no-any-return]


async def _ended(state: _State) -> Status:
    core = state.core
    final = await core.status()
    if core.is_locally_cancelled():
        return CANCELLED if state.cancelled else CUT_OFF
    code, message = Code(final.code()), final.details() or ""
    if code is Code.OK and state.reading is not None:
        await _taken(state)
    status = Status(code=code, message=message, trailers=final.trailing_metadata() or (), by=ended_by(code, message))
    if never_sent(code, message, state.channel):
        status.begun, status.by = False, By.LOCAL
    return status


async def _taken(state: _State) -> None:
    # Core has handed all messages over, but the last one may lie in a read whose reader was cancelled.
    if state.reading is not None and await state.reading is not grpc.aio.EOF and state.reading is not None:
        if state.taken is None:
            state.taken = asyncio.get_running_loop().create_future()
        await asyncio.shield(state.taken)


class Stillborn:
    """A Stream that has ended before anything was sent."""

    __slots__ = ("_status",)

    def __init__(self, status: Status) -> None:
        """End with ``status``."""
        self._status = status

    async def send(self, data: bytes) -> None:  # noqa: ARG002 - it goes nowhere
        """Raise Ended."""
        raise Ended

    async def half_close(self) -> None:
        """Do nothing."""

    async def receive(self) -> Received:
        """Return END."""
        return END

    async def headers(self) -> Pairs:
        """Return ()."""
        return ()

    async def ended(self) -> Status:
        """Return the status."""
        return self._status

    @property
    def peer(self) -> str:
        """Nothing: nobody was asked."""
        return ""

    def cancel(self) -> None:
        """Do nothing."""
