"""What every server's cache holds, as the servers tell it: from events to matches.

Blocks are keyed by their content at the engine's own block size, so one event block is one entry and a removal finds
it by the engine's hash, whatever block size the picker works with. Prompts are hashed once per block size that engines
use (nearly always one), and matches are reported in blocks of the asker's size.

The base model has no name here: an endpoint has one base model, and requests only go to endpoints that serve their
model. LoRA adapters are told apart by the name that events and requests share.

Everything runs on the event loop in calls of about a millisecond; what is more work (wiping a cleared endpoint,
shrinking after a new tier came) is done in slices by `tidy`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from epp.kvevents.events import KVEvent
from epp.prefixcache.precise.blocks import Blocks
from epp.prefixcache.precise.counters import Counters
from epp.prefixcache.precise.fingerprints import Rows
from epp.prefixcache.precise.hashing import BlockHasher, Keys
from epp.prefixcache.precise.ingestion import MAX_ADAPTERS, Ingestion
from epp.prefixcache.precise.lanes import WORD, Lanes
from epp.prefixcache.precise.matching import LaneMatch, match_rows
from epp.prefixcache.precise.speculation import Record, Speculation
from epp.prefixcache.precise.tiers import DEFAULT_WEIGHTS, RESTORED, SPECULATIVE, Tiers

_log = logging.getLogger(__name__)

SLICE = 1024
"""Blocks handled in one go."""

LOOKUP_SLICE = 8192
SWEEP_ROWS = 1 << 14


class PreciseIndex:
    """The sink of KV cache events, and the source of matches. Not thread-safe: event loop only.

    `max_bytes` bounds the memory, `max_blocks` the number of different blocks; the least recently used make room.
    `weights`: by tier name, lower case; 1.0 for others. `seed` is mixed into every key. `copies`: a block that is
    stored twice is removed twice, as vLLM does it.
    """

    def __init__(
        self,
        max_bytes: int,
        *,
        max_blocks: int = 1 << 30,
        weights: Mapping[str, float] = DEFAULT_WEIGHTS,
        seed: str = "",
        copies: bool = True,
        log: logging.Logger = _log,
    ) -> None:
        self.blocks = Blocks(max_bytes, max_blocks)
        self.hasher = BlockHasher(seed)
        self.lanes = Lanes()
        self.tiers = Tiers(weights)
        self.speculation = Speculation()
        self._ingestion = Ingestion(self.blocks, self.lanes, self.tiers, self.hasher, self.clear, copies=copies)
        self._log = log
        self._wipe: NDArray[np.uint64] | None = None
        self._cursor = 0
        self._sweep_wanted = False

    @property
    def counters(self) -> Counters:
        """What happened so far."""
        return self._ingestion.counters

    @property
    def adapters(self) -> set[str]:
        """Names of LoRA adapters that events have told."""
        return self._ingestion.adapters

    @property
    def block_sizes(self) -> list[int]:
        """Tokens per block that events came with."""
        return self._ingestion.block_sizes

    def block_size_of(self, endpoint: str) -> int | None:
        """Tokens per block in the endpoint's latest event; None before its first."""
        return self._ingestion.endpoint_sizes.get(endpoint)

    def apply(self, endpoint: str, events: Sequence[KVEvent]) -> None:
        """Take the events of one publisher in this order. What is wrong with an event is counted, and costs only it."""
        self.apply_many([(endpoint, events)])

    def apply_many(self, batches: Sequence[tuple[str, Sequence[KVEvent]]]) -> None:
        """As `apply` for each in turn, but cheaper: a call has a cost of its own, whatever it brings."""
        self._ingestion.apply(batches)
        self.tidy()

    def clear(self, endpoint: str) -> None:
        """Forget all that this endpoint holds. At once for every question asked from now on."""
        lane = self.lanes.get(endpoint)
        if lane is not None and self._ingestion.copies is not None:
            self._ingestion.copies.forget(lane)
        if self.lanes.release(endpoint):
            self.counters.clears += 1
        self._ingestion.endpoint_sizes.pop(endpoint, None)

    # Questions

    def match(self, keys: Keys) -> LaneMatch:
        """How far each lane's cache reaches into the prompt with these keys. What is asked for counts as used."""
        blocks, words = self.blocks, self.lanes.words
        blocks.clock += 1
        found: list[Rows] = []
        for begin in range(0, len(keys), LOOKUP_SLICE):
            part = keys[begin : begin + LOOKUP_SLICE]
            found.append(blocks.leading(part))
            if len(found[-1]) < len(part):
                break
        rows = np.concatenate(found) if found else np.zeros(0, dtype=np.intp)
        blocks.used[rows] = blocks.clock
        return match_rows(rows, self._tiers(), words)

    def _tiers(self) -> list[tuple[float, list[list[NDArray[np.uint64]]]]]:
        """Weight and planes of every tier that somebody has reported, heaviest first."""
        tiers: dict[int, list[list[NDArray[np.uint64]]]] = {}
        for (tier, _), columns in self.blocks.planes.items():
            tiers.setdefault(tier, []).append(columns)
        weights = self.tiers.weights
        return sorted(((weights[tier], planes) for tier, planes in tiers.items()), key=lambda entry: -entry[0])

    # Speculation

    def speculate(self, endpoint: str, keys: Keys, deadline: float) -> None:
        """The endpoint will soon hold these blocks; believed until `deadline` (seconds of the caller's clock)."""
        if not len(keys):
            return
        lane = self.lanes.assign(endpoint)
        for begin in range(0, len(keys), SLICE):
            self.blocks.clock += 1
            rows = self.blocks.upsert(keys[begin : begin + SLICE], None)
            self._ingestion.hold((self.tiers.number(SPECULATIVE), 0), lane, rows)
        self.speculation.add(Record(deadline, lane, keys))
        if self.speculation.full:
            self.expire(-math.inf)  # all of those that are too many, and nobody else's turn comes earlier

    def expire(self, now: float, most: int = 64) -> int:
        """Stop believing what is over, up to `most` picks of it; returns how many those were."""
        count = 0
        while count < most and (record := self.speculation.expire(now)) is not None:
            count += 1
            rows = self.blocks.by_key(record.keys)
            rows = rows[rows >= 0]
            columns = self.blocks.planes.get((self.tiers.number(SPECULATIVE), 0))
            if columns is None or not len(rows):
                continue
            columns[record.lane // WORD][rows] &= ~np.uint64(1 << record.lane % WORD)
            self.counters.expired += len(rows)
            self.blocks.release(rows)
        return count

    # Snapshots

    @property
    def restored(self) -> bool:
        """Whether there are blocks from a snapshot that have not been dropped yet."""
        return any(self.tiers.names[tier].startswith(RESTORED) for tier, _ in self.blocks.planes)

    def endpoint_sizes(self) -> dict[str, int]:
        """Block size by endpoint, of those that are known."""
        return dict(self._ingestion.endpoint_sizes)

    def restore(
        self, block_sizes: Sequence[int], sizes: Mapping[str, int], endpoints: Sequence[str], adapters: Sequence[str]
    ) -> list[int]:
        """Take over what a snapshot knows besides blocks; returns the lanes of these endpoints."""
        for size in block_sizes:
            self._ingestion.accepts(size)
        known = self._ingestion.endpoint_sizes
        known.update({name: size for name, size in sizes.items() if name not in known})
        self.adapters.update(adapters[:MAX_ADAPTERS])
        return [self.lanes.assign(name) for name in endpoints]

    def restore_rows(
        self, keys: Keys, engines: Keys, planes: Sequence[tuple[str, int, Sequence[NDArray[np.uint64]]]]
    ) -> None:
        """Add blocks of a snapshot with their holders' bits. They are believed until `drop_restored`."""
        for begin in range(0, len(keys), SLICE):
            part = slice(begin, begin + SLICE)
            named = engines[part] != 0
            if not named.any():
                continue
            self.blocks.clock += 1
            rows = self.blocks.upsert(keys[part][named], engines[part][named])
            good = rows >= 0
            for tier, group, words in planes:
                number = self.tiers.number(RESTORED + tier.removeprefix(RESTORED))
                columns = self.blocks.plane((number, group), self.lanes.words)
                for column, bits in zip(columns, words, strict=False):
                    column[rows[good]] |= bits[part][named][good]

    def drop_restored(self) -> None:
        """What no event has confirmed by now is not believed any more; its rows are freed by `tidy`."""
        for plane in [key for key in self.blocks.planes if self.tiers.names[key[0]].startswith(RESTORED)]:
            self.blocks.drop(plane)
            self._sweep_wanted = True

    # Upkeep

    def tidy(self) -> bool:
        """One slice of what is left to do. False: nothing is left."""
        blocks = self.blocks
        if self._wipe is None:
            self._wipe = self.lanes.begin_sweep()
            if self._wipe is None and self._sweep_wanted:
                self._wipe = np.zeros(self.lanes.words, dtype=np.uint64)
            if self._wipe is None:
                return blocks.shrink(SLICE)
            self._sweep_wanted = False
            self._cursor = 0
        # The more cleared lanes wait, the faster the sweep: a server that clears all the time must not use up lanes.
        end = min(blocks.high, self._cursor + SWEEP_ROWS * (1 + self.lanes.dirty // WORD))
        blocks.wipe(self._cursor, end, self._wipe)
        self._cursor = end
        if end >= blocks.high:
            self._wipe = None
            self.lanes.end_sweep()
        return True
