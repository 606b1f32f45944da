"""What waits to be written: in the order in which the servers told it, bounded by bytes."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from epp.kvevents.events import AllBlocksCleared, BlockRemoved, BlockStored, KVEvent

_HASH_BYTES = 40  # a number in a list
_EVENT_BYTES = 300

BATCH_BLOCKS = 1024
"""Blocks written in one go: their keys take a millisecond."""


class Operation(NamedTuple):
    """An event of an endpoint. `epoch`: how many losses there had been when it came."""

    endpoint: str
    event: KVEvent
    epoch: int = 0


class Pending:
    """A bounded queue. When it is full, stores are lost; an endpoint whose removals are lost is *stale*.

    A stale endpoint's entries are wrong from then on, so all that the shared index has of it must be removed before
    anything else of it is written, and what still waits of it from before the loss is not written at all.
    """

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self.bytes = 0
        self.dropped = 0
        self.stale: set[str] = set()
        self._queue: deque[Operation] = deque()
        self._cleared: set[str] = set()  # the last that waits of these endpoints is a clear
        self._epoch = 0
        self._lost_at: dict[str, int] = {}  # of stale endpoints, the epoch of the last loss

    def __len__(self) -> int:
        return len(self._queue)

    def add(self, endpoint: str, events: Sequence[KVEvent]) -> None:
        """Take the events in this order."""
        for event in events:
            if isinstance(event, AllBlocksCleared):
                if endpoint in self._cleared:
                    continue
                self._cleared.add(endpoint)
            else:
                if not event.block_hashes:
                    continue
                self._cleared.discard(endpoint)
            size = cost(event)
            if self.bytes + size > self.most_bytes:
                self._lose(endpoint, event)
                continue
            self.bytes += size
            self._queue.append(Operation(endpoint, event, self._epoch))

    def _lose(self, endpoint: str, event: KVEvent) -> None:
        if not isinstance(event, AllBlocksCleared):
            self.dropped += len(event.block_hashes)
        if isinstance(event, BlockStored):
            return
        self.stale.add(endpoint)
        self._cleared.discard(endpoint)
        self._epoch += 1
        self._lost_at[endpoint] = self._epoch

    def take(self) -> list[Operation]:
        """The next operations, about `BATCH_BLOCKS` blocks, out of the queue; or clears that follow each other."""
        batch: list[Operation] = []
        blocks = 0
        while self._queue and blocks < BATCH_BLOCKS:
            event = self._queue[0].event
            if batch and isinstance(event, AllBlocksCleared) != isinstance(batch[0].event, AllBlocksCleared):
                break
            operation = self._queue.popleft()
            self.bytes -= cost(event)
            if isinstance(event, AllBlocksCleared):
                self._cleared.discard(operation.endpoint)
            else:
                blocks += len(event.block_hashes)
            if operation.epoch >= self._lost_at.get(operation.endpoint, 0):
                batch.append(operation)
        if not self._queue:
            self._lost_at.clear()
        return batch

    def distrust(self, batch: Sequence[Operation]) -> None:
        """What was taken is lost: endpoints with removals among it are stale."""
        self.stale.update(each.endpoint for each in batch if not isinstance(each.event, BlockStored))

    def put_back(self, batch: Sequence[Operation]) -> None:
        """What was taken could not be written: it comes first again."""
        self._queue.extendleft(reversed(batch))
        self.bytes += sum(cost(operation.event) for operation in batch)


def cost(event: KVEvent) -> int:
    """Memory of an event in bytes, about."""
    if isinstance(event, BlockStored):
        return _EVENT_BYTES + len(event.token_ids) + _HASH_BYTES * len(event.block_hashes)
    if isinstance(event, BlockRemoved):
        return _EVENT_BYTES + _HASH_BYTES * len(event.block_hashes)
    return _EVENT_BYTES
