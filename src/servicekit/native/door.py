"""The door of a listener with TLS: who has not finished the handshake counts as connected, and is let in when it has.

A server of asyncio's that is told of TLS does the handshake by itself, for as many as come, and takes a quarter of a MiB
for each before anybody is asked.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from .protocol import ClientLine

if TYPE_CHECKING:
    import ssl

    from .shared import Shared


class Door(asyncio.BufferedProtocol):
    """A client at the door. It is the protocol of the handshake too, for what may come right behind it."""

    def __init__(self, shared: Shared, context: ssl.SSLContext) -> None:
        """Wait for the transport."""
        self._shared = shared
        self._context = context
        self._early = bytearray()
        self._lost = False
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # a stream's always is one
        """Begin the handshake, or turn the client away when there are too many."""
        if not self._shared.knock(self):
            transport.abort()
            return
        transport.pause_reading()  # the first octets are for TLS
        self._task = self._shared.loop.create_task(self._let_in(transport))

    async def _let_in(self, transport: asyncio.Transport) -> None:
        shared = self._shared
        secured: asyncio.Transport | None = None
        try:
            # Whatever goes wrong, the client is told by TLS, and there is nobody else to tell.
            with contextlib.suppress(Exception):
                secured = await shared.loop.start_tls(
                    transport, self, self._context, server_side=True, ssl_handshake_timeout=shared.options.handshake
                )
        finally:
            self._task = None
            shared.knocked(self)
            if secured is None or self._lost:
                transport.abort()
        if secured is not None and not self._lost:
            self._enter(secured)

    def _enter(self, secured: asyncio.Transport) -> None:
        line = ClientLine(self._shared)
        secured.set_protocol(line)
        line.connection_made(secured)
        early = memoryview(self._early)
        while early:
            buffer = line.get_buffer(-1)
            size = min(len(buffer), len(early))
            buffer[:size] = early[:size]
            early = early[size:]
            line.buffer_updated(size)

    def cancel(self) -> None:
        """Give up the handshake."""
        if self._task is not None:
            self._task.cancel()

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - how much is read is decided here
        """Return where the next read goes: one place for all connections, for it is copied at once."""
        return self._shared.buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Keep what came between the end of the handshake and the turn in which it is heard of."""
        self._early += self._shared.buffer[:nbytes]

    def eof_received(self) -> bool:
        """Let the transport close."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - however it ended, it ended
        """Take note that the client is gone."""
        self._lost = True
