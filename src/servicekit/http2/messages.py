"""What content and fields do to their streams, in every case that is not the plain one (RFC 9113, 5.1, 6.1, 8.1)."""

from __future__ import annotations

from typing import NoReturn

from . import headers
from .control import Control
from .errors import ConnectionFault, ErrorCode, StreamFault
from .events import Data, Event, RequestReceived, ResponseReceived, Trailers
from .frames import END_STREAM, PADDED, rst_stream, window_update
from .headers import RequestFields
from .hpack_decoder import HeaderBlock
from .hpack_errors import HeaderListTooLarge, HpackError
from .parts import Parts
from .states import (
    CLOSED,
    CLOSED_ERROR,
    HALF_REMOTE,
    IDLE,
    IGNORE,
    OPEN,
    PROTOCOL,
    RECEIVED_DATA,
    RECEIVED_DATA_END,
    RECEIVED_HEADERS,
    RECEIVED_HEADERS_END,
    STREAM_ERROR,
)
from .streams import Stream


class Messages:
    """Requests and responses as they come in, part by part."""

    __slots__ = ("_control", "_credit", "_decoder", "_limits", "_output", "_server", "_streams")

    def __init__(self, parts: Parts, control: Control) -> None:
        """Take the parts of the connection that messages act upon."""
        self._server = parts.server
        self._limits = parts.limits
        self._streams = parts.streams
        self._output = parts.output
        self._credit = parts.credit
        self._decoder = parts.decoder
        self._control = control

    # Content

    def data(self, flags: int, stream_id: int, payload: bytes, now: float, events: list[Event]) -> None:
        """Handle DATA that is padded, empty, bound by a content-length, or on a stream that is not open (6.1)."""
        size = len(payload)
        end = bool(flags & END_STREAM)
        state = self._streams.state_of(stream_id)
        after = (RECEIVED_DATA_END if end else RECEIVED_DATA)[state]
        if after == PROTOCOL:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "DATA on an idle stream")  # 5.1, 6.1
        self._credit.window -= size
        if flags & PADDED:
            payload = unpadded(payload)
        if not payload and not end:
            self._control.spend(now)
        stream = self._streams.open.get(stream_id)
        if stream is not None:
            stream.receive_window -= size
        if stream is None or after < 0 or self._credit.window < 0 or stream.receive_window < 0:
            self.refuse_data(stream_id, after, size)
            return
        if not self._server and not stream.begun:
            self._drop(size)
            raise StreamFault(stream_id, ErrorCode.PROTOCOL_ERROR, "content before the headers")  # 8.1
        if stream.remaining >= 0:
            stream.remaining -= len(payload)
            if stream.remaining < 0 or (end and stream.remaining):
                self._drop(size)
                raise StreamFault(stream_id, ErrorCode.PROTOCOL_ERROR, "malformed: not the content-length")  # 8.1.1
        self._credit.lent += size
        events.append(Data(stream_id, payload, size, end))
        stream.state = after
        if after == CLOSED:
            self._output.forget(stream)

    def refuse_data(self, stream_id: int, verdict: int, size: int) -> None:
        """Say why DATA, already counted, is not welcome."""
        if self._credit.window < 0:
            raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "more content than the connection's window")  # 6.9.1
        self._drop(size)
        if verdict == STREAM_ERROR:
            raise StreamFault(stream_id, ErrorCode.STREAM_CLOSED, "DATA on a closed stream")  # 5.1
        if verdict != IGNORE:
            raise StreamFault(stream_id, ErrorCode.FLOW_CONTROL_ERROR, "more content than the stream's window")  # 6.9.1

    def _drop(self, size: int) -> None:
        """Give back the connection's credit for content that nobody will take (6.9)."""
        self._credit.taken += size
        increment = self._credit.due()
        if increment:
            self._output.answer(window_update(0, increment))

    # Fields

    def section(  # noqa: C901, PLR0913 - the order is the rules': the table first, then the connection, then the stream
        self, flags: int, stream_id: int, octets: bytes, now: float, events: list[Event], *, self_dependent: bool
    ) -> None:
        """Handle a whole header block: it is decoded in any case, for the table's sake (4.3)."""
        block: HeaderBlock | None = None
        try:
            block = self._decoder.decode(octets)
        except HpackError as error:
            self.undecoded(stream_id, error)
        except HeaderListTooLarge:
            pass  # told below, if the stream is one that can be told
        streams = self._streams
        state = streams.state_of(stream_id)
        after = (RECEIVED_HEADERS_END if flags & END_STREAM else RECEIVED_HEADERS)[state]
        if after == PROTOCOL or (state == IDLE and not (self._server and stream_id & 1)):
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "HEADERS on a stream that its sender cannot open")  # 5.1.1
        if after == CLOSED_ERROR:
            raise ConnectionFault(ErrorCode.STREAM_CLOSED, "HEADERS on a closed stream")  # 5.1
        if after == IGNORE:
            self._control.spend(now)
            return
        if state == IDLE:
            if stream_id != streams.highest + 2:
                streams.skip(stream_id)
            streams.highest = stream_id
            if streams.last_id is not None:  # it could not know, so it is no fault
                streams.remember_reset(stream_id)
                self._output.answer(rst_stream(stream_id, ErrorCode.REFUSED_STREAM))
                return
            if len(streams.open) >= self._limits.max_concurrent_streams:
                raise StreamFault(stream_id, ErrorCode.REFUSED_STREAM, "too many streams at once")  # 5.1.2
        if after == STREAM_ERROR:
            raise StreamFault(stream_id, ErrorCode.STREAM_CLOSED, "HEADERS after END_STREAM")  # 5.1
        if self_dependent:
            raise StreamFault(stream_id, ErrorCode.PROTOCOL_ERROR, "a stream that depends on itself")  # RFC 7540, 5.3.1
        if block is None:
            raise StreamFault(stream_id, ErrorCode.ENHANCE_YOUR_CALM, "too large a header list")  # 10.5.1
        if state == IDLE:
            self.open(stream_id, headers.request(stream_id, block), flags, now, events)
        else:
            self._more_fields(streams.open[stream_id], block, after, now, events)

    def undecoded(self, stream_id: int, error: HpackError | HeaderListTooLarge) -> NoReturn:
        """Say what a block that cannot be decoded, or is too large, ends."""
        if isinstance(error, HpackError):
            raise ConnectionFault(ErrorCode.COMPRESSION_ERROR, str(error)) from error  # 4.3
        raise StreamFault(stream_id, ErrorCode.ENHANCE_YOUR_CALM, "too large a header list") from error  # 10.5.1

    def open(self, stream_id: int, fields: RequestFields, flags: int, now: float, events: list[Event]) -> None:
        """Begin a request."""
        end = flags & END_STREAM != 0
        stream = Stream(stream_id, HALF_REMOTE if end else OPEN, self._output.initial_window, self._credit.stream_size)
        if fields.content_length is not None:
            if end and fields.content_length:
                raise StreamFault(stream_id, ErrorCode.PROTOCOL_ERROR, "malformed: no content, but a content-length")
            stream.remaining = fields.content_length
            stream.plain = False
        self._streams.open[stream_id] = stream
        self._streams.opened_at = now
        events.append(RequestReceived(stream_id, fields, end))

    def _more_fields(self, stream: Stream, block: HeaderBlock, after: int, now: float, events: list[Event]) -> None:
        """Handle fields on an open stream: a response's, or trailers (8.1)."""
        end = after in (HALF_REMOTE, CLOSED)
        if self._server or stream.begun:
            if not end:
                raise StreamFault(stream.id, ErrorCode.PROTOCOL_ERROR, "malformed: fields within the content")
            if stream.remaining > 0:
                raise StreamFault(stream.id, ErrorCode.PROTOCOL_ERROR, "malformed: not the content-length")
            events.append(Trailers(stream.id, headers.trailers(stream.id, block)))
        else:
            fields = headers.response(stream.id, block)
            if fields.status < 200:  # interim responses
                if end:
                    raise StreamFault(stream.id, ErrorCode.PROTOCOL_ERROR, "malformed: an interim response at the end")
                self._control.spend(now)
                return
            stream.begun = True
            stream.plain = fields.content_length is None
            if fields.content_length is not None:
                stream.remaining = fields.content_length
            events.append(ResponseReceived(stream.id, fields, end))
        stream.state = after
        if after == CLOSED:
            self._output.forget(stream)


def unpadded(payload: bytes) -> bytes:
    """Return a payload without its padding (6.1, 6.2)."""
    if not payload or payload[0] >= len(payload):
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "padding longer than its frame")
    return payload[1 : len(payload) - payload[0]]
