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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from epp.kvevents.events import AllBlocksCleared, BlockRemoved, BlockStored, KVEvent
from epp.prefixcache.precise.blocks import Blocks, Plane, different
from epp.prefixcache.precise.hashing import CHUNK, BlockHasher, Keys
from epp.prefixcache.precise.lanes import WORD, Lanes
from epp.prefixcache.precise.lookup import Rows
from epp.prefixcache.precise.matching import LaneMatch, match_rows
from epp.prefixcache.precise.speculation import Record, Speculation
from epp.prefixcache.precise.stores import cut, engine_hashes, resolve, well_formed
from epp.prefixcache.precise.tiers import DEFAULT_WEIGHTS, RESTORED, SPECULATIVE, Tiers

_log = logging.getLogger(__name__)

MAX_BLOCK_SIZES = 8
"""Each costs every request another hash of its prompt. Real pools have one."""

MAX_ADAPTERS = 65536
MAX_GROUPS = 16
SLICE = 1024
"""Blocks handled in one go."""

SMALL = 256
LOOKUP_SLICE = 8192
SWEEP_ROWS = 1 << 14
MAX_BLOCK_SIZE = 1 << 16


@dataclass(slots=True)
class Counters:
    """What happened so far, in blocks (`conflicts`, `malformed`, `clears`, `block_sizes_refused`: events)."""

    stored: int = 0
    removed: int = 0
    moved: int = 0
    orphans: int = 0
    unknown_removals: int = 0
    conflicts: int = 0
    malformed: int = 0
    clears: int = 0
    block_sizes_refused: int = 0
    expired: int = 0


