"""Blocks that an endpoint will have soon, because a request was just sent there.

Every pick is a record of the prompt's keys, which expires. Two prompts sent to one endpoint share exactly their common
prefix (keys are chained), so when a record expires, what a later one of the same endpoint shares with it stays. The
records that begin alike are kept in order of their keys: the one that shares most with another is beside it, however
many there are with one system prompt.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from typing import NamedTuple

import numpy as np

from epp.prefixcache.precise.hashing import Keys

MAX_RECORDS = 16384
"""Bounds memory under a flood of picks; the oldest expire early."""

MAX_KEYS = 1 << 22
"""The same, in blocks of all records: 32 MiB. Prompts of half a million tokens would be too much long before."""


class Record(NamedTuple):
    """One pick: the keys are believed in until `deadline`."""

    deadline: float
    lane: int
    keys: Keys


class Speculation:
    """Records in order of their deadlines."""

    def __init__(self) -> None:
        self._queue: deque[Record] = deque()
        self._keys = 0
        self._alive: dict[tuple[int, int], list[bytes]] = {}  # (lane, first key) -> keys of the records, in order

    def __len__(self) -> int:
        return len(self._queue)

    @property
    def full(self) -> bool:
        """The oldest record has to go, over or not."""
        return len(self._queue) > MAX_RECORDS or self._keys > MAX_KEYS

    def add(self, record: Record) -> None:
        """Believe in this one, too. Whoever calls it expires records while it is `full`."""
        packed = record.keys.tobytes()
        self._queue.append(record._replace(keys=np.frombuffer(packed, dtype=np.uint64)))
        self._keys += len(record.keys)
        insort(self._alive.setdefault((record.lane, int(record.keys[0])), []), packed)

    def expire(self, now: float) -> Record | None:
        """The next record that is over, with the keys that nothing else keeps. None: nothing is over."""
        if not self._queue or (self._queue[0].deadline > now and not self.full):
            return None
        record = self._queue.popleft()
        self._keys -= len(record.keys)
        name = (record.lane, int(record.keys[0]))
        others = self._alive[name]
        at = bisect_left(others, record.keys.tobytes())
        del others[at]
        if not others:
            del self._alive[name]
            return record
        kept = max(_common(record.keys, other) for other in others[max(0, at - 1) : at + 1])
        return record._replace(keys=record.keys[kept:])


def _common(one: Keys, packed: bytes) -> int:
    """Length of the common prefix; chained keys are equal exactly up to there."""
    other = np.frombuffer(packed, dtype=np.uint64)
    most = min(len(one), len(other))
    if one[most - 1] == other[most - 1]:
        return most
    return int(np.argmin(one[:most] == other[:most]))
