"""Errors on the wire: an Error as status, google.rpc.Status and pushback, and the way back.

Sources: google/rpc/status.proto and error_details.proto; gRFC A6 for ``grpc-retry-pushback-ms``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status as RichStatus

from servicekit.errors import Code, Error
from servicekit.wire import Status

if TYPE_CHECKING:
    from collections.abc import Iterable

    from google.protobuf.message import Message

    from servicekit.metadata import Metadata, Pairs

DETAILS = "grpc-status-details-bin"
PUSHBACK = "grpc-retry-pushback-ms"

MAX_DETAILS = 6 * 1024
"""Bytes of encoded details. Past 8 KiB of metadata a peer may, past 16 KiB it will, refuse the whole block, and the
client sees RESOURCE_EXHAUSTED in the place of the real code."""

MAX_MESSAGE = 1024
"""Characters of a status message: it travels percent-encoded, so it may triple."""

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
    """Return the status that tells a peer of ``error``, with the call's own trailers merged in.

    Details that would not fit are left out, last first; reason and retry_after stay.
    """
    pairs = list(trailers)
    pairs.extend(pair for pair in error.trailers if pair not in pairs)
    present = {key for key, _ in pairs}
    if error.retry_after is not None and PUSHBACK not in present:
        pairs.append((PUSHBACK, str(round(error.retry_after * 1000)) if error.retry_after >= 0 else "-1"))
    message = error.message if len(error.message) <= MAX_MESSAGE else error.message[: MAX_MESSAGE - 1] + "…"
    if DETAILS not in present and (error.reason or error.details or error.retry_after is not None):
        pairs.append((DETAILS, _rich(error, message)))
    return Status(code=error.code, message=message, trailers=tuple(pairs))


def _rich(error: Error, message: str) -> bytes:
    rich = RichStatus(code=int(error.code), message=message)
    if error.reason:
        rich.details.add().Pack(ErrorInfo(reason=error.reason))
    if error.retry_after is not None and error.retry_after >= 0:
        delay = Duration()
        delay.FromNanoseconds(round(error.retry_after * 1e9))
        rich.details.add().Pack(RetryInfo(retry_delay=delay))
    for detail in error.details:
        packed = AnyMessage()
        packed.Pack(detail)
        if rich.ByteSize() + packed.ByteSize() > MAX_DETAILS:
            break
        rich.details.append(packed)
    return bytes(rich.SerializeToString())


def enrich(error: Error) -> Error:
    """Return ``error``, as a wire made it, with reason, details and retry_after read from its trailers, in place.

    What cannot be read is left out: a peer's malformed details must not hide its code.
    """
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
    except ValueError:
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
    return tuple((key, value) for key, value in trailing)  # type: ignore[attr-defined]  # grpc's own typing is Any
