"""What a servicer is given: grpc.aio's own context, over any wire, free of its traps."""

from __future__ import annotations

import contextvars
import functools
import logging
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, Protocol

import grpc

from servicekit.errors import Code, Error
from servicekit.metadata import Metadata

from .requests import Reader
from .status import GRPC_CODES, as_tuple, code_from

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping

    from servicekit.call import Call
    from servicekit.wire import Incoming


log = logging.getLogger("servicekit")


class Metadatum(NamedTuple):
    """One entry of metadata as grpc spells it."""

    key: str
    value: str | bytes


class Carrier(Protocol):
    """What a context needs of the exchange that its call is part of."""

    incoming: Incoming

    async def send(self, call: Call, message: object) -> None:
        """Send one response message; returns when more is welcome."""

    async def send_all(self, call: Call, messages: AsyncIterator[Any]) -> None:
        """Send all messages, and close the generator that yields them."""

    def send_headers(self, call: Call) -> None:
        """Send the initial metadata now. Raises RuntimeError when it is out already."""

    async def check(self, call: Call) -> None:
        """Raise what ``call`` has failed with, if it has."""

    def fail(self, call: Call, error: Exception) -> None:
        """Make ``error`` how ``call`` ends, also when the servicer does not."""


class Context(grpc.aio.ServicerContext[Any, Any]):
    """``grpc.aio.ServicerContext`` as its documentation has it, with the differences that people ask for.

    Trailing metadata set in several places is merged. ``abort`` wins even where the AbortError was swallowed, and
    ``abort(StatusCode.OK)``, which leaves clients of grpc.aio waiting for ever, is an INTERNAL error.
    """

    # Defaults of the class: most servicers never touch them.
    _code: Any = None
    _details = ""
    _done: tuple[Callable[[], None], ...] = ()
    _awaited = False
    _ended = False
    _final = False

    def __init__(self, call: Call, exchange: Carrier, request: Reader | None) -> None:
        """Stand for ``call``; ``request`` is where ``read()`` reads from, None for a unary request."""
        self._call = call
        self._exchange = exchange
        self._incoming = exchange.incoming
        self._request = request

    @property
    def path(self) -> str:
        """What was called."""
        return self._call.path

    async def read(self) -> Any:
        """Return the next request message, or ``grpc.aio.EOF``. A read that was cancelled loses nothing."""
        if self._request is None:
            return grpc.aio.EOF
        return await anext(self._request, grpc.aio.EOF)

    def write(self, message: Any) -> Coroutine[Any, Any, None]:
        """Send one response message; to be awaited, returns when more is welcome."""
        return self._exchange.send(self._call, message)

    def write_all(self, messages: AsyncIterator[Any]) -> Coroutine[Any, Any, None]:
        """Send all that an async generator yields, and close it; to be awaited."""
        return self._exchange.send_all(self._call, messages)

    async def send_initial_metadata(self, initial_metadata: Any) -> None:
        """Send the initial metadata, and what middleware added to it, now. Raises RuntimeError the second time."""
        self._call.headers.extend(as_tuple(initial_metadata))
        self._exchange.send_headers(self._call)

    async def abort(self, code: Any, details: str = "", trailing_metadata: Any = ()) -> NoReturn:
        """End the call with ``code``: raises AbortError, and ends it so even if that is swallowed."""
        await self._exchange.check(self._call)
        try:
            trailers = Metadata.checked(as_tuple(trailing_metadata)).pairs()
        except (TypeError, ValueError) as error:
            self._exchange.fail(self._call, error)
            raise
        failure: Exception
        if code_from(code) is Code.OK:
            failure = ValueError("abort() needs a code other than OK: nobody would answer the client")
        else:
            failure = Error(code_from(code), details or self._details, trailers=trailers)
        self._exchange.fail(self._call, failure)
        message = "Locally aborted."
        raise grpc.aio.AbortError(message)

    async def abort_with_status(self, status: grpc.Status) -> NoReturn:
        """End the call with a status that holds code, details and trailing metadata."""
        await self.abort(status.code, status.details, status.trailing_metadata)

    def set_trailing_metadata(self, trailing_metadata: Any) -> None:
        """Add to what is sent with the status. Nothing that was set elsewhere is lost."""
        present = list(self._call.trailers)
        self._call.trailers.extend(pair for pair in as_tuple(trailing_metadata) if pair not in present)

    def trailing_metadata(self) -> Any:
        """Return what will be sent with the status, as it stands."""
        return self._call.trailers.pairs()

    def invocation_metadata(self) -> Any:
        """Return the request's metadata as a tuple of (key, value)."""
        return tuple(Metadatum(key, value) for key, value in self._call.metadata)

    def set_code(self, code: Any) -> None:
        """Have the call end with ``code`` once the servicer returns."""
        self._code = code

    def set_details(self, details: str) -> None:
        """Have the call end with this status message."""
        self._details = details

    def code(self) -> Any:
        """Return the code that was set, or None."""
        return self._code

    def details(self) -> str:
        """Return the status message that was set."""
        return self._details

    def verdict(self) -> Error | None:
        """Return the error that ``set_code`` and ``set_details`` amount to, or None."""
        if self._code is None or code_from(self._code) is Code.OK:
            return None
        return Error(code_from(self._code), self._details)

    def peer(self) -> str:
        """Return the client's address as the wire spells it."""
        return self._call.peer

    def peer_identities(self) -> Iterable[bytes] | None:
        """Return the peer's identities, or None when it is not authenticated."""
        return self._incoming.security().identities

    def peer_identity_key(self) -> str | None:
        """Return the name of the property that identifies the peer, or None."""
        return self._incoming.security().identity_key

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        """Return what TLS knows of the peer, by property."""
        return self._incoming.security().properties

    def time_remaining(self) -> float | None:  # type: ignore[override]  # grpc's own returns None, its stubs forget it
        """Return the seconds left until the deadline, or None when there is none."""
        return self._call.remaining()

    def set_compression(self, compression: grpc.Compression) -> None:
        """Compress the response messages with ``compression``."""
        self._incoming.compress(_ENCODINGS[compression])

    def disable_next_message_compression(self) -> None:
        """Ask for the next message to go as it is. A hint, which not every wire can follow."""

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        """Run ``callback(context)`` when the call is over, with its code and details in place; at once if it is.

        It runs in the context that it was added in, so that ``current_call()`` is there. One that raises is logged,
        and keeps no other from running.
        """
        self._done = (*self._done, functools.partial(contextvars.copy_context().run, callback, self))
        if self._ended:
            self._run_done()
        elif not self._awaited:
            self._awaited = True
            self._incoming.on_end(self._run_done)

    def _run_done(self) -> None:
        self._ended = True
        callbacks, self._done = self._done, ()
        for callback in callbacks:
            try:
                callback()
            except Exception:
                log.exception("a done callback of %r failed", self.path[:200])

    def done(self) -> bool:
        """Return whether the call is over."""
        return self._final or self._call.over

    def cancelled(self) -> bool:
        """Return whether the call was cancelled."""
        return self._code is not None and code_from(self._code) is Code.CANCELLED

    def ended_with(self, code: Code, details: str) -> None:
        """Note how the call ended, for done callbacks; the first time counts. Called by transport."""
        if not self._final:
            self._final = True
            self._code, self._details = GRPC_CODES[code], details


_ENCODINGS: dict[Any, str | None] = {
    grpc.Compression.NoCompression: None,
    grpc.Compression.Deflate: "deflate",
    grpc.Compression.Gzip: "gzip",
}
