"""One method on the server: its chain, its codecs, and the edge where every way to end becomes a status."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Any

import grpc

from servicekit.call import Side, deadline_error
from servicekit.current import enter, entered, serving
from servicekit.endpoint import check_answer
from servicekit.errors import Code, Error
from servicekit.mapping import error_id, to_error
from servicekit.metadata import Metadata
from servicekit.wire import Route, Status

from .call_error import CallError
from .context import Context
from .requests import Reader
from .served import Served, ServedCall, too_large
from .status import status_of

if TYPE_CHECKING:
    from servicekit.call import Call
    from servicekit.endpoint import Endpoint
    from servicekit.method import Method
    from servicekit.wire import Incoming

    from .codec import Codec
    from .shapes import Behaviour
    from .shared import Serving

log = logging.getLogger("servicekit")

_OK = Status()


class Handler:
    """Serves one method. Made once; the chain is composed here, and never again."""

    __slots__ = (
        "_begin",
        "_behaviour",
        "_endpoint",
        "_keeps",
        "codec",
        "downloads",
        "encode",
        "largest",
        "method",
        "route",
        "shared",
        "uploads",
    )

    def __init__(self, method: Method, behaviour: Behaviour, codec: Codec, shared: Serving) -> None:
        """Compose the chain of ``shared`` around ``behaviour``."""
        self.method = method
        self.codec = codec
        self.shared = shared
        # Asked at every call: the method's own spelling of them is three look-ups each.
        self.uploads, self.downloads = method.kind.request_streaming, method.kind.response_streaming
        self._behaviour = behaviour
        # Likewise bound here: inside a server every Python function on a call's way costs it a microsecond.
        self.encode = codec.encode if codec.encoder is None else codec.encoder
        self.largest = shared.largest
        self._begin = shared.in_flight.counting(method)
        # Whether a response leaves the chain as it went in: links that promise it say so.
        self._keeps = all(getattr(link, "keeps_messages", False) for link in shared.links.links)
        self._endpoint: Endpoint = shared.links.around(self._attempt, method)
        self.route = Route(kind=method.kind, serve=self.serve)

    async def serve(self, incoming: Incoming) -> None:
        """Serve one RPC, in a task of its own. It is always finished on return.

        Raises only CancelledError, when nobody waits any more.
        """
        shared = self.shared
        head = incoming.head
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a coroutine that runs has one
        served = Served(self, incoming, task)
        call = ServedCall(
            self.method,
            side=Side.SERVER,
            exchange=served,
            clock=shared.clock,
            metadata=Metadata(head.metadata),
            peer=head.peer,
            path=head.path,
            deadline=head.deadline,
        )
        served.root = served.call = call
        self._begin(call)  # counted until served.ended
        incoming.on_end(served.ended)
        enter(call)
        try:
            response = await self._endpoint(served.request(), call)
            data = None if self.downloads else self._data(response, served)
        except asyncio.CancelledError:
            if served.gone is None and not served.stopping and task.cancelling():
                # That count proves nothing: up to Python 3.12 a TaskGroup that fails leaves its own cancellation in it.
                # A wire that has cancelled this says so itself, and a turn later at the latest.
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(0)
            if served.gone is not None:
                served.close(call.outcome(asyncio.CancelledError()), "")
                raise  # the client is gone, or its deadline has passed: nobody reads an answer
            status = self.failed(call, served.ended_by())
        except BaseException as error:  # the last place where a failure can become an answer
            if _ends_the_process(error):  # but the client shall not wait for it
                await served.finish(self.failed(call, Error(Code.UNAVAILABLE, "shutting down")))
                raise
            status = self.failed(call, error)
            if isinstance(error, Error):  # one that is raised again and again would keep all that was at work each time
                error.__traceback__ = None
        else:
            headers, trailers = call.sending()
            served.close(Code.OK, "")
            if headers and not served.headers_sent:
                incoming.send_headers(headers)
            await incoming.finish(Status(trailers=trailers) if trailers else _OK, data)
            if served.insisting is not None:
                await served.insisting
            return
        await served.finish(status)

    def failed(self, call: Call, error: BaseException) -> Status:
        """Return the status that tells the client of ``error``, having written down what it does not tell."""
        known = to_error(error, self.shared.errors)
        reference = error_id(known.trailers)
        if reference is not None and (known is not error or not call.logged):
            # No access log stood in the chain, or none outside of where this came from, and the client gets nothing
            # but the reference: write the reason down.
            log.error("%r failed, error_id %s", call.path[:200], reference, exc_info=known.__cause__)
            call.logged = True
        return status_of(known, _served(call).trailers_of(error))

    async def _attempt(self, request: Any, call: Call) -> Any:  # noqa: C901 - apart, its parts cost every call a frame
        if call.origin is not None and not entered(call):
            with serving(call):
                return await self._attempt(request, call)
        served: Served = call._exchange  # type: ignore[assignment]  # noqa: SLF001 - one chain, one transport
        if call.used or call is not served.call or served.malformed is not None:
            served.begin(call)
        else:  # the first attempt of most calls, and their only one
            call.used = True
        before = 0 if served.task is None else served.task.cancelling()
        reader = Reader(request, call, served.check) if self.uploads else None
        context = served.context = Context(call, served, reader)
        response = None
        error: BaseException | None
        try:
            if reader is None:
                call.received(request, served.size)
                response = await self._behaviour(request, context)
            else:
                response = await self._behaviour(reader, context)
            error = self._concluded(response, call, context, served)
        except asyncio.CancelledError:
            if call.failure is None and _cancelled(served, before):
                raise
            # Nobody cancelled this call: a task of the servicer's own was, and it did not look.
            error = RuntimeError("the servicer raised CancelledError, but its call was not cancelled")
        except BaseException as raised:
            if _ends_the_process(raised):
                raise
            error = self._translated(raised, call, context)
        finally:
            unclosed = None if reader is None else await _closed(reader)
        if served.gone is not None:
            # A servicer that swallowed its cancellation has nobody to answer. Not asked of task.cancelling(): up to
            # Python 3.12 a TaskGroup that fails leaves its own cancellation counted there.
            raise asyncio.CancelledError
        if call.failure is not None:
            error = call.failure
            served.answered()
        error = error or unclosed
        if error is not None:
            served.note(error, call)
            raise error
        if call.origin is not None:
            call.settle()
        return response

    def _concluded(self, response: Any, call: Call, context: Context, served: Served) -> Error | None:
        """Encode the one response and run the hooks for it; return the error that the servicer has set, if it has."""
        verdict = context.verdict()
        if not self.downloads and call.failure is None and verdict is None:
            try:
                data = served.reply = self.encode(response)
            except Exception as error:
                msg = f"the servicer of {self.method.path} returned what cannot be encoded: {type(response).__name__}"
                raise TypeError(msg) from error
            if len(data) > self.largest:
                raise too_large(len(data), self.largest)
            if response is None:
                call.root.answers_none = True
            served.replied = response
            call.sent(response, len(data))
        return verdict

    def _data(self, response: Any, served: Served) -> bytes:
        # Encoded again unless nobody can have changed it: a link may put another message in its place, or write into it.
        if self._keeps and response is served.replied and served.reply is not None:
            return served.reply
        try:
            data = self.encode(response)
        except Exception as error:
            check_answer(response, served.root)
            msg = f"a middleware of {self.method.path} returned what cannot be encoded: {type(response).__name__}"
            raise TypeError(msg) from error
        if len(data) > self.largest:
            raise too_large(len(data), self.largest)
        return data

    def _translated(self, error: BaseException, call: Call, context: Context) -> BaseException:
        """Return what the servicer's exception means, before any middleware sees it."""
        if isinstance(error, grpc.aio.AbortError) and call.failure is not None:
            return call.failure
        if isinstance(error, grpc.aio.AioRpcError):
            return _downstream(error, call) or error
        verdict = context.verdict()
        if verdict is not None and not isinstance(error, Error):
            # The servicer had said how its call ends: generated defaults set UNIMPLEMENTED, and then raise.
            if not isinstance(error, NotImplementedError):
                verdict.__cause__ = error
            return verdict
        # Innermost, so that every link sees the code that the client will, whatever chain the server was given.
        return self._meant(error, call) or error

    def _meant(self, error: BaseException, call: Call) -> Error | None:
        """Return what ``error`` means to the caller; of a group, what all in it agree on, as a TaskGroup's calls may."""
        if isinstance(error, grpc.aio.AioRpcError):
            return _downstream(error, call)
        known = self.shared.errors.find(error)
        if known is not None or not isinstance(error, BaseExceptionGroup):
            return known
        meanings = [self._meant(each, call) for each in error.exceptions]
        first = meanings[0]
        if first is None or any(each is None or each.code is not first.code for each in meanings):
            return None
        return first


