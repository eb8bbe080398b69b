"""Errors on the wire: an Error as status, google.rpc.Status and pushback, and the way back.

Sources: google/rpc/status.proto and error_details.proto; gRFC A6 for ``grpc-retry-pushback-ms``.
"""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status as RichStatus

from servicekit.errors import Code, Error
from servicekit.metadata import check
from servicekit.wire import Status

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from google.protobuf.message import Message

    from servicekit.metadata import Metadata, Pairs

DETAILS = "grpc-status-details-bin"
PUSHBACK = "grpc-retry-pushback-ms"

MAX_DETAILS = 4608
"""Bytes of encoded details: 6 KiB in base64. Past 8 KiB of metadata a peer may, past 16 KiB it will, refuse the whole
block, and the client sees RESOURCE_EXHAUSTED in the place of the real code."""

MAX_MESSAGE = 1024
"""Bytes of a status message as it travels, percent-encoded: what is not printable ASCII takes three for each byte."""

MAX_DELAY = 2_147_483.0
"""Seconds of ``retry_after``, some 24 days: what 32 bits of milliseconds hold."""

log = logging.getLogger("servicekit")

GRPC_CODES = {code: status for status in grpc.StatusCode for code in Code if code == status.value[0]}
CODES = {status: code for code, status in GRPC_CODES.items()}

# Details arrive as Any: these are the types that can be read back without the receiver's help.
_KNOWN: dict[str, type[Message]] = {
    f"google.rpc.{name}": getattr(error_details_pb2, name)
    for name in error_details_pb2.DESCRIPTOR.message_types_by_name
}


def code_from(code: object) -> Code:
    """Return the Code of a grpc.StatusCode, its number or a Code; UNKNOWN for anything else, as gRPC does."""
    if isinstance(code, grpc.StatusCode):
        return CODES[code]
    try:
        return Code(code)  # type: ignore[arg-type]  # what is no number is refused by it
    except ValueError:
        return Code.UNKNOWN


def status_of(error: Error, trailers: Metadata) -> Status:
    """Return the status that tells a peer of ``error``, with the call's own trailers merged in. Never raises.

    Details that would not fit are left out, last first; reason and retry_after stay. So is what cannot be sent at all:
    a mistake in an error must not hide its code.
    """
    pairs = list(trailers)
    pairs.extend(pair for pair in error.trailers if pair not in pairs and _may_travel(pair))
    present = {key for key, _ in pairs}
    delay = _delay(error)
    if delay is not None and PUSHBACK not in present:
        pairs.append((PUSHBACK, str(round(delay * 1000)) if delay >= 0 else "-1"))
    message = _shortened(error.message if isinstance(error.message, str) else str(error.message))
    if DETAILS in present:  # the servicer's own, by abort_with_status
        pairs = [(key, _trimmed(value) if key == DETAILS else value) for key, value in pairs]
    elif error.reason or error.details or delay is not None:
        pairs.append((DETAILS, _rich(error, message, delay)))
    return Status(code=error.code, message=message, trailers=tuple(pairs))


def _may_travel(pair: tuple[str, str | bytes]) -> bool:
    try:
        key, value = pair
        check(key, value)
    except (TypeError, ValueError) as error:
        log.error("an error's trailing metadata was left out: %s", error)  # noqa: TRY400 - it names the key
        return False
    return True


def _delay(error: Error) -> float | None:
    delay = error.retry_after
    if delay is not None and not isinstance(delay, int | float):
        log.error("an error's retry_after was left out: %r is no number of seconds", delay)
        return None
    return None if delay is None or math.isnan(delay) else max(-1.0, min(delay, MAX_DELAY))


def _shortened(message: str) -> str:
    text = message.encode(errors="replace").decode()  # a lone surrogate travels nowhere
    room = MAX_MESSAGE
    for index, character in enumerate(text):
        room -= _width(character)
        if room < 0:
            room += _width(character)
            while room < _width("…"):
                index -= 1  # noqa: PLW2901 - back to where there is room for the mark
                room += _width(text[index])
            return text[:index] + "…"
    return text


def _width(character: str) -> int:
    return 1 if " " <= character <= "~" and character != "%" else 3 * len(character.encode())


def _rich(error: Error, message: str, delay: float | None) -> bytes:
    rich = RichStatus(code=int(error.code), message=message)
    if error.reason:
        _add(rich, lambda: ErrorInfo(reason=error.reason))
    if delay is not None and delay >= 0:
        wait = Duration()
        wait.FromNanoseconds(round(delay * 1e9))
        _add(rich, lambda: RetryInfo(retry_delay=wait))
    for detail in error.details:
        if not _add(rich, lambda: detail):  # noqa: B023 - called at once
            break
    return bytes(rich.SerializeToString())


def _add(rich: RichStatus, make: Callable[[], Message]) -> bool:
    packed = AnyMessage()
    try:
        packed.Pack(make())
    except Exception as error:  # noqa: BLE001 - logged, without the place, which says nothing
        log.error("a detail of an error was left out: %s", error)  # noqa: TRY400 - as above
        return True
    if rich.ByteSize() + packed.ByteSize() > MAX_DETAILS:
        return False
    rich.details.append(packed)
    return True


def _trimmed(value: str | bytes) -> bytes:
    assert isinstance(value, bytes)  # noqa: S101 - metadata is checked where it is written
    if len(value) <= MAX_DETAILS:
        return value
    try:
        rich = RichStatus.FromString(value)
    except DecodeError:
        return b""
    rich.message = _shortened(rich.message)
    while rich.details and rich.ByteSize() > MAX_DETAILS:
        rich.details.pop()
    return bytes(rich.SerializeToString())


def enrich(error: Error) -> Error:
    """Return ``error``, as a wire made it, with reason, details and retry_after read from its trailers, in place.

    What cannot be read is left out: a peer's malformed details must not hide its code. Its metadata becomes plain
    tuples: what core gives for them can be neither copied nor pickled.
    """
    error.headers, error.trailers = as_tuple(error.headers), as_tuple(error.trailers)
    for key, value in error.trailers:
        if key == PUSHBACK and isinstance(value, str):
            error.retry_after = _pushback(value)
        elif key == DETAILS and isinstance(value, bytes):
            try:
                rich = RichStatus.FromString(value)
            except DecodeError:
                continue
            error.details = tuple(_unpack(rich.details))
    info = error.detail(ErrorInfo)
    if info is not None:
        error.reason = info.reason
    retry = error.detail(RetryInfo)
    if retry is not None and error.retry_after is None:
        error.retry_after = retry.retry_delay.ToNanoseconds() / 1e9
    return error


def _pushback(text: str) -> float:
    # gRFC A6: what is not a number of milliseconds means "do not retry", as a negative one does.
    try:
        return max(-1.0, int(text) / 1000)
    except (OverflowError, ValueError):
        return -1.0


def _unpack(details: Iterable[AnyMessage]) -> Iterable[Message]:
    for packed in details:
        kind = _KNOWN.get(packed.TypeName())
        if kind is None:
            yield packed
            continue
        try:
            yield kind.FromString(packed.value)
        except DecodeError:
            yield packed


def as_tuple(trailing: object) -> Pairs:
    """Return trailing metadata as grpc's own API takes it (None, a sequence of pairs, grpc.aio.Metadata) as pairs."""
    if not trailing:
        return ()
    if isinstance(trailing, dict | str):
        msg = f"metadata is a sequence of (key, value), not {type(trailing).__name__}"
        raise TypeError(msg)
    return tuple((key, value) for key, value in trailing)  # type: ignore[attr-defined]  # grpc's own typing is Any
