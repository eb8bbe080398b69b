"""A call without a wire, for tests of middleware: what a transport does for a call, done by a recorder.

What takes time runs in a task, while the test moves the clock::

    call = make_call(clock=clock)
    running = asyncio.create_task(run(Deadline(default=30.0), scripted(waits()), "hi", call))
    await clock.advance(30.0)  # running ends with DEADLINE_EXCEEDED

The rest is as it is on a wire: hooks run, a deadline ends the call, one who leaves cancels it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable
from typing import TypeAlias

from servicekit.call import Call, Side, deadline_error
from servicekit.clock import Clock, MovableClock, Timer
from servicekit.current import serving
from servicekit.endpoint import Chain, Endpoint, Message, Middleware
from servicekit.mapping import ErrorMapping, to_error, unexpected
from servicekit.metadata import Metadata
from servicekit.method import Idempotency, Kind, Method
from servicekit.transport.codec import size_of
from servicekit.transport.requests import Requests, each
from servicekit.wire import Security


class Recorder:
    """The transport's end of a call, kept for looking at. It is what ``call.send``, ``limit`` and ``end`` reach.

    ``messages`` are the response messages sent through the call, ``limits`` the deadlines that were set on it, and
    ``stopped`` is how often a call was ended from within; ``draining`` and ``peer_security`` are the test's to set.
    """

    __slots__ = (
        "_stopping",
        "_task",
        "_timers",
        "committed",
        "draining",
        "limits",
        "messages",
        "peer_security",
        "stopped",
    )

    def __init__(self) -> None:
        """Record nothing yet."""
        self.messages: list[Message] = []
        self.limits: list[float] = []
        self.stopped = 0
        self.committed = False
        self.draining = asyncio.Event()
        self.peer_security = Security()
        self._task: asyncio.Task[Message] | None = None
        self._timers: dict[Call, Timer] = {}
        self._stopping = 0  # cancellations of ours that have not come out yet

    def security(self) -> Security:
        """Return what the test has set."""
        return self.peer_security

    async def send(self, call: Call, message: object) -> None:
        """Run the hooks, then record the message."""
        _outgoing(call, message)
        self.messages.append(message)
        self.committed = True
        await asyncio.sleep(0)  # a wire may make anybody wait here

    def limit(self, call: Call) -> None:
        """Set the timer that ends the call when its deadline passes."""
        if call.deadline is None:
            return
        self.limits.append(call.deadline)
        self._arm(call, call.deadline)

    def stop(self, call: Call) -> None:  # noqa: ARG002 - one task runs all attempts
        """Cancel the task that runs the chain."""
        self.stopped += 1
        if self._task is not None and not self._task.done():
            self._stopping += 1
            self._task.cancel()

    def begin(self, call: Call, task: asyncio.Task[Message]) -> None:
        """Take note of the task that runs the chain, and of the deadline that the call came with."""
        self._task = task
        if call.deadline is not None:
            self._arm(call, call.deadline)

    def finish(self) -> None:
        """Let go of the timers and the task."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        self._task = None

    def absorb(self) -> bool:
        """Take back the cancellations that came from ``stop``; return whether nobody else has cancelled the task."""
        while self._stopping and self._task is not None:
            self._stopping -= 1
            self._task.uncancel()
        return self._task is None or self._task.cancelling() == 0

    def _arm(self, call: Call, deadline: float) -> None:
        earlier = self._timers.pop(call, None)
        if earlier is not None:
            earlier.cancel()
        self._timers[call] = call.clock.call_at(deadline, lambda: call.end(deadline_error()))


class RecordedCall(Call):
    """A Call whose transport is a Recorder, found in ``recorder``."""

    __slots__ = ("recorder",)
    recorder: Recorder


def make_call(  # noqa: PLR0913 - each has a default, and a test names the one or two that it is about
    *,
    kind: Kind = Kind.UNARY,
    side: Side = Side.SERVER,
    clock: Clock | None = None,
    metadata: Iterable[tuple[str, str | bytes]] = (),
    deadline: float | None = None,
    peer: str = "test:peer",
    path: str = "",
    parent: Call | None = None,
    method: Method | None = None,
    idempotency: Idempotency = Idempotency.UNKNOWN,
    known: bool = True,
    auxiliary: bool = False,
) -> RecordedCall:
    """Return a call that begins now, for ``run``.

    ``deadline`` is in the seconds of ``clock``, a new MovableClock by default; ``metadata`` is what the request
    carries. A given ``method`` stands for ``kind`` and the three settings after it, which describe ``/test.Service/Method``.
    """
    recorder = Recorder()
    if method is None:
        method = Method(
            service="test.Service",
            name="Method",
            kind=kind,
            idempotency=idempotency,
            known=known,
            auxiliary=auxiliary,
        )
    call = RecordedCall(
        method,
        side=side,
        exchange=recorder,
        clock=MovableClock() if clock is None else clock,
        metadata=Metadata.checked(metadata),
        peer=peer,
        path=path,
        deadline=deadline,
        parent=parent,
    )
    call.recorder = recorder
    return call


