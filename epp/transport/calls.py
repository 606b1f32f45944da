"""The calls of a connection: from header blocks to streams, and what is known of streams that are gone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from epp.transport import frames, nuisance
from epp.transport.call import CloseReason, Handler
from epp.transport.frames import ConnectionFault, ErrorCode, StreamFault
from epp.transport.headers import HeaderDecoder, MalformedError, RequestHead
from epp.transport.intake import Intake
from epp.transport.limits import Limits, TransportStats
from epp.transport.outbox import Outbox
from epp.transport.status import DEADLINE_EXCEEDED, UNIMPLEMENTED, trailers_only
from epp.transport.stream import Cancellable, ServerStream

_REMEMBERED_RESETS: Final = 4096


class Calls:
    """`streams`: the open ones. `last_id`: the highest that the peer used. `refusing`: no more are served.

    `block_stream`: the stream whose header block CONTINUATION frames still extend, else 0.
    """

    def __init__(
        self,
        handlers: Mapping[str, Handler],
        *,
        limits: Limits,
        stats: TransportStats,
        outbox: Outbox,
        intake: Intake,
        allowance: nuisance.Allowance,
        call_later: Callable[[float, Callable[[], None]], Cancellable],
        peer: str,
    ) -> None:
        self.streams: dict[int, ServerStream] = {}
        self.outbox = outbox
        self.intake = intake
        self.peer = peer
        self.last_id = 0
        self.refusing = False
        self.block_stream = 0
        self._handlers = handlers
        self._limits = limits
        self._stats = stats
        self._allowance = allowance
        self._call_later = call_later
        self._decoder = HeaderDecoder(header_list=limits.header_list, headers=limits.headers)
        self._resets: dict[int, None] = {}  # streams that we reset; frames for them may still be under way
        self._block = bytearray()
        self._block_flags = 0
        self._table_update = b""

    # Frames.

    def on_headers(self, flags: int, stream_id: int, data: bytes, start: int, stop: int) -> None:
        """HEADERS."""
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
            self._block, self.block_stream, self._block_flags = bytearray(block), stream_id, flags

    def on_continuation(self, flags: int, stream_id: int, data: bytes, start: int, stop: int) -> None:
        """CONTINUATION."""
        if not self.block_stream:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "CONTINUATION without HEADERS")
        self._allowance.charge(nuisance.CONTINUATION, "CONTINUATION")
        self._block += data[start:stop]
        if len(self._block) > self._limits.header_block:
            self._stats.hit("header_block")
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "a header block is too large")
        if flags & frames.END_HEADERS:
            block, self._block, self.block_stream = bytes(self._block), bytearray(), 0
            self._on_block(stream_id, self._block_flags, block)

    def on_reset(self, flags: int, stream_id: int, data: bytes, start: int, stop: int) -> None:
        """RST_STREAM."""
        frames.word(data[start:stop], "RST_STREAM")
        stream = self.streams.get(stream_id)
        if stream is None:
            self.seen(stream_id, "RST_STREAM")
            return
        self.forget(stream, reset=False)
        if not stream.served and stream.credit == self._limits.stream_window:
            self._allowance.charge(nuisance.USELESS_RESET, "resets of streams that never sent a message")
        stream.drop(CloseReason.RESET)

    def on_stray_data(self, stream_id: int) -> None:
        """DATA for a stream that is not open: it may have been under way when we reset the stream."""
        self.seen(stream_id, "DATA")
        self._allowance.charge(nuisance.STRAY, "DATA on closed streams")
        if stream_id not in self._resets:
            raise StreamFault(ErrorCode.STREAM_CLOSED, f"DATA on stream {stream_id}, which is closed")

    def seen(self, stream_id: int, what: str) -> None:
        """A frame for a stream that is not open: fine when it was. Raises `ConnectionFault`."""
        if stream_id == 0 or stream_id % 2 == 0 or stream_id > self.last_id:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"{what} on stream {stream_id}, which was never opened")

    # What streams and the connection call.

    def write_headers(self, stream_id: int, flags: int, block: bytes) -> None:
        """A HEADERS frame."""
        if self._table_update:
            block = self._table_update + block
            self._table_update = b""
        self.outbox.frames.append(frames.frame_header(len(block), frames.HEADERS, flags, stream_id) + block)

    def shrink_table(self) -> None:
        """The peer wants another table size.

        We put nothing into its table, but a smaller one has to be acknowledged in the next block (RFC 7541 section
        4.2): size 0, whatever it is.
        """
        self._table_update = b"\x20"

    def forget(self, stream: ServerStream, *, reset: bool) -> None:
        """A stream has ended; `reset`: by us, so that the peer may still be sending on it."""
        if self.streams.pop(stream.id, None) is not None:
            self._stats.streams -= 1
        if reset:
            self.remember_reset(stream.id)

    def remember_reset(self, stream_id: int) -> None:
        """Frames for it are no error."""
        resets = self._resets
        resets[stream_id] = None
        if len(resets) > _REMEMBERED_RESETS:
            del resets[next(iter(resets))]

    def lost(self, reason: CloseReason) -> None:
        """The connection is gone: every open stream hears of it."""
        self._block, self.block_stream = bytearray(), 0
        for stream in list(self.streams.values()):
            self.forget(stream, reset=False)
            stream.drop(reason)

    # Header blocks.

    def _on_block(self, stream_id: int, flags: int, block: bytes) -> None:
        stream = self.streams.get(stream_id)
        if stream is not None:
            self._on_trailers(stream, flags, block)
        elif stream_id > self.last_id:
            self.last_id = stream_id
            self._on_request(stream_id, bool(flags & frames.END_STREAM), block)
        elif stream_id in self._resets:
            self._decoder.skip(block)
            self._allowance.charge(nuisance.STRAY, "HEADERS on reset streams")
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
        self.intake.half_close(stream)

    def _on_request(self, stream_id: int, ends: bool, block: bytes) -> None:
        try:
            head = self._decoder.request(block)
        except MalformedError as error:
            raise StreamFault(ErrorCode.PROTOCOL_ERROR, str(error)) from error
        if self.refusing:
            self._refuse(stream_id)
        elif len(self.streams) >= self._limits.concurrent_streams:
            self._stats.hit("concurrent_streams")
            self._refuse(stream_id)
        elif head.refusal is not None:
            self._decline(stream_id, ends, head.refusal)
        elif (handler := self._handlers.get(head.path)) is None:
            self._decline(stream_id, ends, trailers_only(UNIMPLEMENTED, f"unknown method {head.path}"))
        else:
            self._open(stream_id, ends, head, handler)

    def _open(self, stream_id: int, ends: bool, head: RequestHead, handler: Handler) -> None:
        stream = ServerStream(self, stream_id, head, self._limits.stream_window)
        self.streams[stream_id] = stream
        self._stats.streams += 1
        self._stats.streams_total += 1
        try:
            stream.attach(handler(stream))
        except Exception:
            self.intake.handler_failed(stream)
            return
        if head.timeout is not None and not stream.done:
            stream.timer = self._call_later(
                head.timeout, lambda: stream.abort(DEADLINE_EXCEEDED, "the deadline of the call has passed")
            )
        if ends:
            self.intake.half_close(stream)

    def _decline(self, stream_id: int, ends: bool, answer: bytes) -> None:
        """A whole answer to what is no call of ours."""
        self._allowance.charge(nuisance.REFUSED, "requests that are no call")
        self.write_headers(stream_id, frames.END_HEADERS | frames.END_STREAM, answer)
        if not ends:
            self.outbox.frames.append(frames.rst_stream(stream_id, ErrorCode.NO_ERROR))
            self.remember_reset(stream_id)

    def _refuse(self, stream_id: int) -> None:
        """The client may send the request again, elsewhere or later: it has not been looked at."""
        self._allowance.charge(nuisance.REFUSED, "refused streams")
        self.outbox.frames.append(frames.rst_stream(stream_id, ErrorCode.REFUSED_STREAM))
        self.remember_reset(stream_id)
