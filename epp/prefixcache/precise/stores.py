"""A run of BlockStored events as arrays: keys of all blocks, whatever their parents, in a handful of numpy calls."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain

import numpy as np
from numpy.typing import NDArray

from epp.kvevents.events import BlockStored
from epp.prefixcache.precise.hashing import BlockHasher, Keys, Runs, add_extras, extra_digest

MOST_OF_EVENT = 1024
"""Blocks of one event that are handled in one go: as many as the smallest index has room for."""

_ONE = np.uint64(1)


@dataclass(frozen=True, slots=True)
class StoredBlocks:
    """Blocks with known parents. `lengths[n]`: how many of them came with event `n`."""

    keys: Keys
    engines: Keys
    lengths: Sequence[int]
    orphans: int

    @property
    def event(self) -> NDArray[np.intp]:
        """The position of the event that each block came with."""
        return np.repeat(np.arange(len(self.lengths)), self.lengths)


def engine_hashes(hashes: Sequence[int]) -> Keys:
    """Engine hashes as an array. 0 stands for "none" in the index, so it is taken for 1."""
    return hashes_of([hashes], len(hashes))


def hashes_of(runs: Iterable[Sequence[int]], count: int) -> Keys:
    """As `engine_hashes`, of `count` blocks in several runs."""
    array = np.fromiter(chain.from_iterable(runs), dtype=np.uint64, count=count)
    return np.maximum(array, _ONE, out=array)


def resolve(
    events: Sequence[BlockStored], hasher: BlockHasher, find: Callable[[Keys], tuple[NDArray[np.bool_], Keys]]
) -> StoredBlocks:
    """Keys of the blocks of events that all have one block size, at least one block, and as many ids as they need.

    `find` tells which engine hashes are known, and the keys of their blocks. A parent may also have come with an
    earlier event of the same call. Runs without a known parent are left out and their blocks counted in `orphans`.
    """
    blocks = [event.block_hashes for event in events]
    lengths = list(map(len, blocks))
    hashes = hashes_of(blocks, sum(lengths))
    digests = hasher.digests(b"".join([event.token_ids for event in events]), events[0].block_size)
    if any(event.extras for event in events):
        _mix_extras(digests, events, lengths)
    # An event that goes on where the one before it ended, as they usually do, is of the same run.
    parents = [event.parent_hash for event in events]
    heads = [0, *[n for n in range(1, len(events)) if parents[n] is None or parents[n] != blocks[n - 1][-1]]]
    ends = [*heads[1:], len(events)]
    widths = [sum(lengths[head:end]) for head, end in zip(heads, ends, strict=True)]
    starts = [0, *accumulate(widths[:-1])]
    runs = Runs(digests)
    offsets = _offsets(runs, [events[n] for n in heads], starts, hasher, find, hashes)
    keys = runs.keys(np.repeat(np.array([offset or 0 for offset in offsets], dtype=np.uint64), widths))
    if None not in offsets:
        return StoredBlocks(keys, hashes, lengths, 0)
    known = [offset is not None for offset in offsets]
    keep = np.repeat(known, widths)
    for ok, head, end in zip(known, heads, ends, strict=True):
        if not ok:
            lengths[head:end] = [0] * (end - head)
    return StoredBlocks(keys[keep], hashes[keep], lengths, len(keep) - int(keep.sum()))


def _mix_extras(digests: Keys, events: Sequence[BlockStored], lengths: Sequence[int]) -> None:
    start = 0
    for event, length in zip(events, lengths, strict=True):
        if event.extras:
            pairs = [
                (start + n, extra_digest(extra.media, extra.cache_salt))
                for n, extra in enumerate(event.extras)
                if extra is not None
            ]
            add_extras(digests, [pair for pair in pairs if pair[1]])
        start += length


def _offsets(
    runs: Runs,
    heads: Sequence[BlockStored],
    starts: Sequence[int],
    hasher: BlockHasher,
    find: Callable[[Keys], tuple[NDArray[np.bool_], Keys]],
    hashes: Keys,
) -> list[int | None]:
    """Of each run, which begin at `starts` with the events `heads`; None: nobody knows the parent."""
    asked = list({event.parent_hash for event in heads if event.parent_hash is not None})
    inside: dict[int, int] = {}  # parents that come with this very call: where first
    outside: dict[int, int] = {}
    if asked:
        names = engine_hashes(asked)
        found, keys = find(names)
        outside = {name: key for name, key, ok in zip(asked, keys.tolist(), found.tolist(), strict=True) if ok}
        if not found.all():
            wanted = set(names[~found].tolist())
            for at, block in enumerate(hashes.tolist()):
                if block in wanted:
                    inside.setdefault(block, at)
    roots: dict[str, int] = {}
    offsets: list[int | None] = []
    for event, start in zip(heads, starts, strict=True):
        name = event.parent_hash
        parent: int | None = None
        if name is None:
            parent = roots.get(event.lora_name)
            if parent is None:
                parent = roots[event.lora_name] = hasher.root(event.lora_name, event.block_size)
        else:
            parent = outside.get(name)
            if parent is None and (at := inside.get(name or 1, start)) < start:
                offset = offsets[bisect_right(starts, at) - 1]
                parent = None if offset is None else runs.key(at, offset)
        offsets.append(None if parent is None else runs.offset(start, parent))
    return offsets


def well_formed(event: BlockStored) -> bool:
    """Whether the event has as many token ids as its blocks need; extras, if any, one per block."""
    count, size = len(event.block_hashes), event.block_size
    return size > 0 and len(event.token_ids) == count * size * 4 and len(event.extras) in {0, count}


def cut(event: BlockStored, most: int = MOST_OF_EVENT) -> list[BlockStored]:
    """The same blocks in events of at most `most`."""
    count = len(event.block_hashes)
    if count <= most:
        return [event]
    width = event.block_size * 4
    parts = []
    for begin in range(0, count, most):
        end = min(begin + most, count)
        parts.append(
            BlockStored(
                event.block_hashes[begin:end],
                event.block_hashes[begin - 1] if begin else event.parent_hash,
                event.token_ids[begin * width : end * width],
                event.block_size,
                event.lora_name,
                event.medium,
                event.extras[begin:end],
                event.group,
                event.again or event.parent_hash is None,  # the parts of a run that begins a prompt still do
            )
        )
    return parts
