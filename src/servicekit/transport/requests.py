"""The stream of request messages: what a chain sees of it, and what a servicer reads.

Three promises. It is iterated once, unless somebody asked for it to be kept. A cancelled read loses nothing, and never
looks like the end. And an attempt that was given up does not take a message with it.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

from .codec import size_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable

    from servicekit.call import Call

KEEP = 256 * 1024
_TAKEN = "the request stream was taken by an earlier attempt: ask for request.keep() before the first one"


class Requests:
    """The request messages of one call, given to the chain. Iterable once; see ``keep``."""

    __slots__ = ("_failure", "_kept", "_left", "_over", "_pending", "_safe", "_source", "taken")

    def __init__(self, source: AsyncIterator[Any], *, cancel_safe: bool) -> None:
        """Take where the messages come from, and whether a cancelled ``anext`` leaves it whole.

        An async generator is not cancel-safe: it ends where it was cancelled, which must not look like the end.
        """
        self._source = source
        self._safe = cancel_safe
        self.taken = 0  # how many messages have left the source
        self._kept: list[Any] | None = None
        self._left = 0
        self._over = False
        self._failure: BaseException | None = None
        self._pending: asyncio.Task[Any] | None = None

    def keep(self, max_bytes: int = KEEP) -> None:
        """Keep the messages from here on, so that another attempt can go through them again.

        Past ``max_bytes`` they are let go, and a second pass raises as if nobody had asked. Does nothing when it was
        asked before; raises RuntimeError when messages were taken already.
        """
        if max_bytes < 0:
            msg = f"max_bytes counts bytes to keep, not {max_bytes!r}"
            raise ValueError(msg)
        if self._kept is None and self.taken == 0:
            self._kept, self._left = [], max_bytes
        elif self._kept is None:
            msg = "keep() came too late: messages of this stream were taken already"
            raise RuntimeError(msg)

    @property
    def replayable(self) -> bool:
        """Whether another pass would begin with the first message."""
        return self.taken == 0 or self._kept is not None

    def __aiter__(self) -> AsyncIterator[Any]:
        """Return a pass over the messages. Raises RuntimeError when an earlier one has taken some and none were kept."""
        self._check(0)
        return _Pass(self)

    async def at(self, index: int) -> Any:
        """Return message number ``index``, taking it from the source if it is next. Raises StopAsyncIteration."""
        while index >= self.taken:
            if self._over:
                if self._failure is not None:
                    raise self._failure
                raise StopAsyncIteration
            if self._kept is None:
                return await self.following()
            # Another attempt may want what this one was waiting for: the read outlives its waiter.
            if self._pending is None:
                self._pending = asyncio.ensure_future(self._pull_kept())
            await asyncio.wait([self._pending])
        self._check(index)
        assert self._kept is not None  # noqa: S101 - what _check has just made sure of
        return self._kept[index]

    async def following(self, reading: _Pass | None = None) -> Any:
        """Return the message that is next in the source, which is not to be kept. Raises StopAsyncIteration.

        A pass gives itself, and needs no coroutine of its own, which is a good part of what a message costs. Whether this is
        the message that it wants is asked when this runs, which may be later than when it was made.
        """
        if reading is not None and (reading.index != self.taken or self._kept is not None or self._over):
            return await reading.at_its_index()
        try:
            message = await self._source.__anext__()
        except StopAsyncIteration:
            self._over = True
            raise
        except asyncio.CancelledError:
            if not self._safe:
                self._over, self._failure = True, RuntimeError(_TAKEN)
            raise
        except BaseException as error:
            self._over, self._failure = True, error
            raise
        self.taken += 1
        if reading is not None:
            reading.index += 1
        return message

    async def _pull_kept(self) -> None:
        try:
            message = await anext(self._source)
        except StopAsyncIteration:
            self._over = True
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001 - raised by whoever asks for the message, not in this task
            self._over, self._failure = True, error
        else:
            self.taken += 1
            if self._kept is not None:
                self._kept.append(message)
                self._left -= size_of(message)
        finally:
            self._pending = None

    def release(self, index: int) -> None:
        """Let go of what was kept once it is too much: everything before ``index`` has been used."""
        if self._kept is not None and self._left < 0 and index == self.taken:
            self._kept = None

    def _check(self, index: int) -> None:
        if index < self.taken and self._kept is None:
            raise RuntimeError(_TAKEN)

    async def aclose(self) -> None:
        """Stop a read that is under way and close the source. Called by transport when the call is over.

        The iterator that the caller of a client gave is not the source, see ``each``: nobody closes it but the caller.
        """
        if self._pending is not None:
            self._pending.cancel()
            await asyncio.wait([self._pending])
        close = getattr(self._source, "aclose", None)
        if close is not None:
            await close()


class _Pass:
    __slots__ = ("_requests", "index")

    def __init__(self, requests: Requests) -> None:
        self._requests = requests
        self.index = 0

    def __aiter__(self) -> _Pass:
        return self

    def __anext__(self) -> Awaitable[Any]:
        return self._requests.following(self)

    async def at_its_index(self) -> Any:
        requests = self._requests
        message = await requests.at(self.index)
        self.index += 1
        requests.release(self.index)
        return message


class Opened:
    """One pass over what a link has put around the request stream, to be closed after it as it is on a server."""

    __slots__ = ("_iterator", "_request")

    def __init__(self, request: AsyncIterable[Any]) -> None:
        """Take the request of a call as it came through the chain."""
        self._request = request
        self._iterator: AsyncIterator[Any] | None = None

    def __aiter__(self) -> AsyncIterator[Any]:
        """Begin the pass."""
        self._iterator = aiter(self._request)
        return self._iterator

    async def aclose(self) -> None:
        """Close what was begun; raises nothing of it. A pass over the stream itself needs none."""
        close = getattr(self._iterator, "aclose", None)
        if close is not None:
            # It may be running elsewhere, or go on all the same: how it takes it is not how the call ends.
            with contextlib.suppress(Exception):
                await close()


class Reader:
    """The request messages as a servicer gets them: one pass, which ``break`` does not end, shared with ``read()``.

    What a middleware has put in the stream's place may be an async generator, which a cancelled read would end for
    good: it is read in a task of its own, which the next read waits for.
    """

    __slots__ = ("_call", "_check", "_iterator", "_pending", "_request")

    def __init__(self, request: AsyncIterable[Any], call: Call, check: Callable[[Call], Awaitable[None]]) -> None:
        """Take the request of ``call`` as it came through the chain, and what raises before a read once that has failed."""
        self._request = request
        self._call = call
        self._check = check
        self._iterator: AsyncIterator[Any] | None = None
        self._pending: asyncio.Task[Any] | None = None

    def __aiter__(self) -> Reader:
        """Return itself: a second loop goes on where the first one stopped."""
        return self

    def __anext__(self) -> Awaitable[Any]:
        """Return the next message. Raises StopAsyncIteration after the last."""
        iterator = self._iterator
        if type(iterator) is _Pass and self._call.failure is None:
            return iterator.__anext__()  # what nearly every read is
        return self._read()

    async def _read(self) -> Any:
        if self._call.failure is not None:
            await self._check(self._call)
        iterator = self._iterator
        if iterator is None:
            iterator = self._iterator = aiter(self._request)
        if type(iterator) is _Pass:
            return await iterator.__anext__()
        read: asyncio.Task[Any] | None = None
        while read is None or read is not self._pending:  # a second reader may have waited for it too, and have it
            if self._pending is None:
                self._pending = asyncio.ensure_future(_read(iterator))
            read = self._pending
            await asyncio.wait([read])
        self._pending = None
        message = read.result()
        if message is _LAST:
            raise StopAsyncIteration
        return message

    async def aclose(self) -> None:
        """Stop a read that is under way. Called by transport when the servicer is done."""
        if self._pending is not None:
            self._pending.cancel()
            await asyncio.wait([self._pending])
        close = getattr(self._iterator, "aclose", None)
        if close is not None:
            await close()


_LAST = object()


async def _read(iterator: AsyncIterator[Any]) -> Any:
    # A task cannot end with StopAsyncIteration as its exception without turning it into a RuntimeError.
    return await anext(iterator, _LAST)


async def each(messages: AsyncIterable[Any] | Iterable[Any]) -> AsyncIterator[Any]:
    """Yield from any iterable, async or not. To close this does not close that: as with grpc.aio, it stays the caller's.

    Where an async generator was waiting for something when the call ended, it was cancelled there, which ends it.
    """
    if hasattr(messages, "__aiter__"):
        async for message in messages:
            yield message
    else:
        for message in messages:
            yield message
