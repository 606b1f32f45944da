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
from epp.transport.calls import Calls
from epp.transport.control import DRAIN_PING, Control
from epp.transport.frames import HEADER, MAX_WINDOW, MESSAGE_HEADER, ConnectionFault, ErrorCode, StreamFault
from epp.transport.intake import Intake
from epp.transport.limits import Limits, TransportStats
from epp.transport.messages import PREFIX
from epp.transport.outbox import Outbox
from epp.transport.status import UNAVAILABLE
from epp.transport.stream import Cancellable, ServerStream

log = logging.getLogger(__name__)

_NOBODY: Final[dict[int, ServerStream]] = {}
_UNANSWERED_SECONDS: Final = 5.0
"""How long to wait for the answer to the PING of a drain: a peer short of CPU may need long."""
_SETTLE_SECONDS: Final = 0.5
"""How long to wait after that answer. Peers answer PINGs before all else: grpcio and nghttp2 write the answer ahead of
HEADERS of streams that they opened before they read our GOAWAY."""


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
        self.greeted = False
        self.dead = False
        self._limits = limits
        self._stats = stats
        self._rest = b""
        self._call_later = call_later
        self._draining = False
        self._seal_timer: Cancellable | None = None
        self._low_credit = limits.connection_window // 2
        self._any_frame_fits = limits.message >= limits.frame_size
        self.outbox = outbox = Outbox(limits=limits, stats=stats, wake=wake)
        self._allowance = allowance = nuisance.Allowance(limits.nuisance, limits.nuisance_per_second, clock, stats)
        self._intake = intake = Intake(limits=limits, stats=stats, outbox=outbox, allowance=allowance)
        self._calls = calls = Calls(
            handlers,
            limits=limits,
            stats=stats,
            outbox=outbox,
            intake=intake,
            allowance=allowance,
            call_later=call_later,
            peer=peer,
        )
        self.streams = calls.streams
        self._control = control = Control(
            outbox=outbox, calls=calls, allowance=allowance, drain_answered=self._drain_answered
        )
        self._on: tuple[Callable[[int, int, bytes, int, int], None], ...] = (
            self._on_data,
            calls.on_headers,
            control.on_priority,
            calls.on_reset,
            control.on_settings,
            control.on_push_promise,
            control.on_ping,
            control.on_goaway,
            control.on_window_update,
            calls.on_continuation,
        )
        outbox.frames.append(
            frames.settings(
                {
                    frames.SETTINGS_MAX_CONCURRENT_STREAMS: limits.concurrent_streams,
                    frames.SETTINGS_INITIAL_WINDOW_SIZE: limits.stream_window,
                    frames.SETTINGS_MAX_FRAME_SIZE: limits.frame_size,
                    frames.SETTINGS_MAX_HEADER_LIST_SIZE: limits.header_list,
                }
            )
        )
        if limits.connection_window > frames.DEFAULT_WINDOW:
            outbox.frames.append(frames.window_update(0, limits.connection_window - frames.DEFAULT_WINDOW))

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
            if self._intake.credit < self._low_credit:
                self._intake.replenish_connection()
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
        if self._intake.credit < self._low_credit and not self.dead:
            self._intake.replenish_connection()
        return outbox.take()

    @property
    def over(self) -> bool:
        """Whether nothing will be received or sent any more."""
        return self.dead or (self._calls.refusing and not self.streams)

    def drain(self) -> None:
        """Ask the peer to open no more streams. What it opened before it heard that is served; then `over` is true.

        First a GOAWAY that excludes nothing, and a PING. When the answer has come, and what was written with it (or
        no answer comes, or `seal` is called), the GOAWAY that names the last stream.
        """
        if not self._draining and not self.dead:
            self._draining = True
            self._seal_later(_UNANSWERED_SECONDS)
            self.outbox.frames += (frames.goaway(MAX_WINDOW, ErrorCode.NO_ERROR), frames.ping(DRAIN_PING))
            self.outbox.wake()

    def seal(self) -> None:
        """The second step of `drain`: later streams are refused."""
        if not self._calls.refusing and not self.dead:
            self._draining = True
            self._forget_seal()
            self._calls.refusing = True
            self.outbox.frames.append(frames.goaway(self._calls.last_id, ErrorCode.NO_ERROR))
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
        self._forget_seal()
        self.outbox.ready.clear()
        self.outbox.say_farewell()
        self._calls.lost(reason)
        self.outbox.say_farewell()  # a handler that hears of one end may finish other calls

    def release(self) -> None:
        """After `lost`, when nothing will be received any more: let go of what refers back to this connection.

        Then its memory goes with the last reference to it. A cycle would wait for a collection of the oldest
        generation, which a process that makes next to no cycles hardly ever has.
        """
        self._on = ()
        self._control.release()

    # Frames.

    def _frames(self, data: bytes, start: int) -> None:
        """Handle all complete frames and keep the rest."""
        end = len(data)
        largest = self._limits.frame_size
        intake = self._intake
        low = intake.low_stream
        read_header = HEADER.unpack_from
        read_message_header = MESSAGE_HEADER.unpack_from
        calls, control = self._calls, self._control
        streams = calls.streams if self._any_frame_fits else _NOBODY
        # Streams that may get DATA unchecked: none before SETTINGS and inside a header block.
        plain = streams if control.settled and not calls.block_stream else _NOBODY
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
                        intake.handler_failed(stream)
                    start = stop
                    continue
            self._frame(word & 0xFF, flags, stream_id & MAX_WINDOW, data, start + 9, stop)
            start = stop
            plain = streams if control.settled and not calls.block_stream else _NOBODY
        if received:
            intake.credit -= received
            self._allowance.earn(messages)
        if intake.credit < 0:
            raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "DATA beyond the connection's window")
        self._rest = data[start:] if start < end else b""

    def _frame(self, kind: int, flags: int, stream_id: int, data: bytes, start: int, stop: int) -> None:
        if not self._control.settled and (kind != frames.SETTINGS or flags & frames.ACK):
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "the first frame is not SETTINGS")
        block_stream = self._calls.block_stream
        if block_stream and (kind != frames.CONTINUATION or stream_id != block_stream):
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a header block is interrupted by another frame")
        if kind >= len(self._on):
            self._allowance.charge(nuisance.UNKNOWN, "unknown frames")
            return
        try:
            self._on[kind](flags, stream_id, data, start, stop)
        except StreamFault as fault:
            self._reset(stream_id, fault)

    def _on_data(self, flags: int, stream_id: int, data: bytes, start: int, stop: int) -> None:
        length = stop - start
        self._intake.credit -= length
        if stream_id == 0:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "DATA on the connection")
        if flags & frames.PADDED:
            start, stop = frames.unpad(data, start, stop)
        stream = self.streams.get(stream_id)
        if stream is None:
            self._calls.on_stray_data(stream_id)
        else:
            self._intake.accept(stream, flags, length, data, start, stop)

    def _low(self, stream: ServerStream) -> None:
        """Less than half of a stream's credit is left."""
        if stream.credit < 0:
            self._reset(stream.id, StreamFault(ErrorCode.FLOW_CONTROL_ERROR, "DATA beyond the stream's window"))
        else:
            self._intake.replenish(stream)

    # Ends.

    def _drain_answered(self) -> None:
        if self._seal_timer is not None:
            self._seal_later(_SETTLE_SECONDS)

    def _seal_later(self, seconds: float) -> None:
        self._forget_seal()
        self._seal_timer = self._call_later(seconds, self.seal)

    def _forget_seal(self) -> None:
        timer, self._seal_timer = self._seal_timer, None
        if timer is not None:
            timer.cancel()

    def _reset(self, stream_id: int, fault: StreamFault) -> None:
        self._stats.fault(fault.code.name)
        log.info("stream %d from %s is reset, %s: %s", stream_id, self.peer, fault.code.name, fault)
        self.outbox.frames.append(frames.rst_stream(stream_id, fault.code))
        stream = self.streams.get(stream_id)
        if stream is not None:
            self._calls.forget(stream, reset=True)
            stream.drop(CloseReason.ABORTED)
        else:
            self._calls.remember_reset(stream_id)
        self._allowance.charge(nuisance.FAULT, "stream errors")

    def _fail(self, fault: ConnectionFault) -> None:
        self._stats.fault(fault.code.name)
        log.info("connection from %s ends, %s: %s", self.peer, fault.code.name, fault)
        self.lost(CloseReason.ABORTED)
        self.outbox.frames.append(frames.goaway(self._calls.last_id, fault.code, fault.reason))
        self.outbox.wake()
