"""Deadlines of many calls on one timer: a call is put into the slot in which its time is up, and taken out when it ends.

A timer of the loop for each call would cost more than all else that a deadline needs. Deadlines that are far away wait
in slots of a second, and move to a fine one when theirs comes, so that there are never many slots ("hierarchical timing
wheels", Varghese and Lauck 1987).
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias

if TYPE_CHECKING:
    from servicekit.clock import Clock, Timer

TICK: Final = 0.005
"""Seconds of a fine slot: a deadline is kept to within this."""

_FAR: Final = 4.0  # seconds from which on a coarse slot will do
_SECOND: Final = round(1 / TICK)  # fine slots in a coarse one
_EARLY: Final = 0.001  # a loop may run a timer that much too soon: its clock has a resolution


class Expiring(Protocol):
    """Something whose time will be up. ``slot`` is where it waits; who ends before leaves it."""

    deadline: float
    slot: Slot | None

    def expire(self) -> None:
        """End, now that the time is up."""


Slot: TypeAlias = "set[Expiring]"


class Wheel:
    """Who is to end when. There is a timer only while somebody waits, and only for the next slot."""

    def __init__(self, clock: Clock) -> None:
        """Begin with nobody."""
        self._clock = clock
        self._slots: dict[int, Slot] = {}
        self._order: list[int] = []  # a heap of the slots there are
        self._timer: Timer | None = None
        self._next = 0  # the slot that the timer is for

    def add(self, who: Expiring, now: float) -> None:
        """Let ``who`` expire at its deadline, soon if that has passed. ``now`` is the clock's time."""
        number = int(who.deadline / TICK) + 1
        if who.deadline - now > _FAR:
            number = (number // _SECOND - 1) * _SECOND
        slot = self._slots.get(number)
        if slot is None:
            slot = self._slots[number] = set()
            heapq.heappush(self._order, number)
            if self._timer is None or number < self._next:
                self._set(number)
        slot.add(who)
        who.slot = slot

    def stop(self) -> None:
        """Forget everybody."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._slots.clear()
        self._order.clear()

    def _set(self, number: int) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._next = number
        self._timer = self._clock.call_at(number * TICK, self._turn)

    def _turn(self) -> None:
        self._timer = None
        now = self._clock.time()
        order, slots = self._order, self._slots
        while order and (order[0] * TICK <= now + _EARLY or not slots[order[0]]):
            for who in list(slots.pop(heapq.heappop(order))):
                who.slot = None
                if who.deadline > now + TICK:
                    self.add(who, now)
                else:
                    who.expire()
        if order and (self._timer is None or order[0] != self._next):
            self._set(order[0])

    def __len__(self) -> int:
        """Return how many wait."""
        return sum(map(len, self._slots.values()))
