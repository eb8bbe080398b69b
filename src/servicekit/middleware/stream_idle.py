"""A stream on which nothing moves is not kept for ever."""

from __future__ import annotations

from dataclasses import dataclass

from servicekit.call import Call
from servicekit.clock import Timer
from servicekit.endpoint import Endpoint, Message
from servicekit.errors import Code, Error
from servicekit.method import Kind
from servicekit.policy.checked import seconds as checked


@dataclass(frozen=True, slots=True)
class StreamIdle:
    """Ends a streaming call on which no message has passed for ``seconds``, in either direction.

    No default, and in no standard chain: only you know how long your streams may be silent. The time counts from the
    beginning of the call and from each message that is received or handed to the wire; a message that cannot leave,
    because the other side does not read, moves nothing. Both ends of the call get DEADLINE_EXCEEDED "no message for ...
    seconds", reason "STREAM_IDLE", and what is at work for it is cancelled. It is a timer that ends the call, never a
    time-out around a read: a stream that goes on loses no message to it.

    For the three streaming kinds, on both sides; unary calls, health and reflection pass untouched. Decision, as
    ``stream_idle``: "ended".
    """

    seconds: float

    def __post_init__(self) -> None:
        """Raise ValueError or TypeError, naming setting and value, for what is no time."""
        checked("seconds", self.seconds)

    async def __call__(self, request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        """Run the call until it ends or falls silent."""
        if call.method.kind is Kind.UNARY or call.method.auxiliary:
            return await next(request, call)
        watch = _Watch(call, self.seconds)
        call.on_received(watch.moved)
        call.on_sent(watch.moved)
        watch.arm(watch.last + self.seconds)
        try:
            return await next(request, call)
        finally:
            watch.timer.cancel()


class _Watch:
    """When something moved last. The timer is not set anew at each message: when it is due it looks, and goes on."""

    __slots__ = ("_call", "_seconds", "last", "timer")
    timer: Timer

    def __init__(self, call: Call, seconds: float) -> None:
        self._call = call
        self._seconds = seconds
        self.last = call.clock.time()

    def moved(self, _message: object, _size: int) -> None:
        self.last = self._call.clock.time()

    def arm(self, when: float) -> None:
        self.timer = self._call.clock.call_at(when, self._due)

    def _due(self) -> None:
        call = self._call
        end = self.last + self._seconds
        if call.clock.time() < end:
            self.arm(end)
            return
        call.decide("stream_idle", "ended")
        call.end(Error(Code.DEADLINE_EXCEEDED, f"no message for {self._seconds:g} seconds", reason="STREAM_IDLE"))
