"""One HTTP/2 connection of a gRPC server, without I/O: bytes in by `receive`, bytes out by `take`.

Every complete message in what was read is handed to its stream at once, and everything the streams answer is gathered
until `take`: one read of the socket leads to one write, however many streams it served.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Final

from epp.transport import frames, nuisance
from epp.transport.call import CloseReason, Handler
from epp.transport.frames import HEADER, MAX_WINDOW, MESSAGE_HEADER, ConnectionFault, ErrorCode, StreamFault
from epp.transport.headers import HeaderDecoder, MalformedError
from epp.transport.limits import Limits, TransportStats
from epp.transport.messages import PREFIX, MessageError, MessageReader
from epp.transport.outbox import Outbox
from epp.transport.status import (
    DEADLINE_EXCEEDED,
    INTERNAL,
    RESOURCE_EXHAUSTED,
    UNAVAILABLE,
    UNIMPLEMENTED,
    trailers_only,
)
from epp.transport.stream import Cancellable, ServerStream

log = logging.getLogger(__name__)

_DRAIN_PING: Final = b"draining"
_REMEMBERED_RESETS: Final = 4096
_NOBODY: Final[dict[int, ServerStream]] = {}


class Connection:
    """`wake` is called when there is something to take although nothing was received (late replies).

    `clock` gives seconds (monotonic) and paces the nuisance allowance; `call_later` arms deadlines. When `over` is
    true, `take` once more and close. A handler that fails ends its own call with INTERNAL and is logged.
    """

    def __init__(
        self,
        handlers: Mapping[str, Handler],
        *,
        limits: Limits,
        stats: TransportStats,
        clock: Callable[[], float],
        call_later: Callable[[float, Callable[[], None]], Cancellable],
        wake: Callable[[], None],
        peer: str = "",
    ) -> None:
        self.peer = peer
        self.streams: dict[int, ServerStream] = {}
        self.outbox = Outbox(limits=limits, stats=stats, wake=wake)
        self.greeted = False
        self.dead = False
        self._handlers = handlers
        self._limits = limits
        self._stats = stats
        self._call_later = call_later
        self._allowance = nuisance.Allowance(limits.nuisance, limits.nuisance_per_second, clock)
        self._decoder = HeaderDecoder(header_list=limits.header_list, headers=limits.headers)
        self._settled = False  # the peer's first SETTINGS have come
        self._rest = b""
        self._last_id = 0
        self._draining = False
        self._last_served: int | None = None  # set by the final GOAWAY
        self._resets: dict[int, None] = {}  # streams that we reset; frames for them may still be under way
        self._block: bytearray | None = None  # a header block that CONTINUATION frames still extend
        self._block_stream = 0
        self._block_flags = 0
        self._table_update = b""
        self._credit = limits.connection_window
        self._low_credit = limits.connection_window // 2
        self._low_stream_credit = limits.stream_window // 2
        self._any_frame_fits = limits.message >= limits.frame_size
        self._held = 0  # bytes of incomplete messages
        self.outbox.frames += (
            frames.settings(
                {
                    frames.SETTINGS_MAX_CONCURRENT_STREAMS: limits.concurrent_streams,
                    frames.SETTINGS_INITIAL_WINDOW_SIZE: limits.stream_window,
                    frames.SETTINGS_MAX_FRAME_SIZE: limits.frame_size,
                    frames.SETTINGS_MAX_HEADER_LIST_SIZE: limits.header_list,
                }
            ),
        )
        if limits.connection_window > frames.DEFAULT_WINDOW:
            self.outbox.frames.append(frames.window_update(0, limits.connection_window - frames.DEFAULT_WINDOW))
        self._on: Final = (
            self._on_data,
            self._on_headers,
            self._on_priority,
            self._on_reset,
            self._on_settings,
            self._on_push_promise,
            self._on_ping,
            self._on_goaway,
            self._on_window_update,
            self._on_continuation,
        )

    # Bytes in, bytes out.

    def receive(self, data: bytes) -> None:
        """Everything the peer sent since the last call, cut anywhere."""
        if self.dead:
            return
        self.outbox.quiet = False
        try:
            if self._rest:
                data = self._rest + data
                self._rest = b""
            start = 0
            if not self.greeted:
                if len(data) < len(frames.PREFACE) and frames.PREFACE.startswith(data):
                    self._rest = data
                    return
                if not data.startswith(frames.PREFACE):
                    raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "no HTTP/2 preface")
                self.greeted = True
                start = len(frames.PREFACE)
            self._frames(data, start)
            if self._credit < self._low_credit:
                self._replenish_connection()
        except ConnectionFault as fault:
            self._fail(fault)

    def take(self) -> bytes:
        """Bytes for the peer."""
        outbox = self.outbox
        if outbox.ready:
            outbox.pump()
        if outbox.ended:
            outbox.say_farewell()
        # Only now: what has just left, or was dropped, may be what the credit waited for, and a peer that is out of
        # credit and has its windows wide open sends nothing that would bring us back here.
        if self._credit < self._low_credit and not self.dead:
            self._replenish_connection()
        return outbox.take()

    @property
    def over(self) -> bool:
        """Whether nothing will be received or sent any more."""
        return self.dead or (self._last_served is not None and not self.streams)

    def drain(self) -> None:
        """Ask the peer to open no more streams. What it opened before it heard that is served; then `over` is true.

        First a GOAWAY that excludes nothing, and a PING: all that was sent before the peer heard of it comes before
        the answer. Then, or when `seal` is called because no answer came, the GOAWAY that names the last stream.
        """
        if not self._draining and not self.dead:
            self._draining = True
            self.outbox.frames += (frames.goaway(MAX_WINDOW, ErrorCode.NO_ERROR), frames.ping(_DRAIN_PING))
            self.outbox.wake()

    def seal(self) -> None:
        """The second step of `drain`: later streams are refused."""
        if self._last_served is None and not self.dead:
            self._draining = True
            self._last_served = self._last_id
            self.outbox.frames.append(frames.goaway(self._last_id, ErrorCode.NO_ERROR))
            self.outbox.wake()

    def terminate(self) -> None:
        """The server ends: open calls get UNAVAILABLE."""
        self.seal()
        for stream in list(self.streams.values()):
            stream.abort(UNAVAILABLE, "the server is shutting down")

    def lost(self, reason: CloseReason = CloseReason.DISCONNECTED) -> None:
        """The connection is gone: every open stream hears of it."""
        self.dead = True
        self._rest = b""
        self._block = None
        self.outbox.ready.clear()
        ended, self.outbox.ended = self.outbox.ended, []
        for stream, how in ended:
            stream.farewell(how)
        for stream in list(self.streams.values()):
            self.forget(stream, reset=False)
            stream.drop(reason)

    # What streams call.

    def write_headers(self, stream_id: int, flags: int, block: bytes) -> None:
        """A HEADERS frame."""
        if self._table_update:
            block = self._table_update + block
            self._table_update = b""
        self.outbox.frames.append(frames.frame_header(len(block), frames.HEADERS, flags, stream_id) + block)

    def forget(self, stream: ServerStream, *, reset: bool) -> None:
        """A stream has ended; `reset`: by us, so that the peer may still be sending on it."""
        if self.streams.pop(stream.id, None) is not None:
            self._stats.streams -= 1
        if reset:
            self._remember_reset(stream.id)

    def holds(self, size: int) -> None:
        """Account for `size` bytes more (or less) of incomplete messages."""
        self._held += size
        self._stats.buffered += size

    def replenish(self, stream: ServerStream) -> None:
        """Let the peer send more on a stream, unless it leaves its replies lying."""
        if stream.credit >= self._low_stream_credit or stream.remote_closed or stream.closed:
            return
        if stream.unsent > self._limits.unsent_stream:
            stream.starved = True
            return
        increment = self._limits.stream_window - stream.credit
        stream.credit += increment
        stream.served = True
        self.outbox.frames.append(frames.window_update(stream.id, increment))
        self.outbox.wake()

    # Frames.

    def _frames(self, data: bytes, start: int) -> None:
        """Handle all complete frames and keep the rest."""
        end = len(data)
        largest = self._limits.frame_size
        low = self._low_stream_credit
        read_header = HEADER.unpack_from
        read_message_header = MESSAGE_HEADER.unpack_from
        plain = self._streams_for_data()
        received = messages = 0
        while end - start >= 9:
            if end - start >= 14:
                word, flags, stream_id, compressed, size = read_message_header(data, start)
            else:
                word, flags, stream_id = read_header(data, start)
                compressed, size = 1, 0
            length = word >> 8
            if length > largest:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, f"a frame of {length} bytes, the limit is {largest}")
            stop = start + 9 + length
            if stop > end:
                break
            if not word & 0xFF and not flags and not compressed and size + PREFIX == length:
                stream = plain.get(stream_id)
                if stream is not None and stream.whole:
                    # The usual frame: DATA with one whole message and nothing to keep.
                    received += length
                    messages += 1
                    credit = stream.credit - length
                    stream.credit = credit
                    if credit < low:
                        self._low(stream)
                    try:
                        stream.deliver(data[start + 14 : stop])
                    except Exception:
                        self._handler_failed(stream)
                    start = stop
                    continue
            self._frame(word & 0xFF, flags, stream_id & MAX_WINDOW, data, start + 9, stop)
            start = stop
            plain = self._streams_for_data()
        if received:
            self._credit -= received
            self._allowance.earn(messages)
        if self._credit < 0:
            raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "DATA beyond the connection's window")
        self._rest = data[start:] if start < end else b""

    def _streams_for_data(self) -> dict[int, ServerStream]:
        """Streams that may get DATA unchecked: none before SETTINGS and inside a header block."""
        return self.streams if self._settled and self._block is None and self._any_frame_fits else _NOBODY

    def _frame(self, kind: int, flags: int, stream_id: int, data: bytes, start: int, stop: int) -> None:
        if not self._settled and (kind != frames.SETTINGS or flags & frames.ACK):
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "the first frame is not SETTINGS")
        if self._block is not None and (kind != frames.CONTINUATION or stream_id != self._block_stream):
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a header block is interrupted by another frame")
        if kind >= len(self._on):
            self._charge(nuisance.UNKNOWN, "unknown frames")
            return
        try:
            self._on[kind](flags, stream_id, data, start, stop)
        except StreamFault as fault:
            self._reset(stream_id, fault)

    def _on_data(self, flags: int, stream_id: int, data: bytes, start: int, stop: int) -> None:
        length = stop - start
        self._credit -= length
        if stream_id == 0:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "DATA on the connection")
        if flags & frames.PADDED:
            start, stop = frames.unpad(data, start, stop)
        stream = self.streams.get(stream_id)
        if stream is None:
            self._stray(stream_id, "DATA")
            return
        if stream.remote_closed:
            raise StreamFault(ErrorCode.STREAM_CLOSED, "DATA after END_STREAM")
        stream.credit -= length
        if stream.credit < 0:
            raise StreamFault(ErrorCode.FLOW_CONTROL_ERROR, "DATA beyond the stream's window")
        if stream.expected is not None:
            stream.expected -= stop - start
        if start < stop:
            self._read(stream, data, start, stop)
        elif not flags & frames.END_STREAM:
            self._charge(nuisance.EMPTY_DATA, "empty DATA")
        if flags & frames.END_STREAM:
            self._half_close(stream)
        elif stream.credit < self._low_stream_credit:
            self.replenish(stream)

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
                self._handler_failed(stream)

    def _half_close(self, stream: ServerStream) -> None:
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
                self._handler_failed(stream)

    def _on_headers(self, flags: int, stream_id: int, data: bytes, start: int, stop: int) -> None:
        if stream_id % 2 == 0:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"HEADERS on stream {stream_id}")
        if flags & frames.PADDED:
            start, stop = frames.unpad(data, start, stop)
        if flags & frames.HAS_PRIORITY:
            start += 5
            if start > stop:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "HEADERS too short for its priority")
        block = data[start:stop]
        if flags & frames.END_HEADERS:
            self._on_block(stream_id, flags, block)
        else:
            self._block, self._block_stream, self._block_flags = bytearray(block), stream_id, flags

    def _on_continuation(self, flags: int, stream_id: int, data: bytes, start: int, stop: int) -> None:
        if self._block is None:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "CONTINUATION without HEADERS")
        self._charge(nuisance.CONTINUATION, "CONTINUATION")
        self._block += data[start:stop]
        if len(self._block) > self._limits.header_block:
            self._stats.hit("header_block")
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "a header block is too large")
        if flags & frames.END_HEADERS:
            block = bytes(self._block)
            self._block = None
            self._on_block(stream_id, self._block_flags, block)

    def _on_block(self, stream_id: int, flags: int, block: bytes) -> None:
        stream = self.streams.get(stream_id)
        if stream is not None:
            self._on_trailers(stream, flags, block)
        elif stream_id > self._last_id:
            self._last_id = stream_id
            self._open(stream_id, flags, block)
        elif stream_id in self._resets:
            self._decoder.skip(block)
            self._charge(nuisance.STRAY, "HEADERS on reset streams")
        else:
            raise ConnectionFault(ErrorCode.STREAM_CLOSED, f"HEADERS on stream {stream_id}, which is closed")

    def _on_trailers(self, stream: ServerStream, flags: int, block: bytes) -> None:
        try:
            self._decoder.trailers(block)
        except MalformedError as error:
            raise StreamFault(ErrorCode.PROTOCOL_ERROR, str(error)) from error
        if stream.remote_closed:
            raise StreamFault(ErrorCode.STREAM_CLOSED, "HEADERS after END_STREAM")
        if not flags & frames.END_STREAM:
            raise StreamFault(ErrorCode.PROTOCOL_ERROR, "trailers without END_STREAM")
        self._half_close(stream)

    def _open(self, stream_id: int, flags: int, block: bytes) -> None:
        try:
            head = self._decoder.request(block)
        except MalformedError as error:
            raise StreamFault(ErrorCode.PROTOCOL_ERROR, str(error)) from error
        ends = bool(flags & frames.END_STREAM)
        if self._last_served is not None:
            self._refuse(stream_id)
            return
        if len(self.streams) >= self._limits.concurrent_streams:
            self._stats.hit("concurrent_streams")
            self._refuse(stream_id)
            return
        handler = self._handlers.get(head.path)
        refusal = head.refusal
        if refusal is None and handler is None:
            refusal = trailers_only(UNIMPLEMENTED, f"unknown method {head.path}")
        if refusal is not None or handler is None:
            self._charge(nuisance.REFUSED, "requests that are no call")
            self.write_headers(stream_id, frames.END_HEADERS | frames.END_STREAM, refusal or b"")
            if not ends:
                self.outbox.frames.append(frames.rst_stream(stream_id, ErrorCode.NO_ERROR))
                self._remember_reset(stream_id)
            return
        stream = ServerStream(self, stream_id, head, self._limits.stream_window)
        self.streams[stream_id] = stream
        self._stats.streams += 1
        self._stats.streams_total += 1
        try:
            stream.attach(handler(stream))
        except Exception:
            self._handler_failed(stream)
            return
        if head.timeout is not None and not stream.done:
            stream.timer = self._call_later(
                head.timeout, lambda: stream.abort(DEADLINE_EXCEEDED, "the deadline of the call has passed")
            )
        if ends:
            self._half_close(stream)

    def _refuse(self, stream_id: int) -> None:
        """The client may send the request again, elsewhere or later: it has not been looked at."""
        self._charge(nuisance.REFUSED, "refused streams")
        self.outbox.frames.append(frames.rst_stream(stream_id, ErrorCode.REFUSED_STREAM))
        self._remember_reset(stream_id)

    def _on_reset(self, flags: int, stream_id: int, data: bytes, start: int, stop: int) -> None:
        frames.word(data[start:stop], "RST_STREAM")
        stream = self.streams.get(stream_id)
        if stream is None:
            self._seen(stream_id, "RST_STREAM")
            return
        self.forget(stream, reset=False)
        if not stream.served and stream.credit == self._limits.stream_window:
            self._charge(nuisance.USELESS_RESET, "resets of streams that never sent a message")
        stream.drop(CloseReason.RESET)

    def _on_window_update(self, flags: int, stream_id: int, data: bytes, start: int, stop: int) -> None:
        increment = frames.word(data[start:stop], "WINDOW_UPDATE") & MAX_WINDOW
        if increment < nuisance.SMALL_INCREMENT:
            self._charge(nuisance.SMALL_WINDOW_UPDATE, "small WINDOW_UPDATEs")
        outbox = self.outbox
        if stream_id == 0:
            outbox.window += increment
            if increment == 0:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE of 0")
            if outbox.window > MAX_WINDOW:
                raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "the connection's window is too large")
            outbox.pump()  # those who wait come before new replies
            return
        stream = self.streams.get(stream_id)
        if stream is None:
            self._seen(stream_id, "WINDOW_UPDATE")
            return
        if increment == 0:
            raise StreamFault(ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE of 0")
        stream.window += increment
        if stream.window > MAX_WINDOW:
            raise StreamFault(ErrorCode.FLOW_CONTROL_ERROR, "the stream's window is too large")
        if stream.unsent:
            outbox.line_up(stream)

    def _on_settings(self, flags: int, stream_id: int, data: bytes, start: int, stop: int) -> None:
        if stream_id:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "SETTINGS on a stream")
        if flags & frames.ACK:
            if start < stop:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "SETTINGS acknowledgement with a payload")
            return
        self._settled = True
        self._charge(nuisance.SETTINGS, "SETTINGS")
        for key, value in frames.parse_settings(data[start:stop]):
            if key == frames.SETTINGS_INITIAL_WINDOW_SIZE:
                self._set_stream_windows(value)
            elif key == frames.SETTINGS_MAX_FRAME_SIZE:
                if not frames.DEFAULT_FRAME_SIZE <= value <= frames.MAX_FRAME_SIZE:
                    raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"SETTINGS_MAX_FRAME_SIZE {value}")
                # Larger frames than the default would only make others wait longer.
            elif key == frames.SETTINGS_ENABLE_PUSH and value > 1:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"SETTINGS_ENABLE_PUSH {value}")
            elif key == frames.SETTINGS_HEADER_TABLE_SIZE:
                # We put nothing into the peer's table, but a smaller one has to be acknowledged in the next block
                # (RFC 7541 section 4.2): size 0, whatever it is.
                self._table_update = b"\x20"
        self.outbox.frames.append(frames.SETTINGS_ACK)

    def _set_stream_windows(self, value: int) -> None:
        if value > MAX_WINDOW:
            raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, f"SETTINGS_INITIAL_WINDOW_SIZE {value}")
        outbox = self.outbox
        change = value - outbox.stream_window
        outbox.stream_window = value
        for stream in self.streams.values():
            stream.window += change
            if stream.window > MAX_WINDOW:
                raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "a stream's window is too large")
            if stream.unsent:
                outbox.line_up(stream)

    def _on_ping(self, flags: int, stream_id: int, data: bytes, start: int, stop: int) -> None:
        if stream_id:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "PING on a stream")
        if stop - start != 8:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, f"PING of {stop - start} bytes")
        payload = data[start:stop]
        if not flags & frames.ACK:
            self._charge(nuisance.PING, "PING")
            self.outbox.urgent.append(frames.ping_ack(payload))
        elif payload == _DRAIN_PING and self._draining:
            self.seal()

    def _on_priority(self, flags: int, stream_id: int, data: bytes, start: int, stop: int) -> None:
        if stream_id == 0:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "PRIORITY on the connection")
        if stop - start != 5:
            raise StreamFault(ErrorCode.FRAME_SIZE_ERROR, f"PRIORITY of {stop - start} bytes")
        self._charge(nuisance.PRIORITY, "PRIORITY")

    def _on_push_promise(self, flags: int, stream_id: int, data: bytes, start: int, stop: int) -> None:
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "PUSH_PROMISE from a client")

    def _on_goaway(self, flags: int, stream_id: int, data: bytes, start: int, stop: int) -> None:
        if stream_id:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "GOAWAY on a stream")
        if stop - start < 8:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, f"GOAWAY of {stop - start} bytes")
        self._charge(nuisance.UNKNOWN, "GOAWAY")  # the peer closes by itself when its streams have ended

    # Credit, ends, errors.

    def _low(self, stream: ServerStream) -> None:
        """Less than half of a stream's credit is left."""
        if stream.credit < 0:
            self._reset(stream.id, StreamFault(ErrorCode.FLOW_CONTROL_ERROR, "DATA beyond the stream's window"))
        else:
            self.replenish(stream)

    def _replenish_connection(self) -> None:
        """Half a window at a time; none while the peer leaves its replies lying, it cannot make us keep ever more."""
        if self.outbox.unsent <= self._limits.unsent_connection:
            increment = self._limits.connection_window - self._credit
            self._credit += increment
            self.outbox.frames.append(frames.window_update(0, increment))

    def _seen(self, stream_id: int, what: str) -> None:
        """A frame for a stream that is not open: fine when it was."""
        if stream_id == 0 or stream_id % 2 == 0 or stream_id > self._last_id:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"{what} on stream {stream_id}, which was never opened")

    def _stray(self, stream_id: int, what: str) -> None:
        """DATA for a stream that is not open: it may have been under way when we reset the stream."""
        self._seen(stream_id, what)
        self._charge(nuisance.STRAY, f"{what} on closed streams")
        if stream_id not in self._resets:
            raise StreamFault(ErrorCode.STREAM_CLOSED, f"{what} on stream {stream_id}, which is closed")

    def _remember_reset(self, stream_id: int) -> None:
        resets = self._resets
        resets[stream_id] = None
        if len(resets) > _REMEMBERED_RESETS:
            del resets[next(iter(resets))]

    def _charge(self, points: int, what: str) -> None:
        if not self._allowance.charge(points):
            self._stats.hit("nuisance")
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, f"too many frames without use, the last: {what}")

    def _reset(self, stream_id: int, fault: StreamFault) -> None:
        self._stats.fault(fault.code.name)
        log.info("stream %d from %s is reset, %s: %s", stream_id, self.peer, fault.code.name, fault)
        self.outbox.frames.append(frames.rst_stream(stream_id, fault.code))
        stream = self.streams.get(stream_id)
        if stream is not None:
            self.forget(stream, reset=True)
            stream.drop(CloseReason.ABORTED)
        else:
            self._remember_reset(stream_id)
        self._charge(nuisance.FAULT, "stream errors")

    def _fail(self, fault: ConnectionFault) -> None:
        self._stats.fault(fault.code.name)
        log.info("connection from %s ends, %s: %s", self.peer, fault.code.name, fault)
        self.lost(CloseReason.ABORTED)
        self.outbox.frames.append(frames.goaway(self._last_id, fault.code, fault.reason))
        self.outbox.wake()

    def _handler_failed(self, stream: ServerStream) -> None:
        self._stats.handler_errors += 1
        log.exception("%s: the handler failed, the call ends with INTERNAL", stream.path)
        stream.abort(INTERNAL, "internal error")
