"""The ground that the middleware's conformance cases stand on: a service, its callers, and the link between two probes."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, TypeVar

from servicekit.call import Call, Side
from servicekit.clock import MovableClock, settle
from servicekit.endpoint import Endpoint, Message, Middleware
from servicekit.errors import Code
from servicekit.method import Kind

from .middleware_service import Answer, Service, answer_of, begin
from .pair import Over, Pair, pair

T = TypeVar("T")

WORDS = ("1", "2", "3")
PATIENCE = 5.0
"""Seconds of real time after which something counts as hanging."""
SOON = 1.0
"""Seconds within which a call that was given up is over: of the moved clock, where there is one."""
_AT_WORK = 0.02
_AT_WORK_FOR_LONG = 0.3
"""Seconds of real time for a link that has a thread at work, before its clock is moved and after."""

AnyCall: TypeAlias = Any
"""A call object of a stub, of any kind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refuses:
    """A link that turns calls away, and when: ``make()`` returns a new one.

    ``when`` is "always", "busy" (while calls are under way) or "failing" (when calls have failed with UNAVAILABLE). The
    call that is refused brings ``metadata``, and gets ``code``; with ``pushback`` also when to come back. ``kinds`` are
    those that it refuses.
    """

    make: Callable[[], Middleware]
    code: Code
    when: Literal["always", "busy", "failing"] = "always"
    pushback: bool = True
    metadata: Sequence[tuple[str, str | bytes]] = ()
    kinds: Collection[Kind] = tuple(Kind)


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A middleware that is put to the test: ``make()`` returns a new one, with settings under which calls pass.

    ``sides`` and ``kinds`` are those that it is for. A call that it lets pass brings ``metadata``, and what ``outside()``
    returns stands around it (authentication, for one that asks who calls). It calls ``next`` ``nexts`` times for a call
    that succeeds at once. ``refusals`` are the ways in which it turns calls away. ``make(**settings)`` raises ValueError or
    TypeError, with the value in its text, for each of the ``wrong`` settings. ``shown`` are words that its ``repr`` has,
    ``secrets`` what no ``repr`` may have. ``is_idle(link)`` returns whether the link's own figures say that nothing is under
    way. Rules that it does not keep are in ``unkept``: the case's name, and the reason.
    """

    make: Callable[..., Middleware]
    name: str = ""
    sides: Collection[Side] = (Side.SERVER, Side.CLIENT)
    kinds: Collection[Kind] = tuple(Kind)
    metadata: Sequence[tuple[str, str | bytes]] = ()
    outside: Callable[[], Sequence[Middleware]] = tuple
    nexts: int = 1
    refusals: Sequence[Refuses] = ()
    wrong: Sequence[Mapping[str, object]] = ()
    shown: Sequence[str] = ()
    secrets: Sequence[str] = ()
    is_idle: Callable[[Any], bool] = lambda _: True
    unkept: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a middleware is tried: on one side, around a method of one kind, over one wire."""

    side: Side
    kind: Kind
    over: Over

    def __str__(self) -> str:
        """Return the three words."""
        return f"{self.side.value}-{self.kind.value}-{self.over}"


