"""What a peer sends on its calls: DATA into messages for the handlers, and the credit that lets it send more.

Credit comes back half a window at a time, and not at all to a peer that leaves its replies lying: it cannot make us
keep ever more.
"""

from __future__ import annotations

import logging

from epp.transport import nuisance
from epp.transport.frames import END_STREAM, ErrorCode, StreamFault, window_update
from epp.transport.limits import Limits, TransportStats
from epp.transport.messages import MessageError, MessageReader
from epp.transport.outbox import Outbox
from epp.transport.status import INTERNAL, RESOURCE_EXHAUSTED
from epp.transport.stream import ServerStream

log = logging.getLogger(__name__)


class Intake:
    """Of one connection. `credit`: bytes that the peer may still send on it; `low_stream`: see `replenish`."""

    __slots__ = ("_allowance", "_held", "_limits", "_outbox", "_stats", "credit", "low_stream")

    def __init__(self, *, limits: Limits, stats: TransportStats, outbox: Outbox, allowance: nuisance.Allowance) -> None:
        self._limits = limits
        self._stats = stats
        self._outbox = outbox
        self._allowance = allowance
        self._held = 0  # bytes of incomplete messages
        self.credit = limits.connection_window
        self.low_stream = limits.stream_window // 2

    def accept(self, stream: ServerStream, flags: int, length: int, data: bytes, start: int, stop: int) -> None:
        """A DATA frame of `length` bytes that holds `data[start:stop]`. Raises `StreamFault`."""
        if stream.remote_closed:
            raise StreamFault(ErrorCode.STREAM_CLOSED, "DATA after END_STREAM")
        stream.credit -= length
        if stream.credit < 0:
            raise StreamFault(ErrorCode.FLOW_CONTROL_ERROR, "DATA beyond the stream's window")
        if stream.expected is not None:
            stream.expected -= stop - start
        if start < stop:
            self._read(stream, data, start, stop)
        elif not flags & END_STREAM:
            self._allowance.charge(nuisance.EMPTY_DATA, "empty DATA")
        if flags & END_STREAM:
            self.half_close(stream)
        elif stream.credit < self.low_stream:
            self.replenish(stream)

    def half_close(self, stream: ServerStream) -> None:
        """The client has sent all it had. Raises `StreamFault` when that is not what it announced."""
        if stream.expected:
            raise StreamFault(ErrorCode.PROTOCOL_ERROR, "DATA does not add up to content-length")
        stream.remote_closed = True
        stream.whole = False
        if stream.done:
            return
        if stream.reader is not None:
            stream.abort(INTERNAL, "the request ended within a message")
        elif stream.handler is not None:
            try:
                stream.handler.half_closed()
            except Exception:
                self.handler_failed(stream)

    def handler_failed(self, stream: ServerStream) -> None:
        """Called while its exception is handled: the call ends, nothing else is hurt."""
        self._stats.handler_errors += 1
        log.exception("%s: the handler failed, the call ends with INTERNAL", stream.path)
        stream.abort(INTERNAL, "internal error")

    def replenish(self, stream: ServerStream) -> None:
        """Let the peer send more on a stream of which less than `low_stream` is left, unless replies lie there."""
        if stream.credit >= self.low_stream or stream.remote_closed or stream.closed:
            return
        if stream.unsent > self._limits.unsent_stream:
            stream.starved = True
            return
        increment = self._limits.stream_window - stream.credit
        stream.credit += increment
        stream.served = True
        self._outbox.frames.append(window_update(stream.id, increment))
        self._outbox.wake()

    def replenish_connection(self) -> None:
        """The same for the connection; called when less than half of its window is left."""
        if self._outbox.unsent <= self._limits.unsent_connection:
            increment = self._limits.connection_window - self.credit
            self.credit += increment
            self._outbox.frames.append(window_update(0, increment))

    def holds(self, size: int) -> None:
        """Account for `size` bytes more (or less) of incomplete messages."""
        self._held += size
        self._stats.buffered += size

    def _read(self, stream: ServerStream, data: bytes, start: int, stop: int) -> None:
        """Messages, or pieces of them."""
        if stream.done:
            return
        reader = stream.reader
        if reader is None:
            reader = stream.reader = MessageReader(self._limits.message, gzip=stream.gzip)
        held = reader.held
        try:
            messages = reader.feed(data, start, stop)
        except MessageError as error:
            if error.code == RESOURCE_EXHAUSTED:
                self._stats.hit("message")
            self.holds(reader.held - held)
            stream.abort(error.code, error.reason)
            return
        self.holds(reader.held - held)
        if reader.held:
            stream.whole = False
            if self._held > self._limits.unread or self._stats.buffered > self._limits.buffered_server:
                self._stats.hit("unread" if self._held > self._limits.unread else "buffered_server")
                stream.abort(RESOURCE_EXHAUSTED, "too many bytes in incomplete messages")
                return
        else:
            stream.reader = None
            stream.whole = stream.expected is None
        if messages:
            stream.served = True
            self._allowance.earn(len(messages))
        for message in messages:
            if stream.done:
                return
            try:
                stream.deliver(message)
            except Exception:
                self.handler_failed(stream)
