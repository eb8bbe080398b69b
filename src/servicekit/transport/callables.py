"""What stubs call, one callable for each kind of method: each makes calls with the chain that was composed for it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import grpc

from servicekit.call import Call, Side
from servicekit.current import parent_call
from servicekit.inherit import inherited
from servicekit.metadata import Metadata

from .calls import BidiStreamCall, ClientStreamCall, ServerStreamCall, UnaryCall
from .exchange import Exchange, Options, options_of
from .requests import Requests, each
from .status import as_tuple
from .writes import Writes

if TYPE_CHECKING:
    from servicekit.clock import Clock
    from servicekit.endpoint import Endpoint
    from servicekit.method import Method


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
        deadline = None if timeout is None else _deadline(now, timeout)
        parent = parent_call()
        is_inherited = False
        if parent is not None and (left := parent.remaining()) is not None:
            bound = now + inherited(left)
            if deadline is None or bound < deadline:
                deadline, is_inherited = bound, True

        exchange = Exchange(options, self._under_way, inherited=is_inherited)
        exchange.call = Call(
            self.method,
            side=Side.CLIENT,
            exchange=exchange,
            clock=self._clock,
            metadata=sent,
            deadline=deadline,
            parent=parent,
        )
        exchange.start(self._endpoint, request)
        return exchange


def _deadline(now: float, timeout: float) -> float | None:
    try:
        if timeout < FOREVER:
            return now + timeout
    except TypeError:
        pass
    else:
        if not math.isnan(timeout):
            return None
    msg = f"timeout={timeout!r} is no number of seconds"
    raise TypeError(msg)


class UnaryUnary(grpc.aio.UnaryUnaryMultiCallable[Any, Any]):
    """A method with one request and one response."""

    def __init__(self, caller: Caller) -> None:
        """Make calls with ``caller``."""
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
        """Begin a call, and return it at once."""
        options = options_of(wait_for_ready, credentials, compression)
        return UnaryCall(self._caller.begin(request, timeout=timeout, metadata=metadata, options=options))


class UnaryStream(grpc.aio.UnaryStreamMultiCallable[Any, Any]):
    """A method with one request and a stream of responses."""

    def __init__(self, caller: Caller) -> None:
        """Make calls with ``caller``."""
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
        """Begin a call, and return it at once."""
        options = options_of(wait_for_ready, credentials, compression)
        return ServerStreamCall(self._caller.begin(request, timeout=timeout, metadata=metadata, options=options))


class StreamUnary(grpc.aio.StreamUnaryMultiCallable[Any, Any]):
    """A method with a stream of requests and one response."""

    def __init__(self, caller: Caller) -> None:
        """Make calls with ``caller``."""
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
        """Begin a call, and return it at once."""
        options = options_of(wait_for_ready, credentials, compression)
        requests, writes = requests_of(request_iterator)
        exchange = self._caller.begin(requests, timeout=timeout, metadata=metadata, options=options)
        return ClientStreamCall(exchange, writes)


class StreamStream(grpc.aio.StreamStreamMultiCallable[Any, Any]):
    """A method with a stream each way."""

    def __init__(self, caller: Caller) -> None:
        """Make calls with ``caller``."""
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
        """Begin a call, and return it at once."""
        options = options_of(wait_for_ready, credentials, compression)
        requests, writes = requests_of(request_iterator)
        exchange = self._caller.begin(requests, timeout=timeout, metadata=metadata, options=options)
        return BidiStreamCall(exchange, writes)


def requests_of(request_iterator: Any) -> tuple[Requests, Writes | None]:
    """Return the request stream of a call, and where ``write()`` puts messages if no iterator was given."""
    if request_iterator is None:
        writes = Writes()
        return Requests(writes, cancel_safe=True), writes
    return Requests(each(request_iterator), cancel_safe=False), None
