"""Frames that carry no work: each costs points, time and real messages give points back.

Every one of these frames is legal and useful in small numbers, and each cheap attack on HTTP/2 servers is a flood of
one of them. A reset is not on the list when the stream was served: Envoy resets every stream that has finished.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from epp.transport.frames import ConnectionFault, ErrorCode
from epp.transport.limits import TransportStats

PING: Final = 10
SETTINGS: Final = 20
PRIORITY: Final = 2
EMPTY_DATA: Final = 10
SMALL_WINDOW_UPDATE: Final = 1
UNKNOWN: Final = 2
CONTINUATION: Final = 10
STRAY: Final = 5  # frames for a stream that is gone
USELESS_RESET: Final = 20  # of a stream that never sent a message
REFUSED: Final = 5
FAULT: Final = 20  # a stream error that we answered with RST_STREAM

PER_MESSAGE: Final = 4  # a client that credits each reply sends two window updates for it

SMALL_INCREMENT: Final = 1024


class Allowance:
    """Points left. The clock (seconds, monotonic) is read only when they are used up."""

    __slots__ = ("_clock", "_full", "_points", "_rate", "_since", "_stats")

    def __init__(self, full: int, per_second: int, clock: Callable[[], float], stats: TransportStats) -> None:
        self._full = full
        self._points = float(full)
        self._rate = per_second
        self._clock = clock
        self._since = clock()
        self._stats = stats

    def charge(self, points: int, what: str) -> None:
        """Take points. Raises `ConnectionFault` when the peer has overdrawn."""
        self._points -= points
        if self._points >= 0:
            return
        now = self._clock()
        self._points = min(float(self._full), self._points + (now - self._since) * self._rate)
        self._since = now
        if self._points < 0:
            self._stats.hit("nuisance")
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, f"too many frames without use, the last: {what}")

    def earn(self, messages: int) -> None:
        """Messages arrived."""
        points = self._points + messages * PER_MESSAGE
        self._points = points if points < self._full else float(self._full)
