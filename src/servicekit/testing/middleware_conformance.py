"""The conformance suite of middleware: what every link of a chain keeps, rule by rule, whoever wrote it.

A case is a coroutine function whose docstring is the rule. Its module is plain Python: any test runner will do, and
none is imported. To run the suite on a middleware, say how one is made, and with what settings calls pass it::

    pytest.register_assert_rewrite("servicekit.testing")

    SUBJECT = Subject(make=MyLink, sides=[Side.SERVER], wrong=[{"limit": -1}])

    @pytest.mark.parametrize("run", middleware_cases(SUBJECT), ids=str)
    async def test_my_link(run: Run) -> None:
        await check(run)

Each rule is tried on every side that the middleware is for, around a method of each kind, over memory, where time is
moved, and over a socket. A middleware that does not keep a rule, on purpose, leaves that case out by name, with its
reason (``unkept``), where its users will read it.
"""

from __future__ import annotations

import asyncio
import gc
import inspect
import sys
import weakref
from collections.abc import AsyncGenerator, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import AsyncGeneratorType
from typing import Any, Final

from servicekit.clock import MovableClock
from servicekit.method import Kind

from . import (
    middleware_bare,
    middleware_failing,
    middleware_passing,
    middleware_refusing,
    middleware_settings,
    middleware_streams,
)
from .leaks import no_leaks
from .middleware_ground import Case, Ground, Place, Refuses, Subject, standing
from .pair import Over

_GRPC: Final = str(Path("grpc", "aio"))  # what it leaves open is no link's doing
BOTH: Final[tuple[Over, ...]] = ("memory", "socket")


def _cases_of(*modules: object) -> tuple[Case, ...]:
    return tuple(
        function
        for module in modules
        for name, function in vars(module).items()
        if inspect.isfunction(function)  # asked first: inspect takes itself for a coroutine function on Python 3.12
        and inspect.iscoroutinefunction(function)
        and function.__module__ == vars(module)["__name__"]
        and not name.startswith("_")
    )


CASES: Final = _cases_of(
    middleware_passing,
    middleware_streams,
    middleware_failing,
    middleware_refusing,
    middleware_settings,
    middleware_bare,
)
"""Every case, in the order of their modules."""

_STREAMS: Final = frozenset(_cases_of(middleware_streams))
_SOCKETS: Final = frozenset(_cases_of(middleware_bare))
_ONCE: Final = frozenset(_cases_of(middleware_settings))


@dataclass(frozen=True, slots=True)
class Run:
    """One case, to be run on one middleware in one place."""

    case: Case
    subject: Subject
    place: Place

    def __str__(self) -> str:
        """Return all three, for the name of a test."""
        name = self.subject.name or getattr(self.subject.make, "__name__", "middleware")
        return f"{name}-{self.place}-{self.case.__name__}"


def middleware_cases(
    *subjects: Subject, over: Collection[Over] = BOTH, kinds: Collection[Kind] = tuple(Kind)
) -> list[Run]:
    """Return every case for each of ``subjects``, on its sides, around methods of its kinds, over both wires.

    Raises ValueError for an ``unkept`` rule that does not exist.
    """
    runs = []
    for subject in subjects:
        if strange := set(subject.unkept) - {case.__name__ for case in CASES}:
            msg = f"unkept: there is no case {', '.join(sorted(strange))}"
            raise ValueError(msg)
        places = [
            Place(side=side, kind=kind, over=wire)
            for wire in over
            for side in subject.sides
            for kind in subject.kinds
            if kind in kinds
        ]
        runs += [
            Run(case, subject, place)
            for place in places
            for case in CASES
            if case.__name__ not in subject.unkept and _applies(case, place, subject, first=place is places[0])
        ]
    return runs


def _applies(case: Case, place: Place, subject: Subject, *, first: bool) -> bool:
    if case in _ONCE:
        return first
    if case in _STREAMS:
        return place.kind is not Kind.UNARY
    if case in _SOCKETS:
        return place.over == "socket"
    if case is middleware_refusing.a_refusal_is_an_error_and_calls_nobody:
        return any(place.kind in refusal.kinds for refusal in subject.refusals)
    return True


async def check(run: Run, *, patience: float = 20.0) -> None:
    """Run one case, and close all that was made for it.

    Raises AssertionError for what it finds, and for what is left after it: tasks, timers, sockets, calls under way, async
    generators that are held open. Whatever takes longer than ``patience`` seconds of real time is a hang and raises
    TimeoutError.
    """
    try:
        async with asyncio.timeout(patience):
            await _checked(run)
    except Exception as error:
        error.add_note(f"{run}: {run.case.__doc__}")
        raise


async def _checked(run: Run) -> None:
    clock = MovableClock()
    # Over memory there is nothing that ends elsewhere: what is left is left.
    async with no_leaks(clock, patience=0.05 if run.place.over == "memory" else 1.0):
        with _no_open_generators():
            async with standing(run.subject, run.place, run.subject.make(), clock=clock) as ground:
                await run.case(ground)


@contextmanager
def _no_open_generators() -> Iterator[None]:
    """Raise AssertionError when an async generator that was begun in the block is neither over nor let go of after it."""
    begun: list[weakref.ref[Any]] = []
    hooks = sys.get_asyncgen_hooks()

    def note(generator: AsyncGenerator[Any, Any]) -> None:
        if isinstance(generator, AsyncGeneratorType) and _GRPC not in generator.ag_code.co_filename:
            begun.append(weakref.ref(generator))
        if hooks.firstiter is not None:
            hooks.firstiter(generator)

    sys.set_asyncgen_hooks(firstiter=note)
    try:
        yield
    finally:
        sys.set_asyncgen_hooks(firstiter=hooks.firstiter)
    if any(map(_is_open, begun)):
        gc.collect()
    left = [repr(found()) for found in begun if _is_open(found)]
    if left:
        raise AssertionError("\n".join(["async generators are held open after the end:", *left]))


def _is_open(found: weakref.ref[Any]) -> bool:
    generator = found()
    return generator is not None and generator.ag_frame is not None


__all__ = ["CASES", "Case", "Ground", "Place", "Refuses", "Run", "Subject", "check", "middleware_cases"]
