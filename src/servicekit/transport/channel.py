"""The channel that generated stubs take: grpc.aio's interface over any wire, with a chain around every method."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import grpc

from servicekit.clock import SystemClock
from servicekit.endpoint import Chain, shown
from servicekit.errors import Code, Error
from servicekit.explain import block, blocks, explained
from servicekit.method import Kind

from .attempt import Sender
from .callables import Caller, StreamStream, StreamUnary, UnaryStream, UnaryUnary
from .codec import Codec
from .methods import describe

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

    from servicekit.clock import Clock
    from servicekit.method import Method
    from servicekit.wire import Wire

    from .exchange import Exchange


_MOST_METHODS = 1_000


class Channel(grpc.aio.Channel):
    """A ``grpc.aio.Channel`` over a wire. Made by ``servicekit.connect``; every generated stub works on it."""

    def __init__(
        self,
        wire: Wire,
        links: Chain | None = None,
        *,
        clock: Clock | None = None,
        target: str = "",
        interceptors: Sequence[grpc.aio.ClientInterceptor] = (),
    ) -> None:
        """Send over ``wire``, with ``links`` around every method; ``interceptors`` are those that the wire runs."""
        self._wire = wire
        self._links = links if links is not None else Chain(())
        self._clock = clock if clock is not None else SystemClock()
        self._target = target
        self._interceptors = tuple(interceptors)
        self._methods: dict[str, Method] = {}
        self._under_way: set[Exchange] = set()
        self._closed = False

    def _caller(self, path: str, kind: Kind, encoder: Any, decoder: Any) -> Caller:
        if isinstance(path, bytes):
            path = path.decode()
        method = describe(path, kind)
        if len(self._methods) < _MOST_METHODS:  # a proxy may ask for any path
            self._methods[path] = method
        sender = Sender(self._wire, Codec(encoder, decoder), self._clock)
        return Caller(method, self._links.around(sender, method), self._clock, self._under_way)

    def unary_unary(
        self,
        method: str,
        request_serializer: Callable[[Any], bytes] | None = None,
        response_deserializer: Callable[[bytes], Any] | None = None,
        _registered_method: bool | None = False,  # noqa: FBT001, FBT002 - grpc's own signature
    ) -> UnaryUnary:
        """Return the callable of a method with one request and one response."""
        return UnaryUnary(self._caller(method, Kind.UNARY, request_serializer, response_deserializer))

    def unary_stream(
        self,
        method: str,
        request_serializer: Callable[[Any], bytes] | None = None,
        response_deserializer: Callable[[bytes], Any] | None = None,
        _registered_method: bool | None = False,  # noqa: FBT001, FBT002 - grpc's own signature
    ) -> UnaryStream:
        """Return the callable of a method with one request and a stream of responses."""
        return UnaryStream(self._caller(method, Kind.SERVER_STREAM, request_serializer, response_deserializer))

    def stream_unary(
        self,
        method: str,
        request_serializer: Callable[[Any], bytes] | None = None,
        response_deserializer: Callable[[bytes], Any] | None = None,
        _registered_method: bool | None = False,  # noqa: FBT001, FBT002 - grpc's own signature
    ) -> StreamUnary:
        """Return the callable of a method with a stream of requests and one response."""
        return StreamUnary(self._caller(method, Kind.CLIENT_STREAM, request_serializer, response_deserializer))

    def stream_stream(
        self,
        method: str,
        request_serializer: Callable[[Any], bytes] | None = None,
        response_deserializer: Callable[[bytes], Any] | None = None,
        _registered_method: bool | None = False,  # noqa: FBT001, FBT002 - grpc's own signature
    ) -> StreamStream:
        """Return the callable of a method with a stream each way."""
        return StreamStream(self._caller(method, Kind.BIDI_STREAM, request_serializer, response_deserializer))

    async def __aenter__(self) -> Self:
        """Return itself."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close at once: what is under way ends with CANCELLED "channel closed"."""
        await self.close()

    async def close(self, grace: float | None = None) -> None:
        """Close; calls under way have ``grace`` seconds to finish. Idempotent."""
        self._closed = True
        if grace:
            # A chain goes on for a moment when its RPC has ended on the wire, or is about to try again: it has the same time.
            timer = self._clock.call_at(self._clock.time() + grace, self._end)
            try:
                await self._wire.close(grace)
                await self._ended()
            finally:
                timer.cancel()
        self._end()
        await self._ended()
        await self._wire.close(0.0)

    def _end(self) -> None:
        for exchange in list(self._under_way):
            exchange.end(Error(Code.CANCELLED, "channel closed"))

    async def _ended(self) -> None:
        for exchange in list(self._under_way):
            await exchange.done()

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:  # noqa: FBT001, FBT002 - grpc's own
        """Return the connection's state where the wire has one."""
        if self._closed:
            return grpc.ChannelConnectivity.SHUTDOWN
        core = self._core()
        return core.get_state(try_to_connect) if core is not None else grpc.ChannelConnectivity.READY

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """Return when the state is another one than ``last_observed_state``."""
        core = self._core()
        if core is not None:
            await core.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        """Return once there is a connection."""
        core = self._core()
        if core is not None:
            await core.channel_ready()

    def explain(self) -> str:
        """Return the links around each method with their settings, outermost first, and what holds without a link.

        Of the methods that stubs have been made for until now; when there are none, the links as they were given.
        """
        inside = [
            *(f"{shown(type(interceptor))}, which runs at every call" for interceptor in self._interceptors),
            "wire",
        ]
        found = blocks(self._links, self._methods.values(), inside)
        notes = [
            "every failure leaves as a CallError; what the caller's own request iterator raises comes back as it is",
            "a call's deadline is its timeout, or what is left to the call being served if that is less",
        ]
        return explained(
            f"Channel to {self._target or repr(self._wire)}",
            found or [block(["Any method"], self._links.links, inside)],
            notes,
        )

    def _core(self) -> grpc.aio.Channel | None:
        core = getattr(self._wire, "channel", None)
        return core if isinstance(core, grpc.aio.Channel) else None

    def __repr__(self) -> str:
        """Return the target and the chain."""
        return f"<Channel to {self._target or self._wire!r} through {self._links!r}>"
