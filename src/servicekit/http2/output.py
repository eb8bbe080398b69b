"""What is to be written: frames that are ready, and content that waits for its window and its turn."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from . import frames
from .errors import ConnectionFault, ErrorCode
from .frames import CONTINUATION, DATA, END_HEADERS, END_STREAM, FRAME_HEADER, HEADERS, rst_stream
from .hpack_encoder import HeaderEncoder
from .limits import Limits
from .settings import DEFAULT_FRAME_SIZE, DEFAULT_WINDOW, MOST_WINDOW
from .states import CLOSED, OPEN, SENT_END
from .streams import Fields, Stream, Streams

PIECE = 65_536
"""So much is written at a time: larger pieces cost more than they save, and let streams wait for each other."""

TINY = 1024
"""A window that cuts frames shorter than this is no window that honest peers give (CVE-2019-9511)."""


class Output:
    """The sending half of a connection: the peer's windows and settings, and all octets that wait.

    A stream stands in line (``line``) from when it has content queued and a window to send it in, until its turn; only
    the connection's window can keep the line from moving.
    """

    __slots__ = (
        "_control",
        "_limits",
        "_server",
        "_streams",
        "_waiting",
        "chunks",
        "data_frames",
        "drained",
        "encoder",
        "initial_window",
        "line",
        "max_frame_size",
        "queued",
        "size",
        "updates_owed",
        "window",
    )

    def __init__(self, limits: Limits, streams: Streams, *, server: bool) -> None:
        """Begin with the settings that hold until the peer's come (RFC 9113, section 6.5.2)."""
        self._limits = limits
        self._streams = streams
        self._server = server
        self.chunks: list[bytes | memoryview] = []
        self.size = 0
        """Octets in ``chunks``, about: the hot path leaves out frame headers."""
        self._control = 0
        self.queued = 0
        """Octets in the streams' queues."""
        self.line: list[Stream] = []  # of a hundred at the most; a deque is 700 octets more for each connection
        self._waiting: dict[int, Stream] = {}
        self.drained: list[int] = []
        self.data_frames = 0
        """DATA frames ever sent, but for those that a tiny window cut short."""
        self.window = DEFAULT_WINDOW
        self.initial_window = DEFAULT_WINDOW
        self.max_frame_size = DEFAULT_FRAME_SIZE
        self.encoder = HeaderEncoder(max_table_size=limits.encoder_table_size)
        self.updates_owed = True
        """The next header block must begin with the encoder's size updates (RFC 7541, section 4.2)."""

    def write(self, octets: bytes) -> None:
        """Queue whole frames."""
        self.chunks.append(octets)
        self.size += len(octets)

    def answer(self, octets: bytes) -> None:
        """Queue what a frame of the peer's calls for. Raises ConnectionFault when it leaves too many unread."""
        self.chunks.append(octets)
        self.size += len(octets)
        self._control += len(octets)
        if self._control > self._limits.control_output:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "answers left unread")

    def headers(self, stream_id: int, fields: Fields | bytes, flags: int) -> None:
        """Queue a header section; it is not subject to flow control."""
        if isinstance(fields, bytes):
            block = self.encoder.take_updates() + fields if self.updates_owed else fields
        else:
            block = self.encoder.encode(fields)
        self.updates_owed = False
        most = self.max_frame_size
        if len(block) <= most:
            self.write(frames.frame(HEADERS, flags | END_HEADERS, stream_id, block))
            return
        self.write(frames.frame(HEADERS, flags, stream_id, block[:most]))
        for start in range(most, len(block), most):
            last = END_HEADERS if start + most >= len(block) else 0
            self.write(frames.frame(CONTINUATION, last, stream_id, block[start : start + most]))

    def data(self, stream: Stream, data: bytes | memoryview) -> bool:
        """Queue content, and what seals the stream behind it. Returns whether more is welcome."""
        size = len(data)
        if (
            not self.line
            and not stream.queued
            and size <= stream.send_window
            and size <= self.window
            and size <= self.max_frame_size
            and self.size + size <= PIECE
        ):
            if size or (stream.sealed and stream.trailers is None):
                self._frame(stream, data, last=stream.sealed and stream.trailers is None)
            if stream.sealed:
                self._end(stream)
            return True
        if size:
            if stream.queue is None:
                stream.queue = deque()
            stream.queue.append(data)
            stream.queued += size
            self.queued += size
            self.enqueue(stream)
        elif stream.sealed and not stream.queued:  # nothing that a window or the line could hold back
            if stream.trailers is None:
                self._frame(stream, b"", last=True)
            self._end(stream)
            return True
        limits = self._limits
        if not stream.sealed and stream.queued <= limits.stream_queue and self.size + self.queued <= limits.output:
            return True
        self._waiting[stream.id] = stream
        return False

    def enqueue(self, stream: Stream) -> None:
        """Let a stream stand in line if it has what to send and may."""
        if stream.queued and stream.send_window > 0 and not stream.ready:
            stream.ready = True
            self.line.append(stream)

    def _frame(self, stream: Stream, data: bytes | memoryview, *, last: bool) -> None:
        size = len(data)
        stream.send_window -= size
        self.window -= size
        self.size += size + 9
        self.data_frames += 1
        self.chunks += (FRAME_HEADER.pack(size << 8 | DATA, END_STREAM if last else 0, stream.id), data)

    def _end(self, stream: Stream) -> None:
        """Send the trailers, if there are, and note that END_STREAM is out."""
        if stream.trailers is not None:
            self.headers(stream.id, stream.trailers, END_STREAM)
        self.ended(stream)

    def ended(self, stream: Stream) -> None:
        """Note that END_STREAM is out. A server that has answered wants no more of the request (section 8.1)."""
        if self._server and stream.state == OPEN:
            self.write(rst_stream(stream.id, ErrorCode.NO_ERROR))
            self._streams.remember_reset(stream.id)
            self.forget(stream)
            return
        stream.state = SENT_END[stream.state]
        if stream.state == CLOSED:
            self.forget(stream)

    def forget(self, stream: Stream) -> None:
        """Drop a stream that is over, and what is queued for it."""
        stream.state = CLOSED
        del self._streams.open[stream.id]
        if stream.queued:
            self.queued -= stream.queued
            stream.queued = 0
            stream.queue = None
        if self._waiting:
            self._waiting.pop(stream.id, None)

    def forget_all(self) -> None:
        """Drop every stream; frames that are ready stay."""
        self._streams.open.clear()
        self.line.clear()
        self._waiting.clear()
        self.queued = 0

    def take(self, limit: int) -> bytes:
        """Return the next octets, and give every stream in line its turns until there are ``limit``."""
        line = self.line
        while line and self.window > 0 and self.size < limit:
            stream = line.pop(0)
            stream.ready = False
            if (
                stream.queued and stream.send_window > 0
            ):  # it may have been reset, or its window made negative, meanwhile
                self._turn(stream)
        chunks = self.chunks
        if not chunks:
            return b""
        octets = b"".join(chunks)
        chunks.clear()
        self.size = self._control = 0
        if self._waiting:
            self._let_go_on()
        return octets

    def _turn(self, stream: Stream) -> None:
        """Send one frame of a stream's queue."""
        queue = stream.queue
        if queue is None:
            return
        data = queue[0]
        most = min(stream.send_window, self.window, self.max_frame_size)
        if len(data) > most:
            view = memoryview(data)  # what is left is cut again and again: never copied
            queue[0] = view[most:]
            data = view[:most]
            if most < TINY:
                self.data_frames -= 1
        else:
            queue.popleft()
        size = len(data)
        stream.queued -= size
        self.queued -= size
        over = stream.sealed and not stream.queued
        self._frame(stream, data, last=over and stream.trailers is None)
        if over:
            if self._waiting.pop(stream.id, None) is not None:
                self.drained.append(stream.id)
            self._end(stream)
        else:
            self.enqueue(stream)

    def _let_go_on(self) -> None:
        if self.queued > self._limits.output // 2:
            return
        low = self._limits.stream_queue // 2
        for stream_id in [stream.id for stream in self._waiting.values() if stream.queued <= low and not stream.sealed]:
            del self._waiting[stream_id]
            self.drained.append(stream_id)

    def grow(self, stream: Stream | None, increment: int) -> bool:
        """Add to a stream's window, or to the connection's. Returns False when it would be too large (6.9.1)."""
        if stream is None:
            self.window += increment
            return self.window <= MOST_WINDOW
        stream.send_window += increment
        self.enqueue(stream)
        return stream.send_window <= MOST_WINDOW

    def resize_streams(self, initial: int) -> bool:
        """Apply SETTINGS_INITIAL_WINDOW_SIZE to all open streams; windows may become negative (section 6.9.2)."""
        change = initial - self.initial_window
        self.initial_window = initial
        return min([self.grow(stream, change) for stream in self._streams.open.values()], default=True)

    def resize_table(self, size: int) -> None:
        """Apply SETTINGS_HEADER_TABLE_SIZE."""
        self.encoder.resize(min(size, self._limits.encoder_table_size))
        self.updates_owed = True

    def take_drained(self) -> Sequence[int]:
        """Return the streams whose sender need wait no more, once."""
        if not self.drained:
            return ()
        drained, self.drained = self.drained, []
        return drained
