"""The door of a listener with TLS: who has not finished the handshake counts as connected.

A server of asyncio's that is told of TLS does the handshake by itself, for as many as come, and takes a quarter of a MiB
for each before anybody is asked. So clients are accepted here.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
from typing import TYPE_CHECKING, Final

from .protocol import ClientLine

if TYPE_CHECKING:
    import socket
    import ssl

    from .shared import Shared

_LOGGER = logging.getLogger(__name__)

_AT_ONCE: Final = 16  # clients, until others have their turn
_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_REST: Final = 1.0  # seconds, when the system has no more to give


class Door:
    """Accepts the clients of one listening socket, which it owns."""

    def __init__(self, shared: Shared, context: ssl.SSLContext, sock: socket.socket) -> None:
        """Begin to accept."""
        self._shared = shared
        self._context = context
        self._sock = sock
        self._rest: asyncio.TimerHandle | None = None
        sock.settimeout(0.0)
        self._open()

    def _open(self) -> None:
        self._rest = None
        self._shared.loop.add_reader(self._sock.fileno(), self._accept)

    def close(self) -> None:
        """Accept nobody any more."""
        if self._rest is not None:
            self._rest.cancel()
        self._shared.loop.remove_reader(self._sock.fileno())
        self._sock.close()

    def _accept(self) -> None:
        for _ in range(_AT_ONCE):
            try:
                accepted, _ = self._sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in _EXHAUSTED:
                    raise
                _LOGGER.error("no client can be accepted for %s s: %s", _REST, error)  # noqa: TRY400 - there is no more to it
                self._shared.loop.remove_reader(self._sock.fileno())
                self._rest = self._shared.loop.call_later(_REST, self._open)
                return
            Handshake(self._shared, self._context, accepted)


class Handshake:
    """A client at the door."""

    def __init__(self, shared: Shared, context: ssl.SSLContext, accepted: socket.socket) -> None:
        """Begin with it, or turn the client away when there are too many."""
        self._shared = shared
        self._context = context
        self._accepted = accepted
        self._begun = False
        if not shared.knock(self):
            accepted.close()
            return
        accepted.settimeout(0.0)
        self._task = shared.loop.create_task(self._run())
        self._task.add_done_callback(self._over)

    async def _run(self) -> None:
        self._begun = True
        # Whatever goes wrong, the client is told by TLS, and there is nobody else to tell.
        with contextlib.suppress(Exception):
            await self._shared.loop.connect_accepted_socket(
                lambda: SecuredLine(self._shared, self),
                self._accepted,
                ssl=self._context,
                ssl_handshake_timeout=self._shared.options.handshake,
            )

    def _over(self, _: object) -> None:
        if not self._begun:  # cancelled before its first step: nobody else has the socket
            self._accepted.close()
        self._shared.knocked(self)

    def cancel(self) -> None:
        """Give it up."""
        self._task.cancel()


class SecuredLine(ClientLine):
    """A connection behind its handshake."""

    def __init__(self, shared: Shared, handshake: Handshake) -> None:
        """Wait for the transport."""
        super().__init__(shared)
        self._handshake = handshake

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # a stream's always is one
        """Take the place of the handshake."""
        self.shared.knocked(self._handshake)
        super().connection_made(transport)
