"""The clients under test, which also make load: ``python -m tests.bench.clients NAME LOOP CORE``."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from typing import TYPE_CHECKING, Any, Final

import grpc

from servicekit import connect
from servicekit.testing.v1.echo_pb2 import EchoRequest, EchoResponse, ExpandRequest, ExpandResponse

from .echo import MESSAGES, STREAM, UNARY
from .stats import quantile
from .worker import answer, run

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

CHANNELS: Final[dict[str, Callable[[str], grpc.aio.Channel]]] = {
    "bare": grpc.aio.insecure_channel,
    "kit-0": lambda target: connect(target, middleware=[]),
}
"""How each channel is made, by name."""


async def generate(name: str) -> None:
    """Make calls when told to: to which port and path, how many, how many of them at once."""
    async with contextlib.AsyncExitStack() as open_channels:
        channels: dict[int, grpc.aio.Channel] = {}

        async def load(question: dict[str, Any]) -> dict[str, Any]:
            port: int = question["port"]
            if port not in channels:
                channels[port] = await open_channels.enter_async_context(CHANNELS[name](f"127.0.0.1:{port}"))
            once = _streaming if question["streaming"] else _unary
            return await _timed(
                once(channels[port], question["path"]), calls=question["calls"], at_once=question["at_once"]
            )

        await answer(load)


async def _timed(once: Callable[[], Awaitable[None]], *, calls: int, at_once: int) -> dict[str, Any]:
    taken: list[float] = []
    left = iter(range(calls))

    async def one_after_the_other() -> None:
        for _ in left:
            start = time.perf_counter()
            await once()
            taken.append(time.perf_counter() - start)

    cpu, begin = time.process_time(), time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(at_once):
            group.create_task(one_after_the_other())
    seconds, used = time.perf_counter() - begin, time.process_time() - cpu
    taken.sort()
    return {"seconds": seconds, "used": used, "p50": quantile(taken, 0.5), "p99": quantile(taken, 0.99)}


def _unary(channel: grpc.aio.Channel, path: str) -> Callable[[], Awaitable[None]]:
    method: Any = channel.unary_unary(path, EchoRequest.SerializeToString, EchoResponse.FromString)

    async def once() -> None:
        response: EchoResponse = await method(UNARY)
        if response.text != UNARY.text:
            msg = f"{path} answered {response!r}"
            raise ValueError(msg)

    return once


def _streaming(channel: grpc.aio.Channel, path: str) -> Callable[[], Awaitable[None]]:
    method: Any = channel.unary_stream(path, ExpandRequest.SerializeToString, ExpandResponse.FromString)

    async def once() -> None:
        count = 0
        async for _ in method(STREAM):
            count += 1
        if count != MESSAGES:
            msg = f"{path} answered with {count} messages"
            raise ValueError(msg)

    return once


if __name__ == "__main__":
    run(generate(sys.argv[1]), loop=sys.argv[2], core=int(sys.argv[3]) if sys.argv[3] != "any" else None)
