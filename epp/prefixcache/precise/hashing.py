"""Block keys of a prompt and of stored blocks: one 64-bit key names a block and everything before it.

The key is our own, computed from token ids; what the engine hashed, with which algorithm and seed, does not matter. It
is built so that numpy computes thousands of keys in a few passes:

- the *digest* of a block mixes its tokens, two to a 64-bit word `w_i`, with random odd multipliers per position:
  `d = mix(sum(fold(w_i * a_i) * b_i))`, `fold(x) = x ^ (x >> 32)`;
- the *chain* is a polynomial, `key_j = key_(j-1) * M + d_j` modulo 2^64. With the powers of M and of its inverse,
  a running sum gives the keys of a whole prompt; from the key of its parent it goes on anywhere.

`hashSeed`, the adapter's name (empty: the base model) and the block size make the first parent, so equal tokens under
different adapters or cut differently share nothing. What else tells equal tokens apart (media, the tenant's salt) is
added to the digest of the block it concerns.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh64_intdigest

Keys = NDArray[np.uint64]

TOKEN_BYTES = 4
"""Bytes of a token id, little-endian."""

CHUNK = 2048
"""Blocks hashed in one go: their words stay in the processor's caches."""

MOST_CHAINED = 4 * CHUNK
"""Blocks chained in one go, for which the powers of M are kept."""

_MASK = (1 << 64) - 1
# 3 modulo 8, so that its powers repeat only after 2^62 and M - 1 has one factor of 2: swapped blocks never cancel.
_M = 0x9E3779B97F4A7C13
_INVERSE = pow(_M, -1, 1 << 64)


def _powers(factor: int, count: int) -> Keys:
    """From the 0th to the `count`th."""
    return np.multiply.accumulate(np.array([1, *[factor] * count], dtype=np.uint64))


_POWERS, _INVERSES = _powers(_M, MOST_CHAINED), _powers(_INVERSE, MOST_CHAINED)
_FINAL = np.uint64(0xBF58476D1CE4E5B9)
_HALF = np.uint64(32)
_ODD = np.uint64(1)


class BlockHasher:
    """Keys for one `hashSeed`. Stateless but for cached multipliers per block size."""

    def __init__(self, seed: str = "") -> None:
        self.seed = seed
        self._multipliers: dict[int, tuple[Keys, Keys]] = {}

    def root(self, adapter: str, block_size: int) -> int:
        """The parent of a prompt's first block."""
        return xxh64_intdigest(f"{self.seed}\0{adapter}\0{block_size}".encode())

    def digests(self, data: bytes | memoryview, block_size: int) -> Keys:
        """One digest per whole block of `data` (token ids as little-endian uint32). The rest is ignored."""
        blocks = len(data) // (TOKEN_BYTES * block_size)
        words = (block_size + 1) // 2
        first, second = self._tables(block_size)
        out = np.empty(blocks, dtype=np.uint64)
        if block_size % 2:
            tokens = np.frombuffer(data, dtype="<u4", count=blocks * block_size).reshape(blocks, block_size)
            flat: Keys = np.pad(tokens, ((0, 0), (0, 1))).reshape(-1).view(np.uint64)
        else:
            flat = np.frombuffer(data, dtype="<u8", count=blocks * words)
        mixed, high = np.empty((2, min(CHUNK, blocks) * words), dtype=np.uint64)
        for begin in range(0, blocks, CHUNK):
            end = min(begin + CHUNK, blocks)
            size = (end - begin) * words
            part = np.multiply(flat[begin * words : end * words], first[:size], out=mixed[:size])
            part ^= np.right_shift(part, _HALF, out=high[:size])
            np.vecdot(part.reshape(-1, words), second, out=out[begin:end])
        out ^= out >> _HALF
        out *= _FINAL
        out ^= out >> _HALF
        return out

    def _tables(self, block_size: int) -> tuple[Keys, Keys]:
        tables = self._multipliers.get(block_size)
        if tables is None:
            words = (block_size + 1) // 2
            first, second = (
                np.array([_multiplier(self.seed, row, word) for word in range(words)], dtype=np.uint64)
                for row in range(2)
            )
            tables = self._multipliers[block_size] = (np.tile(first, CHUNK), second)
        return tables


def _multiplier(seed: str, row: int, word: int) -> int:
    return xxh64_intdigest(f"{seed}\0{row}\0{word}".encode()) | 1


def add_extras(digests: Keys, extras: Iterable[tuple[int, int]]) -> None:
    """Mix `(block, extra digest)` into the digests, in place. A block may come more than once: it all counts."""
    for block, extra in extras:
        digests[block] = ((int(digests[block]) ^ extra) * _M + extra) & _MASK


def extra_digest(media: Sequence[str], cache_salt: str) -> int:
    """What tells a block apart from one with the same tokens, as one number: 0 when nothing does."""
    if not media and not cache_salt:
        return 0
    return xxh64_intdigest("\0".join((cache_salt, *media)).encode()) | 1


def chain(digests: Keys, parent: int) -> Keys:
    """Keys of consecutive blocks that follow the block with key `parent` (or a root)."""
    out = np.empty(len(digests), dtype=np.uint64)
    for begin in range(0, len(digests), MOST_CHAINED):
        part = digests[begin : begin + MOST_CHAINED]
        count = len(part)
        keys = out[begin : begin + count]
        np.multiply(part, _INVERSES[1 : count + 1], out=keys)
        np.cumsum(keys, out=keys)
        keys += np.uint64(parent)
        keys *= _POWERS[1 : count + 1]
        parent = int(keys[-1])
    return out


class Runs:
    """Keys of many runs of consecutive blocks that follow each other in one array, from `starts`, the first of them 0.

    One running sum serves them all: the key of the block at `i` of a run that begins at `s` is
    `M^(i+1) * (sum(i) + offset)` with `offset = M^-s * parent - sum(s-1)`. So a run's parent may be a block of an
    earlier one, and is needed only for the run's offset.
    """

    def __init__(self, digests: Keys, starts: Sequence[int]) -> None:
        count = len(digests)
        self._powers, self._inverses = _POWERS, _INVERSES
        if count > MOST_CHAINED:
            self._powers, self._inverses = _powers(_M, count), _powers(_INVERSE, count)
        self._sums = digests * self._inverses[1 : count + 1]
        np.cumsum(self._sums, out=self._sums)
        places = np.array(starts, dtype=np.intp)
        before = self._sums.take(places - 1)  # of the first run, which begins at 0, it is none
        before[:1] = 0
        self._anchors: list[tuple[int, int]] = list(
            zip(self._inverses.take(places).tolist(), before.tolist(), strict=True)
        )

    def offset(self, run: int, parent: int) -> int:
        """Of this run, which follows the block with key `parent`, or a root."""
        inverse, before = self._anchors[run]
        return int(inverse * parent - before & _MASK)

    def key(self, at: int, offset: int) -> int:
        """Of one block, given the offset of its run."""
        return int(self._powers[at + 1]) * (int(self._sums[at]) + offset) & _MASK

    def keys(self, offsets: Keys) -> Keys:
        """Of all blocks, given the offset of each block's run. To be called last."""
        keys = self._sums
        keys += offsets
        keys *= self._powers[1 : len(keys) + 1]
        return keys
