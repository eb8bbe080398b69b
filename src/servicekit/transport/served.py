"""One RPC on the server between its chain and its wire: what it has sent, how it is ended, and who is told."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Protocol

from servicekit.call import Call, deadline_error
from servicekit.current import running_task
from servicekit.errors import Code, Error
from servicekit.mapping import to_error
from servicekit.metadata import Metadata
from servicekit.wire import Ended

from .codec import malformed_request
from .received import Received
from .requests import Requests

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from servicekit.clock import Timer
    from servicekit.wire import Incoming, Security, Status

    from .codec import Codec
    from .context import Context
    from .shared import Serving

LAST_WORD = 0.25
"""Seconds that a servicer has to end after its call has failed or was ended over its head; then the client is answered
without it."""


class ServedCall(Call):
    """A call whose wire may end it, and then knows best how."""

    def outcome(self, error: BaseException | None) -> Code:
        """Return the code that the client sees; one that is gone was told its own when it went."""
        exchange = self._exchange
        assert isinstance(exchange, Served)  # noqa: S101 - transport made it
        if isinstance(error, asyncio.CancelledError):
            if exchange.gone is not None:
                return exchange.gone  # as it was when the client went: the servicer's clean-up may have taken its time
            task = exchange.task
            if self.failure is None and task is not None and task is running_task() and not task.cancelling():
                return Code.INTERNAL  # nobody has cancelled the call: a link or a servicer let a child's leak out
        return super().outcome(error)


class Method(Protocol):
    """What an RPC needs of the method that it is one of. ``serving.Handler`` is it."""

    codec: Codec
    encode: Callable[[Any], bytes]
    largest: int
    shared: Serving
    uploads: bool
    downloads: bool

    def failed(self, call: Call, error: BaseException) -> Status:
        """Return the status that tells the client of ``error``, having written down what it does not tell."""


class Served:
    """One RPC on the server between its chain and its wire."""

    # Defaults of the class: most RPCs never set most of these.
    context: Context | None = None
    committed = False
    headers_sent = False
    stopping = False
    gone: Code | None = None  # how the client's part ended, if it did before the servicer's
    failure: BaseException | None = None
    malformed: Error | None = None
    size = 0
    reply: bytes | None = None  # the one response, as it was encoded where the servicer returned it
    replied: object = None  # the message that it is of
    _attempts: tuple[Call, ...] = ()
    _stopped: Call | None = None
    _finishing = False
    _timer: Timer | None = None
    _last_word: Timer | None = None
    _overdue: Timer | None = None
    insisting: asyncio.Task[None] | None = None

    def __init__(self, method: Method, incoming: Incoming, task: asyncio.Task[Any]) -> None:
        """Begin to serve ``incoming``, in ``task``; ``root`` and ``call`` are set before anything else happens."""
        self._method = method
        self.incoming = incoming
        self.task: asyncio.Task[Any] | None = task  # until it is over
        self.root: Call
        self.call: Call

    @property
    def draining(self) -> asyncio.Event:
        """Set when the server begins to go."""
        return self._method.shared.draining

    @property
    def in_threads(self) -> set[object]:
        """Where the plain functions of this server are counted while they run."""
        return self._method.shared.in_flight.in_threads

    def security(self) -> Security:
        """Return what the wire knows of the peer's identity."""
        return self.incoming.security()

    def request(self) -> Any:
        """Return the request as the chain gets it. One that cannot be decoded is blank, and never reaches the servicer."""
        data = self.incoming.data
        codec = self._method.codec
        if self._method.uploads:
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
        return Received(self, self._method.codec)

    def begin(self, call: Call) -> None:
        """Let ``call`` be the attempt that is under way. Raises what stands in its way."""
        if call.used:
            msg = "next() was called twice with the same call: every further attempt takes call.fork()"
            raise RuntimeError(msg)
        call.used = True
        if self.malformed is not None:
            raise self.malformed
        if self.committed and (
            self._attempts or self.root.used
        ):  # messages of an earlier attempt are out: there is no second one
            raise self.failure or RuntimeError("next() was called again after messages were sent")
        self.call = call
        self._attempts = (*self._attempts, call)

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
        if call.failure is not None:
            await self.check(call)
        data = self._outgoing(message, call)
        try:
            await self.incoming.send(data)
        except Ended:
            await asyncio.sleep(0)  # as above; most are cancelled here
            raise self.over(call) from None

    async def send_all(self, call: Call, messages: AsyncIterator[Any]) -> None:
        """Send what an async generator of the servicer's yields: as ``send`` does, one coroutine a message cheaper."""
        send = self.incoming.send
        try:
            async for message in messages:
                if call.failure is not None:
                    await self.check(call)
                data = self._outgoing(message, call)
                try:
                    await send(data)
                except Ended:
                    await asyncio.sleep(0)
                    raise self.over(call) from None
        finally:
            # However this ends, the generator's own clean-up runs now, in this task, and not when it is collected.
            close = getattr(messages, "aclose", None)
            if close is not None:
                await close()

    def _outgoing(self, message: object, call: Call) -> bytes:
        """Return what goes out for ``message``, with the headers ahead of it."""
        try:
            if not self._method.downloads:  # a second message would leave clients of grpc core waiting for ever
                msg = f"{call.path} has one response, which is returned, not sent"
                raise RuntimeError(msg)  # noqa: TRY301 - it fails the call, as whatever else goes wrong here
            try:
                data = self._method.encode(message)
            except Exception as error:
                msg = f"{call.path} sent what cannot be encoded: {type(message).__name__}"
                raise TypeError(msg) from error
            if len(data) > self._method.largest:
                raise too_large(len(data), self._method.largest)  # noqa: TRY301 - as above
            call.sent(message, len(data))
        except Exception as error:
            self.fail(call, error)
            raise
        self.committed = True
        if not self.headers_sent:
            self.send_headers(call)
        return data

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
        root = call  # not this one's own, which is let go of at the end
        while root.origin is not None:
            root = root.origin
        code = Call.outcome(root, asyncio.CancelledError())
        return deadline_error() if code is Code.DEADLINE_EXCEEDED else Error(code, "the call is over")

    def send_headers(self, call: Call) -> None:
        """Send the initial metadata that ``call`` has collected. Raises RuntimeError when it is out already."""
        if self.headers_sent:
            msg = "initial metadata was sent already"
            raise RuntimeError(msg)
        self.headers_sent = True
        headers, _ = call.sending()
        if headers:
            self.incoming.send_headers(headers)

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
        if self.task is running_task():
            # A task that cancels itself would be hit later, at an await that is none of the servicer's.
            asyncio.get_running_loop().call_soon(self._cancel)
        else:
            self._cancel()
        clock = call.clock
        self._last_word = clock.call_at(clock.time() + LAST_WORD, lambda: self._insist(call))

    def _cancel(self) -> None:
        if not self._finishing and not self.stopping and self.task is not None:
            self.stopping = True
            self.task.cancel()

    def _insist(self, call: Call) -> None:
        if not self._finishing and self.insisting is None and call.failure is not None:
            # From here on it is an Error, so that links and log will know it by the reference that the client gets.
            call.failure = to_error(call.failure, self._method.shared.errors)
            status = self._method.failed(call, call.failure)
            if self.context is not None:
                self.context.ended_with(status.code, status.message)
            if not self.headers_sent:
                self.send_headers(self.root)
            self.insisting = asyncio.ensure_future(self.incoming.finish(status))

    def answered(self) -> None:
        """Take back the cancellation that ``stop`` made: it has become the call's failure."""
        task = self.task
        if not self.stopping or task is None or task is not running_task() or not task.cancelling():
            return
        task.uncancel()
        if self._stopped is not self.root:
            # One attempt was ended: the call goes on, and so may another attempt.
            self.stopping = False
            if self._last_word is not None:
                self._last_word.cancel()
            if self.root.failure is not None:  # its deadline has passed while the attempt was cleaning up
                self.stop(self.root)

    def ended_by(self) -> Exception:
        """Return why the chain was cancelled, when the client was not the reason."""
        stopped = self.root if self._stopped is None else self._stopped
        self.answered()
        if stopped.failure is not None:
            return stopped.failure
        return RuntimeError("a middleware raised CancelledError, but the call was not cancelled")

    def ended(self) -> None:
        """Take note that the wire has ended the call: by itself, unless that was asked of it."""
        self._method.shared.in_flight.leave(self.root)
        if self._finishing:
            self._let_go()
        elif self.insisting is None:
            self.gone = Call.outcome(self.root, asyncio.CancelledError())
            if self.context is not None:
                self.context.ended_with(self.gone, "")

    def close(self, code: Code, message: str) -> None:
        """Stop every timer: from here on the call is over."""
        self._finishing = True
        self.root.over = True
        for call in self._attempts:
            call.over = True
        if self.context is not None:
            self.context.ended_with(code, message)
        if self._timer is not None:
            self._timer.cancel()
        if self._last_word is not None:
            self._last_word.cancel()
        if self._overdue is not None:
            self._overdue.cancel()
        if self.gone is not None:
            self._let_go()

    def _let_go(self) -> None:
        # The call and its context hold this, and nothing that is over needs it to hold them: with the circle cut, all of
        # it goes when the last of them does. Left to the collector it is a fifth of what a call costs here.
        self._attempts = ()
        self.context = None
        self.task = None  # its contextvars have the call
        if not self._method.uploads:  # a stream that is read too late asks whose it is
            del self.call, self.root

    async def finish(self, status: Status) -> None:
        """Send the last word, unless it was sent without the servicer."""
        root = self.root  # which close may let go of
        self.close(status.code, status.message)
        if not self.headers_sent:
            self.send_headers(root)
        await self.incoming.finish(status)
        if self.insisting is not None:
            await self.insisting


def too_large(size: int, largest: int) -> Error:
    """Return how a call ends whose response has more bytes than the wire sends."""
    return Error(Code.RESOURCE_EXHAUSTED, f"the response has {size} bytes, more than {largest}")
