"""From the events of many publishers to rows and holders, in as few calls of numpy as can be.

A call of numpy costs about a microsecond whatever it does, and storing takes some two hundred of them. So events are
taken by the thousand blocks, of however many endpoints: which endpoint a block belongs to is one more column.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeGuard

import numpy as np
from numpy.typing import NDArray

from epp.kvevents.events import AllBlocksCleared, BlockRemoved, BlockStored, KVEvent
from epp.prefixcache.precise.blocks import Blocks, Plane
from epp.prefixcache.precise.copies import Copies
from epp.prefixcache.precise.counters import Counters
from epp.prefixcache.precise.duplicates import different
from epp.prefixcache.precise.fingerprints import Rows
from epp.prefixcache.precise.hashing import BlockHasher, Keys
from epp.prefixcache.precise.lanes import WORD, Lanes
from epp.prefixcache.precise.stores import (
    MOST_OF_EVENT,
    StoredBlocks,
    Stores,
    columns,
    cut,
    engine_hashes,
    hashes_of,
    resolve,
    well_formed,
)
from epp.prefixcache.precise.tiers import RESTORED, Tiers

MAX_BLOCK_SIZES = 8
"""Each costs every request another hash of its prompt. Real pools have one."""

MAX_ADAPTERS = 65536
MAX_GROUPS = 16
MAX_BLOCK_SIZE = 1 << 16
MOST_AT_ONCE = 4096
"""Blocks handled in one go; a caller who wants shorter calls gives less. Indexes that small take fewer."""

_WORD_SHIFT = WORD.bit_length() - 1
_ONE = np.uint64(1)
_TOKEN_BYTES = 4


class Ingestion:
    """Applies events. `clear`: what an endpoint holds is to be forgotten, all before it has been applied.

    `copies`: a block that is stored twice is removed twice.
    """

    def __init__(
        self,
        blocks: Blocks,
        lanes: Lanes,
        tiers: Tiers,
        hasher: BlockHasher,
        clear: Callable[[str], None],
        *,
        copies: bool,
    ) -> None:
        self.counters = Counters()
        self.adapters: set[str] = set()
        self.block_sizes: list[int] = []
        self.endpoint_sizes: dict[str, int] = {}
        self.copies: Copies | None = Copies() if copies else None
        self._blocks = blocks
        self._lanes = lanes
        self._tiers = tiers
        self._hasher = hasher
        self._clear = clear

    def apply(self, batches: Iterable[tuple[str, Sequence[KVEvent]]]) -> None:
        """Events by endpoint; those of one endpoint in their order, of which the index of all keeps what matters."""
        owners: list[str] = []
        events: list[KVEvent] = []
        for endpoint, some in batches:
            owners += [endpoint] * len(some)
            events += some
        if _no_clear(events):  # as nearly always
            self._apply(owners, events)
            return
        whose: list[str] = []
        pending: list[BlockStored | BlockRemoved] = []
        for owner, event in zip(owners, events, strict=True):
            if isinstance(event, AllBlocksCleared):
                self._apply(whose, pending)
                whose, pending = [], []
                self._clear(owner)
            else:
                whose.append(owner)
                pending.append(event)
        self._apply(whose, pending)

    def accepts(self, block_size: int) -> bool:
        """Whether blocks of this size are indexed. The first few sizes are."""
        if block_size in self.block_sizes:
            return True
        if len(self.block_sizes) >= MAX_BLOCK_SIZES or block_size > MAX_BLOCK_SIZE:
            return False
        self.block_sizes.append(block_size)
        return True

    def hold(self, plane: Plane, lane: int, rows: Rows) -> None:
        """One endpoint holds these blocks."""
        column = self._blocks.plane(plane, self._lanes.words)[lane // WORD]
        column[rows] |= np.uint64(1 << lane % WORD)

    def _apply(self, owners: Sequence[str], events: Sequence[BlockStored | BlockRemoved]) -> None:
        """So many at a time."""
        most = MOST_AT_ONCE if self._blocks.capacity >= 2 * MOST_AT_ONCE else MOST_OF_EVENT
        counts = [len(event.block_hashes) for event in events]
        begin = 0
        if sum(counts) > most:
            size = 0
            for at, count in enumerate(counts):
                if size + count > most and at > begin:
                    self._flush(owners[begin:at], events[begin:at])
                    begin, size = at, 0
                size += count
        self._flush(owners[begin:], events[begin:])

    def _flush(self, owners: Sequence[str], events: Sequence[BlockStored | BlockRemoved]) -> None:
        """In pieces within which no endpoint stores a block again that it has removed."""
        if _only_stores(events):
            self._stores(owners, events)
            return
        begin = 0
        removed: dict[str, set[int]] = {}
        for at, (owner, event) in enumerate(zip(owners, events, strict=True)):
            if isinstance(event, BlockRemoved):
                removed.setdefault(owner, set()).update(event.block_hashes)
            elif removed and (gone := removed.get(owner)) and not gone.isdisjoint(event.block_hashes):
                self._piece(owners[begin:at], events[begin:at])
                begin = at
                removed.clear()
        self._piece(owners[begin:], events[begin:])

    def _piece(self, owners: Sequence[str], events: Sequence[BlockStored | BlockRemoved]) -> None:
        """All stores, then all removals: a parent that is removed is still known to its children then."""
        stores = [event for event in events if isinstance(event, BlockStored)]
        storing = [owner for owner, event in zip(owners, events, strict=True) if isinstance(event, BlockStored)]
        self._stores(storing, stores)
        removals = [event for event in events if isinstance(event, BlockRemoved)]
        removing = [owner for owner, event in zip(owners, events, strict=True) if isinstance(event, BlockRemoved)]
        self._removals(removing, removals)

    def _stores(self, owners: Sequence[str], events: Sequence[BlockStored]) -> None:
        if not events:
            return
        stores = columns(events)
        size = stores.sizes[0]
        lengths = list(map(len, stores.hashes))
        if (
            size in self.block_sizes
            and stores.sizes.count(size) == len(events)
            and min(lengths) > 0
            and max(lengths) <= MOST_OF_EVENT
            and not any(stores.extras)
            and list(map(len, stores.tokens)) == list(map((size * _TOKEN_BYTES).__mul__, lengths))
        ):
            self._store(owners, stores)  # as nearly always: nothing more to look at
            return
        self._sort_out(owners, events)

    def _sort_out(self, owners: Sequence[str], events: Sequence[BlockStored]) -> None:
        """Stores of which some are not of the usual kind."""
        by_size: dict[int, tuple[list[str], list[BlockStored]]] = {}
        for owner, event in zip(owners, events, strict=True):
            if not event.block_hashes:
                continue
            if not event.token_ids:
                # It names blocks that an earlier event of this very batch may have brought.
                for group in by_size.values():
                    self._store_all(*group)
                by_size.clear()
                self._move(owner, event)
            elif not well_formed(event):
                self.counters.malformed += 1
            elif self.accepts(event.block_size):
                group = by_size.setdefault(event.block_size, ([], []))
                for part in cut(event):
                    group[0].append(owner)
                    group[1].append(part)
                    if len(part.block_hashes) >= MOST_OF_EVENT:
                        self._store_all(*group)
                        by_size[event.block_size] = group = ([], [])
            else:
                self.counters.block_sizes_refused += 1
        for group in by_size.values():
            self._store_all(*group)

    def _store_all(self, owners: Sequence[str], events: Sequence[BlockStored]) -> None:
        """Events of one block size, if there are any."""
        if events:
            self._store(owners, columns(events))

    def _store(self, owners: Sequence[str], events: Stores) -> None:
        """Events of one block size."""
        blocks, counters = self._blocks, self.counters
        blocks.clock += 1
        stored = resolve(events, self._hasher, self._keys_of)
        counters.orphans += stored.orphans
        if not len(stored.keys):
            return
        rows = blocks.upsert(stored.keys, stored.engines)
        lanes = {owner: self._lanes.assign(owner) for owner in dict.fromkeys(owners)}
        lane_of = np.array(list(map(lanes.__getitem__, owners)))
        self.endpoint_sizes.update(dict.fromkeys(lanes, events.sizes[0]))
        medium, group = events.media[0], events.groups[0]
        one_plane = events.media.count(medium) == events.groups.count(group) == len(events.media)
        if blocks.fresh is not None and one_plane:
            self._hold_fresh(self._plane(medium, group), blocks.fresh, lane_of, stored.lengths)
        else:
            rows = self._hold_known(rows, lane_of, stored, events)
        for name in set(events.adapters):
            if name and len(self.adapters) < MAX_ADAPTERS:
                self.adapters.add(name)
        counters.stored += len(rows)

    def _hold_fresh(self, plane: Plane, rows: slice, lane_of: Rows, lengths: Sequence[int]) -> None:
        """As nearly always: rows nobody holds yet, one after the other, in one plane. `lengths`: rows of each event."""
        words, bits = lane_of // WORD, _bits(lane_of)
        for word, column in enumerate(self._blocks.plane(plane, self._lanes.words)):
            here = words == word
            if here.any():
                column[rows] |= np.repeat(bits * here, lengths)

    def _hold_known(self, rows: Rows, lane_of: Rows, stored: StoredBlocks, events: Stores) -> Rows:
        """Rows that somebody may hold already, in whatever planes. Returns those that could be stored."""
        engines, event_of = stored.engines, stored.event
        if rows.min() < 0:
            good = np.flatnonzero(rows >= 0)
            self.counters.conflicts += len(rows) - len(good)
            rows, engines, event_of = rows.take(good), engines.take(good), event_of.take(good)
        plane_of = list(map(self._plane, events.media, events.groups))
        planes = set(plane_of)
        if len(planes) == 1:
            self._hold_all(plane_of[0], lane_of, rows, engines, event_of, events)
            return rows
        for plane in planes:
            chosen = np.array([own == plane for own in plane_of]).take(event_of)
            self._hold_all(plane, lane_of, rows[chosen], engines[chosen], event_of[chosen], events)
        return rows

    def _plane(self, medium: str, group: int) -> Plane:
        return self._tiers.number(medium), min(group, MAX_GROUPS)

    @property
    def _may_be_copies(self) -> bool:
        """Whether some of the blocks that were just stored may be held by their lanes already."""
        return self.copies is not None and not self._blocks.all_new

    def _copied(self, plane: Plane, lanes: Rows, engines: Keys, event_of: Rows, events: Stores) -> None:
        """Blocks that their lanes hold already came once more."""
        assert self.copies is not None
        for lane, engine, at in zip(lanes.tolist(), engines.tolist(), event_of.tolist(), strict=True):
            if events.parents[at] is not None and not events.again[at] and self.copies.add(plane, lane, engine):
                self.counters.copies += 1

    def _hold_all(
        self,
        plane: Plane,
        lane_of: Rows,
        rows: Rows,
        engines: Keys,
        event_of: Rows,
        events: Stores,
    ) -> None:
        """As `hold`, for the lane of each row's event."""
        lanes = lane_of.take(event_of)
        if self._may_be_copies:
            again = np.zeros(len(rows), dtype=np.bool_)
            for column, where, bits in _by_word(self._blocks.planes.get(plane, ()), lanes):
                again[where] = column.take(rows[where]) & bits != 0
            where_again = _marked(again, rows * (self._lanes.words * WORD) + lanes)
            if where_again is not None:
                chosen = where_again
                names = self._names(rows[chosen], engines[chosen])
                self._copied(plane, lanes[chosen], names, event_of[chosen], events)
        for column, where, bits in _by_word(self._blocks.plane(plane, self._lanes.words), lanes):
            np.bitwise_or.at(column, rows[where], bits)  # a row may be there for several lanes

    def _move(self, owner: str, event: BlockStored) -> None:
        """A store without token ids: blocks that are known are in this tier, too, now."""
        rows = self.canonical(engine_hashes(event.block_hashes))
        known = rows >= 0
        self.counters.orphans += len(rows) - int(known.sum())
        rows = rows[known]
        if len(rows):
            self._blocks.clock += 1
            self._blocks.used[rows] = self._blocks.clock
            self.hold(self._plane(event.medium, event.group), self._lanes.assign(owner), rows)
            self.counters.moved += len(rows)

    def _removals(self, owners: Sequence[str], events: Sequence[BlockRemoved]) -> None:
        by_plane: dict[Plane, tuple[list[int], list[BlockRemoved]]] = {}
        for owner, event in zip(owners, events, strict=True):
            lane = self._lanes.get(owner)
            lanes, group = by_plane.setdefault(self._plane(event.medium, event.group), ([], []))
            lanes.append(-1 if lane is None else lane)
            group.append(event)
        for plane, (lanes, group) in by_plane.items():
            lengths = [len(event.block_hashes) for event in group]
            count = sum(lengths)
            hashes = hashes_of([event.block_hashes for event in group], count)
            whose = np.repeat(np.array(lanes, dtype=np.intp), lengths)
            for begin in range(0, count, MOST_AT_ONCE):
                end = begin + MOST_AT_ONCE
                self._remove(plane, whose[begin:end], hashes[begin:end])

    def _remove(self, plane: Plane, lanes: Rows, hashes: Keys) -> None:
        if self.copies:
            names = self._names(self.canonical(hashes), hashes) if self._blocks.aliases else hashes
            last = self.copies.take(plane, lanes.tolist(), names.tolist())
            if not last.all():
                lanes, hashes = lanes[last], hashes[last]
                self.counters.suppressed += len(last) - len(hashes)
                self.counters.removed += len(last) - len(hashes)
        self.counters.forwarded += len(hashes)
        rows = self.canonical(hashes)
        known = rows >= 0
        count = int(known.sum())
        self.counters.unknown_removals += len(rows) - count
        known &= lanes >= 0
        if not known.any():
            return
        # Each block of each lane once. Ascending rows are also the fastest to go through.
        width = self._lanes.words * WORD
        rows, lanes = np.divmod(different(rows[known] * width + lanes[known]), width)
        restored = self._tiers.known(RESTORED + self._tiers.names[plane[0]])
        for tier in (plane[0], restored):
            columns = None if tier is None else self._blocks.planes.get((tier, plane[1]))
            for column, where, bits in _by_word(columns or (), lanes):
                np.bitwise_and.at(column, rows[where], ~bits)
        self.counters.removed += len(rows)
        self._blocks.release(different(rows))

    def _names(self, rows: Rows, engines: Keys) -> Keys:
        """The hash under which copies of these blocks are counted: the first one, where a block has several."""
        if not self._blocks.aliases:
            return engines
        return np.where(rows >= 0, self._blocks.engine.take(np.maximum(rows, 0)), engines)

    def canonical(self, engines: Keys) -> Rows:
        """Rows that have the holders of blocks with these engine hashes; -1: unknown."""
        blocks = self._blocks
        rows = blocks.by_engine(engines)
        if blocks.aliases:
            known = np.flatnonzero(rows >= 0)
            rows[known] = blocks.by_key(blocks.key.take(rows[known]))
        return rows

    def _keys_of(self, engines: Keys) -> tuple[NDArray[np.bool_], Keys]:
        rows = self._blocks.by_engine(engines)
        known = rows >= 0
        return known, np.where(known, self._blocks.key.take(np.maximum(rows, 0)), np.uint64(0))


