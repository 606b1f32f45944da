"""Flow control as a state machine: whatever a peer does with its windows, nothing is lost and none is exceeded."""

from __future__ import annotations

import struct
from typing import Any

import hpack
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from epp.transport import frames as f
from epp.transport.call import Call, CloseReason
from epp.transport.connection import Connection
from epp.transport.limits import Limits, TransportStats

REQUEST = [
    (":method", "POST"), (":scheme", "http"), (":path", "/t/Any"), (":authority", "x"),
    ("content-type", "application/grpc"),
]  # fmt: skip


class Recorder:
    """Takes what comes; the machine sends by hand."""

    def __init__(self, call: Call) -> None:
        self.call = call
        self.received = bytearray()
        self.reason: CloseReason | None = None

    def receive(self, message: bytes) -> None:
        self.received += message

    def half_closed(self) -> None:
        pass

    def closed(self, reason: CloseReason) -> None:
        assert self.reason is None
        self.reason = reason


class Side:
    """What the peer knows of one stream."""

    def __init__(self, recorder: Recorder, window: int, credit: int) -> None:
        self.recorder = recorder
        self.window = window  # what it admits
        self.credit = credit  # what it may send
        self.promised = bytearray()  # what the handler sent, framed
        self.got = bytearray()
        self.sent = bytearray()
        self.finished = False
        self.ended = False
        self.reset = False


