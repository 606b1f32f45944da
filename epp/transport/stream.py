"""One gRPC call on an HTTP/2 stream: replies into frames, the windows of the stream, and its one end."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import TYPE_CHECKING, Protocol

from epp.transport.call import CloseReason, Stream
from epp.transport.frames import (
    DATA,
    END_HEADERS,
    END_STREAM,
    MESSAGE_HEADER,
    ErrorCode,
    frame_header,
    rst_stream,
)
from epp.transport.headers import RequestHead
from epp.transport.messages import PREFIX, MessageReader
from epp.transport.status import RESOURCE_EXHAUSTED, RESPONSE, trailers

if TYPE_CHECKING:
    from epp.transport.calls import Calls

log = logging.getLogger(__name__)

_pack = MESSAGE_HEADER.pack


class Cancellable(Protocol):
    """A timer."""

    def cancel(self) -> None:
        """Let it not ring."""


class State(IntEnum):
    """Of our half of the stream."""

    FRESH = 0  # no response headers yet
    STREAMING = 1
    FINISHING = 2  # the trailers wait behind queued messages
    CLOSED = 3


_STREAMING = State.STREAMING


class ServerStream:
    """Implements `epp.transport.call.Call`.

    `window`: bytes that the peer lets us send. `credit`: bytes that it may still send. `whole`: a DATA frame that
    holds exactly one plain message can be handed on as it is: no part of a message is kept, the peer has not closed
    its half, nothing has to be counted. `unsent`: bytes queued.
    """

    __slots__ = (
        "_calls",
        "_finish",
        "_offset",
        "_out",
        "_queue",
        "_state",
        "aborted",
        "credit",
        "deliver",
        "expected",
        "gzip",
        "handler",
        "id",
        "in_line",
        "metadata",
        "path",
        "peer",
        "reader",
        "remote_closed",
        "served",
        "starved",
        "timer",
        "unsent",
        "whole",
        "window",
    )

    def __init__(self, calls: Calls, stream_id: int, head: RequestHead, credit: int) -> None:
        self._calls = calls
        self._out = calls.outbox
        self.id = stream_id
        self.path: str = head.path
        self.metadata: Sequence[tuple[bytes, bytes]] = head.metadata
        self.peer: str = calls.peer
        self.window = self._out.stream_window
        self.credit = credit
        self.gzip = head.gzip
        self.expected = head.content_length
        self.whole = head.content_length is None
        self.reader: MessageReader | None = None
        self.handler: Stream | None = None
        self.deliver: Callable[[bytes], None] = _ignore
        self.remote_closed = False
        self.served = False
        self.starved = False
        self.in_line = False
        self.timer: Cancellable | None = None
        self.unsent = 0
        self.aborted: int | None = None
        self._state = State.FRESH
        self._queue: deque[bytes] | None = None
        self._offset = 0  # bytes of the first queued message that have left
        self._finish = b""

    # What the handler calls.

    def send(self, message: bytes) -> None:
        """Queue one message; it leaves with everything else that this wake-up produces."""
        out = self._out
        size = len(message) + PREFIX
        if (
            self._state is _STREAMING
            and not self.unsent
            and size <= out.direct
            and size <= self.window
            and size <= out.window
        ):
            self.window -= size
            out.window -= size
            frames = out.frames
            frames.append(_pack(size << 8, 0, self.id, 0, size - PREFIX))
            frames.append(message)
            if out.quiet:
                out.wake()
        elif self._state is State.FRESH:
            self._state = State.STREAMING
            self._calls.write_headers(self.id, END_HEADERS, RESPONSE)
            self.send(message)
        elif self._state is _STREAMING:
            self._enqueue(message, size)

    def finish(self, code: int = 0, message: str = "") -> None:
        """Write the trailers after everything queued. Later calls do nothing."""
        if self._state < State.FINISHING:
            self._finish = trailers(code, message)
            if self.unsent:
                self._state = State.FINISHING
                self.whole = False  # what still arrives concerns nobody
            else:
                self._write_trailers(CloseReason.FINISHED)

    def abort(self, code: int, message: str) -> None:
        """Drop what is unsent and write the trailers at once.

        A client that has got the beginning of a message could only report nonsense, so that it gets a reset instead.
        """
        if self._state is State.CLOSED:
            return
        self.aborted = code
        cut = self._offset > 0
        self._drop_queue()
        if cut:
            self._out.frames.append(rst_stream(self.id, ErrorCode.INTERNAL_ERROR))
            self._end(CloseReason.ABORTED, reset=True)
        else:
            self._finish = trailers(code, message)
            self._write_trailers(CloseReason.ABORTED)

    # What intake, outbox and calls call.

    def attach(self, handler: Stream) -> None:
        """The handler's side exists now."""
        self.handler = handler
        self.deliver = handler.receive

    @property
    def done(self) -> bool:
        """Whether the handler has finished: it gets no more messages."""
        return self._state >= State.FINISHING

    @property
    def closed(self) -> bool:
        """Whether our half has ended."""
        return self._state is State.CLOSED

    def write_frame(self, room: int) -> int:
        """One DATA frame with at most `room` queued bytes, small messages together; returns its payload's size."""
        queue = self._queue
        assert queue is not None
        pieces: list[bytes] = []
        left = room
        offset = self._offset
        while left and queue:
            piece = queue[0]
            rest = len(piece) - offset
            if rest <= left:
                pieces.append(piece[offset:] if offset else piece)
                queue.popleft()
                left -= rest
                offset = 0
            else:
                pieces.append(piece[offset : offset + left])
                offset += left
                left = 0
        self._offset = offset
        size = room - left
        out = self._out
        out.frames.append(frame_header(size, DATA, 0, self.id))
        out.frames += pieces
        self.window -= size
        out.window -= size
        self._shrink(size)
        if not queue:
            self._queue = None
            if self._state is State.FINISHING:
                self._write_trailers(CloseReason.FINISHED)
        return size

    def drop(self, reason: CloseReason) -> None:
        """The stream is over for a reason outside: nothing is written, the handler hears of it now."""
        if self._state is not State.CLOSED:
            self._drop_queue()
            self._close()
            self.farewell(reason)

    def farewell(self, reason: CloseReason) -> None:
        """Tell the handler, once."""
        handler, self.handler = self.handler, None
        if handler is None:
            return
        self.deliver = _ignore
        try:
            handler.closed(reason)
        except Exception:
            self._out.stats.handler_errors += 1
            log.exception("%s: the handler failed when its stream closed", self.path)

    def _enqueue(self, message: bytes, size: int) -> None:
        if self._queue is None:
            self._queue = deque()
        self._queue.append(b"\0" + (size - PREFIX).to_bytes(4, "big") + message)
        self.unsent += size
        out = self._out
        if out.queued(size):
            out.line_up(self)
        else:
            out.stats.hit("buffered_server")
            self.abort(RESOURCE_EXHAUSTED, "the server keeps too many replies that clients do not take")

    def _write_trailers(self, reason: CloseReason) -> None:
        block = self._finish if self._state is not State.FRESH else RESPONSE + self._finish
        self._calls.write_headers(self.id, END_HEADERS | END_STREAM, block)
        if not self.remote_closed:
            # The client need not send the rest of its request (RFC 9113 section 8.1).
            self._out.frames.append(rst_stream(self.id, ErrorCode.NO_ERROR))
        self._end(reason, reset=not self.remote_closed)

    def _end(self, reason: CloseReason, *, reset: bool) -> None:
        """By our own word: the handler hears of it when what it said is being written, not inside its own call."""
        self._close()
        self._calls.forget(self, reset=reset)
        self._out.ended.append((self, reason))
        self._out.wake()

    def _close(self) -> None:
        self._state = State.CLOSED
        self.whole = False
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        if self.reader is not None:
            self._calls.intake.holds(-self.reader.held)
            self.reader = None

    def _drop_queue(self) -> None:
        self._queue = None
        self._offset = 0
        self.starved = False
        self._shrink(self.unsent)

    def _shrink(self, size: int) -> None:
        if size:
            self.unsent -= size
            self._out.queued(-size)
            if self.starved and self.unsent <= self._out.limits.unsent_stream:
                self.starved = False
                self._calls.intake.replenish(self)


def _ignore(message: bytes) -> None:
    """What arrives for a stream that has ended, or before its handler exists."""
