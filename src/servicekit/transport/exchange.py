"""One call on the client, as its caller sees it: the task that runs its chain, however many attempts that makes.

How a call *ended* comes from the chain alone. A request goes through the chain to ``attempt.Sender``, innermost, which
makes one attempt on the wire each time that it is asked.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from servicekit.call import deadline_error
from servicekit.call_report import failed, report, succeeded
from servicekit.current import running_task
from servicekit.endpoint import FORGOTTEN, check_answer
from servicekit.errors import By, Code, Error
from servicekit.wire import Security

from .handover import Handover
from .local_answer import LocalAnswer
from .requests import Requests

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from servicekit.call import Call
    from servicekit.clock import Timer
    from servicekit.endpoint import Endpoint

    from .writes import Writes

SLACK = 0.01
"""Seconds that a wire has to end a call at its deadline before its chain is ended from here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What one call of a stub asks of the wire beyond its metadata and deadline, in grpcio's objects."""

    wait_for_ready: bool | None = None
    credentials: object = None
    compression: object = None


_PLAIN = Options()


def options_of(wait_for_ready: bool | None, credentials: object, compression: object) -> Options:  # noqa: FBT001 - grpc's own
    """Return what a call asks of the wire: mostly nothing, and then the same object for all of them."""
    if wait_for_ready is None and credentials is None and compression is None:
        return _PLAIN
    return Options(wait_for_ready=wait_for_ready, credentials=credentials, compression=compression)


