"""Conformance cases: reaching a server — there, not there, not there yet, on its way out."""

# ruff: noqa: S101 - a case asserts: its module is a test that ships

from __future__ import annotations

import asyncio

from servicekit.errors import By, Code
from servicekit.wire import END, BindError, Incoming

from .wire_pair import (
    OK,
    Pair,
    echo,
    head,
    refused,
    settled,
    unary,
)


async def a_taken_address_cannot_be_bound(pair: Pair) -> None:
    """Binding an address that is taken raises BindError, an OSError that names it."""
    await pair.serve(unary(echo))
    said = ""
    try:
        pair.listener().bind(pair.address)
    except BindError as error:
        said = str(error)
    assert pair.address in said
    assert issubclass(BindError, OSError)


async def two_listeners_have_two_addresses(pair: Pair) -> None:
    """``bind`` returns an address of its own for each listener, and each serves its own."""

    async def other(incoming: Incoming) -> None:
        await incoming.finish(OK, b"other")

    first = await pair.connect(unary(echo))
    address = pair.address
    second = await pair.connect(unary(other))
    assert pair.address != address
    assert (await first.unary(head(), b"first")).data == b"first"
    assert (await second.unary(head(), b"second")).data == b"other"


async def a_listener_in_order_has_not_failed(pair: Pair) -> None:
    """``failed`` waits while the listener can serve."""
    listener = await pair.serve(unary(echo))
    failing = asyncio.create_task(listener.failed())
    await pair.wire().unary(head(), b"")
    assert await settled(failing)


async def nobody_there_is_unavailable(pair: Pair) -> None:
    """Where nobody listens an RPC is UNAVAILABLE, by this side and never begun, so that it may go elsewhere."""
    wire = pair.wire(await pair.nobody())
    error = await refused(wire.unary(head(), b""))
    assert (error.code, error.begun, error.by) == (Code.UNAVAILABLE, False, By.LOCAL)
    stream = wire.open(head(), None)
    assert await stream.receive() is END
    assert await stream.headers() == ()
    status = await stream.ended()
    assert (status.code, status.begun, status.by) == (Code.UNAVAILABLE, False, By.LOCAL)


async def waiting_for_nobody_ends_at_the_deadline(pair: Pair) -> None:
    """With ``wait_for_ready`` an RPC waits for somebody to come, up to its deadline."""
    wire = pair.wire(await pair.nobody())
    asked = head(deadline=pair.within(0.3), wait_for_ready=True)
    assert (await pair.during(0.4, refused(wire.unary(asked, b"")))).code is Code.DEADLINE_EXCEEDED


async def waiting_for_ready_is_served_in_the_end(pair: Pair) -> None:
    """With ``wait_for_ready`` an RPC is served by whoever listens there later."""
    address = await pair.nobody()
    wire = pair.wire(address)
    calling = asyncio.create_task(wire.unary(head(wait_for_ready=True), b"patient"))
    await pair.pass_time(0.1)
    assert not calling.done()
    await pair.serve(unary(echo), address)
    while not calling.done():
        await pair.pass_time(0.1)
    assert (await calling).data == b"patient"
