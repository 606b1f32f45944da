"""Blocks that an endpoint will have soon, because a request was just sent there.

Every pick is a record of the prompt's keys, which expires. Two prompts sent to one endpoint share exactly their common
prefix (keys are chained), so when a record expires, what a later one of the same endpoint shares with it stays.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import numpy as np

from epp.prefixcache.precise.hashing import Keys

MAX_RECORDS = 16384
"""Bounds memory under a flood of picks; the oldest expire early."""


class Record(NamedTuple):
    """One pick: the keys are believed in until `deadline`."""

    deadline: float
    lane: int
    keys: Keys


class Speculation:
    """Records in order of their deadlines."""

    def __init__(self) -> None:
        self._queue: deque[Record] = deque()
        self._alive: dict[tuple[int, int], deque[Keys]] = {}  # (lane, first key) -> keys of the records, oldest first

    def __len__(self) -> int:
        return len(self._queue)

    def add(self, record: Record) -> None:
        self._queue.append(record)
        self._alive.setdefault((record.lane, int(record.keys[0])), deque()).append(record.keys)

    def expire(self, now: float) -> Record | None:
        """The next record that is over, with the keys that nothing else keeps. None: nothing is over."""
        if not self._queue or (self._queue[0].deadline > now and len(self._queue) <= MAX_RECORDS):
            return None
        record = self._queue.popleft()
        name = (record.lane, int(record.keys[0]))
        others = self._alive[name]
        others.popleft()
        if not others:
            del self._alive[name]
            return record
        kept = max(_common(record.keys, keys) for keys in others)
        return record._replace(keys=record.keys[kept:])


def _common(one: Keys, other: Keys) -> int:
    """Length of the common prefix; chained keys are equal exactly up to there."""
    most = min(len(one), len(other))
    if one[most - 1] == other[most - 1]:
        return most
    return int(np.argmin(one[:most] == other[:most]))