class Exchange(Handover):
    """A call under way. Its chain's task holds this, never the call object: dropping that one ends the call."""

    draining = None  # a word of servers

    # As Handover's: what most calls never set costs them nothing here.
    stopping = False
    response: Any = None
    error: BaseException | None = None
    request: Requests | None = None
    writes: Writes | None = None  # where the caller's write() puts messages
    task: asyncio.Task[None] = None  # type: ignore[assignment]  # until it runs: one that is eager runs before it is here
    _tasks: Mapping[Call, asyncio.Task[Any]] = MappingProxyType({})  # of attempts that may have their own
    _stopped: Call | None = None
    _left = False
    _ended = False
    _timer: Timer | None = None

    def __init__(self, options: Options, under_way: set[Exchange], *, inherited: bool) -> None:
        """Be in ``under_way`` until it is over; ``call`` is set before anything else happens.

        ``inherited`` says that its deadline is a served call's.
        """
        self._under_way = under_way
        self.options = options
        self.inherited = inherited
        self._on_done: list[Callable[[], None]] = []
        self.call: Call

    def start(self, endpoint: Endpoint, request: Any) -> None:
        """Run the chain in a task of its own."""
        if isinstance(request, Requests):
            self.request = request
        self._under_way.add(self)
        self.limit(self.call)
        self.task = asyncio.get_running_loop().create_task(self._run(endpoint, request))
        self.task.add_done_callback(self._never_ran)

    async def _run(self, endpoint: Endpoint, request: Any) -> None:
        error: BaseException | None = None
        try:
            self.response = await endpoint(request, self.call)
            if isinstance(self.response, FORGOTTEN):
                check_answer(self.response, self.call)
        except asyncio.CancelledError:
            error = self._cancelled()
        except BaseException as raised:  # noqa: BLE001 - raised to the caller, who holds the call object
            error = raised
        if self.request is not None:
            await self._close(self.request)
        self._conclude(error)

    @staticmethod
    async def _close(request: Requests) -> None:
        # The caller's generator may raise while it is closed, or be running elsewhere: the call has ended all the same.
        with contextlib.suppress(Exception, asyncio.CancelledError):
            await request.aclose()

    def _cancelled(self) -> BaseException:
        if self.stopping and self.call.failure is not None:
            return self.call.failure
        if self._stopped is not None and self._stopped.failure is not None and not self._left:
            return self._stopped.failure  # of one attempt, and nobody has made another of it
        if self.task.cancelling():
            return asyncio.CancelledError()
        return Error(Code.INTERNAL, "a middleware raised CancelledError, but nobody cancelled the call")

    def _never_ran(self, _: asyncio.Task[None]) -> None:
        # A task that is cancelled before its first step does not enter its coroutine.
        if not self.over:
            self._conclude(self.call.failure if self.stopping else asyncio.CancelledError())

    def _conclude(self, error: BaseException | None) -> None:
        if self.over:
            return
        call = self.call
        self.over = call.over = True
        call.ended = call.clock.time()
        self.error = error
        self._stopped = None
        self.bound = None  # who takes from it just now holds it; a good answer was taken before its chain ended
        if isinstance(error, Error):
            error.report = report(call)
            error.__traceback__ = None  # frames that hold this: the caller sees that of the CallError
        # Nothing that is over needs the call to hold this. With the circle cut, all of it goes when the last of them
        # does; left to the collector, that is a good part of what a call costs.
        call._exchange = _OVER[self.committed]  # noqa: SLF001 - transport made it
        self._under_way.discard(self)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.wake()
        callbacks, self._on_done = self._on_done, []
        for callback in callbacks:
            callback()

    def when_done(self, callback: Callable[[], None]) -> None:
        """Run ``callback`` once the chain has ended; at once if it has."""
        if self.over:
            callback()
        else:
            self._on_done.append(callback)

    def cancel(self) -> bool:
        """Cancel the chain on the caller's behalf; False when it is over, or was cancelled so before."""
        if self.over or self._left:
            return False
        self._left = True
        self.task.cancel()
        return True

    # What the chain's side does.

    def begin(self, call: Call) -> None:
        """Let ``call`` be an attempt. Raises what stands in its way."""
        if call.used:
            msg = "next() was called twice with the same call: every further attempt takes call.fork()"
            raise RuntimeError(msg)
        call.used = True
        root = self.call
        if self.stopping and root.failure is not None:
            raise root.failure  # the call was ended as a whole: no attempt can change that
        if call.failure is not None:
            raise call.failure
        self._check_uncommitted()
        self._stopped = None
        call.began = call.clock.time()
        root.attempts = (*root.attempts, call)
        if call.origin is not None:
            task = asyncio.current_task()
            if task is not None and task is not self.task:
                self._tasks = {**self._tasks, call: task}

    def task_of(self, call: Call) -> asyncio.Task[Any]:
        """Return the task in which ``call`` is at work: a link may have made one for each attempt."""
        return self._tasks.get(call, self.task)

    def _leave(self, call: Call) -> None:
        if self._tasks:
            self._tasks = {each: task for each, task in self._tasks.items() if each is not call}

    def _is_at_work(self, call: Call) -> bool:
        return call is self.call or any(each is call for each in self.call.attempts)

    def failed(self, call: Call, error: BaseException) -> None:
        """Take note of how the attempt ``call`` has failed."""
        self._leave(call)
        told = failed(call, error)
        self.call.attempts = tuple(told if each is call else each for each in self.call.attempts)

    def succeeded(self, call: Call) -> None:
        """Take note that the attempt ``call`` has succeeded."""
        self._leave(call)
        told = succeeded(call)
        root = self.call
        if len(root.attempts) == 1:
            root.attempts = (told,)
        else:
            root.attempts = tuple([told if each is call else each for each in root.attempts])

    def _check_uncommitted(self) -> None:
        if self.committed and self.failure is not None:
            raise self.failure  # the caller has messages of an earlier attempt: there is no second one

    @staticmethod
    def security() -> Security:
        """Return nothing: a wire does not tell who answers."""
        return Security()

    async def send(self, call: Call, message: object) -> None:
        """Hand the caller a message that a middleware made; returns when it was taken."""
        if not call.method.kind.response_streaming:
            msg = f"{call.path} has one response: a middleware that answers in its place returns it"
            raise TypeError(msg)
        if call.failure is not None:
            raise call.failure
        source = self.bound
        if not isinstance(source, LocalAnswer) or source.call is not call:
            self._check_uncommitted()
            if source is not None and source.on_the_wire:
                msg = (
                    "call.send() while an attempt is under way, whose messages go to the caller: before or after next()"
                )
                raise RuntimeError(msg)
            source = LocalAnswer(call, self)
            self.bind(source)
        await source.put(message)

    def limit(self, call: Call) -> None:
        """Set the timer that ends the chain when the deadline has passed and the wire has not ended the call."""
        if call.origin is not None or call.deadline is None:
            return  # one attempt's limit goes to the wire with its head
        if self._timer is not None:
            self._timer.cancel()
        # Also when it has passed: the wire knows that nothing was sent.
        when = max(call.deadline, call.clock.time()) + SLACK
        self._timer = call.clock.call_at(when, self._expire)

    def _expire(self) -> None:
        # An attempt that is under way may have reached the peer; without one there is nothing that could have.
        self.end(deadline_error(begun=bool(self.call.attempts)))

    def end(self, error: Error) -> None:
        """End the call as a whole with ``error``; the first time counts.

        Unlike ``Call.end`` also one that has failed before: a link may have taken that failure and be at work on another
        answer.
        """
        if not self.over and not self._ended:
            self._ended = True
            self.call.failure = error
            self.stop(self.call)

    def stop(self, call: Call) -> None:
        """Cancel what is at work for ``call``, the whole chain where that is not known: its failure is how it ends."""
        if self.over or (call is not self.call and call.used and not self._is_at_work(call)):
            return
        self.stopping = True
        self._stopped = call
        task = self.task_of(call)
        if task is running_task():
            # A task that cancels itself would be hit at its next await, when the attempt may be over.
            asyncio.get_running_loop().call_soon(self._cancel, call, task)
        else:
            task.cancel()

    def _cancel(self, call: Call, task: asyncio.Task[Any]) -> None:
        if not self.over and self._is_at_work(call):
            task.cancel()


class _Over:
    """What a call that is over has in the place of its exchange: nothing is under way, and nothing can be begun."""

    draining = None

    def __init__(self, *, committed: bool) -> None:
        self.committed = committed

    @staticmethod
    def security() -> Security:
        return Security()

    async def send(self, call: Call, message: object) -> None:  # noqa: ARG002 - the message goes nowhere
        raise call.failure or Error(Code.CANCELLED, "the call is over")

    def limit(self, call: Call) -> None:
        pass

    def stop(self, call: Call) -> None:
        pass


_OVER = (_Over(committed=False), _Over(committed=True))


def by_caller() -> Error:
    """Return the error that a cancelled call has, for those who ask for its code."""
    return Error(Code.CANCELLED, "cancelled by the caller", by=By.CALLER)