class PreciseIndex:
    """The sink of KV cache events, and the source of matches. Not thread-safe: event loop only.

    `max_bytes` bounds the memory, `max_blocks` the number of different blocks; the least recently used make room.
    `weights`: by tier name, lower case; 1.0 for others. `seed` is mixed into every key.
    """

    def __init__(
        self,
        max_bytes: int,
        *,
        max_blocks: int = 1 << 30,
        weights: Mapping[str, float] = DEFAULT_WEIGHTS,
        seed: str = "",
        log: logging.Logger = _log,
    ) -> None:
        self.blocks = Blocks(max_bytes, max_blocks)
        self.hasher = BlockHasher(seed)
        self.lanes = Lanes()
        self.tiers = Tiers(weights)
        self.counters = Counters()
        self.speculation = Speculation()
        self.adapters: set[str] = set()
        self.block_sizes: list[int] = []
        self._endpoint_sizes: dict[str, int] = {}
        self._log = log
        self._wipe: NDArray[np.uint64] | None = None
        self._cursor = 0
        self._sweep_wanted = False

    def block_size_of(self, endpoint: str) -> int | None:
        """Tokens per block in the endpoint's latest event; None before its first."""
        return self._endpoint_sizes.get(endpoint)

    def apply(self, endpoint: str, events: Sequence[KVEvent]) -> None:
        """Take the events of one publisher in this order. What is wrong with an event is counted, and costs only it."""
        pending: list[BlockStored | BlockRemoved] = []
        size = 0
        for event in events:
            if isinstance(event, AllBlocksCleared):
                self._flush(endpoint, pending)
                pending, size = [], 0
                self.clear(endpoint)
                continue
            pending.append(event)
            size += len(event.block_hashes)
            if size >= SLICE:
                self._flush(endpoint, pending)
                pending, size = [], 0
        self._flush(endpoint, pending)
        self.tidy()

    def clear(self, endpoint: str) -> None:
        """Forget all that this endpoint holds. At once for every question asked from now on."""
        if self.lanes.release(endpoint):
            self.counters.clears += 1
        self._endpoint_sizes.pop(endpoint, None)

    def _flush(self, endpoint: str, events: list[BlockStored | BlockRemoved]) -> None:
        """All removals, then all stores, when no block is in both; else in the order given."""
        stores = [event for event in events if isinstance(event, BlockStored)]
        if len(stores) == len(events):
            self._stores(endpoint, stores)
            return
        removals = [event for event in events if isinstance(event, BlockRemoved)]
        if not stores:
            self._remove(endpoint, removals)
            return
        removed = {block for event in removals for block in event.block_hashes}
        if all(removed.isdisjoint(event.block_hashes) for event in stores):
            # Stores first: a parent among the removed ones is still known then.
            self._stores(endpoint, stores)
            self._remove(endpoint, removals)
            return
        for event in events:
            if isinstance(event, BlockStored):
                self._stores(endpoint, [event])
            else:
                self._remove(endpoint, [event])

    def _stores(self, endpoint: str, events: list[BlockStored]) -> None:
        by_size: dict[int, list[BlockStored]] = {}
        for event in events:
            size, count = event.block_size, len(event.block_hashes)
            whole = 0 < count <= SMALL and len(event.token_ids) == count * size * 4 and not event.extras
            if whole and (ready := by_size.get(size)):  # like one before: nothing more to look at
                ready.append(event)
                continue
            if not count:
                continue
            if not event.token_ids:
                # It names blocks that an earlier event of this very batch may have brought.
                for size, group in by_size.items():
                    if group:
                        self._store(endpoint, size, group)
                by_size.clear()
                self._move(endpoint, event)
            elif not well_formed(event):
                self.counters.malformed += 1
            elif self._accepts(event.block_size):
                group = by_size.setdefault(event.block_size, [])
                for part in cut(event):
                    group.append(part)
                    if len(part.block_hashes) >= CHUNK:
                        self._store(endpoint, event.block_size, group)
                        group.clear()
            else:
                self.counters.block_sizes_refused += 1
        for size, group in by_size.items():
            if group:
                self._store(endpoint, size, group)

    def _accepts(self, block_size: int) -> bool:
        if block_size in self.block_sizes:
            return True
        if len(self.block_sizes) >= MAX_BLOCK_SIZES or block_size > MAX_BLOCK_SIZE:
            return False
        self.block_sizes.append(block_size)
        return True

    def _store(self, endpoint: str, block_size: int, events: list[BlockStored]) -> None:
        blocks = self.blocks
        blocks.clock += 1
        stored = resolve(events, self.hasher, self._keys_of)
        self.counters.orphans += stored.orphans
        if not len(stored.keys):
            return
        rows = blocks.upsert(stored.keys, stored.engines)
        bad = rows < 0
        if bad.any():
            self.counters.conflicts += int(bad.sum())
            rows = rows[~bad]
        lane = self.lanes.assign(endpoint)
        self._endpoint_sizes[endpoint] = block_size
        if len({(event.medium, event.group) for event in events}) == 1:
            self._hold((self.tiers.number(events[0].medium), min(events[0].group, MAX_GROUPS)), lane, rows)
        else:
            planes = [(self.tiers.number(event.medium), min(event.group, MAX_GROUPS)) for event in events]
            event_of = stored.event[~bad]
            for plane in set(planes):
                chosen = np.array([own == plane for own in planes])
                self._hold(plane, lane, rows[chosen[event_of]])
        for name in {event.lora_name for event in events}:
            if name and len(self.adapters) < MAX_ADAPTERS:
                self.adapters.add(name)
        self.counters.stored += len(rows)

    def _hold(self, plane: Plane, lane: int, rows: Rows) -> None:
        word, bit = lane // WORD, np.uint64(1 << lane % WORD)
        column = self.blocks.plane(plane, self.lanes.words)[word]
        column[rows] |= bit

    def _move(self, endpoint: str, event: BlockStored) -> None:
        """A store without token ids: blocks that are known are in this tier, too, now."""
        rows = self._canonical(engine_hashes(event.block_hashes))
        known = rows >= 0
        self.counters.orphans += len(rows) - int(known.sum())
        rows = rows[known]
        if len(rows):
            self.blocks.clock += 1
            self.blocks.used[rows] = self.blocks.clock
            plane = (self.tiers.number(event.medium), min(event.group, MAX_GROUPS))
            self._hold(plane, self.lanes.assign(endpoint), rows)
            self.counters.moved += len(rows)

    def _remove(self, endpoint: str, events: list[BlockRemoved]) -> None:
        lane = self.lanes.get(endpoint)
        by_plane: dict[Plane, list[int]] = {}
        for event in events:
            plane = (self.tiers.number(event.medium), min(event.group, MAX_GROUPS))
            by_plane.setdefault(plane, []).extend(event.block_hashes)
        for plane, hashes in by_plane.items():
            for begin in range(0, len(hashes), SLICE):
                self._remove_some(lane, plane, hashes[begin : begin + SLICE])

    def _remove_some(self, lane: int | None, plane: Plane, hashes: list[int]) -> None:
        rows = self._canonical(engine_hashes(hashes))
        known = rows[rows >= 0]
        self.counters.unknown_removals += len(rows) - len(known)
        if lane is None or not len(known):
            return
        known = different(known)
        word, bit = lane // WORD, np.uint64(1 << lane % WORD)
        restored = self.tiers.known(RESTORED + self.tiers.names[plane[0]])
        for tier in (plane[0], restored):
            columns = None if tier is None else self.blocks.planes.get((tier, plane[1]))
            if columns is not None and word < len(columns):
                columns[word][known] &= ~bit
        self.counters.removed += len(known)
        self.blocks.release(known)

    def _canonical(self, engines: Keys) -> Rows:
        """Rows that have the holders of blocks with these engine hashes; -1: unknown."""
        rows = self.blocks.by_engine.find(engines)
        if self.blocks.aliases:
            known = np.flatnonzero(rows >= 0)
            rows[known] = self.blocks.by_key.find(self.blocks.key.take(rows[known]))
        return rows

    def _keys_of(self, engines: Keys) -> tuple[NDArray[np.bool_], Keys]:
        rows = self.blocks.by_engine.find(engines)
        known = rows >= 0
        return known, np.where(known, self.blocks.key.take(np.maximum(rows, 0)), np.uint64(0))

    # Questions

    def match(self, keys: Keys) -> LaneMatch:
        """How far each lane's cache reaches into the prompt with these keys. What is asked for counts as used."""
        blocks, words = self.blocks, self.lanes.words
        blocks.clock += 1
        found: list[Rows] = []
        for begin in range(0, len(keys), LOOKUP_SLICE):
            rows = blocks.find(keys[begin : begin + LOOKUP_SLICE])
            end = int(np.argmax(rows < 0)) if rows.min() < 0 else len(rows)
            found.append(rows[:end])
            if end < len(rows):
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
        self.blocks.clock += 1
        lane = self.lanes.assign(endpoint)
        for begin in range(0, len(keys), SLICE):
            rows = self.blocks.upsert(keys[begin : begin + SLICE], None)
            self._hold((self.tiers.number(SPECULATIVE), 0), lane, rows)
        self.speculation.add(Record(deadline, lane, keys))

    def expire(self, now: float, most: int = 64) -> int:
        """Stop believing what is over, up to `most` picks of it; returns how many those were."""
        count = 0
        while count < most and (record := self.speculation.expire(now)) is not None:
            count += 1
            rows = self.blocks.by_key.find(record.keys)
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
        return dict(self._endpoint_sizes)

    def restore(
        self, block_sizes: Sequence[int], sizes: Mapping[str, int], endpoints: Sequence[str], adapters: Sequence[str]
    ) -> list[int]:
        """Take over what a snapshot knows besides blocks; returns the lanes of these endpoints."""
        for size in block_sizes:
            self._accepts(size)
        self._endpoint_sizes.update({name: size for name, size in sizes.items() if name not in self._endpoint_sizes})
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
            del self.blocks.planes[plane]
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
                return blocks.evict_surplus(SLICE) > 0
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
