"""From a 64-bit number to a row: a hash table made of small sets, in numpy, that grows without a pause.

A number may be in one of two *sets* of 8 slots; a slot holds a fingerprint of 8 bits and a value of 32: where in the
array of `names` the number stands. The fingerprints of a set are one 64-bit word, so thousands of sets are searched
with a few operations on whole words. Inserting takes the emptier of both sets, which fills them so evenly that almost
none overflows at the load this table keeps; what does goes to a small dictionary, so nothing is lost.

Numbers of two kinds live in one table, told apart by where they stand: those of the first kind below `divide`. A call
of numpy costs a microsecond whatever it does, so one call for the block keys and engine hashes of a batch, instead of
one for each, is most of what there is to save.

Growth is linear hashing: the sets are split one after the other, a few per insertion, into the next unused place of an
array that was reserved in full but is touched (and paid for in memory) only as far as it is used. A slot remembers the
next 8 bits of its hash, so that seven splits of eight read nothing but the sets themselves. Deleting empties a slot: no
tombstones, no rebuild. A slot costs 6 bytes, an entry 6 / `LOAD` = 11.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from epp.prefixcache.precise.fingerprints import (
    Numbers,
    Rows,
    equal_bytes,
    fingerprints,
    lowest_byte,
    mix,
    zero_bytes,
)
from epp.prefixcache.precise.memory import Frontier, reserve

WAYS = 8
LOAD = 0.55
SLOT_BYTES = 1 + 4 + 1
BYTES_PER_ENTRY = SLOT_BYTES / LOAD

_SECOND = np.uint64(28)  # the second set's bits begin here
_ONE = np.uint64(1)
_FILTER = np.uint64(48)
_FIRST_BITS = 6
_FIRST_SETS = 1 << _FIRST_BITS
_AHEAD = 1 << 16  # sets whose pages are made ready at a time: 3 MiB
_FEW = 32  # numbers that are put in place one after the other rather than together
_EPOCH = 4  # bits 4 to 11, 12 to 19, 20 to 27 are remembered together


class Aim(NamedTuple):
    """What `Lookup.aim` saw; `found`: the value of each number, -1 for new ones. The rest is for `plan`."""

    found: Rows
    numbers: Numbers
    hashes: Numbers
    sets: Rows
    marks: Numbers
    words: Numbers


class Plan(NamedTuple):
    """Slots for new numbers. Those at `lost` share theirs with a later one, or, if `full`, have none in their sets."""

    slots: Rows
    bits: NDArray[np.uint8]
    hashes: Numbers
    sets: Rows
    marks: NDArray[np.uint8]
    lost: Rows
    full: bool


class Lookup:
    """Values by number. `names()` has each number at its value, which this table does not repeat.

    `capacity` entries can be held; the caller inserts no more. A number is held at most once of each kind.
    """

    def __init__(self, capacity: int, names: Callable[[], Numbers], divide: int = 1 << 62) -> None:
        self._most = max(_FIRST_SETS, math.ceil(capacity / (WAYS * LOAD)))
        if self._most >= 1 << 28:
            raise ValueError(f"capacity {capacity}: a lookup table holds at most {int((1 << 28) * WAYS * LOAD)}")
        self._marks: NDArray[np.uint64] = reserve(self._most, np.uint64)
        self._rows: NDArray[np.uint32] = reserve(self._most * WAYS, np.uint32)
        self._next_bits: NDArray[np.uint8] = reserve(self._most * WAYS, np.uint8)
        self._frontier = Frontier(_AHEAD)
        self._names = names
        self._divide = divide
        self._base = _FIRST_SETS
        self._split = 0
        self._overflow: dict[tuple[int, bool], int] = {}
        self._overflow_filter = np.zeros(1 << 16, dtype=np.bool_)
        self._retry_at = 0
        self.count = 0

    @property
    def size_bytes(self) -> int:
        """Memory touched so far."""
        return (self._base + self._split) * WAYS * SLOT_BYTES + len(self._overflow) * 160

    def find(self, numbers: Numbers, *, second: bool = False) -> Rows:
        """The value of each number, -1 where there is none of this kind."""
        return self._aim(numbers, 0 if second else len(numbers)).found

    def aim(self, numbers: Numbers, firsts: int) -> Aim:
        """Look for numbers of which most are new: `found`, and where to put those that are. Room is reserved.

        The first `firsts` are of the first kind, the others of the second.
        """
        self.reserve(len(numbers))
        return self._aim(numbers, firsts)

    def _aim(self, numbers: Numbers, firsts: int) -> Aim:
        hashes, sets, marks, words = self._look(numbers)
        hits = equal_bytes(words, marks).reshape(-1)
        owner = np.flatnonzero(hits != 0)  # of booleans it is three times as fast
        if 0 < len(owner) < len(numbers) // 4:
            owner = self._sift(hits, owner, sets.reshape(-1), hashes.reshape(-1))
        if len(owner):
            found = np.full((2, len(numbers)), -1, dtype=np.intp)
            self._probe(hits, owner, sets.reshape(-1), numbers, found.reshape(-1), firsts)
            best = np.maximum(found[0], found[1])
        else:
            best = np.full(len(numbers), -1, dtype=np.intp)
        if self._overflow:
            self._find_overflow(hashes[0], numbers, best, firsts)
        return Aim(best, numbers, hashes, sets, marks, words)

    def _look(self, numbers: Numbers) -> tuple[Numbers, Rows, Numbers, Numbers]:
        """Hashes, both sets, fingerprints, and what is in the sets."""
        hashes = np.empty((2, len(numbers)), dtype=np.uint64)
        mixed = mix(numbers, hashes[0])
        np.right_shift(mixed, _SECOND, out=hashes[1])
        sets = self._set(hashes)
        return hashes, sets, fingerprints(mixed), self._marks.take(sets)

    def plan(self, aim: Aim, chosen: Rows | None = None) -> Plan | None:
        """Slots for all that was aimed at, or those at `chosen`, all of which are new.

        None when a number may be among them more than once. Nothing is inserted before `commit`.
        """
        _, numbers, hashes, sets, marks, words = aim
        if chosen is not None:
            numbers, marks = numbers.take(chosen), marks.take(chosen)
            hashes, words = hashes.take(chosen, axis=1), words.take(chosen, axis=1)
            sets = sets.take(chosen, axis=1)
        plan, winner = self._plan(hashes, sets, marks, words)
        if len(plan.lost):
            # Equal numbers want the same slot.
            losers = numbers.take(plan.lost)
            if len(set(losers.tolist())) < len(losers):
                return None
            beaten = winner.take(plan.lost)
            if ((numbers.take(beaten) == losers) & (beaten != plan.lost)).any():
                return None
        return plan

    def _plan(
        self, hashes: Numbers, sets: Rows, marks: NDArray[Any], words: Numbers
    ) -> tuple[Plan, NDArray[np.uint32]]:
        """Slots, and for each number which of them has its slot."""
        free, slots, bits = self._choose(hashes, sets, words)
        order = np.arange(len(slots), dtype=np.uint32)
        # The rows of free slots are nobody's: of those that want one slot the last leaves its number there.
        fits = free != 0
        full = not fits.all()
        if full:
            self._rows[slots[fits]] = order[fits]
            winner = np.where(fits, self._rows.take(slots), order)
            lost = np.flatnonzero((winner != order) | ~fits)
        else:
            self._rows[slots] = order
            winner = self._rows.take(slots)
            lost = np.flatnonzero(winner != order)
        return Plan(slots, bits, hashes, sets, marks.astype(np.uint8), lost, full), winner

    def commit(self, plan: Plan, values: Rows) -> None:
        """Insert what was planned, whose `names()` are set. Nothing has been inserted in between."""
        slots, bits, hashes, sets, marks, lost, full = plan
        won: slice | NDArray[np.bool_] = slice(None)  # of those that share a slot the last one leaves its data there
        if full:
            won = np.ones(len(slots), dtype=np.bool_)
            won[lost] = False
        self._write(slots[won], values[won].astype(np.uint32), marks[won], bits[won])
        self.count += len(values) - len(lost)
        if len(lost):
            insert = self._settle if len(lost) <= _FEW else self._retry
            insert(hashes.take(lost, axis=1), sets.take(lost, axis=1), marks.take(lost), values.take(lost))

    def _write(self, slots: Rows, values: NDArray[Any], marks: NDArray[np.uint8], bits: NDArray[np.uint8]) -> None:
        self._rows[slots] = values
        self._marks.view(np.uint8)[slots] = marks
        self._next_bits[slots] = bits

    def _settle(self, hashes: Numbers, sets: Rows, marks: NDArray[np.uint8], values: Rows) -> None:
        """Insert a few that got no slot at first, one after the other: for a handful that is cheaper than arrays."""
        count = len(marks)
        both = sets.reshape(-1).tolist()
        held = dict(zip(both, self._marks.take(sets).reshape(-1).view("V8").tolist(), strict=True))
        slots, ways, full = [], [], []
        for number, mark in enumerate(marks.tolist()):
            emptier = held[both[number + count]].count(0) > held[both[number]].count(0)
            way = number + count if emptier else number
            word = held[both[way]]
            free = word.find(0)
            if free < 0:
                full.append(number)
                continue
            held[both[way]] = word[:free] + bytes((mark,)) + word[free + 1 :]
            slots.append(both[way] * WAYS + free)
            ways.append(way)
        if full:
            self._spill(values.take(full))
        if slots:
            places, chosen = np.array(slots), np.array(ways)
            numbers = chosen % count
            bits = self._remembered(hashes.reshape(-1).take(chosen), places)
            self._write(places, values.take(numbers), marks.take(numbers), bits)
            self.count += len(slots)

    def _retry(self, hashes: Numbers, sets: Rows, marks: NDArray[np.uint8], values: Rows) -> None:
        """As `_settle`, for many: of those that share a slot one gets it each time."""
        words = self._marks.take(sets)
        full = ~zero_bytes(words).any(axis=0)
        if full.any():
            self._spill(values[full])
            left = np.flatnonzero(~full)
            if not len(left):
                return
            hashes, sets, words = hashes.take(left, axis=1), sets.take(left, axis=1), words.take(left, axis=1)
            marks, values = marks[left], values[left]
        plan, _ = self._plan(hashes, sets, marks, words)
        self.commit(plan, values)

    def reserve(self, count: int) -> None:
        """Make room for so many more."""
        wanted = min(self._most, math.ceil((self.count + count) / (WAYS * LOAD)))
        if self._frontier.due(wanted):
            by_set: list[NDArray[Any]] = [self._marks, self._rows.reshape(-1, WAYS), self._next_bits.reshape(-1, WAYS)]
            self._frontier.advance(wanted, by_set, self._most)
        while (more := wanted - self._base - self._split) > 0:
            self._split_sets(min(more, self._base - self._split))
        if self._overflow and self._base + self._split >= self._retry_at:
            self._retry_at = (self._base + self._split) * 17 // 16
            again = np.fromiter(self._overflow.values(), dtype=np.intp, count=len(self._overflow))
            self._overflow.clear()
            self._overflow_filter[:] = False
            self.count -= len(again)
            self.insert(self._names()[again], again)

    def insert(self, numbers: Numbers, values: Rows) -> None:
        """Add numbers that are not held, each once of its kind, whose `names()` are set."""
        self.reserve(len(numbers))
        plan, _ = self._plan(*self._look(numbers))
        self.commit(plan, values)

    def remove(self, numbers: Numbers, values: Rows) -> None:
        """Take out numbers that are held, each once of its kind, with the values they have."""
        self.count -= len(numbers)
        mixed = mix(numbers)
        marks = fingerprints(mixed)
        left = self._clear(self._set(mixed), marks, values)
        if len(left):
            left = left[self._clear(self._set(mixed[left] >> _SECOND), marks[left], values[left])]
            for number, value in zip(numbers[left].tolist(), values[left].tolist(), strict=True):
                self._overflow.pop((number, value >= self._divide), None)

    def _sift(self, hits: Numbers, owner: Rows, sets: Rows, hashes: Numbers) -> Rows:
        """Drop hits of slots that remember other bits: the fingerprint is the same by chance.

        That spares two reads far away for each, of a row and of its name. Where most hits are right it is a detour.
        """
        left = owner
        while len(left):
            bits = hits.take(left)
            slots = sets.take(left) * WAYS + lowest_byte(bits)
            wrong = np.flatnonzero(self._next_bits.take(slots) != self._remembered(hashes.take(left), slots))
            left, bits = left.take(wrong), bits.take(wrong)
            bits &= bits - _ONE
            hits[left] = bits
            left = left[bits != 0]
        kept: Rows = owner[hits.take(owner) != 0]
        return kept

    def _probe(self, hits: Numbers, owner: Rows, sets: Rows, numbers: Numbers, found: Rows, firsts: int) -> None:
        """Fill `found` where a number is in its set, of those at `owner`, all of which have hits in theirs."""
        names, count = self._names(), len(numbers)
        while len(owner):
            bits = hits.take(owner)
            values = self._rows.take(sets.take(owner) * WAYS + lowest_byte(bits)).astype(np.intp)
            number = owner if len(hits) == count else owner % count
            right = names.take(values) == numbers.take(number)
            right &= (values >= self._divide) == (number >= firsts)
            if right.all():
                found[owner] = values
                return
            found[owner[right]] = values[right]
            bits &= bits - _ONE
            hits[owner] = bits
            owner = owner[~right & (bits != 0)]

    def _find_overflow(self, mixed: Numbers, numbers: Numbers, found: Rows, firsts: int) -> None:
        maybe = np.flatnonzero(self._overflow_filter.take((mixed >> _FILTER).view(np.intp)))
        for at, number in zip(maybe.tolist(), numbers.take(maybe).tolist(), strict=True):
            value = self._overflow.get((number, at >= firsts))
            if value is not None:
                found[at] = value

    def _clear(self, sets: Rows, marks: Numbers, rows: Rows) -> Rows:
        """Empty the slots of these values; returns the positions of those that are not in their set."""
        flat = self._marks.view(np.uint8)
        missing = np.ones(len(sets), dtype=np.bool_)
        hits = equal_bytes(self._marks.take(sets), marks)
        owner = np.flatnonzero(hits)
        while len(owner):
            bits = hits.take(owner)
            slots = sets.take(owner) * WAYS + lowest_byte(bits)
            right = self._rows.take(slots) == rows.take(owner)
            flat[slots[right]] = 0
            missing[owner[right]] = False
            bits &= bits - _ONE
            hits[owner] = bits
            owner = owner[~right & (bits != 0)]
        return np.flatnonzero(missing)

    def _set(self, bits: Numbers) -> Rows:
        """Sets below the split pointer have been split: they use one bit more."""
        sets = (bits & np.uint64(2 * self._base - 1)).view(np.intp)
        beyond = (sets >= self._base + self._split).astype(np.intp)  # arithmetic is twice as fast as a mask
        beyond *= self._base
        sets -= beyond
        return sets

    def _choose(self, hashes: Numbers, sets: Rows, words: Numbers) -> tuple[Numbers, Rows, NDArray[np.uint8]]:
        """A slot of the emptier set for each, its free slots (0: there is none), and the bits to remember there."""
        free = zero_bytes(words)
        spare = np.bitwise_count(free)
        count = len(spare[0])
        emptier = (spare[1] > spare[0]).astype(np.intp)
        emptier *= count
        emptier += np.arange(count)
        best = free.reshape(-1).take(emptier)  # several times as fast as `np.where`, whose branches nobody foresees
        slots = sets.reshape(-1).take(emptier)
        slots *= WAYS
        slots += lowest_byte(best)
        return best, slots, self._remembered(hashes.reshape(-1).take(emptier), slots)

    def _spill(self, values: Rows) -> None:
        self.count += len(values)
        numbers = self._names().take(values)
        for number, value in zip(numbers.tolist(), values.tolist(), strict=True):
            self._overflow[number, value >= self._divide] = value
        self._overflow_filter[mix(numbers) >> _FILTER] = True

    @property
    def _epoch_bit(self) -> int:
        """The first of the 8 bits that slots remember, which are those that this and the next splits look at."""
        bit = self._base.bit_length() - 1
        return bit - (bit - _EPOCH) % 8

    def _split_sets(self, count: int) -> None:
        """Move about half of the next `count` sets to where their hashes' next bit sends them, slot for slot."""
        base, begin = self._base, self._split
        low, high = begin * WAYS, (begin + count) * WAYS
        new_low, new_high = base * WAYS + low, base * WAYS + high
        self._rows[new_low:new_high] = self._rows[low:high]
        self._next_bits[new_low:new_high] = self._next_bits[low:high]
        old, new = self._marks.view(np.uint8)[low:high], self._marks.view(np.uint8)[new_low:new_high]
        bit = base.bit_length() - 1 - self._epoch_bit
        moves = (self._next_bits[low:high] >> np.uint8(bit)) & 1
        np.multiply(old, moves, out=new)
        old -= new
        self._split += count
        if bit == 7:  # the last that these slots know
            self._refresh(low, high)
            self._refresh(new_low, new_high)
        if self._split == base:
            self._base, self._split = 2 * base, 0

    def _remembered(self, bits: Numbers, slots: Rows) -> NDArray[np.uint8]:
        """The bits to remember for entries that go to these slots by these hashes."""
        epoch = self._epoch_bit
        if self._base.bit_length() - 1 - epoch < 7:
            return (bits >> np.uint64(epoch)).astype(np.uint8)
        sets = slots >> 3
        ahead = (sets < self._split) | (sets >= self._base)  # already split for the last time in this epoch
        return (bits >> (epoch + 8 * ahead).astype(np.uint64)).astype(np.uint8)

    def _refresh(self, low: int, high: int) -> None:
        """Read the next 8 bits of the hashes in these slots, whose sets have just been split."""
        held = np.flatnonzero(self._marks.view(np.uint8)[low:high]) + low
        mixed = mix(self._names().take(self._rows.take(held)))
        by_first = self._set(mixed) == held >> 3
        self._next_bits[held] = self._remembered(np.where(by_first, mixed, mixed >> _SECOND), held)
