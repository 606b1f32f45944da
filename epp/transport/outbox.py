"""What a connection has to say: frames in order, and the replies that wait for the peer's windows.

A stream whose reply does not fit waits in `ready` (its own window is open) or outside of it (it is not, and a
WINDOW_UPDATE brings it back). Waiting streams are served one frame at a time in turn.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from epp.transport.call import CloseReason
from epp.transport.frames import DEFAULT_FRAME_SIZE, DEFAULT_WINDOW
from epp.transport.limits import Limits, TransportStats

if TYPE_CHECKING:
    from epp.transport.stream import ServerStream


class Outbox:
    """`frames` leave in order, `urgent` ones before them. `window` is the connection's; all windows are the peer's.

    `direct` is the largest DATA frame a stream may append by itself: the peer's frame size, or 0 while the socket is
    full. `quiet`: nobody is about to collect, so that whoever appends has to `wake`. `unsent`: bytes in all queues.
    """

    __slots__ = (
        "_written",
        "direct",
        "ended",
        "frame_size",
        "frames",
        "limits",
        "quiet",
        "ready",
        "stats",
        "stream_window",
        "unsent",
        "urgent",
        "wake_up",
        "window",
    )

    def __init__(self, *, limits: Limits, stats: TransportStats, wake: Callable[[], None]) -> None:
        self.limits = limits
        self.stats = stats
        self.wake_up = wake
        self.frames: list[bytes] = []
        self.urgent: list[bytes] = []
        self.ready: deque[ServerStream] = deque()
        self.ended: list[tuple[ServerStream, CloseReason]] = []
        self.window = DEFAULT_WINDOW
        self.stream_window = DEFAULT_WINDOW
        self.frame_size = DEFAULT_FRAME_SIZE
        self.direct = DEFAULT_FRAME_SIZE
        self.unsent = 0
        self.quiet = True
        self._written = 0

    def wake(self) -> None:
        """Have `take` called soon."""
        if self.quiet:
            self.quiet = False
            self.wake_up()

    def set_writable(self, writable: bool) -> None:
        """Whether the socket takes more."""
        self.direct = self.frame_size if writable else 0
        if writable:
            self.wake()

    def set_frame_size(self, size: int) -> None:
        """The largest frame that the peer takes."""
        self.frame_size = size
        if self.direct:
            self.direct = size

    def queued(self, size: int) -> bool:
        """Account for `size` bytes more (or less) in the queues; False: the server keeps too much already."""
        self.unsent += size
        self.stats.buffered += size
        return self.stats.buffered <= self.limits.buffered_server

    def line_up(self, stream: ServerStream) -> None:
        """A stream has something to send; it gets its turn when its window is open."""
        if not stream.in_line and stream.window > 0:
            stream.in_line = True
            self.ready.append(stream)
        if self.quiet:
            self.wake()

    def pump(self) -> None:
        """Frames from the waiting streams in turn, as far as windows, the socket and `Limits.burst` go."""
        ready = self.ready
        burst = self.limits.burst
        while ready and self.window > 0 and self.direct and self._written < burst:
            stream = ready.popleft()
            stream.in_line = False
            if not stream.unsent or stream.window <= 0:
                continue
            self._written += stream.write_frame(min(self.window, stream.window, self.frame_size))
            if stream.unsent and stream.window > 0:
                stream.in_line = True
                ready.append(stream)

    def say_farewell(self) -> None:
        """Streams that ended by their own word hear of it; what they do then may end others."""
        while self.ended:
            ended, self.ended = self.ended, []
            for stream, reason in ended:
                stream.farewell(reason)

    def take(self) -> bytes:
        """Everything to be written now."""
        self._written = 0
        frames = self.frames
        if self.urgent:
            frames[:0] = self.urgent
            self.urgent.clear()
        taken = b"".join(frames)
        frames.clear()
        self.quiet = True
        if self.ready and self.window > 0 and self.direct:
            self.wake()
        return taken
