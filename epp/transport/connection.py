"""One HTTP/2 connection of a gRPC server, without I/O: bytes in by `receive`, bytes out by `take`.

Every complete message in what was read is handed to its stream at once, and everything the streams answer is gathered
until `take`: one read of the socket leads to one write, however many streams it served.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Mapping

from epp.transport import frames
from epp.transport.call import CloseReason, Handler
from epp.transport.frames import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HAS_PRIORITY,
    HEADERS,
    MAX_WINDOW,
    PADDED,
    PING,
    PREFACE,
    PRIORITY,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    ConnectionFault,
    ErrorCode,
    StreamFault,
    frame_header,
)
from epp.transport.headers import HeaderDecoder, Metadata, plain_response
from epp.transport.limits import Limits, TransportStats
from epp.transport.stream import (
    GRPC_INTERNAL,
    GRPC_RESOURCE_EXHAUSTED,
    GRPC_UNIMPLEMENTED,
    MessageTooLargeError,
    ServerStream,
)

log = logging.getLogger(__name__)

_NUISANCE_SECONDS = 10.0


class Connection:
    """`wake` is called when there is something to take although nothing was received (late replies).

    `now` gives seconds; it only paces the count of useless frames. After `failed` is set, `take` once more and close.
    """

    def __init__(
        self,
        handlers: Mapping[str, Handler],
        *,
        limits: Limits,
        stats: TransportStats,
        now: Callable[[], float],
        wake: Callable[[], None],
        peer: str = "",
    ) -> None:
        self.peer = peer
        self.streams: dict[int, ServerStream] = {}
        self.failed = False
        self.refusing = False  # no stream above the last one is served any more
        self.greeted = False
        self.unsent = 0
        self.writable = True
        self._handlers = handlers
        self._limits = limits
        self._stats = stats
        self._now = now
        self._wake = wake
        self._receiving = False
        self._settled = False
        self._rest = b""
        self._last_id = 0
        self._accept_up_to = MAX_WINDOW
        self._headers = HeaderDecoder(header_list=limits.header_list, headers=limits.headers)
        self._block: bytearray | None = None  # a header block that CONTINUATION frames still extend
        self._block_stream = 0
        self._block_flags = 0
        self._window = frames.DEFAULT_WINDOW  # what the peer lets us send
        self._peer_stream_window = frames.DEFAULT_WINDOW
        self._peer_frame_size = frames.DEFAULT_FRAME_SIZE
        self._credit = limits.connection_window  # what the peer may still send
        self._consumed = 0
        self._incomplete = 0
        self._ready: deque[ServerStream] = deque()
        self._nuisance = 0
        self._nuisance_since = now()
        self._out: list[bytes] = [
            frames.settings(
                {
                    frames.SETTINGS_MAX_CONCURRENT_STREAMS: limits.concurrent_streams,
                    frames.SETTINGS_INITIAL_WINDOW_SIZE: limits.stream_window,
                    frames.SETTINGS_MAX_FRAME_SIZE: limits.frame_size,
                    frames.SETTINGS_MAX_HEADER_LIST_SIZE: limits.header_list,
                }
            ),
            frames.window_update(0, limits.connection_window - frames.DEFAULT_WINDOW),
        ]

    # Bytes in, bytes out.

    def receive(self, data: bytes) -> None:
        """Everything the peer sent since the last call, cut anywhere."""
        if self.failed:
            return
        self._receiving = True
        try:
            if self._rest:
                data = self._rest + data
            position = 0
            if not self.greeted:
                position = self._preface(data)
            self._rest = data[self._frames(data, position) :] if self.greeted else data
        except ConnectionFault as fault:
            self._fail(fault)
        finally:
            self._receiving = False

    def take(self) -> bytes:
        """Bytes for the peer."""
        if self._ready and self.writable:
            self._pump()
        out = self._out
        if not out:
            return b""
        self._out = []
        return b"".join(out)

    def lost(self, reason: CloseReason = CloseReason.DISCONNECTED) -> None:
        """The connection is gone: every open stream hears of it."""
        self.failed = True
        self._ready.clear()
        for stream in list(self.streams.values()):
            self._forget(stream, reason)

    def go_away(self, *, final: bool) -> None:
        """Tell the peer to open no more streams: first a warning, then with the last stream that is served."""
        if final:
            self.refusing = True
            self._accept_up_to = self._last_id
        self._out.append(frames.goaway(self._accept_up_to, ErrorCode.NO_ERROR))
        self._touch()

    def resume(self) -> None:
        """The socket takes bytes again."""
        self.writable = True
        self._touch()

    # What streams call.

    def send_data(self, stream: ServerStream, framed: bytes) -> None:
        """One framed gRPC message: out at once when windows admit it, else into the queue."""
        out = self._out
        opening = stream.opening()
        if opening:
            out.append(opening)
        size = len(framed)
        if (
            stream.waiting
            or not self.writable
            or size > stream.window
            or size > self._window
            or size > self._peer_frame_size
        ):
            stream.enqueue(framed)
            self.unsent += size
            if self.unsent > self._limits.unsent_ceiling:
                self._stats.hit("unsent_ceiling")
                self._fail(ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "the peer takes no replies"))
                return
            self._make_ready(stream)
        else:
            stream.window -= size
            self._window -= size
            out.append(frame_header(size, DATA, 0, stream.id))
            out.append(framed)
        if not self._receiving:
            self._wake()

    def end(self, stream: ServerStream, reason: CloseReason = CloseReason.FINISHED) -> None:
        """Write the trailers; the stream is over on our side, and with that over."""
        self._out.append(stream.ending())
        if not stream.remote_closed:
            # The peer need not send the rest of its request.
            self._out.append(frames.rst_stream(stream.id, ErrorCode.NO_ERROR))
        self._forget(stream, reason)
        self._touch()

    def reset(self, stream: ServerStream, code: ErrorCode, reason: CloseReason) -> None:
        """End a stream without trailers."""
        self._out.append(frames.rst_stream(stream.id, code))
        self._forget(stream, reason)
        self._touch()

    def dropped(self, size: int) -> None:
        """A stream gave up `size` queued bytes."""
        self.unsent -= size

    # Frames.

    def _preface(self, data: bytes) -> int:
        if len(data) < len(PREFACE):
            if not PREFACE.startswith(data):
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "this port speaks HTTP/2 (gRPC) only")
            return 0
        if not data.startswith(PREFACE):
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "this port speaks HTTP/2 (gRPC) only")
        self.greeted = True
        return len(PREFACE)

    def _frames(self, data: bytes, position: int) -> int:
        """Handle all complete frames; returns where the incomplete rest begins."""
        size = len(data)
        limit = self._limits.frame_size
        while size - position >= 9:
            word = int.from_bytes(data[position : position + 4], "big")
            length, kind = word >> 8, word & 0xFF
            if length > limit:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, f"frame of {length} bytes, the limit is {limit}")
            end = position + 9 + length
            if end > size:
                break
            flags = data[position + 4]
            stream_id = int.from_bytes(data[position + 5 : position + 9], "big") & 0x7FFFFFFF
            try:
                if kind == DATA and self._block is None and self._settled:
                    self._on_data(data, position + 9, end, flags, stream_id)
                else:
                    self._on_other(kind, flags, stream_id, data[position + 9 : end])
            except StreamFault as fault:
                self._stream_fault(fault)
            position = end
            if self.failed:
                return size
        return position

    def _on_data(self, data: bytes, start: int, end: int, flags: int, stream_id: int) -> None:
        length = end - start
        self._credit -= length
        if self._credit < 0:
            raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "DATA beyond the connection's window")
        self._consumed += length
        self._give_connection_credit()
        if flags & PADDED:
            payload = frames.unpad(data[start:end])
            data, start, end = payload, 0, len(payload)
        stream = self.streams.get(stream_id)
        if stream is None:
            self._unknown_stream(stream_id, "DATA")
            return
        if stream.remote_closed:
            raise StreamFault(stream_id, ErrorCode.STREAM_CLOSED, "DATA after END_STREAM")
        stream.credit -= length
        if stream.credit < 0:
            raise StreamFault(stream_id, ErrorCode.FLOW_CONTROL_ERROR, "DATA beyond the stream's window")
        stream.consumed += length
        if end > start:
            self._messages(stream, data, start, end)
        elif not flags & END_STREAM:
            self._useless("empty DATA")
        if stream.closed:
            return
        if flags & END_STREAM:
            self._half_close(stream)
        elif stream.consumed * 2 > self._limits.stream_window:
            self._give_stream_credit(stream)

    def _messages(self, stream: ServerStream, data: bytes, start: int, end: int) -> None:
        before = stream.incomplete
        try:
            stream.data(data, start, end, self._limits.message)
        except StreamFault:
            raise
        except MessageTooLargeError as error:
            self._stats.hit("message")
            text = f"received message of {error.size} bytes, the limit is {self._limits.message}"
            stream.abort(GRPC_RESOURCE_EXHAUSTED, text)
        except Exception:
            self._handler_failed(stream)
        finally:
            self._incomplete += (0 if stream.closed else stream.incomplete) - before
        if self._incomplete > self._limits.unread:
            self._stats.hit("unread")
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "too many bytes in incomplete messages")

    def _half_close(self, stream: ServerStream) -> None:
        stream.remote_closed = True
        if stream.incomplete:
            stream.abort(GRPC_INTERNAL, "the stream ended within a message")
            return
        if stream.handler is not None:
            try:
                stream.handler.half_closed()
            except Exception:
                self._handler_failed(stream)

    def _on_other(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        if not self._settled:
            if kind != SETTINGS or flags & ACK:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "the first frame is not SETTINGS")
            self._settled = True
        if self._block is not None and (kind != CONTINUATION or stream_id != self._block_stream):
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a header block was interrupted by another frame")
        if kind == HEADERS:
            self._on_headers(flags, stream_id, payload)
        elif kind == RST_STREAM:
            self._on_reset(stream_id, payload)
        elif kind == WINDOW_UPDATE:
            self._on_window_update(stream_id, payload)
        elif kind == SETTINGS:
            self._on_settings(flags, stream_id, payload)
        elif kind == PING:
            self._on_ping(flags, stream_id, payload)
        elif kind == CONTINUATION:
            self._on_continuation(flags, payload)
        elif kind == PRIORITY:
            self._on_priority(stream_id, payload)
        elif kind == GOAWAY:
            if stream_id:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "GOAWAY on a stream")
        elif kind in (PUSH_PROMISE, DATA):
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"frame type {kind} out of place")
        else:
            self._useless("unknown frame")

    def _on_headers(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id % 2 == 0:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"HEADERS on stream {stream_id}")
        if flags & PADDED:
            payload = frames.unpad(payload)
        if flags & HAS_PRIORITY:
            if len(payload) < 5:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "HEADERS too short for its priority")
            if int.from_bytes(payload[:4], "big") & MAX_WINDOW == stream_id:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a stream cannot depend on itself")
            payload = payload[5:]
        if flags & END_HEADERS:
            self._on_block(stream_id, flags, payload)
        else:
            self._block = bytearray(payload)
            self._block_stream, self._block_flags = stream_id, flags

    def _on_continuation(self, flags: int, payload: bytes) -> None:
        block = self._block
        if block is None:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "CONTINUATION without HEADERS")
        if not payload and not flags & END_HEADERS:
            self._useless("empty CONTINUATION")
        block += payload
        if len(block) > self._limits.header_block:
            self._stats.hit("header_block")
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "header block too large")
        if flags & END_HEADERS:
            self._block = None
            self._on_block(self._block_stream, self._block_flags, bytes(block))

    def _on_block(self, stream_id: int, flags: int, block: bytes) -> None:
        stream = self.streams.get(stream_id)
        if stream is not None:  # trailers of the request
            self._headers.skip(block, stream_id)
            if stream.remote_closed:
                raise StreamFault(stream_id, ErrorCode.STREAM_CLOSED, "HEADERS after END_STREAM")
            if not flags & END_STREAM:
                raise StreamFault(stream_id, ErrorCode.PROTOCOL_ERROR, "second HEADERS without END_STREAM")
            self._half_close(stream)
            return
        if stream_id <= self._last_id:
            self._headers.skip(block, stream_id)
            self._useless("HEADERS on a closed stream")
            return
        self._last_id = stream_id
        metadata = self._headers.decode(block, stream_id)
        if stream_id > self._accept_up_to:
            return  # after the final GOAWAY: the peer knows that it was not served
        if len(self.streams) >= self._limits.concurrent_streams:
            self._stats.hit("concurrent_streams")
            raise StreamFault(stream_id, ErrorCode.REFUSED_STREAM, "too many concurrent streams")
        self._open(stream_id, metadata, ended=bool(flags & END_STREAM))

    def _open(self, stream_id: int, metadata: Metadata, *, ended: bool) -> None:
        pseudo = dict(metadata[:4])
        fields = dict(metadata)
        path = pseudo.get(b":path", fields.get(b":path", b"")).decode("latin-1")
        if not fields.get(b"content-type", b"").startswith(b"application/grpc"):
            block = plain_response(415)
            self._out.append(frame_header(len(block), HEADERS, END_HEADERS | END_STREAM, stream_id) + block)
            if not ended:
                self._out.append(frames.rst_stream(stream_id, ErrorCode.NO_ERROR))
            return
        stream = ServerStream(self, stream_id, path, metadata, self._peer_stream_window, self._limits.stream_window)
        self.streams[stream_id] = stream
        self._stats.streams += 1
        self._stats.streams_total += 1
        encoding = fields.get(b"grpc-encoding")
        if encoding == b"gzip":
            stream.accept_gzip()
        elif encoding not in (None, b"identity"):
            stream.remote_closed = ended
            stream.finish(GRPC_UNIMPLEMENTED, f"grpc-encoding {encoding.decode('latin-1')}: use gzip or identity")
            return
        handler = self._handlers.get(path)
        if handler is None or pseudo.get(b":method", fields.get(b":method")) != b"POST":
            stream.remote_closed = ended
            stream.finish(GRPC_UNIMPLEMENTED, f"unknown method {path}")
            return
        try:
            stream.handler = handler(stream)
        except Exception:
            self._handler_failed(stream)
            return
        if ended and not stream.closed:
            self._half_close(stream)

    def _on_reset(self, stream_id: int, payload: bytes) -> None:
        frames.word(payload, "RST_STREAM")
        stream = self.streams.get(stream_id)
        if stream is None:
            if stream_id == 0 or stream_id > self._last_id:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"RST_STREAM of idle stream {stream_id}")
            return  # Envoy resets every finished stream
        if not stream.served:
            self._useless("stream opened and reset")
        self._forget(stream, CloseReason.RESET)

    def _on_window_update(self, stream_id: int, payload: bytes) -> None:
        increment = frames.word(payload, "WINDOW_UPDATE") & MAX_WINDOW
        if stream_id == 0:
            if increment == 0:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE of 0")
            self._window += increment
            if self._window > MAX_WINDOW:
                raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "connection window too large")
            if not self.unsent:
                self._useless("WINDOW_UPDATE")
            return
        stream = self.streams.get(stream_id)
        if stream is None:
            self._unknown_stream(stream_id, "WINDOW_UPDATE")
            return
        if increment == 0:
            raise StreamFault(stream_id, ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE of 0")
        stream.window += increment
        if stream.window > MAX_WINDOW:
            raise StreamFault(stream_id, ErrorCode.FLOW_CONTROL_ERROR, "stream window too large")
        if stream.waiting:
            self._make_ready(stream)
        else:
            self._useless("WINDOW_UPDATE")

    def _on_settings(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "SETTINGS on a stream")
        if flags & ACK:
            if payload:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "SETTINGS ACK with payload")
            return
        self._useless("SETTINGS")
        for key, value in frames.parse_settings(payload):
            if key == frames.SETTINGS_INITIAL_WINDOW_SIZE:
                self._change_initial_window(value)
            elif key == frames.SETTINGS_MAX_FRAME_SIZE:
                if not frames.DEFAULT_FRAME_SIZE <= value <= frames.MAX_FRAME_SIZE:
                    raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"SETTINGS_MAX_FRAME_SIZE {value}")
                self._peer_frame_size = value
            elif key == frames.SETTINGS_ENABLE_PUSH and value > 1:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"SETTINGS_ENABLE_PUSH {value}")
            # A table size or list size of the peer's does not matter: we send no indexed and few headers.
        self._out.append(frames.SETTINGS_ACK)

    def _change_initial_window(self, value: int) -> None:
        if value > MAX_WINDOW:
            raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, f"SETTINGS_INITIAL_WINDOW_SIZE {value}")
        change = value - self._peer_stream_window
        self._peer_stream_window = value
        for stream in self.streams.values():
            stream.window += change
            if stream.window > MAX_WINDOW:
                raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "stream window too large after SETTINGS")
            if stream.waiting and stream.window > 0:
                self._make_ready(stream)

    def _on_ping(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "PING on a stream")
        if len(payload) != 8:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, f"PING length {len(payload)}, expected 8")
        if not flags & ACK:
            self._useless("PING")
            self._out.append(frames.ping_ack(payload))

    def _on_priority(self, stream_id: int, payload: bytes) -> None:
        if stream_id == 0:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "PRIORITY on the connection")
        if len(payload) != 5:
            raise StreamFault(stream_id, ErrorCode.FRAME_SIZE_ERROR, f"PRIORITY length {len(payload)}, expected 5")
        self._useless("PRIORITY")

    # Windows and queues.

    def _pump(self) -> None:
        """Send what windows admit, one frame per stream in turn, so that a long echo starves nobody."""
        out, ready = self._out, self._ready
        while ready and self._window > 0:
            stream = ready[0]
            room = min(self._window, stream.window, self._peer_frame_size)
            if stream.closed or not stream.waiting or room <= 0:
                ready.popleft()
                stream.ready = False
                continue
            before = stream.unsent
            out.append(stream.next_frame(room))
            sent = before - stream.unsent
            self._window -= sent
            self.unsent -= sent
            ready.popleft()
            stream.ready = False
            if stream.waiting:
                self._make_ready(stream)
            elif stream.finishing:
                self.end(stream)
            elif stream.consumed * 2 > self._limits.stream_window:
                self._give_stream_credit(stream)
        self._give_connection_credit()

    def _make_ready(self, stream: ServerStream) -> None:
        if not stream.ready:
            stream.ready = True
            self._ready.append(stream)

    def _give_connection_credit(self) -> None:
        """Half a window at a time, and none while the peer leaves its replies lying: it cannot make us keep more."""
        if self._consumed * 2 > self._limits.connection_window and self.unsent <= self._limits.unsent_connection:
            self._out.append(frames.window_update(0, self._consumed))
            self._credit += self._consumed
            self._consumed = 0

    def _give_stream_credit(self, stream: ServerStream) -> None:
        if stream.unsent <= self._limits.unsent_stream and not stream.remote_closed:
            self._out.append(frames.window_update(stream.id, stream.consumed))
            stream.credit += stream.consumed
            stream.consumed = 0

    # Ends and errors.

    def _forget(self, stream: ServerStream, reason: CloseReason) -> None:
        if self.streams.pop(stream.id, None) is None:
            return
        stream.closed = True
        self.unsent -= stream.unsent
        self._incomplete -= stream.incomplete
        self._stats.streams -= 1
        handler, stream.handler = stream.handler, None
        if handler is not None:
            try:
                handler.closed(reason)
            except Exception:
                self._stats.handler_errors += 1
                log.exception("%s: the handler failed when its stream closed", stream.path)

    def _handler_failed(self, stream: ServerStream) -> None:
        self._stats.handler_errors += 1
        log.exception("%s: the handler failed, the call ends with INTERNAL", stream.path)
        stream.abort(GRPC_INTERNAL, "internal error")

    def _stream_fault(self, fault: StreamFault) -> None:
        self._stats.protocol_errors += 1
        self._out.append(frames.rst_stream(fault.stream_id, fault.code))
        stream = self.streams.get(fault.stream_id)
        if stream is not None:
            self._forget(stream, CloseReason.ABORTED)

    def _unknown_stream(self, stream_id: int, what: str) -> None:
        if stream_id == 0 or stream_id > self._last_id:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"{what} on idle stream {stream_id}")
        # It was reset or has ended, and the peer could not know yet.

    def _useless(self, what: str) -> None:
        """Count frames that cost us and bring nothing; normal peers stay far below the limit."""
        self._nuisance += 1
        if self._nuisance > self._limits.idle_frames:
            now = self._now()
            if now - self._nuisance_since < _NUISANCE_SECONDS:
                self._stats.hit("idle_frames")
                raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, f"flood of frames without use, last: {what}")
            self._nuisance = 0
            self._nuisance_since = now

    def _fail(self, fault: ConnectionFault) -> None:
        if self.failed:
            return
        self._stats.protocol_errors += 1
        log.info("connection from %s ends: %s: %s", self.peer, fault.code.name, fault.reason)
        self._out.append(frames.goaway(self._last_id, fault.code, fault.reason))
        self.lost(CloseReason.ABORTED)
        self._touch()

    def _touch(self) -> None:
        if not self._receiving:
            self._wake()
