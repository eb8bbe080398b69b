"""From octets to frames: the receiving half of a connection (RFC 9113, sections 3.4, 4, 6.2 and 6.10).

The loop is flat, and its branches for the two frames that make up a call are written out in it: with a call to a
method for each frame it takes half as long again.
"""

from __future__ import annotations

from . import frames
from .control import Control
from .errors import ConnectionFault, ErrorCode, StreamFault
from .events import Data, Event, RequestReceived
from .frames import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    FRAME_HEADER,
    HEADERS,
    PADDED,
    PREFACE,
    PRIORITISED,
    STREAM_MASK,
    WORD,
)
from .headers import Leads, RequestFields
from .hpack_errors import HeaderListTooLarge, HpackError
from .messages import Messages, unpadded
from .parts import Parts
from .states import CLOSED, HALF_REMOTE, OPEN, RECEIVED_DATA, RECEIVED_DATA_END
from .streams import Stream
from .timers import Timer

_HEADER_SIZE = FRAME_HEADER.size
_TYPE_AT = 3
_PRIORITY_SIZE = 5
_ENDING_HEADERS = END_HEADERS | END_STREAM
_SMALL = 1024  # octets of content in a frame that is put together with the next ones of its stream
_LONGEST_RUN = 8192  # octets of content in those: their credit comes back in one piece