class FlowControl(RuleBasedStateMachine):
    """The peer, with windows that it opens, shrinks below zero and opens again."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = hpack.Encoder()
        self.stats = TransportStats()
        self.recorders: list[Recorder] = []
        self.sides: dict[int, Side] = {}
        self.window = f.DEFAULT_WINDOW
        self.initial = f.DEFAULT_WINDOW
        self.woken = False

    @initialize(unsent=st.sampled_from([0, 1000, 1 << 20]), burst=st.sampled_from([1, 20_000, 1 << 20]))
    def connect(self, unsent: int, burst: int) -> None:
        self.limits = Limits(
            stream_window=65_535, connection_window=100_000, unsent_stream=unsent, unsent_connection=unsent, burst=burst
        )
        self.credit = f.DEFAULT_WINDOW
        self.connection = Connection(
            {"/t/Any": self._handler},
            limits=self.limits,
            stats=self.stats,
            clock=lambda: 0.0,
            call_later=lambda _seconds, _ring: None,  # type: ignore[arg-type,return-value]
            wake=self._wake,
        )
        self._feed(f.PREFACE + f.settings({}))

    def _wake(self) -> None:
        assert not self.woken, "one wake is enough"
        self.woken = True

    def _feed(self, data: bytes) -> None:
        """As the socket does: what was received is answered at once, and what comes late when we are woken."""
        self.connection.receive(data)
        self._take()
        self._settle()

    def _settle(self) -> None:
        while self.woken:
            self.woken = False
            self._take()

    def _handler(self, call: Call) -> Recorder:
        self.recorders.append(Recorder(call))
        return self.recorders[-1]

    def _take(self) -> None:
        data = self.connection.take()
        start = 0
        while start < len(data):
            word, flags, stream = struct.unpack_from("!IBI", data, start)
            payload = data[start + 9 : start + 9 + (word >> 8)]
            start += 9 + len(payload)
            self._heard(word & 255, flags, stream, payload)

    def _heard(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        assert kind != f.GOAWAY, payload
        if kind == f.WINDOW_UPDATE:
            increment = int.from_bytes(payload, "big")
            assert increment > 0
            if stream:
                self.sides[stream].credit += increment
                assert self.sides[stream].credit <= self.limits.stream_window
            else:
                self.credit += increment
                assert self.credit <= self.limits.connection_window
            return
        if kind not in (f.DATA, f.HEADERS):
            return
        side = self.sides[stream]
        assert not side.ended
        assert not side.reset
        if kind == f.DATA:
            side.got += payload
            side.window -= len(payload)
            self.window -= len(payload)
            assert len(payload) <= f.DEFAULT_FRAME_SIZE
            assert side.window >= 0, "the stream's window was exceeded"
            assert self.window >= 0, "the connection's window was exceeded"
            assert side.promised.startswith(side.got)
        elif flags & f.END_STREAM:
            side.ended = True
            assert side.finished
            assert side.got == side.promised, "the trailers came before all that was sent"

    def _pick(self, data: Any, sides: list[int]) -> int:
        return int(data.draw(st.sampled_from(sides)))

    def _open_sides(self) -> list[int]:
        return [stream for stream, side in self.sides.items() if not side.ended and not side.reset]

    @precondition(lambda self: len(self.sides) < 4)
    @rule()
    def open(self) -> None:
        stream = 2 * len(self.sides) + 1
        block = self.encoder.encode(REQUEST)
        self._feed(f.frame_header(len(block), f.HEADERS, f.END_HEADERS, stream) + block)
        self.sides[stream] = Side(self.recorders[-1], self.initial, self.limits.stream_window)

    @precondition(lambda self: self._open_sides())
    @rule(
        data=st.data(),
        sizes=st.lists(
            st.one_of(st.integers(0, 50), st.integers(0, 16_379), st.integers(0, 80_000)), min_size=1, max_size=4
        ),
        filler=st.integers(0, 255),
    )
    def reply(self, data: Any, sizes: list[int], filler: int) -> None:
        side = self.sides[self._pick(data, self._open_sides())]
        for size in sizes:
            if not side.finished:
                message = bytes([filler]) * size
                side.promised += struct.pack("!BI", 0, size) + message
                side.recorder.call.send(message)
        self._settle()

    @precondition(lambda self: self._open_sides())
    @rule(data=st.data())
    def finish(self, data: Any) -> None:
        side = self.sides[self._pick(data, self._open_sides())]
        side.finished = True
        side.recorder.call.finish()
        self._settle()

    @precondition(lambda self: self._open_sides())
    @rule(data=st.data(), size=st.one_of(st.integers(0, 100), st.integers(20_000, 60_000)), cut=st.integers(1, 17_000))
    def request(self, data: Any, size: int, cut: int) -> None:
        """A message, as far as the credit goes; a message is only begun when there is credit for all of it."""
        stream = self._pick(data, self._open_sides())
        side = self.sides[stream]
        cut = min(cut, f.DEFAULT_FRAME_SIZE)
        if side.finished or size + 5 > min(side.credit, self.credit):
            return
        framed = struct.pack("!BI", 0, size) + bytes([stream]) * size
        side.credit -= len(framed)
        self.credit -= len(framed)
        side.sent += framed[5:]
        for start in range(0, len(framed), cut):
            piece = framed[start : start + cut]
            self._feed(f.frame_header(len(piece), f.DATA, 0, stream) + piece)

    @precondition(lambda self: self._open_sides())
    @rule(data=st.data(), size=st.integers(1, 100_000))
    def open_window(self, data: Any, size: int) -> None:
        stream = self._pick(data, [0, *self._open_sides()])
        if stream:
            self.sides[stream].window += size
        else:
            self.window += size
        self._feed(f.window_update(stream, size))

    @rule(size=st.integers(0, 100_000))
    def change_initial_window(self, size: int) -> None:
        for side in self.sides.values():
            side.window += size - self.initial
        self.initial = size
        self._feed(f.settings({f.SETTINGS_INITIAL_WINDOW_SIZE: size}))

    @rule(writable=st.booleans())
    def socket(self, writable: bool) -> None:
        self.connection.outbox.set_writable(writable)
        self._settle()

    @precondition(lambda self: self._open_sides())
    @rule(data=st.data())
    def reset(self, data: Any) -> None:
        stream = self._pick(data, self._open_sides())
        self.sides[stream].reset = True
        self._feed(f.rst_stream(stream, 8))
        assert self.sides[stream].recorder.reason is CloseReason.RESET

    @invariant()
    def nothing_waits_without_a_reason(self) -> None:
        """Whatever is kept is kept because a window is closed, or the socket is full."""
        if hasattr(self, "connection") and self.connection.outbox.direct and self.window > 0:
            for side in self.sides.values():
                assert side.reset or side.window <= 0 or side.got == side.promised

    def teardown(self) -> None:
        """Windows wide open: everything promised arrives, everything sent was received, nothing is kept."""
        if not hasattr(self, "connection"):
            return
        self.connection.outbox.set_writable(True)
        self._settle()
        for stream in [0, *self._open_sides()]:
            if stream:
                self.sides[stream].window += 1 << 28
            else:
                self.window += 1 << 28
            self._feed(f.window_update(stream, 1 << 28))
        for stream, side in self.sides.items():
            if side.reset:
                continue
            assert side.got == side.promised
            assert side.ended == side.finished
            assert side.recorder.received == side.sent
            if side.finished:
                assert side.recorder.reason is CloseReason.FINISHED
            else:
                assert side.recorder.reason is None
                assert side.credit >= self.limits.stream_window // 2, f"stream {stream} was left without credit"
        assert self.credit >= self.limits.connection_window // 2
        assert self.stats.buffered == self.connection.outbox.unsent == 0
        self.connection.lost()
        assert all(recorder.reason is not None for recorder in self.recorders)
        assert self.stats.streams == 0


TestFlowControl = FlowControl.TestCase
TestFlowControl.settings = settings(max_examples=100, stateful_step_count=60, deadline=None)
