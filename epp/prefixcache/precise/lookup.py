"""From a 64-bit number to a row: a hash table made of small sets, in numpy, that grows without a pause.

A number may be in one of two *sets* of 8 slots; a slot holds a fingerprint of 8 bits and a row of 32. The fingerprints
of a set are one 64-bit word, so thousands of sets are searched with a few operations on whole words. Inserting takes
the emptier of both sets, which fills them so evenly that almost none overflows at the load this table keeps; what does
goes to a small dictionary, so nothing is lost.

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

from epp.prefixcache.precise.memory import Frontier, reserve

Numbers = NDArray[np.uint64]
Rows = NDArray[np.intp]

WAYS = 8
LOAD = 0.55
SLOT_BYTES = 1 + 4 + 1
BYTES_PER_ENTRY = SLOT_BYTES / LOAD

_SPREAD = np.uint64(0x9E3779B97F4A7C15)
_HALF = np.uint64(32)
_SECOND = np.uint64(28)  # the second set's bits begin here
_TOP = np.uint64(56)
_ONE = np.uint64(1)
_LOW = np.uint64(0x0101010101010101)
_HIGH = np.uint64(0x8080808080808080)
_REST = np.uint64(0x7F7F7F7F7F7F7F7F)
_FILTER = np.uint64(48)
_FIRST_BITS = 6
_FIRST_SETS = 1 << _FIRST_BITS
_AHEAD = 1 << 16  # sets whose pages are made ready at a time: 3 MiB
_EPOCH = 4  # bits 4 to 11, 12 to 19, 20 to 27 are remembered together


class Aim(NamedTuple):
    """What `Lookup.aim` saw; `found`: the row of each number, -1 for new ones. The rest is for `place`."""

    found: Rows
    hashes: Numbers
    sets: Rows
    marks: Numbers
    words: Numbers


class Lookup:
    """Rows by number. `names()` gives the number of each row, which this table does not repeat.

    `capacity` entries can be held; the caller inserts no more. A number is held at most once.
    """

    def __init__(self, capacity: int, names: Callable[[], Numbers]) -> None:
        self._most = max(_FIRST_SETS, math.ceil(capacity / (WAYS * LOAD)))
        if self._most >= 1 << 28:
            raise ValueError(f"capacity {capacity}: a lookup table holds at most {int((1 << 28) * WAYS * LOAD)}")
        self._marks: NDArray[np.uint64] = reserve(self._most, np.uint64)
        self._rows: NDArray[np.uint32] = reserve(self._most * WAYS, np.uint32)
        self._next_bits: NDArray[np.uint8] = reserve(self._most * WAYS, np.uint8)
        self._frontier = Frontier(_AHEAD)
        self._names = names
        self._base = _FIRST_SETS
        self._split = 0
        self._overflow: dict[int, int] = {}
        self._overflow_filter = np.zeros(1 << 16, dtype=np.bool_)
        self._retry_at = 0
        self.count = 0

    @property
    def size_bytes(self) -> int:
        """Memory touched so far."""
        return (self._base + self._split) * WAYS * SLOT_BYTES + len(self._overflow) * 120

    def find(self, numbers: Numbers) -> Rows:
        """The row of each, -1 where there is none."""
        found = np.full(len(numbers), -1, dtype=np.intp)
        mixed = _mix(numbers)
        marks = _fingerprints(mixed)
        sets = self._set(mixed)
        self._probe(self._marks.take(sets), sets, marks, numbers, found)
        rest = np.flatnonzero(found < 0)
        if len(rest):
            later = np.full(len(rest), -1, dtype=np.intp)
            some = numbers.take(rest)
            sets = self._set(mixed.take(rest) >> _SECOND)
            self._probe(self._marks.take(sets), sets, marks.take(rest), some, later)
            if self._overflow:
                self._find_overflow(mixed.take(rest), some, later)
            found[rest] = later
        return found

    def aim(self, numbers: Numbers) -> Aim:
        """Look for numbers of which most are new: `found`, and where to put those that are. Room is reserved."""
        self.reserve(len(numbers))
        mixed = _mix(numbers)
        hashes = np.empty((2, len(numbers)), dtype=np.uint64)
        hashes[0] = mixed
        np.right_shift(mixed, _SECOND, out=hashes[1])
        sets = self._set(hashes)
        marks = _fingerprints(mixed)
        words = self._marks.take(sets)
        found = np.full((2, len(numbers)), -1, dtype=np.intp)
        self._probe(words, sets, marks, numbers, found)
        best = found.max(axis=0)
        if self._overflow:
            self._find_overflow(mixed, numbers, best)
        return Aim(best, hashes, sets, marks, words)

    def reserve(self, count: int) -> None:
        """Make room for so many more."""
        wanted = min(self._most, math.ceil((self.count + count) / (WAYS * LOAD)))
        while (more := wanted - self._base - self._split) > 0:
            self._split_sets(min(more, self._base - self._split))
        if self._frontier.due(self._base + self._split):
            by_set: list[NDArray[Any]] = [self._marks, self._rows.reshape(-1, WAYS), self._next_bits.reshape(-1, WAYS)]
            self._frontier.advance(self._base + self._split, by_set)
        if self._overflow and self._base + self._split >= self._retry_at:
            self._retry_at = (self._base + self._split) * 17 // 16
            again = np.fromiter(self._overflow.values(), dtype=np.intp, count=len(self._overflow))
            self._overflow.clear()
            self._overflow_filter[:] = False
            self.count -= len(again)
            self.insert(self._names()[again], again)

    def insert(self, numbers: Numbers, rows: Rows) -> None:
        """Add numbers that are not held, each once, whose `names()` are set."""
        self.place(self.aim(numbers), rows)

    def place(self, aim: Aim, rows: Rows) -> None:
        """Put all that was aimed at, which must all be new and distinct, with nothing having changed in between."""
        self.count += len(rows)
        self._place(aim.hashes, aim.sets, aim.marks.astype(np.uint8), rows.astype(np.uint32), aim.words)

    def remove(self, numbers: Numbers, rows: Rows) -> None:
        """Take out numbers that are held, each once, with the rows they have."""
        self.count -= len(numbers)
        mixed = _mix(numbers)
        marks = _fingerprints(mixed)
        left = self._clear(self._set(mixed), marks, rows)
        if len(left):
            left = left[self._clear(self._set(mixed[left] >> _SECOND), marks[left], rows[left])]
            for number in numbers[left].tolist():
                self._overflow.pop(number, None)

    def _probe(self, words: Numbers, sets: Rows, marks: Numbers, numbers: Numbers, found: Rows) -> None:
        """Fill `found` where a number is in its set. Shape `(n,)`, or `(2, n)` for both sets at once."""
        names = self._names()
        hits = _equal_bytes(words, marks).reshape(-1)
        sets, found = sets.reshape(-1), found.reshape(-1)
        owner = np.flatnonzero(hits)
        count = len(numbers)
        while len(owner):
            bits = hits.take(owner)
            rows = self._rows.take(sets.take(owner) * WAYS + _lowest_byte(bits)).astype(np.intp)
            right = names.take(rows) == numbers.take(owner if len(hits) == count else owner % count)
            if right.all():
                found[owner] = rows
                return
            found[owner[right]] = rows[right]
            bits &= bits - _ONE
            hits[owner] = bits
            owner = owner[~right & (bits != 0)]

    def _find_overflow(self, mixed: Numbers, numbers: Numbers, found: Rows) -> None:
        maybe = self._overflow_filter.take(mixed >> _FILTER)
        for at in np.flatnonzero(maybe & (found < 0)).tolist():
            found[at] = self._overflow.get(int(numbers[at]), -1)

    def _clear(self, sets: Rows, marks: Numbers, rows: Rows) -> Rows:
        """Empty the slots of these rows; returns the positions of those that are not in their set."""
        flat = self._marks.view(np.uint8)
        missing = np.ones(len(sets), dtype=np.bool_)
        hits = _equal_bytes(self._marks.take(sets), marks)
        owner = np.flatnonzero(hits)
        while len(owner):
            bits = hits.take(owner)
            slots = sets.take(owner) * WAYS + _lowest_byte(bits)
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

    def _place(
        self, hashes: Numbers, sets: Rows, marks: NDArray[np.uint8], rows: NDArray[np.uint32], words: Numbers
    ) -> None:
        flat = self._marks.view(np.uint8)
        while True:
            zero = _zero_bytes(words)
            spare = np.bitwise_count(zero)
            use_second = spare[1] > spare[0]
            free = np.where(use_second, zero[1], zero[0])
            slots = np.where(use_second, sets[1], sets[0]) * WAYS + _lowest_byte(free)
            fits = free != 0
            if fits.all():
                self._rows[slots] = rows  # of those that want one slot the last gets it
                won = self._rows.take(slots) == rows
            else:
                self._spill(rows[~fits])
                self._rows[slots[fits]] = rows[fits]
                won = fits & (self._rows.take(slots, mode="clip") == rows)
            bits = self._remembered(np.where(use_second, hashes[1], hashes[0]), slots)
            if won.all():
                flat[slots] = marks
                self._next_bits[slots] = bits
                return
            taken = slots[won]
            flat[taken] = marks[won]
            self._next_bits[taken] = bits[won]
            lost = fits & ~won
            if not lost.any():
                return
            hashes, sets, marks, rows = hashes[:, lost], sets[:, lost], marks[lost], rows[lost]
            words = self._marks.take(sets)

    def _spill(self, rows: NDArray[np.uint32]) -> None:
        numbers = self._names().take(rows)
        self._overflow.update(zip(numbers.tolist(), rows.tolist(), strict=True))
        self._overflow_filter[_mix(numbers) >> _FILTER] = True

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
        mixed = _mix(self._names().take(self._rows.take(held)))
        by_first = self._set(mixed) == held >> 3
        self._next_bits[held] = self._remembered(np.where(by_first, mixed, mixed >> _SECOND), held)


def _mix(numbers: Numbers) -> Numbers:
    mixed = numbers * _SPREAD
    mixed ^= mixed >> _HALF
    return mixed


def _fingerprints(mixed: Numbers) -> Numbers:
    """0 marks an empty slot, so no number has it."""
    marks: Numbers = np.maximum(mixed >> _TOP, _ONE)
    return marks


def _zero_bytes(words: Numbers) -> Numbers:
    """The top bit of every byte that is 0."""
    zeros: Numbers = ~(((words & _REST) + _REST) | words | _REST)
    return zeros


def _equal_bytes(words: Numbers, marks: Numbers) -> Numbers:
    """The top bit of every byte that equals the mark."""
    return _zero_bytes(words ^ (marks * _LOW))


def _lowest_byte(bits: Numbers) -> Rows:
    """Which byte has the lowest bit that is set."""
    lowest: Rows = (np.bitwise_count((bits & -bits) - _ONE) >> 3).astype(np.intp)
    return lowest
