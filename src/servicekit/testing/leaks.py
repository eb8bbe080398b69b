"""A check that nothing outlives the block it was begun in: tasks, timers, calls, sockets.

In a test, around all of it, so that what its servers and channels leave behind is seen::

    async with no_leaks(clock), pair(register, clock=clock) as ends:
        ...
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from servicekit.clock import MovableClock, settle
from servicekit.policy.checked import kind, seconds_or_zero
from servicekit.server import Server
from servicekit.transport.channel import Channel

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

Watched: TypeAlias = MovableClock | Channel | Server

_DESCRIPTORS = Path("/proc/self/fd")
_POLL = 0.005


@contextlib.asynccontextmanager
async def no_leaks(*watched: Watched, patience: float = 1.0) -> AsyncIterator[None]:
    """Raise AssertionError when something that was begun in the block goes on after it, naming each.

    That is: tasks of the running loop, with where they stand; open sockets of this process (where ``/proc`` lists
    them); and of each ``watched`` clock the timers, of each channel and server the calls under way. What was there
    before the block does not count.

    Whatever can still run does so first, garbage is collected, and what ends elsewhere (core closes its sockets in a
    thread) has ``patience`` seconds for it: a block that leaves nothing behind does not wait. When the block itself
    raises, nothing is checked: that is the better message. Raises TypeError for what cannot be ``watched``.
    """
    for thing in watched:
        kind("watched", thing, (MovableClock, Channel, Server), "MovableClock, Channel or Server")
    seconds_or_zero("patience", patience)
    tasks, sockets = asyncio.all_tasks(), _sockets()
    before = [_open(thing) for thing in watched]
    yield
    until = time.monotonic() + patience
    while left := await _left(tasks, sockets, watched, before):
        if time.monotonic() >= until:
            raise AssertionError("\n".join(["this outlived the block that it was begun in:", *left]))
        gc.collect()
        await asyncio.sleep(_POLL)


async def _left(
    tasks: set[asyncio.Task[Any]], sockets: dict[str, str], watched: tuple[Watched, ...], before: list[int]
) -> list[str]:
    await settle()
    left = [_described(task) for task in asyncio.all_tasks() - tasks - {asyncio.current_task()}]
    left.extend(f"open {ends}" for inode, ends in _sockets().items() if inode not in sockets)
    for thing, count in zip(watched, before, strict=True):
        if (more := _open(thing) - count) > 0:
            left.append(f"{more} {_noun(thing)} of {thing!r}")
    return left


def _open(thing: Watched) -> int:
    if isinstance(thing, MovableClock):
        return thing.pending
    if isinstance(thing, Server):
        return thing.in_flight
    return len(thing._under_way)  # noqa: SLF001 - only a leak check asks for it


def _noun(thing: Watched) -> str:
    return "pending timers" if isinstance(thing, MovableClock) else "calls under way"


def _sockets() -> dict[str, str]:
    """Return this process's sockets: what each is, by its inode, a number that is not used again as a descriptor's is."""
    found = {}
    with contextlib.suppress(OSError):  # no such folder, on anything but Linux
        for descriptor in _DESCRIPTORS.iterdir():
            with contextlib.suppress(OSError):  # closed since
                name = str(descriptor.readlink())
                if name.startswith("socket:") and (ends := _ends(int(descriptor.name))):
                    found[name] = ends
    return found


def _ends(descriptor: int) -> str:
    """Return the addresses of a socket's two ends; "" for one of a pair, by which loops and core wake themselves."""
    with socket.socket(fileno=os.dup(descriptor)) as copy:
        here = _address(copy.getsockname())
        try:
            there = _address(copy.getpeername())
        except OSError:
            there = "nobody"
    return f"socket from {here or 'nowhere'} to {there}" if here or there else ""


def _address(name: Any) -> str:  # noqa: ANN401 - its form is the address family's
    return f"{name[0]}:{name[1]}" if isinstance(name, tuple) else str(name or "")


def _described(task: asyncio.Task[Any]) -> str:
    return f"task {task.get_name()!r}, in {' > '.join(_frames(task.get_coro())) or 'its last step'}"


def _frames(awaited: object) -> Iterator[str]:
    """Yield where a coroutine stands, and then what it awaits, down to the future that it all waits for."""
    while awaited is not None:
        frame = getattr(awaited, "cr_frame", None) or getattr(awaited, "ag_frame", None)
        if frame is not None:
            yield f"{frame.f_code.co_qualname} ({Path(frame.f_code.co_filename).name}:{frame.f_lineno})"
        awaited = getattr(awaited, "cr_await", None) or getattr(awaited, "ag_await", None)