Links: TypeAlias = "Middleware | Iterable[Middleware]"


async def run(middleware: Links, endpoint: Endpoint, request: Message, call: RecordedCall) -> Message:
    """Run ``endpoint`` inside ``middleware`` (one, or several in order) as a transport does, and return its response.

    The messages of a request stream may be any iterable, async or not. Hooks run for every message; the messages of a
    streaming response are in ``call.recorder.messages``. The chain runs in a task of its own: cancelling ``run``
    cancels it, as a client that goes away does, and so does the call's deadline.

    Raises what the other side would see: on the server an Error, whatever the chain has raised; on the client what
    the chain raises. CancelledError only when ``run`` itself was cancelled.
    """
    links = middleware if isinstance(middleware, Iterable) else (middleware,)
    composed = Chain(tuple(links)).around(_inside(endpoint, call.recorder), call.method)
    if call.method.kind.request_streaming and not isinstance(request, Requests):
        request = Requests(each(request), cancel_safe=False)
    with serving(call if call.side is Side.SERVER else call.parent):
        task = asyncio.ensure_future(composed(request, call))
    call.recorder.begin(call, task)
    try:
        return await task
    except asyncio.CancelledError as error:
        if _cancelling():
            raise
        # from within: the call was ended, or somebody has leaked a cancellation
        leaving = unexpected(error) if call.failure is None else _leaving(call.failure, call)
        raise leaving from leaving.__cause__
    except Exception as error:
        leaving = _leaving(error, call)
        if leaving is error:
            raise
        raise leaving from leaving.__cause__
    finally:
        call.recorder.finish()
        call.over = True
        if isinstance(request, Requests):
            await request.aclose()


def _inside(endpoint: Endpoint, recorder: Recorder) -> Endpoint:
    # What a transport does innermost: hooks around the messages, and call.failure wins over whatever became of it.
    async def innermost(request: Message, call: Call) -> Message:
        response: Message = None
        try:
            response = await _with_hooks(endpoint, request, call)
        except asyncio.CancelledError as error:
            if call.failure is None and not _cancelling():
                raise unexpected(error) from error  # a stray one, out of the endpoint itself
            if call.failure is None or not recorder.absorb():
                raise
        except Exception:
            if call.failure is None:
                raise
        if call.failure is not None:
            raise call.failure from call.failure.__cause__
        call.settle()
        return response

    return innermost


async def _with_hooks(endpoint: Endpoint, request: Message, call: Call) -> Message:
    if call.method.kind.request_streaming:
        request = _Hooked(request, call)
    else:
        _incoming(call, request)
    response = await endpoint(request, call)
    if not call.method.kind.response_streaming:
        _outgoing(call, response)
    return response


class _Hooked:
    # No generator: a cancelled read would end one, and the next read take that for the end of the stream.
    __slots__ = ("_call", "_iterator")

    def __init__(self, messages: AsyncIterable[Message], call: Call) -> None:
        self._iterator = aiter(messages)
        self._call = call

    def __aiter__(self) -> AsyncIterator[Message]:
        return self

    async def __anext__(self) -> Message:
        message = await anext(self._iterator)
        _incoming(self._call, message)
        return message


def _incoming(call: Call, message: object) -> None:
    """Run the hooks for a request message: it comes in on the server, and goes out on the client."""
    hook: Callable[[object, int], None] = call.received if call.side is Side.SERVER else call.sent
    hook(message, size_of(message))


def _outgoing(call: Call, message: object) -> None:
    """Run the hooks for a response message."""
    hook: Callable[[object, int], None] = call.sent if call.side is Side.SERVER else call.received
    hook(message, size_of(message))


def _leaving(error: Exception, call: Call) -> Exception:
    return to_error(error, ErrorMapping()) if call.side is Side.SERVER else error


def _cancelling() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