def _no_clear(events: Sequence[KVEvent]) -> TypeGuard[Sequence[BlockStored | BlockRemoved]]:
    return AllBlocksCleared not in map(type, events)


def _only_stores(events: Sequence[BlockStored | BlockRemoved]) -> TypeGuard[Sequence[BlockStored]]:
    return BlockRemoved not in map(type, events)


def _marked(held: NDArray[np.bool_] | None, names: Rows) -> Rows | None:
    """Where something is held, or comes after its like. None: nowhere, as nearly always."""
    if len(names) > 1 and (names[1:] <= names[:-1]).any():
        order = np.argsort(names, kind="stable")
        ordered = names.take(order)
        repeated = order[1:][ordered[1:] == ordered[:-1]]
        if len(repeated):
            if held is None:
                held = np.zeros(len(names), dtype=np.bool_)
            held[repeated] = True
    return None if held is None or not held.any() else np.flatnonzero(held)


def _bits(lanes: Rows) -> NDArray[np.uint64]:
    """Of each lane, in its word."""
    return _ONE << (lanes & (WORD - 1)).astype(np.uint64)


def _by_word(
    columns: Sequence[NDArray[np.uint64]], lanes: Rows
) -> Iterable[tuple[NDArray[np.uint64], slice | NDArray[np.bool_], NDArray[np.uint64]]]:
    """The columns that these lanes have a bit in: which of the lanes, and their bits there."""
    bits = _bits(lanes)
    if len(columns) == 1 and (not len(lanes) or lanes.max() < WORD):
        yield columns[0], slice(None), bits
        return
    words = lanes >> _WORD_SHIFT
    for word, column in enumerate(columns):
        where = words == word
        if where.any():
            yield column, where, bits[where]
