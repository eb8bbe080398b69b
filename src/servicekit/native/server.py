"""The server's end of the seam over connections of our own."""

from __future__ import annotations

import asyncio
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from servicekit.wire import BindError

from .door import Door
from .options import NativeOptions
from .protocol import ClientLine
from .shared import Shared
from .sockets import Sockets, forget, listening, release
from .tls import context_of, credentials_of

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Mapping

    from servicekit.clock import Clock
    from servicekit.wire import Route

_TURNS: Final = 3
"""Turns of the loop from accepting to ``connection_made``. What asyncio has accepted when its server is closed it loses,
and never closes."""
_FLUSH: Final = 2.0
"""Seconds that clients have to take the last of what was written, and to say goodbye, when all RPCs have ended."""


class NativeListener:
    """A Listener over HTTP/2 and asyncio. Must be made where an event loop runs.

    ``refused`` and ``cut_off`` count the connections that were turned away and those that were ended for what their
    clients did.
    """

    lacking: Mapping[str, str] = MappingProxyType(
        {"grpc.channelz.v1.Channelz": "channelz tells of grpc core's sockets, and wire='native' has none"}
    )
    """Services that need what this wire does not have, each with the reason."""

    def __init__(self, clock: Clock, *, options: NativeOptions | None = None, compression: str | None = None) -> None:
        """Bind nothing yet. ``compression`` is what responses are compressed with where the client understands it."""
        self._shared = Shared(NativeOptions() if options is None else options, clock, compression)
        self.largest = self._shared.options.sent
        """Bytes of the largest message that is sent."""
        self._clock = clock
        self._bound: list[tuple[Sockets, ssl.SSLContext | None]] = []
        self._servers: list[asyncio.Server] = []
        self._doors: list[Door] = []
        self._started = False

    @property
    def refused(self) -> int:
        """How many connections were closed at once, because there were too many."""
        return self._shared.refused

    @property
    def cut_off(self) -> int:
        """How many connections were ended for what their clients did."""
        return self._shared.cut_off

    @property
    def connections(self) -> int:
        """How many clients are connected, those among them whose TLS handshake is not over."""
        return len(self._shared.members) + len(self._shared.knocking)

    @property
    def busy(self) -> bool:
        """Whether any RPC is not answered, one among them whose request is still arriving."""
        return any(member.busy for member in self._shared.members)

    async def idle(self) -> None:
        """Return once the listener is not ``busy``; to be awaited when ``stop`` was called."""
        while self.busy:
            await self._shared.changed.wait()

    def bind(self, address: str, credentials: object = None) -> str:
        """Listen on ``address`` (see ``sockets.listening``) and return it with its port; TlsCredentials make it TLS.

        Raises BindError, naming the address, when that cannot be; TypeError for credentials of another wire.
        """
        if self._started or self._shared.stopping:
            raise RuntimeError(f"cannot listen on {address!r}: the listener was started or stopped before")
        given = credentials_of(credentials)
        try:
            context = None if given is None else context_of(given)
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            raise BindError(f"cannot listen on {address!r} with these certificates: {error}") from error
        bound, sockets = listening(address, reuse_port=self._shared.options.reuse_port)
        self._bound.append((sockets, context))
        return bound

    async def start(self, route: Callable[[str], Route]) -> None:
        """Begin to serve what ``route`` says. Raises RuntimeError when that was done before."""
        if self._started or self._shared.stopping:
            raise RuntimeError("a listener is started once")
        self._started = True
        self._shared.route = route
        for sockets, context in self._bound:
            for sock in sockets:
                if context is not None:
                    self._doors.append(Door(self._shared, context, sock))
                else:
                    self._servers.append(await self._shared.loop.create_server(self._line, sock=sock))

    def _line(self) -> ClientLine:
        return ClientLine(self._shared)

    async def stop(self, grace: float) -> None:
        """Accept nothing new, let RPCs in flight finish for ``grace`` seconds, cancel the rest; return when all is over.

        Clients are told at once, twice: what they sent before they knew is served (RFC 9113, section 6.8).
        """
        shared = self._shared
        if not shared.stopping:
            shared.stopping = True
            await self._accept_no_more()
            for member in list(shared.members):
                member.drain()
        # A connection that has nothing left to do, and whose client knows, closes by itself.
        await self._wait(grace, lambda: not shared.serving and not shared.members)
        for member in list(shared.members):
            member.cut()
        for served in list(shared.serving):
            served.cancel()
        while shared.serving:
            await shared.changed.wait()
        if shared.members:
            for member in list(shared.members):
                member.close()
            await self._wait(_FLUSH, lambda: not shared.members)
            for member in list(shared.members):
                member.abort()
            while shared.members:
                await shared.changed.wait()
        shared.over = True
        await self._send_away()
        shared.wheel.stop()

    async def _send_away(self) -> None:
        """End every handshake."""
        for handshake in list(self._shared.knocking):
            handshake.cancel()
        while self._shared.knocking:
            await self._shared.changed.wait()

    async def _accept_no_more(self) -> None:
        for server in self._servers:
            for sock in server.sockets:
                self._shared.loop.remove_reader(sock.fileno())
        for _ in range(_TURNS):
            await asyncio.sleep(0)
        self._release()

    async def _wait(self, seconds: float, over: Callable[[], bool]) -> None:
        """Return when ``over()`` holds, or ``seconds`` have passed."""
        if over() or seconds <= 0:
            return
        late = False

        def ring() -> None:
            nonlocal late
            late = True
            self._shared.changed.ring()

        timer = self._clock.call_at(self._clock.time() + seconds, ring)
        try:
            while not late and not over():
                await self._shared.changed.wait()
        finally:
            timer.cancel()

    def _release(self) -> None:
        for sockets, _ in self._bound:
            if self._started:  # the loop has them, and closes them with its servers
                forget(sockets)
            else:
                release(sockets)
        self._bound.clear()
        for door in self._doors:
            door.close()
        self._doors.clear()
        for server in self._servers:
            server.close()
        self._servers.clear()

    async def failed(self) -> BaseException:
        """Wait for ever: what a client sends cannot end a listener."""
        return await self._shared.loop.create_future()  # type: ignore[no-any-return]  # nobody ever sets it

    def __repr__(self) -> str:
        """Return how many are connected and served."""
        shared = self._shared
        return f"<NativeListener, {len(shared.members)} connected, {len(shared.serving)} being served>"
