"""Conformance cases: ``on_end``, once for every way an RPC can end."""

# ruff: noqa: S101 - a case asserts: its module is a test that ships

from __future__ import annotations

from servicekit.errors import Code
from servicekit.wire import Incoming, Status

from .wire_pair import (
    Pair,
    Watched,
    bidi,
    download,
    echo,
    head,
    linger,
    refused,
    unary,
)


async def on_end_runs_once_after_ok(pair: Pair) -> None:
    """``on_end`` runs once for an RPC that was answered."""
    watched = Watched(echo)
    wire = await pair.connect(unary(watched))
    await wire.unary(head(), b"")
    await watched.ended.wait()
    await pair.pass_time(0.05)
    assert watched.ends == 1


async def on_end_runs_once_after_cancel(pair: Pair) -> None:
    """``on_end`` runs once for an RPC that the client cancelled."""
    watched = Watched(linger)
    wire = await pair.connect(download(watched))
    stream = wire.open(head(), b"")
    await watched.started.wait()
    stream.cancel()
    await watched.ended.wait()
    await pair.pass_time(0.05)
    assert watched.ends == 1


async def on_end_runs_once_after_a_deadline(pair: Pair) -> None:
    """``on_end`` runs once for an RPC that was too late."""
    watched = Watched(linger)
    wire = await pair.connect(unary(watched))
    await pair.during(0.25, refused(wire.unary(head(deadline=pair.within(0.2)), b"")))
    await watched.ended.wait()
    await pair.pass_time(0.05)
    assert watched.ends == 1


async def on_end_runs_once_when_serve_fails(pair: Pair) -> None:
    """``on_end`` runs once for an RPC that the wire had to answer itself."""

    async def serve(_: Incoming) -> None:
        raise ValueError("oops")

    watched = Watched(serve)
    wire = await pair.connect(unary(watched))
    await refused(wire.unary(head(), b""))
    await watched.ended.wait()
    await pair.pass_time(0.05)
    assert watched.ends == 1


async def on_end_runs_once_after_an_error(pair: Pair) -> None:
    """``on_end`` runs once for an RPC that was refused, however often it is finished."""

    async def serve(incoming: Incoming) -> None:
        for _ in range(3):
            await incoming.finish(Status(code=Code.ABORTED))

    watched = Watched(serve)
    wire = await pair.connect(unary(watched))
    await refused(wire.unary(head(), b""))
    await watched.ended.wait()
    await pair.pass_time(0.05)
    assert watched.ends == 1


async def on_end_runs_once_when_the_client_is_closed(pair: Pair) -> None:
    """``on_end`` runs once for an RPC whose client closed its wire."""
    watched = Watched(linger)
    wire = await pair.connect(bidi(watched))
    stream = wire.open(head(), None)
    await watched.started.wait()
    await wire.close(0)
    await watched.ended.wait()
    await stream.ended()
    await pair.pass_time(0.05)
    assert watched.ends == 1


async def on_end_runs_once_when_the_server_is_stopped(pair: Pair) -> None:
    """``on_end`` has run, once, when ``stop`` returns."""
    watched = Watched(linger)
    listener = await pair.serve(bidi(watched))
    stream = pair.wire().open(head(), None)
    await watched.started.wait()
    await listener.stop(0)
    assert watched.ends == 1
    await stream.ended()
