"""From a signal to a clean exit: run until told to stop, then drain; told again, go at once."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from typing import TYPE_CHECKING, Any, Protocol

from servicekit.wire import BindError

from .drain import Exit

if TYPE_CHECKING:
    from collections.abc import Callable

    from servicekit.telemetry import Logger

SIGNALS = (signal.SIGTERM, signal.SIGINT)

HELD_UP = 5.0
"""Seconds that a process has to end by itself after it has gone without servicers that do not end: a thread cannot be
stopped, and one that swallows its cancellation would hold up the loop's end for as long as it likes."""


class Life(Protocol):
    """What can be run: it starts, may fail, and drains."""

    async def start(self) -> None:
        """Begin to serve. Raises BindError when it cannot."""

    async def drain(self) -> Exit:
        """Stop serving, letting what is under way finish. The second time it returns the same, once that is done."""

    async def failed(self) -> BaseException:
        """Return why it can serve no longer, when that happens."""


async def run(life: Life, log: Logger, held_up: Callable[[], bool]) -> None:
    """Run ``life`` until SIGTERM or SIGINT, then drain it. Returns when all calls have finished.

    ``held_up`` is asked after the drain: whether servicers are left that may keep the process from its end.

    Raises SystemExit with the code of ``Exit`` when it could not start, could not go on, or had to abandon calls.
    A second signal ends the process at once, with 128 + its number: nothing after this call runs then. Servicers that do
    not end, of calls that were abandoned or of some that were over before, do not hold the process up either: what of it
    is left ``HELD_UP`` seconds later ends with the code. That is 0 where no call was abandoned: the clients of those that
    were over have got their answer, or had gone.

    Whatever else ends this, a cancellation for one, drains ``life`` before it goes on: nobody is left serving.
    """
    loop = asyncio.get_running_loop()
    told: asyncio.Future[signal.Signals] = loop.create_future()

    def on_signal(number: signal.Signals) -> None:
        if told.done():
            log.warning("told twice, ending at once", signal=number.name)
            _exit_now(128 + number)
        told.set_result(number)

    # Before anything is served: whoever reads "serving" in the log may send a signal at once.
    for number in SIGNALS:
        loop.add_signal_handler(number, on_signal, number)
    try:
        await _served(life, told, log, held_up)
    finally:
        for number in SIGNALS:
            loop.remove_signal_handler(number)


async def _served(life: Life, told: asyncio.Future[signal.Signals], log: Logger, held_up: Callable[[], bool]) -> None:
    try:
        await life.start()
    except BindError as error:
        log.error("cannot start", reason=str(error))  # noqa: TRY400 - a taken port needs no traceback
        raise SystemExit(Exit.NOT_STARTED) from None
    failing = asyncio.ensure_future(life.failed())
    try:
        either: list[asyncio.Future[Any]] = [told, failing]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if told.done():
            log.info("draining", signal=told.result().name)
        else:
            log.error("cannot serve any longer", reason=repr(failing.result()))
        failed = not told.done()
        told.cancel()  # a signal during this drain ends it at once
        drained = await life.drain()
        code = Exit.NOT_STARTED if failed else drained
    except BaseException:
        told.cancel()  # as above
        await life.drain()
        raise
    finally:
        failing.cancel()
    if drained is Exit.ABANDONED or held_up():
        _end_within(HELD_UP, code, log, still=lambda: drained is Exit.ABANDONED or held_up())
    if code is not Exit.DRAINED:
        raise SystemExit(code)


def _end_within(seconds: float, code: int, log: Logger, *, still: Callable[[], bool]) -> None:
    def end() -> None:
        if still():  # else it is somebody's clean-up that takes its time
            log.warning("the process ends without servicers that do not", seconds=seconds, code=int(code))
            _exit_now(code)

    timer = threading.Timer(seconds, end)
    timer.daemon = True  # who ends sooner does not wait for it
    timer.start()


def _exit_now(code: int) -> None:
    # Not sys.exit: threads at work and finalizers that wait would hold the process, and that is what a second signal
    # is for.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
