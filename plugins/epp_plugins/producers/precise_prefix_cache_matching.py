"""From blocks held, in whatever size engines have, to a `PrefixMatch` in blocks of the asker's size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from epp.api import EndpointTable, Prompt
from epp.api.endpoints import FloatArray
from epp.prefixcache.precise.hashing import BlockHasher, Keys
from epp.prefixcache.precise.index import PreciseIndex
from epp.prefixcache.precise.prompts import prompt_keys

MAX_TOKENS = 1 << 19
"""Tokens of a request that are looked at: beyond half a million a longer match decides nothing."""

Lengths = tuple[FloatArray, FloatArray]
"""Blocks held by each candidate, contiguous from the first, and their sum by weight."""

Chains = Mapping[int, Sequence[Keys]]
"""Keys of each prompt's blocks, by block size."""


def chains(
    hasher: BlockHasher, prompt: Prompt, size: int, *, adapter: str, cache_salt: str, most: int = MAX_TOKENS
) -> list[Keys]:
    """Keys of each prompt of a request, in blocks of this size; of at most `most` tokens altogether."""
    left = most // size
    found = []
    for number, data in enumerate(prompt.data):
        keys = prompt_keys(
            hasher,
            data,
            size,
            adapter=adapter,
            cache_salt=cache_salt,
            features=[feature for feature in prompt.features if feature.prompt == number],
            most=left,
        )
        left -= len(keys)
        found.append(keys)
    return found


def longest(matches: Sequence[tuple[int, Lengths]], ours: int, count: int) -> Lengths:
    """Each candidate's longest match of a prompt in whole blocks of ours, of matches in blocks of their own size."""
    best, worth = np.zeros(count), np.zeros(count)
    for size, (held, value) in matches:
        whole, weighted = held, value
        if size != ours:
            whole = held * size // ours
            weighted = np.divide(value * whole, held, out=np.zeros(count), where=held > 0)
        better = whole > best
        best = np.where(better, whole, best)
        worth = np.where(better, weighted, worth)
    return best, worth


class Candidates:
    """The lanes of the index by row of the endpoint table; looked up again when either has changed."""

    def __init__(self, table: EndpointTable, index: PreciseIndex) -> None:
        self._table, self._index = table, index
        self._lanes = np.zeros(0, dtype=np.intp)
        self._version = (-1, -1)

    def lanes(self, rows: NDArray[np.intp]) -> NDArray[np.intp]:
        """The lane of each candidate, -1 for those that never told anything."""
        table, lanes = self._table, self._index.lanes
        version = (table.version, lanes.version)
        if version != self._version:
            self._lanes = np.full(len(table.endpoints), -1, dtype=np.intp)
            for name, lane in lanes.endpoints().items():
                row = table.row_of(name)
                if row is not None:
                    self._lanes[row] = lane
            self._version = version
        return self._lanes[rows]

    def match(self, keys: Chains, rows: NDArray[np.intp], ours: int) -> Lengths:
        """What each candidate holds, summed over the request's prompts, in blocks of `ours` tokens."""
        lanes = self.lanes(rows)
        blocks, weighted = np.zeros(len(rows)), np.zeros(len(rows))
        for prompt in zip(*keys.values(), strict=True):
            matches = []
            for size, own in zip(keys, prompt, strict=True):
                match = self._index.match(own)
                # Lane -1 is the last of the padding: it belongs to nobody.
                matches.append((size, (np.append(match.blocks, 0.0)[lanes], np.append(match.weighted, 0.0)[lanes])))
            best, worth = longest(matches, ours, len(rows))
            blocks += best
            weighted += worth
        return blocks, weighted
