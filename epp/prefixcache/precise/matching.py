"""From the rows of a prompt's blocks to how far each endpoint's cache reaches into it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from epp.api.endpoints import FloatArray
from epp.prefixcache.precise.fingerprints import Rows
from epp.prefixcache.precise.lanes import WORD

Bits = NDArray[np.uint64]


@dataclass(slots=True)
class LaneMatch:
    """Per lane: contiguous `blocks` from the first one, and their `weighted` sum, best tier of each block."""

    blocks: FloatArray
    weighted: FloatArray


def match_rows(rows: Rows, tiers: Sequence[tuple[float, Sequence[Sequence[Bits]]]], words: int) -> LaneMatch:
    """`rows`: the blocks in order, all known. `tiers`: weight and planes (words of columns) of each, heaviest first."""
    blocks, weighted = np.zeros(words * WORD), np.zeros(words * WORD)
    for word in range(words):
        held = [(weight, _held(rows, planes, word)) for weight, planes in tiers]
        present = [(weight, bits) for weight, bits in held if bits is not None]
        if not present:
            continue
        any_tier = present[0][1]
        for _, bits in present[1:]:
            any_tier = any_tier | bits
        reach = np.bitwise_and.accumulate(any_tier)
        lanes = slice(word * WORD, (word + 1) * WORD)
        _count(reach, blocks[lanes])
        weighted[lanes] = blocks[lanes] * present[0][0]
        left = reach
        for (heavier, bits), (lighter, _) in pairwise(present):
            left = left & ~bits
            where = np.flatnonzero(left)
            if not len(where):
                break
            if lighter != heavier:
                weighted[lanes] -= (heavier - lighter) * _ones(left.take(where))
    return LaneMatch(blocks, weighted)


def _held(rows: Rows, planes: Sequence[Sequence[Bits]], word: int) -> Bits | None:
    """Who holds each block in a tier: in any cache group."""
    held: Bits | None = None
    for columns in planes:
        if word < len(columns):
            bits = columns[word].take(rows)
            held = bits if held is None else held | bits
    return held


def _count(reach: Bits, blocks: FloatArray) -> None:
    """For each bit, in how many leading elements it is set; `reach` only ever loses bits."""
    if not len(reach):
        return
    steps = np.flatnonzero(reach[1:] != reach[:-1])
    ends = [*(steps + 1).tolist(), len(reach)]
    values = reach.take([end - 1 for end in ends]).tolist()
    for position, (end, value) in enumerate(zip(ends, values, strict=True)):
        later = values[position + 1] if position + 1 < len(values) else 0
        lost = value & ~later
        while lost:
            lowest = lost & -lost
            blocks[lowest.bit_length() - 1] = end
            lost ^= lowest


def _ones(bits: Bits) -> FloatArray:
    """How often each bit is set."""
    table = np.unpackbits(bits.view(np.uint8).reshape(len(bits), 8), axis=1, bitorder="little")
    ones: FloatArray = table.sum(axis=0, dtype=np.float64)
    return ones