def _downstream(error: grpc.aio.AioRpcError, call: Call) -> Error | None:
    """Return what a failed call of the servicer's own means to its caller, never in the other service's words.

    None for what is a stranger, INTERNAL like any other: recovery or the edge logs its text and hides it.
    """
    code = error.code()
    if code is grpc.StatusCode.DEADLINE_EXCEEDED and (
        (isinstance(error, CallError) and error.inherited) or (call.deadline is not None and not call.remaining())
    ):
        translated = deadline_error()
    elif code in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED}:
        translated = Error(Code.UNAVAILABLE, "a service behind this one is unavailable")
    else:
        return None
    translated.__cause__ = error
    return translated


def _ends_the_process(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return error.subgroup((KeyboardInterrupt, SystemExit)) is not None
    return isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit)


def _cancelled(served: Served, before: int) -> bool:
    """Return whether somebody has cancelled the running task since its attempt began, rather than it itself."""
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 - a coroutine that runs has one
    # Inside a task that a middleware has made for this attempt, any cancellation is one.
    return task.cancelling() > (before if task is served.task else 0)


def _served(call: Call) -> Served:
    exchange = call._exchange  # noqa: SLF001 - transport made it
    assert isinstance(exchange, Served)  # noqa: S101 - one chain, one transport
    return exchange


async def _closed(reader: Reader) -> Exception | None:
    """Close the request stream; return what it raises, which must not take the place of how the call has ended."""
    try:
        await reader.aclose()
    except Exception as error:  # noqa: BLE001 - a middleware's own stream may raise anything
        return error
    return None
