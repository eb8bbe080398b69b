"""The conformance suite of the seam: what every wire keeps, rule by rule, whoever wrote it.

A case is a coroutine function whose docstring is the rule. Its module is plain Python: any test runner will do, and
none is imported. To run the suite on a wire, say how its ends are made and how time passes for it::

    pytest.register_assert_rewrite("servicekit.testing")

    class OverMyWire:
        clock = SystemClock()
        address = "127.0.0.1:0"

        def listener(self) -> Listener:
            return MyListener(self.clock)

        def wire(self, address: str) -> Wire:
            return MyWire(address, self.clock)

        async def pass_time(self, seconds: float) -> None:
            await asyncio.sleep(seconds)

    @pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
    async def test_wire(case: Case) -> None:
        await check(case, OverMyWire())

On a wire that takes its time from a ``MovableClock``, ``pass_time`` is the clock's ``advance``. Cases wait for events;
only where time itself is the rule do they let some pass, never more than half a second at once. A wire that cannot
keep a rule leaves that case out by name, with its reason, where its users will read it.
"""

from __future__ import annotations

import asyncio
import inspect

from . import (
    wire_answers,
    wire_cancelling,
    wire_deadlines,
    wire_draining,
    wire_ends,
    wire_flow,
    wire_messages,
    wire_metadata,
    wire_reach,
    wire_serving,
)
from .wire_pair import Case, Pair, WireFactory

CASES: tuple[Case, ...] = tuple(
    function
    for module in (
        wire_answers,
        wire_metadata,
        wire_messages,
        wire_flow,
        wire_cancelling,
        wire_deadlines,
        wire_serving,
        wire_ends,
        wire_reach,
        wire_draining,
    )
    for name, function in vars(module).items()
    if inspect.iscoroutinefunction(function) and function.__module__ == module.__name__ and not name.startswith("_")
)
"""Every case, in the order of their modules."""


async def check(case: Case, factory: WireFactory, *, patience: float = 20.0) -> None:
    """Run one case and close both ends; raise AssertionError for what it finds, or for a task that outlives it.

    Whatever takes longer than ``patience`` seconds of real time is a hang and raises TimeoutError.
    """
    before = asyncio.all_tasks()
    pair = Pair(factory)
    async with asyncio.timeout(patience):
        try:
            await case(pair)
        finally:
            await pair.close()
        left = asyncio.all_tasks() - before
        for _ in range(10):
            if not left:
                return
            await pair.pass_time(0.05)
            left = asyncio.all_tasks() - before
    raise AssertionError(f"still running after both ends were closed: {left}")


__all__ = ["CASES", "Case", "Pair", "WireFactory", "check"]
