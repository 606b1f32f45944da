"""Frames about the connection itself: settings, windows, pings, and those that only have to be well formed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from epp.transport import frames, nuisance
from epp.transport.calls import Calls
from epp.transport.frames import MAX_WINDOW, ConnectionFault, ErrorCode, StreamFault
from epp.transport.outbox import Outbox

DRAIN_PING: Final = b"draining"


def _nobody() -> None:
    """Who hears of a drain once the connection is gone."""


class Control:
    """`settled`: the peer's first SETTINGS have come. `drain_answered` is called with the answer to `DRAIN_PING`."""

    __slots__ = ("_allowance", "_calls", "_drain_answered", "_outbox", "settled")

    def __init__(
        self,
        *,
        outbox: Outbox,
        calls: Calls,
        allowance: nuisance.Allowance,
        drain_answered: Callable[[], None],
    ) -> None:
        self._outbox = outbox
        self._calls = calls
        self._allowance = allowance
        self._drain_answered = drain_answered
        self.settled = False

    def release(self) -> None:
        """Forget who wants to hear of a drain."""
        self._drain_answered = _nobody

    def on_settings(self, flags: int, stream_id: int, data: bytes, start: int, stop: int) -> None:
        """SETTINGS."""
        if stream_id:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "SETTINGS on a stream")
        if flags & frames.ACK:
            if start < stop:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "SETTINGS acknowledgement with a payload")
            return
        self.settled = True
        self._allowance.charge(nuisance.SETTINGS, "SETTINGS")
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
                self._calls.shrink_table()
        self._outbox.frames.append(frames.SETTINGS_ACK)

    def on_window_update(self, flags: int, stream_id: int, data: bytes, start: int, stop: int) -> None:
        """WINDOW_UPDATE."""
        increment = frames.word(data[start:stop], "WINDOW_UPDATE") & MAX_WINDOW
        if increment < nuisance.SMALL_INCREMENT:
            self._allowance.charge(nuisance.SMALL_WINDOW_UPDATE, "small WINDOW_UPDATEs")
        outbox = self._outbox
        if stream_id == 0:
            outbox.window += increment
            if increment == 0:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE of 0")
            if outbox.window > MAX_WINDOW:
                raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "the connection's window is too large")
            outbox.pump()  # those who wait come before new replies
            return
        stream = self._calls.streams.get(stream_id)
        if stream is None:
            self._calls.seen(stream_id, "WINDOW_UPDATE")
            return
        if increment == 0:
            raise StreamFault(ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE of 0")
        stream.window += increment
        if stream.window > MAX_WINDOW:
            raise StreamFault(ErrorCode.FLOW_CONTROL_ERROR, "the stream's window is too large")
        if stream.unsent:
            outbox.line_up(stream)

    def on_ping(self, flags: int, stream_id: int, data: bytes, start: int, stop: int) -> None:
        """PING."""
        if stream_id:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "PING on a stream")
        if stop - start != 8:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, f"PING of {stop - start} bytes")
        payload = data[start:stop]
        if not flags & frames.ACK:
            self._allowance.charge(nuisance.PING, "PING")
            self._outbox.urgent.append(frames.ping_ack(payload))
        elif payload == DRAIN_PING:
            self._drain_answered()

    def on_priority(self, flags: int, stream_id: int, data: bytes, start: int, stop: int) -> None:
        """PRIORITY (deprecated by RFC 9113): nothing to do."""
        if stream_id == 0:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "PRIORITY on the connection")
        if stop - start != 5:
            raise StreamFault(ErrorCode.FRAME_SIZE_ERROR, f"PRIORITY of {stop - start} bytes")
        self._allowance.charge(nuisance.PRIORITY, "PRIORITY")

    def on_push_promise(self, flags: int, stream_id: int, data: bytes, start: int, stop: int) -> None:
        """PUSH_PROMISE: no client may send it."""
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "PUSH_PROMISE from a client")

    def on_goaway(self, flags: int, stream_id: int, data: bytes, start: int, stop: int) -> None:
        """GOAWAY: nothing to do, the peer closes by itself when its streams have ended."""
        if stream_id:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "GOAWAY on a stream")
        if stop - start < 8:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, f"GOAWAY of {stop - start} bytes")
        self._allowance.charge(nuisance.UNKNOWN, "GOAWAY")

    def _set_stream_windows(self, value: int) -> None:
        if value > MAX_WINDOW:
            raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, f"SETTINGS_INITIAL_WINDOW_SIZE {value}")
        outbox = self._outbox
        change = value - outbox.stream_window
        outbox.stream_window = value
        for stream in self._calls.streams.values():
            stream.window += change
            if stream.window > MAX_WINDOW:
                raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "a stream's window is too large")
            if stream.unsent:
                outbox.line_up(stream)
