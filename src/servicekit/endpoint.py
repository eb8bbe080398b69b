"""The whole idea: an endpoint is one RPC as a coroutine function, and middleware is a coroutine function around it.

There is one form for all four kinds of RPC, on the server and on the client:

============  ===========================================  =====================================================
side          unary                                        streaming
============  ===========================================  =====================================================
request       the message                                  an async iterable of messages, iterable once
response      the message, returned                        None, returned when the stream is over; messages leave
                                                           through ``call.send`` while it runs
============  ===========================================  =====================================================

So ``await next(request, call)`` returns when the endpoint is done with the call, and "how long did it take, how did
it end" is one ``try/finally`` for every kind::

    async def timing(request, call, next):
        start = call.clock.time()
        try:
            return await next(request, call)
        finally:
            print(call.method.name, call.clock.time() - start)

No middleware is an async generator: a bracket held open by one is entered and left in different tasks, and a client
whose call ends inside it may never be answered.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable, Iterable, Iterator
from types import CoroutineType, NoneType
from typing import Any, Final, Protocol, TypeAlias

from .call import Call
from .method import Method
from .order import Link, doubts

Message: TypeAlias = Any
"""A request or a response: the method's message, an async iterable of them, or None (see the table above)."""

Endpoint: TypeAlias = Callable[[Message, Call], Awaitable[Message]]
"""``async (request, call) -> response``: one RPC. Raises Error, or CancelledError when the call was cancelled."""


FORGOTTEN: Final = (NoneType, CoroutineType)
"""What a link answers by mistake where a message is due: it has forgotten ``return``, or ``await``."""


class Middleware(Protocol):
    """``async (request, call, next) -> response``: what stands around an endpoint, ``next`` being that endpoint.

    It may refuse (raise Error), answer by itself, wrap the request, or call ``next`` again with ``call.fork()``. A
    function will do, and so will an object with such a ``__call__``. One that never changes a message, in place or by
    putting another one there, may say so with an attribute ``keeps_messages = True``, which spares large responses a
    second encoding. By the attributes that ``servicekit.order`` lists it tells what must not stand around it.
    """

    def __call__(self, request: Message, call: Call, next: Endpoint, /) -> Awaitable[Message]:  # noqa: A002 - the term
        """Return what the endpoint answers."""


def chain(*middleware: Middleware) -> Chain:
    """Return one middleware that stands for all of them, the first one outermost. No middleware changes nothing.

    Raises TypeError for what is no middleware, ValueError for an order that is always a mistake (see
    ``servicekit.order``), with what to do about it.
    """
    return Chain(middleware)


def only(match: str | Callable[[Method], bool], middleware: Middleware) -> Middleware:
    """Return ``middleware`` for the methods that ``match``, and nothing for all others.

    ``match`` is a predicate on the Method, or a path: ``"/pkg.Service/Name"``, or ``"/pkg.Service/*"`` for all.
    Raises ValueError for a path of another form, TypeError for what is no middleware.
    """
    return Only(match, middleware)


