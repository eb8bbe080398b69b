"""Conformance cases: a middleware that turns calls away says so, in words that its caller can act on."""

# ruff: noqa: S101 - a case asserts: its module is a test that ships

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from servicekit.errors import Code, Error

from .middleware_ground import Ground, Refuses
from .middleware_service import Answer

MOST = 40
"""So many calls are made before one has to be refused."""


async def a_refusal_is_an_error_and_calls_nobody(ground: Ground) -> None:
    """A call that is turned away gets an Error, with the time to come back where that is declared; ``next`` is not called."""
    for refusal in ground.subject.refusals:
        if ground.kind not in refusal.kinds:
            continue
        async with ground.beside(refusal.make()) as there, _refused(there, refusal) as answer:
            assert answer.code is refusal.code, answer
            error = there.outer.outcomes[-1]
            assert isinstance(error, Error), f"raised {error!r}, not an Error"
            assert error.code is refusal.code
            if refusal.pushback:
                assert error.retry_after is not None, "does not say when to come back"
                assert answer.error is not None
                assert answer.error.retry_after is not None, "the caller is not told when to come back"


@asynccontextmanager
async def _refused(ground: Ground, refusal: Refuses) -> AsyncIterator[Answer]:
    """Make calls until one does not get through, and tell what became of it; what is held open is so for that long."""
    release = asyncio.Event()

    async def work(_: str) -> None:
        if refusal.when == "failing":
            raise Error(Code.UNAVAILABLE, "broken")
        if refusal.when == "busy":
            await release.wait()

    ground.service.work = work
    calling: list[asyncio.Future[Answer]] = []
    try:
        for _ in range(MOST):
            before, reached = len(ground.outer.calls), len(ground.inner.calls)
            last = asyncio.ensure_future(ground.ask(metadata=refusal.metadata))
            calling.append(last)
            await ground.until(
                functools.partial(_has_come_far, last, ground, len(calling) if refusal.when == "busy" else None),
                "a call neither gets through nor ends",
            )
            if len(ground.inner.calls) == reached:
                assert len(ground.outer.calls) == before + 1
                yield await last
                return
        raise AssertionError(f"{MOST} calls have got through, and none was refused")
    finally:
        release.set()
        await asyncio.gather(*calling)
        await ground.at_rest()


def _has_come_far(call: asyncio.Future[Answer], ground: Ground, busy: int | None) -> bool:
    return call.done() or ground.service.running == busy
