"""What the sequence numbers of a publisher tell: what is new, known or lost, and whether it is another process now.

Numbers count up from 0 in each process of a publisher. The same messages may come twice, live and in a replay, so the
tracker knows both how far the live stream is and how far the events are applied. A process that restarted counts from 0
again; it may even have overtaken the old number before the first message arrives. Messages carry the time at their
beginning, which makes them unlike any other: a replay is asked from the last applied message on, and when this one
does not come back as it was, the publisher is another process.
"""

from __future__ import annotations

import enum
import struct

_DOUBLE = struct.Struct(">d")
_FINGERPRINT = 16  # bytes from the beginning, with the float64 time of the batch


class Step(enum.Enum):
    """What to do with a message."""

    APPLY = "apply"
    """It is the next one."""
    SKIP = "skip"
    """It is known already."""
    GAP = "gap"
    """Messages before it are missing."""
    RESTART = "restart"
    """It comes from a new process, whose cache is empty at its sequence number 0."""


class SequenceTracker:
    """Follows one publisher. It decides and the caller acts, then reports with `applied` what it applied."""

    __slots__ = ("_last_live", "_mark", "last")

    def __init__(self) -> None:
        self.last: int | None = None
        """Number of the last message whose events were applied."""
        self._mark: tuple[int, bytes] = (0, b"")
        self._last_live: int | None = None

    def live(self, seq: int, payload: bytes) -> Step:
        """A message from the subscription."""
        previous, self._last_live = self._last_live, seq
        last = self.last
        if last is None:
            return Step.APPLY if seq == 0 or previous is not None else Step.GAP
        if seq == last + 1 and (previous is None or seq > previous):
            return Step.APPLY
        if previous is not None and seq <= previous:
            return Step.SKIP if seq == last and self._is_last(payload) else Step.RESTART
        if seq > last:
            return Step.GAP
        return Step.RESTART if self._is_later(payload) else Step.SKIP

    def replayed(self, seq: int, payload: bytes, *, first: bool) -> Step:
        """A message from a replay that was asked from `last` on, or from 0 when nothing was applied.

        GAP with `first`: what followed `last` is gone from the publisher's buffer.
        """
        last = self.last
        if last is None or seq == last + 1:
            # The answer must begin with what was asked for, unless that was never seen.
            return Step.GAP if first and last is not None else Step.APPLY
        if seq > last:
            return Step.GAP
        return Step.RESTART if seq == last and not self._is_last(payload) else Step.SKIP

    def held(self, seq: int) -> Step:
        """The live message that was kept while the replay ran."""
        if self.last is None or seq == self.last + 1:
            return Step.APPLY
        return Step.SKIP if seq <= self.last else Step.GAP

    def applied(self, seq: int, payload: bytes) -> None:
        """The events of this message are applied, or as many of them as could be read."""
        self.last = seq
        self._mark = (len(payload), payload[:_FINGERPRINT])

    def restarted(self) -> None:
        """Nothing of this process is applied so far. The place in the live stream stays."""
        self.last = None
        self._mark = (0, b"")

    def replaced(self) -> None:
        """A replay told of another process: the place in the live stream was the former one's.

        The first messages of the new one come live and in the replay, with numbers below that place.
        """
        self._last_live = None

    def _is_last(self, payload: bytes) -> bool:
        return self._mark == (len(payload), payload[:_FINGERPRINT])

    def _is_later(self, payload: bytes) -> bool:
        then, now = batch_time(self._mark[1]), batch_time(payload)
        return then is not None and now is not None and now > then


def batch_time(payload: bytes) -> float | None:
    """The publisher's time in an array batch, without decoding it. None for a map."""
    if len(payload) >= 10 and payload[0] & 0xF0 == 0x90 and payload[1] == 0xCB:
        stamp: float = _DOUBLE.unpack_from(payload, 2)[0]
        return stamp
    return None