class Chain:
    """Middleware in order, the first one outermost. ``repr()`` lists its links."""

    __slots__ = ("_doubts", "links")
    links: tuple[Middleware, ...]

    def __init__(self, links: tuple[Middleware, ...]) -> None:
        """Take the links; a chain among them is taken apart, so that there is one flat list to look at.

        Raises TypeError for what is no middleware, and ValueError for an order that is a mistake. Where that depends on
        what an ``only`` chooses, it is seen here if it follows from the paths, else when a method is composed.
        """
        flat: list[Middleware] = []
        for link in links:
            if isinstance(link, Chain):
                flat.extend(link.links)
            else:
                _check(link)
                flat.append(link)
        self.links = tuple(flat)
        self._doubts = tuple(doubts(list(_single(self.links))))

    def around(self, endpoint: Endpoint, method: Method) -> Endpoint:
        """Return ``endpoint`` with every link that applies to ``method`` around it. Done once per method.

        Raises ValueError for an order that is a mistake for this method.
        """
        for doubt in self._doubts:
            doubt.check(method)
        for link in reversed(self.links):
            applied = link.applied(method) if isinstance(link, Only) else link
            if applied is None:
                continue
            endpoint = applied.around(endpoint, method) if isinstance(applied, Chain) else _bind(applied, endpoint)
        return endpoint

    def of(self, method: Method) -> Iterator[Middleware]:
        """Yield the links around ``method``, outermost first: what is left of a chain for that one method."""
        for link in self.links:
            applied: Middleware | None = link
            while isinstance(applied, Only):
                applied = applied.applied(method)
            if isinstance(applied, Chain):
                yield from applied.of(method)
            elif applied is not None:
                yield applied

    def every(self) -> Iterator[Middleware]:
        """Yield every link, outermost first, also those that ``only`` keeps for some methods."""
        return (link.middleware for link in _single(self.links))

    def paths(self) -> Iterator[tuple[str, Middleware]]:
        """Yield the path of every ``only`` that was given one, with its link."""
        for link in _single(self.links):
            for condition in link.conditions:
                if condition.pattern is not None:
                    yield condition.pattern, link.middleware

    async def __call__(self, request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        """Run as one middleware, composed anew at each call: transports use ``around``."""
        return await self.around(next, call.method)(request, call)

    def __repr__(self) -> str:
        """Return ``chain(...)`` with the links, outermost first."""
        return f"chain({', '.join(shown(link) for link in self.links)})"


class Only:
    """A middleware for some methods. Which ones is asked once per method, when a chain is composed."""

    __slots__ = ("_match", "_word", "middleware", "pattern")

    def __init__(self, match: str | Callable[[Method], bool], middleware: Middleware) -> None:
        """Take a predicate or a path; see ``only``."""
        _check(middleware)
        if not isinstance(match, str) and not callable(match):
            msg = f"only() takes '/pkg.Service/Name', '/pkg.Service/*' or a predicate, not {match!r}"
            raise TypeError(msg)
        self.middleware = middleware
        self.pattern = match if isinstance(match, str) else None
        self._word = repr(match) if isinstance(match, str) else shown(match)
        self._match = _matching(match) if isinstance(match, str) else match

    def applied(self, method: Method) -> Middleware | None:
        """Return the middleware if it is meant for ``method``, else None."""
        return self.middleware if self._match(method) else None

    async def __call__(self, request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        """Run as a middleware outside of a chain."""
        if self._match(call.method):
            return await self.middleware(request, call, next)
        return await next(request, call)

    def __repr__(self) -> str:
        """Return ``only(match, middleware)``."""
        return f"only({self._word}, {shown(self.middleware)})"


def check_answer(response: Message, call: Call) -> None:
    """Raise TypeError for the answer of a link that forgot to return what ``next`` did, or to await it.

    To be asked where the answer is of ``FORGOTTEN``, which for a streaming response is as it should be.
    """
    if response is None and call.root.answers_none:
        return
    if isinstance(response, FORGOTTEN) and not call.method.kind.response_streaming:
        forgot = "a coroutine" if response is not None else "None"
        msg = f"a middleware returned {forgot} for the response of {call.path}: return await next(request, call)"
        if response is not None:
            response.close()  # so that Python has nothing to say about it
        raise TypeError(msg)


def _check(link: object) -> None:
    """Raise TypeError for what is seen to be no middleware before it runs."""
    what = "middleware is a coroutine function of (request, call, next)"
    if not callable(link):
        msg = f"{what}, not {link!r}"
        raise TypeError(msg)
    if isinstance(link, type):
        msg = f"{what}, and {link.__name__} is a class: give {link.__name__}(…)"
        raise TypeError(msg)
    if inspect.isasyncgenfunction(link) or inspect.isasyncgenfunction(getattr(link, "__call__", None)):  # noqa: B004 - its code is looked at
        msg = f"{what}, and {shown(link)} is a generator: it returns what next returned, and yields nothing"
        raise TypeError(msg)
    # What is called, not what a decorator stands around; and of an object its method, whatever sort of one that is.
    called = link if inspect.isroutine(link) or isinstance(link, functools.partial) else link.__call__
    try:
        signature = inspect.signature(called, follow_wrapped=False)
    except (TypeError, ValueError):  # it does not tell, as some that are written in C
        return
    try:
        signature.bind(None, None, None)
    except TypeError:
        msg = f"{what}, and {shown(link)} takes {signature}"
        raise TypeError(msg) from None


def _bind(middleware: Middleware, next: Endpoint) -> Endpoint:  # noqa: A002 - the term
    # A closure costs half of what functools.partial does here, and adds no frame of its own.
    def endpoint(request: Message, call: Call) -> Awaitable[Message]:
        return middleware(request, call, next)

    return endpoint


def _matching(pattern: str) -> Callable[[Method], bool]:
    service, _, name = pattern.removeprefix("/").partition("/")
    if not pattern.startswith("/") or not service or not name or "/" in name:
        msg = f"only() takes '/pkg.Service/Name', '/pkg.Service/*' or a predicate, not {pattern!r}"
        raise ValueError(msg)
    return lambda method: method.service == service and name in ("*", method.name)


def shown(thing: object) -> str:
    """Return how a link is shown: a function by its name, an object by its repr, which tells its settings."""
    return getattr(thing, "__qualname__", None) or repr(thing)


def _single(links: Iterable[Middleware], conditions: tuple[Only, ...] = ()) -> Iterator[Link[Middleware]]:
    for link in links:
        if isinstance(link, Chain):
            yield from _single(link.links, conditions)
        elif isinstance(link, Only):
            yield from _single([link.middleware], (*conditions, link))
        else:
            yield Link(conditions, link)
