"""The channel that generated stubs take: grpc.aio's interface over any wire, with a chain around every method."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import grpc

from servicekit.call import Call, Kind, Side
from servicekit.clock import SystemClock
from servicekit.current import parent_call
from servicekit.endpoint import Chain, shown
from servicekit.errors import Code, Error
from servicekit.explain import block, blocks, explained
from servicekit.inherit import inherited
from servicekit.metadata import Metadata

from .attempt import Sender
from .calls import BidiStreamCall, ClientStreamCall, ServerStreamCall, UnaryCall
from .codec import Codec
from .exchange import Exchange, Options
from .methods import describe
from .requests import Requests, each
from .status import as_tuple
from .writes import Writes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

    from servicekit.call import Method
    from servicekit.clock import Clock
    from servicekit.endpoint import Endpoint
    from servicekit.wire import Wire


_MOST_METHODS = 1_000

FOREVER = 1e9
"""Seconds (32 years) from which on a timeout is none. Core counts in nanoseconds, and takes a larger one for the past."""


class Caller:
    """Makes calls of one method: the chain around it is composed here, once."""

    __slots__ = ("_clock", "_endpoint", "_under_way", "method")

    def __init__(self, method: Method, endpoint: Endpoint, clock: Clock, under_way: set[Exchange]) -> None:
        """Run ``endpoint`` for every call, each being in ``under_way`` until it is over."""
        self.method = method
        self._endpoint = endpoint
        self._clock = clock
        self._under_way = under_way

    def begin(self, request: Any, *, timeout: float | None, metadata: Any, options: Options) -> Exchange:
        """Begin a call. Raises ValueError or TypeError, naming the key, for metadata that may not go on the wire."""
        sent = Metadata.checked(as_tuple(metadata)) if metadata else Metadata()
        now = self._clock.time()
        deadline = None if timeout is None or timeout >= FOREVER else now + timeout
        parent = parent_call()
        is_inherited = False
        if parent is not None and (left := parent.remaining()) is not None:
            bound = now + inherited(left)
            if deadline is None or bound < deadline:
                deadline, is_inherited = bound, True

        def call_of(exchange: Exchange) -> Call:
            return Call(
                self.method,
                side=Side.CLIENT,
                exchange=exchange,
                clock=self._clock,
                metadata=sent,
                deadline=deadline,
                parent=parent,
            )

        exchange = Exchange(call_of, options, self._under_way, inherited=is_inherited)
        exchange.start(self._endpoint, request)
        return exchange


class _UnaryUnary(grpc.aio.UnaryUnaryMultiCallable[Any, Any]):
    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    def __call__(  # noqa: PLR0913 - grpc's own signature
        self,
        request: Any,
        *,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> UnaryCall:
        options = Options(wait_for_ready=wait_for_ready, credentials=credentials, compression=compression)
        return UnaryCall(self._caller.begin(request, timeout=timeout, metadata=metadata, options=options))


class _UnaryStream(grpc.aio.UnaryStreamMultiCallable[Any, Any]):
    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    def __call__(  # noqa: PLR0913 - grpc's own signature
        self,
        request: Any,
        *,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> ServerStreamCall:
        options = Options(wait_for_ready=wait_for_ready, credentials=credentials, compression=compression)
        return ServerStreamCall(self._caller.begin(request, timeout=timeout, metadata=metadata, options=options))


class _StreamUnary(grpc.aio.StreamUnaryMultiCallable[Any, Any]):
    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    def __call__(  # noqa: PLR0913, PLR0917 - grpc's own signature
        self,
        request_iterator: Any = None,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,  # noqa: FBT001 - grpc's own
        compression: grpc.Compression | None = None,
    ) -> ClientStreamCall:
        options = Options(wait_for_ready=wait_for_ready, credentials=credentials, compression=compression)
        requests, writes = requests_of(request_iterator)
        exchange = self._caller.begin(requests, timeout=timeout, metadata=metadata, options=options)
        return ClientStreamCall(exchange, writes)


class _StreamStream(grpc.aio.StreamStreamMultiCallable[Any, Any]):
    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    def __call__(  # noqa: PLR0913, PLR0917 - grpc's own signature
        self,
        request_iterator: Any = None,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,  # noqa: FBT001 - grpc's own
        compression: grpc.Compression | None = None,
    ) -> BidiStreamCall:
        options = Options(wait_for_ready=wait_for_ready, credentials=credentials, compression=compression)
        requests, writes = requests_of(request_iterator)
        exchange = self._caller.begin(requests, timeout=timeout, metadata=metadata, options=options)
        return BidiStreamCall(exchange, writes)


def requests_of(request_iterator: Any) -> tuple[Requests, Writes | None]:
    """Return the request stream of a call, and where ``write()`` puts messages if no iterator was given."""
    if request_iterator is None:
        writes = Writes()
        return Requests(writes, cancel_safe=True), writes
    return Requests(each(request_iterator), cancel_safe=False), None


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
    ) -> _UnaryUnary:
        """Return the callable of a method with one request and one response."""
        return _UnaryUnary(self._caller(method, Kind.UNARY, request_serializer, response_deserializer))

    def unary_stream(
        self,
        method: str,
        request_serializer: Callable[[Any], bytes] | None = None,
        response_deserializer: Callable[[bytes], Any] | None = None,
        _registered_method: bool | None = False,  # noqa: FBT001, FBT002 - grpc's own signature
    ) -> _UnaryStream:
        """Return the callable of a method with one request and a stream of responses."""
        return _UnaryStream(self._caller(method, Kind.SERVER_STREAM, request_serializer, response_deserializer))

    def stream_unary(
        self,
        method: str,
        request_serializer: Callable[[Any], bytes] | None = None,
        response_deserializer: Callable[[bytes], Any] | None = None,
        _registered_method: bool | None = False,  # noqa: FBT001, FBT002 - grpc's own signature
    ) -> _StreamUnary:
        """Return the callable of a method with a stream of requests and one response."""
        return _StreamUnary(self._caller(method, Kind.CLIENT_STREAM, request_serializer, response_deserializer))

    def stream_stream(
        self,
        method: str,
        request_serializer: Callable[[Any], bytes] | None = None,
        response_deserializer: Callable[[bytes], Any] | None = None,
        _registered_method: bool | None = False,  # noqa: FBT001, FBT002 - grpc's own signature
    ) -> _StreamStream:
        """Return the callable of a method with a stream each way."""
        return _StreamStream(self._caller(method, Kind.BIDI_STREAM, request_serializer, response_deserializer))

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
            exchange.call.end(Error(Code.CANCELLED, "channel closed"))

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
