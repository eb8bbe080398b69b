"""How late the event loop is, and which call holds it.

A loop that is held by one call serves nobody, and cannot even say so. Two parties look at it: a timer on the loop,
which measures how late it runs, and a thread, which sees from outside that the timer does not run and notes where the
loop's thread stands.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from .call import Call
from .policy.checked import seconds

if TYPE_CHECKING:
    from types import FrameType

EVERY = 0.05
"""Seconds between two looks."""

IDLE = 1.0
"""Seconds after the last ``watch`` for which the loop is still looked at."""

_FRAMES = 5

log = logging.getLogger("servicekit")


class LoopLag:
    """Watches the running loop. ``lagging`` is whether it has been more than ``over`` late for all of ``during``.

    Default: 100 ms, for one second. It is over with the first look that finds the loop on time. When lagging begins one
    line in the log says how late the loop is, and names the call that holds it: the RPC, if it is one, and the
    functions, innermost first, never a value. A loop that is held for longer than ``during`` is told of while it is.

    Nothing runs before the first ``watch()``; a second after the last one the timer and the thread have ended by
    themselves, at once with ``stop()``. The thread is a daemon: it keeps no process alive. For one loop at a time, and
    for its thread alone.
    """

    __slots__ = (
        "_due",
        "_handle",
        "_held",
        "_late_since",
        "_loop",
        "_quit",
        "_thread",
        "_ticks_left",
        "_told",
        "during",
        "lagging",
        "over",
    )

    def __init__(self, *, over: float = 0.1, during: float = 1.0) -> None:
        """Raise ValueError or TypeError, naming setting and value, for what is no time."""
        self.over = seconds("over", over)
        self.during = seconds("during", during)
        self.lagging = False
        self._late_since: float | None = None
        self._held = ""
        self._told = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._handle: asyncio.TimerHandle | None = None
        self._due = 0.0
        self._ticks_left = 0
        self._quit = threading.Event()
        self._thread: threading.Thread | None = None

    def watch(self) -> None:
        """Watch the running loop for a second from now on. Costs next to nothing when it is being watched."""
        self._ticks_left = round(IDLE / EVERY)
        if self._handle is None or asyncio.get_running_loop() is not self._loop:
            self._start()

    def stop(self) -> None:
        """End the timer and the thread; harmless when there are none."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        self._quit.set()
        self._loop = self._thread = None
        self._late_since, self._held, self._told, self.lagging = None, "", False, False

    def look(self, now: float, late: float) -> None:
        """Take note that at ``now`` the loop was ``late`` seconds late. Called by the timer."""
        if late <= self.over:
            if self._told:
                log.info("the event loop is on time again")
            self._late_since, self._held, self._told, self.lagging = None, "", False, False
            return
        if self._late_since is None:
            self._late_since = now - late
        self.lagging = now - self._late_since >= self.during
        if self.lagging:
            self._tell(late)

    def _tell(self, late: float) -> None:
        if not self._told:
            self._told = True
            log.warning(
                "the event loop is %.0f ms late; it was held by %s", late * 1e3, self._held or "no call for long"
            )

    def _start(self) -> None:
        self.stop()
        self._loop = asyncio.get_running_loop()
        self._arm(self._loop)
        self._quit = threading.Event()
        self._thread = threading.Thread(
            target=self._look_from_outside,
            args=(self._loop, threading.get_ident(), self._quit),
            name="servicekit-loop-lag",
            daemon=True,
        )
        self._thread.start()

    def _arm(self, loop: asyncio.AbstractEventLoop) -> None:
        self._due = time.monotonic() + EVERY
        self._handle = loop.call_later(EVERY, self._tick)

    def _tick(self) -> None:
        now = time.monotonic()
        self.look(now, now - self._due)
        self._ticks_left -= 1
        if self._ticks_left <= 0 or self._loop is None:
            self.stop()
        elif self._thread is None or not self._thread.is_alive():
            self._start()  # the loop stood still for a while, and so nobody looked
        else:
            self._arm(self._loop)

    # In the thread.

    def _look_from_outside(self, loop: asyncio.AbstractEventLoop, ident: int, quit_: threading.Event) -> None:
        while not quit_.wait(EVERY):
            late = time.monotonic() - self._due
            if not loop.is_running():
                return  # it has ended, or stands still: nobody is late
            if late > self.over and not quit_.is_set():
                frame = sys._current_frames().get(ident)  # noqa: SLF001 - documented, whatever its name says
                if frame is not None:
                    self._held = _described(frame)
                del frame
                if late >= self.during:
                    self._tell(late)

    def __repr__(self) -> str:
        """Return the bounds and the state."""
        return f"LoopLag(over={self.over}, during={self.during}{', lagging' if self.lagging else ''})"


def _described(frame: FrameType) -> str:
    """Return the RPC that a stack belongs to, if it does, and its innermost functions."""
    functions: list[str] = []
    method = ""
    at: FrameType | None = frame
    while at is not None and not method:
        code = at.f_code
        if len(functions) < _FRAMES:
            functions.append(f"{code.co_qualname} ({Path(code.co_filename).name}:{at.f_lineno})")
        if "call" in code.co_varnames:
            call = at.f_locals.get("call")
            if isinstance(call, Call):
                method = call.method.path
        at = at.f_back
    return f"{method or 'no RPC'}, in {' < '.join(functions)}"