class Inbound:
    """Everything that waits between two reads: a part of a frame, a part of a header block."""

    __slots__ = (
        "_block",
        "_block_flags",
        "_block_of",
        "_control",
        "_credit",
        "_decoder",
        "_greeted",
        "_leads",
        "_limits",
        "_messages",
        "_output",
        "_partial",
        "_self_dependent",
        "_server",
        "_settled",
        "_streams",
        "_timers",
        "_wanted",
    )

    def __init__(self, parts: Parts, control: Control) -> None:
        """Take the parts of the connection that frames act upon."""
        self._server = parts.server
        self._limits = parts.limits
        self._streams = parts.streams
        self._output = parts.output
        self._credit = parts.credit
        self._timers = parts.timers
        self._decoder = parts.decoder
        self._control = control
        self._messages = Messages(parts, control)
        self._leads = Leads()
        self._partial = bytearray()
        self._wanted = 0
        self._greeted = not parts.server  # only clients say the preface
        self._settled = False  # the first frame must be SETTINGS (3.4)
        self._block: list[bytes] | None = None
        self._block_of = 0
        self._block_flags = 0
        self._self_dependent = False

    def parse(self, data: bytes, now: float, events: list[Event]) -> None:
        """Append the events of all whole frames; keep what is left. Raises ConnectionFault."""
        if self._partial:
            if len(self._partial) + len(data) < self._wanted:
                self._partial += data
                return
            data = b"".join((self._partial, data))  # a copy less than through what is kept
            self._partial.clear()
        position = 0
        if not self._settled:
            position = self._begin(data)
            if not self._settled:
                self._keep(data, position, now)
                return
        position = self._frames(data, position, now, events)
        self._control.measure(now)
        if position < len(data):
            self._keep(data, position, now)
        elif self._block is None and self._timers.runs(Timer.HEADERS):
            self._timers.stop(Timer.HEADERS)

    def _frames(  # noqa: C901, PLR0915 - flat: this runs for every frame
        self, data: bytes, position: int, now: float, events: list[Event]
    ) -> int:
        """Handle whole frames; return where the first one that is not whole begins."""
        unpack = FRAME_HEADER.unpack_from
        streams = self._streams
        opened = streams.open
        credit = self._credit
        most = self._limits.max_frame_size
        decode = self._decoder.decode
        append = events.append
        messages = self._messages
        leads = self._leads
        serving = self._server and streams.last_id is None
        end = len(data)
        while end - position >= _HEADER_SIZE:
            word, flags, stream_id = unpack(data, position)
            size = word >> 8
            if size > most:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, f"a frame of {size} octets")  # 4.2
            start = position + _HEADER_SIZE
            stop = start + size
            if stop > end:
                break
            position = stop
            kind = word & 0xFF
            try:
                if self._block is not None:
                    self._continue(kind, flags, stream_id & STREAM_MASK, data[start:stop], now, events)
                elif kind == DATA:
                    stream = opened.get(stream_id)
                    if stream is None or flags > END_STREAM or not size or not stream.plain:
                        messages.data(flags, stream_id & STREAM_MASK, data[start:stop], now, events)
                        continue
                    credit.window -= size
                    stream.receive_window -= size
                    state = RECEIVED_DATA_END[stream.state] if flags else RECEIVED_DATA[stream.state]
                    if state < 0 or credit.window < 0 or stream.receive_window < 0:
                        messages.refuse_data(stream_id, state, size)
                    content = data[start:stop]
                    if not flags and size <= _SMALL and end - position > _HEADER_SIZE:
                        position, more, flags = self._run(data, position, stream)
                        if more:
                            content = b"".join((content, *more))
                            size = len(content)
                            if flags:
                                state = RECEIVED_DATA_END[stream.state]
                    credit.lent += size
                    append(Data(stream_id, content, size, flags == END_STREAM))
                    stream.state = state
                    if state == CLOSED:
                        self._output.forget(stream)
                elif (
                    kind == HEADERS
                    and serving
                    and flags | END_STREAM == _ENDING_HEADERS
                    and stream_id == streams.highest + 2
                    and len(opened) < self._limits.max_concurrent_streams
                ):
                    streams.highest = stream_id
                    try:
                        block = decode(data[start:stop])
                    except (HpackError, HeaderListTooLarge) as error:
                        messages.undecoded(stream_id, error)
                    fields = block.memo
                    if type(fields) is not RequestFields:
                        fields = leads.request(stream_id, block)
                    if fields.content_length is not None:
                        messages.open(stream_id, fields, flags, now, events)
                        continue
                    ends = flags == _ENDING_HEADERS
                    opened[stream_id] = Stream(
                        stream_id, HALF_REMOTE if ends else OPEN, self._output.initial_window, credit.stream_size
                    )
                    streams.opened_at = now
                    append(RequestReceived(stream_id, fields, ends))
                elif kind == HEADERS:
                    self._headers(flags, stream_id & STREAM_MASK, data[start:stop], now, events)
                else:
                    self._control.handle(kind, flags, stream_id & STREAM_MASK, data[start:stop], now, events)
            except StreamFault as fault:
                self._control.refuse(fault, now, events)
        return position

    def _run(self, data: bytes, position: int, stream: Stream) -> tuple[int, list[bytes], int]:
        """Return where a run of small DATA frames of ``stream`` ends, their contents, and the flags of the last.

        They make one event with the frame before them: an event for each costs as much as all else about a small
        message. What is wrong in any way ends the run, and is judged by itself.
        """
        unpack = FRAME_HEADER.unpack_from
        credit = self._credit
        contents: list[bytes] = []
        end = len(data)
        room = min(credit.window, stream.receive_window, _LONGEST_RUN)
        left = room
        flags = 0
        while not flags and end - position > _HEADER_SIZE:
            word, flags, stream_id = unpack(data, position)
            size = word >> 8
            start = position + _HEADER_SIZE
            if (
                word & 0xFF != DATA
                or stream_id != stream.id
                or flags > END_STREAM
                or not 0 < size <= left
                or size > _SMALL
                or start + size > end
            ):
                flags = 0
                break
            left -= size
            position = start + size
            contents.append(data[start:position])
        credit.window -= room - left
        stream.receive_window -= room - left
        return position, contents, flags

    def _begin(self, data: bytes) -> int:
        """Check the preface and that SETTINGS follow it (section 3.4); return where they begin."""
        position = 0
        if not self._greeted:
            if not PREFACE.startswith(data[: len(PREFACE)]):
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "no HTTP/2 preface")
            if len(data) < len(PREFACE):
                return 0
            self._greeted = True
            position = len(PREFACE)
        if len(data) - position >= _HEADER_SIZE:
            if data[position + _TYPE_AT] != frames.SETTINGS or data[position + _TYPE_AT + 1] & frames.ACK:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "no SETTINGS after the preface")
            self._settled = True
            self._timers.stop(Timer.PREFACE)
        return position

    def _keep(self, data: bytes, position: int, now: float) -> None:
        """Keep a part of a frame until the rest comes. Fields must not take too long to come."""
        left = len(data) - position
        self._partial += data[position:] if position else data
        self._wanted = _HEADER_SIZE
        if not self._greeted:
            self._wanted = len(PREFACE)
        elif left >= _HEADER_SIZE:
            self._wanted += FRAME_HEADER.unpack_from(data, position)[0] >> 8
        if self._block is None:  # else its time runs already
            if left <= _TYPE_AT or data[position + _TYPE_AT] != HEADERS:
                self._timers.stop(Timer.HEADERS)
            elif position or not self._timers.runs(Timer.HEADERS):
                self._timers.start(Timer.HEADERS, now)

    # Fields in pieces

    def _headers(self, flags: int, stream_id: int, payload: bytes, now: float, events: list[Event]) -> None:
        """Handle any HEADERS frame (6.2)."""
        if flags & PADDED:
            payload = unpadded(payload)
        self._self_dependent = False
        if flags & PRIORITISED:
            if len(payload) < _PRIORITY_SIZE:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "HEADERS too short for their priority")
            self._self_dependent = WORD.unpack_from(payload)[0] & STREAM_MASK == stream_id
            payload = payload[_PRIORITY_SIZE:]
        if flags & END_HEADERS:
            self._messages.section(flags, stream_id, payload, now, events, self_dependent=self._self_dependent)
            return
        self._block = [payload]
        self._block_of = stream_id
        self._block_flags = flags
        self._timers.start(Timer.HEADERS, now)

    def _continue(  # noqa: PLR0913, PLR0917 - the parts of a frame
        self, kind: int, flags: int, stream_id: int, payload: bytes, now: float, events: list[Event]
    ) -> None:
        """Within a header block, nothing but its CONTINUATIONs may come (4.3, 6.10)."""
        block = self._block
        if block is None or kind != CONTINUATION or stream_id != self._block_of:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a header block interrupted by another frame")
        block.append(payload)
        if len(block) > self._limits.continuations + 1:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "too many CONTINUATIONs")
        if flags & END_HEADERS:
            self._block = None
            self._messages.section(
                self._block_flags, stream_id, b"".join(block), now, events, self_dependent=self._self_dependent
            )
