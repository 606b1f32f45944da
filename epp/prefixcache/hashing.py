"""Block hashes of a prompt: a chain, so that one hash names a whole prefix.

`h(-1) = xxh64(model, 0x00, cache salt)` and `h(i) = xxh64(bytes of block i, seed = h(i-1))`, where a block is
`block_size` token ids as little-endian uint32. llm-d-router hashes each block twice (`xxh64(le64(xxh64(block)) ‖
le64(h(i-1)))`); the seed carries the chain in one call for half the price. Both have the same property, equal hashes
for equal prefixes and nothing else, and no other program ever sees these values.

Only whole blocks are hashed, because only whole blocks are cached; a prompt shorter than a block is hashed as it is,
so that it still finds its server when it comes again. llm-d-router hashes the last partial block of every prompt: in a
conversation it never matches again, since the next turn continues it.

LoRA adapters are told apart by the model name, tenants by the cache salt.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache

from xxhash import xxh64_intdigest

from epp.api.request import MediaFeature

TOKEN_BYTES = 4
"""Bytes of a token id in `Prompt.data`."""


@lru_cache(maxsize=256)
def root_hash(model: str, cache_salt: str = "") -> int:
    """Where the chain of every prompt for this model begins."""
    return xxh64_intdigest(f"{model}\0{cache_salt}".encode())


def media_marks(features: Iterable[MediaFeature], prompt: int, block_size: int) -> dict[int, int]:
    """Block index -> hash of the media that begin in it, for one prompt.

    Real tokenizers put the same placeholder ids for every image: without the mark two different images would look
    like one prefix. One mark per feature is enough, the chain carries it on.
    """
    marks: dict[int, int] = {}
    for feature in features:
        if feature.prompt == prompt:
            block = feature.offset // block_size
            marks[block] = xxh64_intdigest(feature.hash.encode(), marks.get(block, 0))
    return marks


class BlockChain:
    """The hashes of one prompt, computed as far as somebody asks.

    `data` is one buffer of `Prompt.data`; `block_size` is in tokens; `total` is the number of blocks that there will
    be, at most `max_blocks`. `hashes` grows with `extend`.
    """

    __slots__ = ("_block_bytes", "_data", "_last", "_marks", "hashes", "total")

    def __init__(
        self, data: bytes, block_size: int, root: int, max_blocks: int, marks: Mapping[int, int] | None = None
    ) -> None:
        self._data = data
        self._block_bytes = block_size * TOKEN_BYTES
        self._last = root
        self._marks = marks
        self.total = min(max_blocks, len(data) // self._block_bytes or (1 if data else 0))
        self.hashes: list[int] = []

    def extend(self, blocks: int) -> int:
        """Hash up to `blocks` more; returns how many that were (0: the chain is complete). About 0.15 us a block."""
        done = len(self.hashes)
        end = min(done + blocks, self.total)
        size, data, last, marks = self._block_bytes, self._data, self._last, self._marks
        digest = xxh64_intdigest
        if marks:
            fresh = []
            for block in range(done, end):
                last ^= marks.get(block, 0)
                last = digest(data[block * size : (block + 1) * size], last)
                fresh.append(last)
        else:
            fresh = [last := digest(data[at : at + size], last) for at in range(done * size, end * size, size)]
        self._last = last
        self.hashes += fresh
        return end - done
