"""So many calls at a time, so that one method, or one caller, cannot take all there is."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

from servicekit.call import Call
from servicekit.endpoint import Endpoint, Message
from servicekit.errors import Code
from servicekit.policy.caller_key import Key, key_of
from servicekit.policy.checked import count, seconds_or_zero
from servicekit.policy.refusal import Refusal


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Bulkhead:
    """Lets ``concurrency`` calls of each ``key`` run at a time.

    Default: one count for each method, and who finds no room is refused at once. ``key`` is "method", "peer",
    "principal", or a function of the call; see ``key_of``. With ``wait`` a call waits up to so many seconds for room,
    first come, first served, and never past its deadline. A stream takes its room for as long as it is open.

    The caller of a refused call gets RESOURCE_EXHAUSTED "too many calls at a time", reason "BULKHEAD_FULL", with
    ``retry_after`` (1 s).

    For every kind, on both sides. Health and reflection pass. Decisions, as ``bulkhead``: "refused", "waited" (also of
    those who waited in vain).
    """

    concurrency: int
    key: Key = "method"
    wait: float = 0.0
    retry_after: float = 1.0
    _key: Callable[[Call], Hashable] = field(init=False, repr=False)
    _rooms: dict[Hashable, _Room] = field(init=False, repr=False, default_factory=dict)
    _refusal: Refusal = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Raise ValueError or TypeError, naming setting and value, for what is no bound and no time."""
        count("concurrency", self.concurrency)
        seconds_or_zero("wait", self.wait)
        seconds_or_zero("retry_after", self.retry_after)
        object.__setattr__(self, "_key", key_of(self.key))
        refusal = Refusal(
            Code.RESOURCE_EXHAUSTED, "too many calls at a time", reason="BULKHEAD_FULL", retry_after=self.retry_after
        )
        object.__setattr__(self, "_refusal", refusal)

    async def __call__(self, request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        """Run the call when there is room, or refuse it."""
        if call.method.auxiliary:
            return await next(request, call)
        key = self._key(call)
        room = self._rooms.get(key)
        if room is None:
            room = self._rooms[key] = _Room(self.concurrency)
        if room.free:
            room.free -= 1
        else:
            await self._turn(room, call, key)
        try:
            return await next(request, call)
        finally:
            self._leave(room, key)

    async def _turn(self, room: _Room, call: Call, key: Hashable) -> None:
        """Return with a place in ``room``, or raise the refusal."""
        clock = call.clock
        now = clock.time()
        until = now + self.wait if call.deadline is None else min(now + self.wait, call.deadline)
        if until > now:
            call.decide("bulkhead", "waited")
            turn = room.queue()
            timer = clock.call_at(until, lambda: None if turn.done() else turn.set_result(False))
            try:
                with call.waiting("bulkhead"):
                    placed = await turn
            except asyncio.CancelledError:
                if not room.unqueue(turn):
                    self._leave(room, key)  # it was given a place, and goes without using it
                raise
            finally:
                timer.cancel()
            if placed:
                return
            room.unqueue(turn)
        call.decide("bulkhead", "refused")
        raise self._refusal.error()

    def _leave(self, room: _Room, key: Hashable) -> None:
        room.leave()
        if room.free == self.concurrency:  # nobody is in it, and so nobody waits
            del self._rooms[key]


class _Room:
    """Places, and those who wait for one, in order. A place that is left goes to the first of them, never past them."""

    __slots__ = ("_waiting", "free")

    def __init__(self, places: int) -> None:
        self.free = places
        self._waiting: OrderedDict[asyncio.Future[bool], None] = OrderedDict()

    def queue(self) -> asyncio.Future[bool]:
        """Return what becomes True when its owner has a place."""
        turn: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting[turn] = None
        return turn

    def unqueue(self, turn: asyncio.Future[bool]) -> bool:
        """Take ``turn`` out of the line; False when it has got a place already."""
        self._waiting.pop(turn, None)
        return turn.cancelled() or not (turn.done() and turn.result())

    def leave(self) -> None:
        """Give a place back."""
        while self._waiting:
            first, _ = self._waiting.popitem(last=False)
            if not first.done():  # else it was cancelled or is too late, and has not run since
                first.set_result(True)
                return
        self.free += 1