class Probe:
    """A link beside the one under test: it keeps what went in and what came out, however it came out.

    ``before(request, call)`` may put something in the place of the request, or raise.
    """

    def __init__(self) -> None:
        """See nothing yet."""
        self.calls: list[Call] = []
        self.outcomes: list[object] = []
        self.running = 0
        self.before: Callable[[Message, Call], Message] | None = None

    async def __call__(self, request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        """Run the call."""
        self.calls.append(call)
        self.running += 1
        try:
            if self.before is not None:
                request = self.before(request, call)
            response = await next(request, call)
        except BaseException as error:
            self.outcomes.append(error)
            raise
        else:
            self.outcomes.append(response)
            return response
        finally:
            self.running -= 1


class Ground:
    """A server and a channel to it, with a middleware on one side: ``outer``, the ``link`` under test, ``inner``.

    ``service`` is what answers, and its ``work`` what it does half-way; see there.
    """

    def __init__(self, subject: Subject, place: Place, link: Middleware, service: Service, ends: Pair) -> None:
        """Take what ``standing`` has made."""
        self.subject = subject
        self.place = place
        self.link = link
        self.service = service
        self.ends = ends
        self.outer, self.inner = Probe(), Probe()

    @property
    def kind(self) -> Kind:
        """The kind of the method that is called."""
        return self.place.kind

    def begin(
        self,
        words: Sequence[str] | None = WORDS,
        *,
        metadata: Sequence[tuple[str, str | bytes]] | None = None,
        timeout: float | None = None,
    ) -> AnyCall:
        """Return the call object of a call that begins now, by default a permitted one; None for ``words``: writes to come."""
        given = self.subject.metadata if metadata is None else metadata
        return begin(self.ends.channel, self.kind, words, metadata=given, timeout=timeout)

    async def ask(
        self,
        words: Sequence[str] = WORDS,
        *,
        metadata: Sequence[tuple[str, str | bytes]] | None = None,
        timeout: float | None = None,
    ) -> Answer:
        """Return what comes of a call, by default a permitted one. For those that overlap: ``done`` watches over them."""
        return await answer_of(self.begin(words, metadata=metadata, timeout=timeout), self.kind)

    async def call(
        self,
        words: Sequence[str] = WORDS,
        *,
        metadata: Sequence[tuple[str, str | bytes]] | None = None,
        timeout: float | None = None,
    ) -> Answer:
        """Return what comes of a call, by default a permitted one; AssertionError when nothing does."""
        return await self.done(self.ask(words, metadata=metadata, timeout=timeout))

    async def done(self, work: Awaitable[T], *, within: float = 60.0) -> T:
        """Return what ``work`` does; AssertionError when it takes longer than ``within``, as ``until`` measures it."""
        task = asyncio.ensure_future(work)
        try:
            await self.until(task.done, "the call does not end", within=within)
            return await task
        finally:
            task.cancel()
            await asyncio.wait([task])

    async def until(self, condition: Callable[[], object], what: str, *, within: float = 60.0) -> None:
        """Return once ``condition()`` holds; AssertionError with ``what`` when it does not in ``within`` seconds.

        Those are seconds of the clock that can be moved, and moved it is when nothing else helps. Over a socket they
        are real, and never more than five.
        """
        clock = self.ends.movable
        await settle_or_wait(clock)
        await _polled(condition, _AT_WORK if clock is not None else min(within, PATIENCE))
        moved = 0.0
        while clock is not None and moved < within and not condition():
            await clock.advance(0.1)
            moved += 0.1
        if clock is not None:
            await _polled(condition, _AT_WORK_FOR_LONG)
        assert condition(), what  # noqa: S101 - a case asserts: its ground is a test that ships

    async def at_rest(self, *, within: float = SOON) -> None:
        """Return when nothing is under way; AssertionError, naming who says so, when something stays."""
        with contextlib.suppress(AssertionError):
            await self.until(lambda: not any(self.under_way().values()), "", within=within)
        left = {who: count for who, count in self.under_way().items() if count}
        assert not left, f"still under way {within:g} s after the end: {left}"  # noqa: S101 - as in until

    def under_way(self) -> dict[str, int]:
        """Return how many calls are under way, by who says so."""
        return {
            "server": self.ends.server.in_flight,
            "channel": len(self.ends.channel._under_way),  # noqa: SLF001 - as the leak check asks for it
            "outside the link": self.outer.running,
            "inside the link": self.inner.running,
            "in the service": self.service.running,
            "by the link's own figures": 0 if self.subject.is_idle(self.link) else 1,
        }

    @contextlib.asynccontextmanager
    async def beside(self, link: Middleware) -> AsyncIterator[Ground]:
        """Stand another server and channel beside these, with ``link`` in the middle, on the same clock."""
        async with standing(self.subject, self.place, link, beside=self.ends) as ground:
            yield ground


@contextlib.asynccontextmanager
async def standing(
    subject: Subject, place: Place, link: Middleware, *, clock: MovableClock | None = None, beside: Pair | None = None
) -> AsyncIterator[Ground]:
    """Serve, and connect, with ``link`` between two probes on its side, until the block ends."""
    service = Service()
    outer, inner = Probe(), Probe()
    links = [*subject.outside(), outer, link, inner]
    on_server = place.side is Side.SERVER
    async with pair(
        service.register,
        over=place.over,
        middleware=links if on_server else (),
        client=() if on_server else links,
        clock=clock if place.over == "memory" else None,
        network=None if beside is None else beside.network,
    ) as ends:
        ground = Ground(subject, place, link, service, ends)
        ground.outer, ground.inner = outer, inner
        yield ground


async def _polled(condition: Callable[[], object], seconds: float) -> None:
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:  # noqa: ASYNC110 - of anything, not of what sets an event
        await asyncio.sleep(0.001)


async def settle_or_wait(clock: MovableClock | None) -> None:
    """Let what can run do so."""
    if clock is None:
        await asyncio.sleep(0)
    else:
        await settle()


Case: TypeAlias = Callable[[Ground], Coroutine[object, object, None]]
