"""One gRPC call on an HTTP/2 stream: messages out of frames, messages into frames, windows, and the one end."""

from __future__ import annotations

import zlib
from collections import deque
from typing import TYPE_CHECKING

from epp.transport.call import CloseReason, Stream
from epp.transport.frames import DATA, END_HEADERS, END_STREAM, HEADERS, ErrorCode, StreamFault, frame_header
from epp.transport.headers import RESPONSE, Metadata, trailers

if TYPE_CHECKING:
    from epp.transport.connection import Connection

GRPC_INTERNAL = 13
GRPC_UNIMPLEMENTED = 12
GRPC_RESOURCE_EXHAUSTED = 8


class MessageTooLargeError(Exception):
    """A message above the limit; the call ends with RESOURCE_EXHAUSTED."""

    def __init__(self, size: int) -> None:
        super().__init__(f"message of {size} bytes")
        self.size = size


class ServerStream:
    """Implements `epp.transport.call.Call`.

    `window` is what the peer lets us send; `credit` what it may still send us; `consumed` what it sent since we last
    gave credit. `unsent` counts queued bytes.
    """

    __slots__ = (
        "_buffer",
        "_connection",
        "_cut",
        "_gzip",
        "_need",
        "_queue",
        "_response_sent",
        "_trailers",
        "closed",
        "consumed",
        "credit",
        "handler",
        "id",
        "metadata",
        "path",
        "peer",
        "ready",
        "remote_closed",
        "served",
        "unsent",
        "window",
    )

    def __init__(
        self, connection: Connection, stream_id: int, path: str, metadata: Metadata, window: int, credit: int
    ) -> None:
        self._connection = connection
        self.id = stream_id
        self.path = path
        self.metadata = metadata
        self.peer = connection.peer
        self.window = window
        self.credit = credit
        self.consumed = 0
        self.unsent = 0
        self.handler: Stream | None = None
        self.remote_closed = False
        self.closed = False
        self.served = False
        self.ready = False
        self._gzip = False
        self._cut = False  # the first queued piece continues a message that the peer has the beginning of
        self._buffer: bytearray | None = None
        self._need = 5
        self._queue: deque[bytes] | None = None
        self._response_sent = False
        self._trailers: bytes | None = None

    def accept_gzip(self) -> None:
        """The client said `grpc-encoding: gzip`."""
        self._gzip = True

    # What the handler calls.

    def send(self, message: bytes) -> None:
        """Queue one message."""
        if self._trailers is not None or self.closed:
            return
        framed = b"\0" + len(message).to_bytes(4, "big") + message
        self._connection.send_data(self, framed)

    def finish(self, code: int = 0, message: str = "") -> None:
        """Trailers after everything queued."""
        if self._trailers is not None or self.closed:
            return
        self._trailers = trailers(code, message)
        if not self._queue:
            self._connection.end(self)

    def abort(self, code: int, message: str) -> None:
        """Trailers now; what is unsent is dropped. A message that was cut cannot be completed: reset instead."""
        if self.closed:
            return
        if self._queue:
            self._connection.dropped(self.unsent)
            self._queue.clear()
            self.unsent = 0
            if self._cut:
                self._connection.reset(self, ErrorCode.INTERNAL_ERROR, CloseReason.ABORTED)
                return
        self._trailers = trailers(code, message)
        self._connection.end(self, CloseReason.ABORTED)

    # What the connection calls: out.

    def opening(self) -> bytes:
        """The response headers, once; empty afterwards."""
        if self._response_sent:
            return b""
        self._response_sent = True
        return frame_header(len(RESPONSE), HEADERS, END_HEADERS, self.id) + RESPONSE

    def enqueue(self, framed: bytes) -> None:
        """Keep what the windows do not admit now."""
        if self._queue is None:
            self._queue = deque()
        self._queue.append(framed)
        self.unsent += len(framed)

    @property
    def waiting(self) -> bool:
        """Whether something is queued."""
        return bool(self._queue)

    @property
    def finishing(self) -> bool:
        """Whether `finish` was called."""
        return self._trailers is not None

    def next_frame(self, room: int) -> bytes:
        """One DATA frame of at most `room` bytes of payload from the queue; several small messages share it."""
        queue = self._queue
        if queue is None:
            return b""
        taken: list[bytes] = []
        left = room
        while queue and left:
            piece = queue[0]
            if len(piece) <= left:
                taken.append(piece)
                left -= len(piece)
                queue.popleft()
                self._cut = False
            else:
                taken.append(piece[:left])
                queue[0] = piece[left:]
                self._cut = True
                left = 0
        payload = b"".join(taken)
        self.unsent -= len(payload)
        self.window -= len(payload)
        return frame_header(len(payload), DATA, 0, self.id) + payload

    def ending(self) -> bytes:
        """The trailers, and the response headers if nothing was sent before."""
        block = self._trailers or trailers(GRPC_INTERNAL, "")
        if not self._response_sent:
            self._response_sent = True
            block = RESPONSE + block
        return frame_header(len(block), HEADERS, END_HEADERS | END_STREAM, self.id) + block

    # What the connection calls: in.

    def data(self, frame: bytes, start: int, end: int, limit: int) -> None:
        """Payload of a DATA frame, `frame[start:end]`: hand every complete message to the handler.

        Raises `StreamFault` or `MessageTooLargeError`.
        """
        buffer = self._buffer
        if buffer is not None:
            buffer += memoryview(frame)[start:end]
            if len(buffer) < self._need:
                return
            frame, start, end = bytes(buffer), 0, len(buffer)
            self._buffer = None
        while end - start >= 5:
            length = int.from_bytes(frame[start + 1 : start + 5], "big")
            if length > limit:
                raise MessageTooLargeError(length)
            stop = start + 5 + length
            if stop > end:
                self._need = 5 + length
                break
            self._message(frame[start], frame[start + 5 : stop], limit)
            start = stop
            if self.closed:
                return
        else:
            self._need = 5
        if start < end:
            self._buffer = bytearray(memoryview(frame)[start:end])

    def _message(self, flag: int, message: bytes, limit: int) -> None:
        if flag:
            message = self._decompressed(flag, message, limit)
        self.served = True
        handler = self.handler
        if handler is not None:
            handler.receive(message)

    def _decompressed(self, flag: int, message: bytes, limit: int) -> bytes:
        if flag != 1 or not self._gzip:
            raise StreamFault(self.id, ErrorCode.PROTOCOL_ERROR, "compressed message without grpc-encoding: gzip")
        inflater = zlib.decompressobj(31)
        try:
            inflated = inflater.decompress(message, limit + 1)
        except zlib.error as error:
            raise StreamFault(self.id, ErrorCode.PROTOCOL_ERROR, f"gzip: {error}") from error
        if len(inflated) > limit:
            raise MessageTooLargeError(len(inflated))
        return inflated

    @property
    def incomplete(self) -> int:
        """Bytes of the message that is still coming in."""
        return len(self._buffer) if self._buffer is not None else 0
