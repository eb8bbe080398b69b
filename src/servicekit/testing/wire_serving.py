"""Conformance cases: the task that serves an RPC, and who may finish it."""

# ruff: noqa: S101 - a case asserts: its module is a test that ships

from __future__ import annotations

import asyncio
import contextvars

from servicekit.errors import By, Code
from servicekit.wire import END, Ended, Incoming, Status

from .wire_pair import (
    OK,
    Pair,
    Watched,
    bidi,
    download,
    drain,
    head,
    linger,
    refused,
    unary,
    upload,
)

SECRET = "secret-4711"  # noqa: S105 - stands for one

_asking: contextvars.ContextVar[str] = contextvars.ContextVar("asking", default="nobody")


async def serve_that_returns_is_answered(pair: Pair) -> None:
    """A serving task that returns without ``finish`` has failed: INTERNAL."""

    async def serve(_: Incoming) -> None:
        pass

    wire = await pair.connect(unary(serve))
    error = await refused(wire.unary(head(), b""))
    assert (error.code, error.by) == (Code.INTERNAL, By.PEER)


async def serve_that_raises_is_answered_without_its_text(pair: Pair) -> None:
    """A serving task that raises has failed: INTERNAL, and nothing of the exception reaches the client."""

    async def serve(_: Incoming) -> None:
        raise ValueError(SECRET)

    wire = await pair.connect(unary(serve))
    error = await refused(wire.unary(head(), b""))
    assert error.code is Code.INTERNAL
    assert SECRET not in f"{error!r} {error} {error.headers} {error.trailers}"


async def serve_that_raises_in_a_stream_is_answered(pair: Pair) -> None:
    """A serving task that raises after messages has failed too: they arrive, then INTERNAL."""

    async def serve(incoming: Incoming) -> None:
        await incoming.send(b"1")
        raise ValueError(SECRET)

    wire = await pair.connect(download(serve))
    stream = wire.open(head(), b"")
    assert await drain(stream) == [b"1"]
    status = await stream.ended()
    assert status.code is Code.INTERNAL
    assert SECRET not in f"{status}"


async def a_stray_cancellation_is_answered(pair: Pair) -> None:
    """A CancelledError that nobody asked for (a child's that leaked) is a failure like others: INTERNAL, no hang."""

    async def serve(_: Incoming) -> None:
        raise asyncio.CancelledError

    wire = await pair.connect({"/t/Unary": unary(serve), "/t/Bidi": bidi(serve)})
    assert (await refused(wire.unary(head("/t/Unary"), b""))).code is Code.INTERNAL
    stream = wire.open(head("/t/Bidi"), None)
    assert await stream.receive() is END
    assert (await stream.ended()).code is Code.INTERNAL


async def the_first_finish_wins(pair: Pair) -> None:
    """The client gets what the first ``finish`` said; later ones neither change it nor raise."""

    async def serve(incoming: Incoming) -> None:
        await incoming.finish(Status(code=Code.NOT_FOUND, message="first"))
        await incoming.finish(Status(code=Code.ABORTED, message="second"))
        await incoming.finish(OK, b"third")

    wire = await pair.connect(unary(serve))
    error = await refused(wire.unary(head(), b""))
    assert (error.code, error.message) == (Code.NOT_FOUND, "first")


async def finish_does_not_wait_for_serve(pair: Pair) -> None:
    """Another task may finish the RPC: the client is answered at once, while ``serve`` is still at work."""
    watched = Watched(linger)
    wire = await pair.connect(bidi(watched))
    stream = wire.open(head(), None)
    await watched.started.wait()
    assert watched.incoming is not None
    await watched.incoming.finish(Status(code=Code.ABORTED, message="from outside"))
    assert await stream.receive() is END
    assert (await stream.ended()).message == "from outside"
    await watched.ended.wait()


async def a_finished_rpc_takes_no_more_messages(pair: Pair) -> None:
    """After ``finish``, ``send`` raises Ended; the client gets nothing of it."""
    raised: list[BaseException] = []

    async def serve(incoming: Incoming) -> None:
        await incoming.send(b"before")
        await incoming.finish(OK)
        try:
            await incoming.send(b"after")
        except Ended as error:
            raised.append(error)

    watched = Watched(serve)
    wire = await pair.connect(download(watched))
    assert await drain(wire.open(head(), b"")) == [b"before"]
    await watched.left.wait()
    assert len(raised) == 1


async def a_finished_rpc_does_not_look_half_closed(pair: Pair) -> None:
    """Who reads requests while another task finishes the RPC is not told END: the client never half-closed."""
    seen: list[object] = []

    async def serve(incoming: Incoming) -> None:
        seen.append(await incoming.receive())
        seen.append(await incoming.receive())

    watched = Watched(serve)
    wire = await pair.connect(upload(watched))
    stream = wire.open(head(), None)
    await stream.send(b"1")
    await pair.quiet(lambda: len(seen))
    assert watched.incoming is not None
    await watched.incoming.finish(Status(code=Code.ABORTED))
    assert await stream.receive() is END
    await pair.pass_time(0.1)
    assert seen == [b"1"]


async def calls_are_served_at_the_same_time(pair: Pair) -> None:
    """One slow RPC does not hold the next: each has a task of its own."""
    both = asyncio.Event()
    started: list[Incoming] = []

    async def serve(incoming: Incoming) -> None:
        started.append(incoming)
        if len(started) > 1:
            both.set()
        await both.wait()
        await incoming.finish(OK, b"")

    wire = await pair.connect(unary(serve))
    await asyncio.gather(wire.unary(head(), b""), wire.unary(head(), b""))


async def the_clients_context_stays_with_the_client(pair: Pair) -> None:
    """What a caller keeps in context variables is not seen by the serving task, wherever it runs."""
    seen: list[str] = []

    async def serve(incoming: Incoming) -> None:
        seen.append(_asking.get())
        await incoming.finish(OK, b"")

    wire = await pair.connect(unary(serve))
    token = _asking.set("the caller")
    await wire.unary(head(), b"")
    _asking.reset(token)
    assert seen == ["nobody"]
