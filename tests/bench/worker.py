"""A process of the bench: on a core of its own, and asked over its standard input and output, one line of JSON each."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine
    from types import TracebackType

PATIENCE = 60.0
"""Seconds that a worker may take for an answer; what it is asked takes a few at most."""


class Worker:
    """A running ``python -m <module> <arguments>`` that answers. Use as ``async with``: the process ends with it."""

    def __init__(self, module: str, *arguments: str) -> None:
        """Start nothing yet."""
        self._command = [sys.executable, "-m", module, *arguments]
        self._process: asyncio.subprocess.Process

    async def __aenter__(self) -> Self:
        """Start the process."""
        self._process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            # What hangs on the order of a dictionary is the same in every process and every run.
            env={**os.environ, "PYTHONHASHSEED": "0"},
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End the process: it goes when nobody asks any more."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            async with asyncio.timeout(PATIENCE):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()

    async def ask(self, **question: object) -> dict[str, Any]:
        """Return the answer. Raises RuntimeError when the process is gone, TimeoutError when it does not answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        async with asyncio.timeout(PATIENCE):
            self._process.stdin.write(json.dumps(question).encode() + b"\n")
            line = await self._process.stdout.readline()
        if not line:
            msg = f"{' '.join(self._command)} ended by itself"
            raise RuntimeError(msg)
        answer: dict[str, Any] = json.loads(line)
        return answer


async def answer(reply: Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]) -> None:
    """Answer every question on standard input with ``reply``, in a worker's process; return when nobody asks any more.

    ``cpu`` is added to an answer without it: the seconds of CPU, user and system, that this process has used, all
    threads.
    """
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        answered = await reply(json.loads(line))
        print(json.dumps({"cpu": time.process_time(), **answered}), flush=True)


def run(work: Coroutine[Any, Any, None], *, loop: str, core: int | None) -> None:
    """Run a worker's process on ``core`` (None: on any) and on a loop of this kind, "uvloop" or "asyncio"."""
    if core is not None:
        os.sched_setaffinity(0, {core})
    factory = None
    if loop == "uvloop":
        import uvloop  # noqa: PLC0415 - it may not be installed

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(work)
