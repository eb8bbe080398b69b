"""Conformance cases: a middleware that turns calls away, and one whose settings make no sense."""

# ruff: noqa: S101 - a case asserts: its module is a test that ships

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from servicekit.endpoint import chain
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
            calling.append(asyncio.ensure_future(ground.ask(metadata=refusal.metadata)))
            last = calling[-1]
            await ground.until(
                lambda last=last: last.done() or (refusal.when == "busy" and ground.service.running == len(calling)),
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


async def repr_shows_settings_and_no_secrets(ground: Ground) -> None:
    """``repr()`` names the middleware and has its settings; a secret is never in it, before a call and after one."""
    subject = ground.subject
    name = getattr(ground.link, "__name__", type(ground.link).__name__)
    for _ in range(2):
        shown = repr(ground.link)
        for word in (name, *subject.shown):
            assert word in shown, f"{word!r} is not in {shown}"
        for secret in subject.secrets:
            assert secret not in shown + repr(chain(ground.link)), "a secret is in the repr"
        await ground.call()


async def wrong_settings_are_refused(ground: Ground) -> None:
    """A setting that makes no sense is refused where it is written, by an exception that names its value."""
    for wrong in ground.subject.wrong:
        try:
            made = ground.subject.make(**wrong)
        except (ValueError, TypeError) as error:
            for name, value in wrong.items():
                assert repr(value) in str(error), f"{name}={value!r} is not named in: {error}"
        else:
            raise AssertionError(f"{wrong} was taken, for {made!r}")
