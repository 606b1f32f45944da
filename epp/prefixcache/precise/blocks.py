"""The blocks themselves, as columns: one row per block, whatever the number of endpoints that hold it.

A row has the block's key, the engine's hash for it, when it was last used, and its holders: a *plane* per tier and
cache group, with one bit per endpoint lane (so many 64-bit words as the lanes need). Columns are reserved for the whole
capacity and touched as rows are used; planes exist as soon as somebody reports that tier.

Engines whose hashes are seeded at random have different hashes for the same block. Then the block has one row with the
first engine's hash, and one *alias* row per further hash: same key, no holders, found only by the engine's hash.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from epp.prefixcache.precise.duplicates import distinct
from epp.prefixcache.precise.fingerprints import Numbers, Rows
from epp.prefixcache.precise.lookup import BYTES_PER_ENTRY, Lookup
from epp.prefixcache.precise.memory import Frontier, reserve

Plane = tuple[int, int]
"""Tier number, cache group."""

_COLUMN_BYTES = 8 + 8 + 4
_FIXED_BYTES = _COLUMN_BYTES + 2 * BYTES_PER_ENTRY
_FREE_BYTES = 4
_WORD_BYTES = 8
_SAMPLE = 8  # rows looked at for each row that is evicted
_RUN = 16  # neighbours looked at together: they share cache lines
_NEIGHBOURS = np.arange(_RUN)
_STRIDE = 16
_OFFSETS = np.arange(_STRIDE)
_AHEAD = 1 << 18  # rows whose pages are made ready at a time: 20 bytes each and 8 per word of holders
_LEAST = 4096  # rows reserved: room for the blocks of a call, and for aliases of all of them
_GOLDEN = 0.6180339887498949


class Blocks:
    """`max_bytes` and `max_blocks` bound the rows in use; beyond them the least recently used make room.

    `size_bytes` counts what rows in use cost. `evicted` counts the rows that the bounds have cost so far.
    """

    def __init__(self, max_bytes: int, max_blocks: int) -> None:
        self.max_bytes = max_bytes
        self.max_blocks = max_blocks
        self._reserved = max(_LEAST, min(max_blocks, int(max_bytes / (_FIXED_BYTES + _WORD_BYTES))))
        self.evicted = 0
        self.clock = 1
        self.all_new = False
        """The latest `upsert` has found nothing: nobody holds its rows, and none of them comes twice."""
        self.fresh: slice | None = None
        """Where the rows of the latest `upsert` are, if it was `all_new` and they are one after the other."""
        self._reset()

    def _reset(self) -> None:
        size = self._reserved
        self._names: NDArray[np.uint64] = reserve(2 * size, np.uint64)
        self.key = self._names[:size]
        self.engine = self._names[size:]
        self.used: NDArray[np.uint32] = reserve(size, np.uint32)
        self.planes: dict[Plane, list[NDArray[np.uint64]]] = {}
        self._capacity: int | None = None
        self.aliases = 0
        self._free: NDArray[np.uint32] = reserve(size, np.uint32)
        self._spare = 0
        self.high = 0
        self._frontier = Frontier(_AHEAD)
        self._hand = 0.0
        self._table = Lookup(2 * size, lambda: self._names, size)

    @property
    def count(self) -> int:
        """Rows in use."""
        return self.high - self._spare

    @property
    def words(self) -> int:
        """Words of holders per row, over all planes."""
        return sum(map(len, self.planes.values()))

    def _holding(self) -> list[NDArray[np.uint64]]:
        """The words of all planes."""
        return [column for words in self.planes.values() for column in words]

    def _columns(self) -> list[NDArray[Any]]:
        """All that a row has."""
        return [self.key, self.engine, self.used, *self._holding()]

    @property
    def bytes_per_block(self) -> float:
        """What a row costs with the planes there are."""
        return _FIXED_BYTES + _WORD_BYTES * max(1, self.words)

    @property
    def capacity(self) -> int:
        """Rows that the bounds allow now. There is room for the holders in a second tier before there is one."""
        if self._capacity is not None:
            return self._capacity
        words, widest = self.words, max(map(len, self.planes.values()), default=1)
        planned = _FIXED_BYTES + _FREE_BYTES + _WORD_BYTES * max(words, 2 * widest)
        rows = int(self.max_bytes / planned)
        capacity = max(1, min(self._reserved, self.max_blocks, rows))
        if words <= 2 * widest:
            self._capacity = capacity  # until there are other planes
            return capacity
        # The table may have grown when rows were narrower and there were more of them.
        left = self.max_bytes - self._table.size_bytes
        return max(1, min(capacity, int(left / (_COLUMN_BYTES + _FREE_BYTES + _WORD_BYTES * words))))

    @property
    def size_bytes(self) -> int:
        """Memory of the rows that have ever been used since the index was empty, and of the tables."""
        columns = self.high * (_COLUMN_BYTES + _WORD_BYTES * self.words) + _FREE_BYTES * self._spare
        return columns + self._table.size_bytes

    def plane(self, plane: Plane, words: int) -> list[NDArray[np.uint64]]:
        """The words of a plane, at least `words` many."""
        columns = self.planes.setdefault(plane, [])
        while len(columns) < words:
            self._capacity = None
            columns.append(reserve(self._reserved, np.uint64))
            if self.high <= self.capacity:  # else there is no room before `shrink` has made some
                self._frontier.fill(columns[-1:], 0, min(self._frontier.ready, self.capacity))
        return columns

    def drop(self, plane: Plane) -> None:
        """Forget who holds what in this plane. Rows that nobody holds any more stay until `wipe` comes by."""
        del self.planes[plane]
        self._capacity = None

    def leading(self, keys: Numbers) -> Rows:
        """The rows of the first keys, up to one that has none. What comes after it is not looked at.

        Blocks that were stored together have neighbouring rows. So for a long prompt only every `_STRIDE`th key goes
        through the table, the keys between are expected beside it, and only those that are not there are looked up.
        """
        if len(keys) < 4 * _STRIDE:
            return _known(self.by_key(keys))
        samples = _known(self.by_key(keys[::_STRIDE]))
        rows = (samples[:, None] + _OFFSETS).reshape(-1)[: len(keys)]
        np.minimum(rows, len(self.key) - 1, out=rows)
        keys = keys[: len(rows)]
        rows[self.key.take(rows) != keys] = -1
        if self.aliases:  # one of those may be beside, too, but it has no holders
            rows[~self.holders(rows)] = -1
        rest = np.flatnonzero(rows < 0)
        if len(rest):
            rows[rest] = self.by_key(keys.take(rest))
        return _known(rows)

    def by_key(self, keys: Numbers) -> Rows:
        """The row of each key, -1 where there is none."""
        return self._table.find(keys)

    def by_engine(self, engines: Numbers) -> Rows:
        """The row, or alias, that is known under each engine hash; -1 where there is none."""
        return self._engine_rows(self._table.find(engines, second=True))

    def _engine_rows(self, values: Rows) -> Rows:
        values -= self._reserved
        return np.maximum(values, -1, out=values)

    def upsert(self, keys: Numbers, engines: Numbers | None) -> Rows:
        """Rows of these keys, new ones where there are none, known under these engine hashes from now on.

        -1 where the engine's hash is already known for another block: such a report contradicts an earlier one.
        """
        self.all_new, self.fresh = False, None
        count, table = len(keys), self._table
        if (room := self.capacity - self.count) < count:
            self._evict(count - room)
        aim = table.aim(keys if engines is None else np.concatenate((keys, engines)), count)
        rows = aim.found[:count]
        if engines is None:
            known = np.zeros(0, dtype=np.intp)
        else:
            if aim.found.max() < 0 and (plan := table.plan(aim)) is not None:  # the usual case
                high = self.high
                rows = self._allocate(count)
                self.all_new = True
                if self.high - high == count:
                    self.fresh = slice(high, self.high)
                where = rows if self.fresh is None else self.fresh  # a slice is copied to, rows are looked up
                self.key[where] = keys
                self.engine[where] = engines
                self.used[where] = self.clock
                table.commit(plan, np.concatenate((rows, rows + self._reserved)))
                return rows
            known = self._engine_rows(aim.found[count:])
            wrong = (known >= 0) & (self.key.take(known) != keys)
            if wrong.any():
                right = ~wrong
                rows = np.full(count, -1, dtype=np.intp)
                if right.any():
                    rows[right] = self.upsert(keys[right], engines[right])
                return rows
        missing, unknown = np.flatnonzero(rows < 0), np.flatnonzero(known < 0)
        if len(missing) < count:
            self.used[rows[rows >= 0]] = self.clock  # before `_allocate`, so that they stay
        if not len(missing) and not len(unknown):
            return rows
        plan = table.plan(aim, np.concatenate((missing, unknown + count)))
        if plan is None:  # some come twice
            self._add_missing(keys, rows, missing)
            if engines is not None and len(unknown):
                hashes, first, _ = distinct(engines.take(unknown))
                targets = self._name(rows, keys, hashes, unknown.take(first))
                table.insert(hashes, targets + self._reserved)
            return rows
        added = self._add(keys.take(missing), rows, missing)
        if engines is not None and len(unknown):
            added = np.concatenate((added, self._name(rows, keys, engines.take(unknown), unknown) + self._reserved))
        table.commit(plan, added)
        return rows

    def _add(self, keys: Numbers, rows: Rows, missing: Rows) -> Rows:
        """New rows for these keys, which are those at `missing` in `rows`."""
        added = self._allocate(len(keys))
        self.key[added] = keys
        self.used[added] = self.clock
        rows[missing] = added
        return added

    def _add_missing(self, keys: Numbers, rows: Rows, missing: Rows) -> None:
        """As `_add`, for keys of which some are there more than once; the table learns them, too."""
        if not len(missing):
            return
        fresh, first, inverse = distinct(keys.take(missing))
        added = self._add(fresh, rows, missing.take(first))
        self._table.insert(fresh, added)
        if inverse is not None:
            rows[missing] = added[inverse]

    def _name(self, rows: Rows, keys: Numbers, hashes: Numbers, where: Rows) -> Rows:
        """Where the engine's hashes of the blocks at `where` are kept: in their rows, or in aliases of these."""
        targets = rows.take(where)
        unnamed = self.engine.take(targets) == 0
        if unnamed.all():
            self.engine[targets] = hashes
        else:
            self.engine[targets[unnamed]] = hashes[unnamed]
        others = self.engine.take(targets) != hashes
        if others.any():
            added = self._allocate(int(others.sum()))
            self.key[added] = keys[where[others]]
            self.engine[added] = hashes[others]
            self.used[added] = self.clock
            targets[others] = added
            self.aliases += len(added)
        return targets

    def holders(self, rows: Rows) -> NDArray[np.bool_]:
        """Whether anybody holds each row."""
        held = np.zeros(len(rows), dtype=np.bool_)
        for column in self._holding():
            held |= column.take(rows) != 0
        return held

    def release(self, rows: Rows) -> None:
        """Free rows that nobody holds any more, of those given (each once)."""
        empty = rows[~self.holders(rows)]
        if len(empty):
            self._free_rows(empty)

    def wipe(self, begin: int, end: int, bits: NDArray[np.uint64]) -> None:
        """Clear these bits (per word) in the rows from `begin` to `end`, and free rows that nobody holds."""
        held = np.zeros(end - begin, dtype=np.uint64)
        for words in self.planes.values():
            for column, wiped in zip(words, bits, strict=False):  # a lane of a word that a plane lacks has no bit in it
                if wiped:
                    column[begin:end] &= ~wiped
            for column in words:
                held |= column[begin:end]
        idle = np.flatnonzero((held == 0) & (self.key[begin:end] != 0)) + begin
        if len(idle):
            canonical = self.by_key(self.key.take(idle))
            self._free_rows(idle[(canonical == idle) | (canonical < 0)])  # aliases stay as long as their block

    def shrink(self, most: int) -> bool:
        """After rows have become wider: one slice of keeping the bound in bytes. False: nothing is left to do.

        The least recently used rows go, the others move to the places that are allowed still, up to `most` at a time.
        In the end the memory behind these goes back.
        """
        capacity = self.capacity
        if self.high <= capacity:
            return False
        self.clock += 1  # nobody's call is under way
        begin = max(capacity, self.high - most)
        self._evict(min(self.high - begin, max(0, self.count - capacity)))
        if self.high > begin:
            self._vacate(begin)
        if self.high <= capacity:
            self._frontier.release(self._columns(), capacity)
            self._frontier.fill(self._holding(), 0, capacity)
        return True

    def _vacate(self, begin: int) -> None:
        """No row from here on is in use any more."""
        free = self._free[: self._spare]
        allowed = free[free < begin]
        rows = np.flatnonzero(self.key[begin : self.high]) + begin
        moved, places = rows[: len(allowed)], allowed[-len(rows) :].astype(np.intp) if len(rows) else rows
        keys, hashes = self.key.take(moved), self.engine.take(moved)
        canonical, named = np.flatnonzero(self.by_key(keys) == moved), np.flatnonzero(hashes)
        names = np.concatenate((keys.take(canonical), hashes.take(named)))
        self._table.remove(names, np.concatenate((moved[canonical], moved[named] + self._reserved)))
        for column in self._columns():
            column[places] = column.take(moved)
            column[moved] = 0
        self._table.insert(names, np.concatenate((places[canonical], places[named] + self._reserved)))
        self._spare = len(allowed) - len(places)
        self._free[: self._spare] = allowed[: self._spare]
        if len(moved) < len(rows):  # a sample had fewer rows to evict than there were to be
            self._forget(rows[len(moved) :])
            self._spare -= len(rows) - len(moved)
        self.high = begin

    def _allocate(self, count: int) -> Rows:
        room = self.capacity - self.count
        if room < count:
            self._evict(count - room)
        taken = min(count, self._spare)
        self._spare -= taken
        recycled = self._free[self._spare : self._spare + taken].astype(np.intp)
        if taken == count:
            return recycled
        if self.high + count - taken > self._reserved:
            raise MemoryError(f"{count} blocks at once do not fit into an index of {self.capacity}")
        fresh = np.arange(self.high, self.high + count - taken)
        self.high += count - taken
        if self._frontier.due(self.high):
            self._frontier.advance(self.high, self._columns(), self.capacity)
        return np.concatenate([recycled, fresh]) if taken else fresh

    def _evict(self, count: int) -> None:
        """Forget `count` of the least recently used rows, of a sample spread over all."""
        if not self.high or not count:
            return
        places = -(-self.high // _RUN)
        runs = min(places, -(-count * _SAMPLE // _RUN))
        self._hand = (self._hand + _GOLDEN) % 1.0
        starts = (np.arange(runs) * (places // runs) + int(self._hand * places)) % places  # spread, and all different
        rows = (starts[:, None] * _RUN + _NEIGHBOURS).reshape(-1)
        rows = rows[rows < self.high]
        rows = rows[self.key.take(rows) != 0]
        ages = np.uint32(self.clock) - self.used.take(rows)
        rows = rows[ages > 0]  # what the present call needs stays
        if len(rows) > count:
            ages = np.uint32(self.clock) - self.used.take(rows)
            rows = rows[np.argpartition(ages, len(ages) - count)[len(ages) - count :]]
        self._forget(rows)

    def _forget(self, rows: Rows) -> None:
        for column in self._holding():
            column[rows] = 0
        self.evicted += len(rows)
        self._free_rows(rows)

    def _free_rows(self, rows: Rows) -> None:
        mine = rows
        if self.aliases:
            mine = rows[self.by_key(self.key.take(rows)) == rows]
            self.aliases -= len(rows) - len(mine)
        hashes = self.engine.take(rows)
        named = hashes != 0
        if named.all():
            values = np.concatenate((mine, rows + self._reserved))
        else:
            hashes = hashes[named]
            values = np.concatenate((mine, rows[named] + self._reserved))
        self._table.remove(np.concatenate((self.key.take(mine), hashes)), values)
        self.key[rows] = 0
        self.engine[rows] = 0
        self._free[self._spare : self._spare + len(rows)] = rows
        self._spare += len(rows)
        if self._spare == self.high and self.high > 1 << 16:
            self._reset()  # empty: the memory goes back


def _known(rows: Rows) -> Rows:
    """Up to the first -1."""
    return rows[: int(np.argmin(rows))] if len(rows) and rows.min() < 0 else rows
