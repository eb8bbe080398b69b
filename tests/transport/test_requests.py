"""The stream of request messages, by itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from servicekit.transport.requests import Requests


async def three() -> AsyncIterator[int]:
    for number in range(3):
        yield number


async def test_a_failure_never_looks_like_the_end() -> None:
    """Of two reads that were begun together, both raise what the source has raised."""

    async def failing() -> AsyncIterator[int]:
        raise ValueError("cut")
        yield 0

    messages = aiter(Requests(failing(), cancel_safe=False))
    reads = [asyncio.ensure_future(anext(messages)) for _ in range(2)]
    results = await asyncio.gather(*reads, return_exceptions=True)
    assert [type(result) for result in results] == [ValueError, ValueError]


async def test_what_is_to_be_kept_is_kept_from_the_first_message_on() -> None:
    """Also when somebody is about to read it."""
    requests = Requests(three(), cancel_safe=False)
    first = asyncio.ensure_future(anext(aiter(requests)))
    requests.keep()
    assert await first == 0
    assert [message async for message in requests] == [0, 1, 2]


async def test_a_second_pass_never_begins_in_the_middle() -> None:
    """Where nothing was kept, it is refused, also when both were begun together."""
    requests = Requests(three(), cancel_safe=False)
    reads = [asyncio.ensure_future(anext(aiter(requests))) for _ in range(2)]
    assert await reads[0] == 0
    with pytest.raises(RuntimeError, match="keep"):
        await reads[1]
