"""Middleware in every form that one may have. Checked by ``make types``, never run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_type

from servicekit import Call, Endpoint, Idempotency, Kind, Message, Middleware, Server, Side, chain, connect, only
from servicekit.endpoint import Chain
from servicekit.testing.v1.echo_pb2 import EchoRequest, EchoResponse


async def function(request: Message, call: Call, next: Endpoint) -> Message:  # noqa: A002 - the term
    """A plain function of the three arguments."""
    assert_type(call.method.kind, Kind)
    assert_type(call.method.idempotency, Idempotency)
    assert_type(call.side, Side)
    call.on_sent(seen)
    return await next(request, call)


def seen(message: object, size: int) -> None:
    """A hook."""


async def narrow(request: EchoRequest, call: Call, next: Endpoint) -> EchoResponse:  # noqa: A002 - the term
    """One that knows its method: its messages may be typed."""
    response = await next(request, call.fork())
    assert isinstance(response, EchoResponse)
    return response


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """A class with settings."""

    limit: int = 1

    async def __call__(self, request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        return await next(request, call)


class Service:
    """One whose method is the middleware."""

    async def method(self, request: Message, call: Call, following: Endpoint) -> Message:
        return await following(request, call)


links: list[Middleware] = [function, narrow, Settings(limit=2), Service().method]
together = chain(*links, chain(function), only("/pkg.Service/*", function))
assert_type(together, Chain)
links.append(together)
links.append(only(lambda method: method.kind.response_streaming, together))


async def endpoint(request: Message, call: Call) -> Message:
    """What middleware stands around is a function of two."""
    return request


typed: Endpoint = endpoint


async def given() -> None:
    """Both sides take a list of any of them."""
    Server("127.0.0.1:0", middleware=links)
    connect("127.0.0.1:0", middleware=[function, Settings(), together])
