"""Conformance cases: a middleware on a server or channel of grpc.aio's own, as one of its interceptors."""

# ruff: noqa: S101 - a case asserts: its module is a test that ships

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import grpc

from servicekit.call import Side
from servicekit.errors import Code, Error
from servicekit.transport.interceptors import client_interceptors, server_interceptor

from .middleware_ground import WORDS, Ground
from .middleware_service import HEADERS, NOTE, TRAILERS, Answer, answer_of, begin, expected, kept


async def it_works_on_a_plain_grpc_server_or_channel(ground: Ground) -> None:
    """As an interceptor among others it lets a call pass, unchanged, and calls ``next`` as often as elsewhere."""
    async with _plain(ground) as channel:
        answer = await _call(ground, channel)
    assert (answer.code, answer.values) == (Code.OK, expected(ground.kind, WORDS)), answer
    note = ((NOTE, "n"),)
    assert kept(answer.headers, HEADERS + note) == kept(HEADERS + note, HEADERS + note), answer.headers
    assert kept(answer.trailers, TRAILERS + note) == kept(TRAILERS + note, TRAILERS + note), answer.trailers
    assert len(ground.inner.calls) == ground.subject.nexts


async def errors_pass_on_a_plain_grpc_server_or_channel(ground: Ground) -> None:
    """There too an error keeps its code and its message."""

    async def fail(_: str) -> None:
        raise Error(Code.NOT_FOUND, "no such thing")

    async def abort(_: str) -> None:
        await ground.service.context.abort(grpc.StatusCode.NOT_FOUND, "no such thing")

    ground.service.late = True  # a plain call that still has requests to send then gets INTERNAL, out of core
    ground.service.work = fail if ground.place.side is Side.SERVER else abort
    async with _plain(ground) as channel:
        answer = await _call(ground, channel)
    assert (answer.code, answer.message) == (Code.NOT_FOUND, "no such thing"), answer
    assert isinstance(ground.outer.outcomes[-1], BaseException)


async def _call(ground: Ground, channel: grpc.aio.Channel) -> Answer:
    begun = begin(channel, ground.kind, WORDS, metadata=(*ground.subject.metadata, (NOTE, "n")))
    return await ground.done(answer_of(begun, ground.kind))


@contextlib.asynccontextmanager
async def _plain(ground: Ground) -> AsyncIterator[grpc.aio.Channel]:
    """Serve with a plain server, and yield a plain channel to it; one of them has the middleware."""
    links = [*ground.subject.outside(), ground.outer, ground.link, ground.inner]
    on_server = ground.place.side is Side.SERVER
    server = grpc.aio.server(interceptors=[server_interceptor(links)] if on_server else [])
    ground.service.register(server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        address = f"127.0.0.1:{port}"
        interceptors = [] if on_server else client_interceptors(links)
        async with grpc.aio.insecure_channel(address, interceptors=interceptors) as channel:
            yield channel
    finally:
        await server.stop(0)
