"""The clients under test, which also make load: ``python -m tests.bench.clients NAME LOOP CORE``."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import sys
import time
from typing import TYPE_CHECKING, Any, Final

import grpc

from servicekit import connect
from servicekit.testing.v1.echo_pb2 import EchoRequest, EchoResponse, ExpandRequest, ExpandResponse, SumResponse

from .echo import CHAT, LINE, MESSAGES, NUMBER, STREAM, UNARY
from .stats import quantile
from .worker import answer, run

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

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
            channel, path = channels[port], question["path"]
            if question["uploading"]:
                once = _uploading(channel, path, streaming=question["streaming"])
            elif question["streaming"]:
                once = _streaming(channel, path)
            else:
                once = _unary(channel, path, payload=question["payload"], fresh=question["fresh"])
            return await _timed(once, calls=question["calls"], at_once=question["at_once"])

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


def _unary(channel: grpc.aio.Channel, path: str, *, payload: int, fresh: bool) -> Callable[[], Awaitable[None]]:
    method: Any = channel.unary_unary(path, EchoRequest.SerializeToString, EchoResponse.FromString)
    request = EchoRequest(text=UNARY.text, payload=bytes(payload))

    async def once() -> None:
        if fresh:
            own = [
                ("traceparent", f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01"),
                ("x-request-id", secrets.token_hex(8)),
            ]
            response: EchoResponse = await method(request, metadata=own, timeout=10)
        else:
            response = await method(request)
        if response.text != request.text:
            msg = f"{path} answered {response!r}"
            raise ValueError(msg)

    return once


def _uploading(channel: grpc.aio.Channel, path: str, *, streaming: bool) -> Callable[[], Awaitable[None]]:
    """Return what sends a stream of messages and counts what comes back; their bytes need no codec here."""
    request = (LINE if path == CHAT else NUMBER).SerializeToString()
    method: Any = (channel.stream_stream if streaming else channel.stream_unary)(path)

    async def requests() -> AsyncIterator[bytes]:
        for _ in range(MESSAGES):
            yield request

    async def once() -> None:
        count = 0
        if streaming:
            async for _ in method(requests()):
                count += 1
        else:
            count = SumResponse.FromString(await method(requests())).count
        if count != MESSAGES:
            msg = f"{path} answered with {count} messages"
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
