"""The request stream of a served call, as it comes from the wire."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Protocol

from servicekit.wire import END, Ended

from .codec import malformed_request

if TYPE_CHECKING:
    from servicekit.call import Call
    from servicekit.wire import Incoming

    from .codec import Codec


class Receiving(Protocol):
    """What a request stream needs of the exchange that it is part of."""

    incoming: Incoming
    call: Call

    def fail(self, call: Call, error: Exception) -> None:
        """Make ``error`` how ``call`` ends."""

    def over(self, call: Call) -> Exception:
        """Return what is raised to those who are at work for a call that is over."""


class Received:
    """The request messages as they come from the wire, decoded. A cancelled read loses nothing."""

    __slots__ = ("_decode", "_exchange")

    def __init__(self, exchange: Receiving, codec: Codec) -> None:
        """Read what ``exchange`` receives."""
        self._exchange = exchange
        # Bound here: a Python function less for each message.
        self._decode = codec.decode if codec.decoder is None else codec.decoder

    def __aiter__(self) -> Received:
        """Return itself: there is one pass."""
        return self

    async def __anext__(self) -> Any:
        """Return the next message. Raises StopAsyncIteration once the client has half-closed, and Error at any other end."""
        exchange = self._exchange
        try:
            data = await exchange.incoming.receive()
        except Ended:
            await asyncio.sleep(0)  # a servicer that swallows this, over and over, must not hold the loop
            raise exchange.over(exchange.call) from None
        if data is END:
            raise StopAsyncIteration
        call = exchange.call
        try:
            try:
                message = self._decode(data)
            except Exception as error:  # a decoder may raise anything, and its text may quote the input
                raise malformed_request() from error
            call.received(message, len(data))
        except Exception as error:
            exchange.fail(call, error)
            raise
        return message
