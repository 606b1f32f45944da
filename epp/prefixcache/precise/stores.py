"""A run of BlockStored events as arrays: keys of all blocks, whatever their parents, in a handful of numpy calls."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from operator import eq, itemgetter, sub
from typing import NamedTuple

import numpy as np
from msgspec.structs import astuple
from numpy.typing import NDArray

from epp.kvevents.events import BlockExtras, BlockStored
from epp.prefixcache.precise.hashing import BlockHasher, Keys, Runs, add_extras, extra_digest

MOST_OF_EVENT = 1024
"""Blocks of one event that are handled in one go: as many as the smallest index has room for."""

_ONE = np.uint64(1)


class Stores(NamedTuple):
    """BlockStored events as columns, in the order of that struct's fields: each is looked at by C code, all at once."""

    hashes: Sequence[Sequence[int]]
    parents: Sequence[int | None]
    tokens: Sequence[bytes]
    sizes: Sequence[int]
    adapters: Sequence[str]
    media: Sequence[str]
    extras: Sequence[Sequence[BlockExtras | None]]
    groups: Sequence[int]
    again: Sequence[bool]


def columns(events: Iterable[BlockStored]) -> Stores:
    """At least one event."""
    return Stores(*zip(*map(astuple, events), strict=True))


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
    return array if array.all() else np.maximum(array, _ONE)


def resolve(
    events: Stores, hasher: BlockHasher, find: Callable[[Keys], tuple[NDArray[np.bool_], Keys]]
) -> StoredBlocks:
    """Keys of the blocks of events that all have one block size, at least one block, and as many ids as they need.

    `find` tells which engine hashes are known, and the keys of their blocks. A parent may also have come with an
    earlier event of the same call. Runs without a known parent are left out and their blocks counted in `orphans`.
    """
    blocks, parents, size = events.hashes, events.parents, events.sizes[0]
    lengths = list(map(len, blocks))
    hashes = hashes_of(blocks, sum(lengths))
    digests = hasher.digests(b"".join(events.tokens), size)
    if any(events.extras):
        _mix_extras(digests, events.extras, lengths)
    # An event that goes on where the one before it ended, as they usually do, is of the same run.
    goes_on = map(eq, parents[1:], map(itemgetter(-1), blocks))
    heads = [0, *[n for n, same in enumerate(goes_on, 1) if not same]]
    ends = [0, *accumulate(lengths)]
    starts = [ends[n] for n in heads]
    widths = list(map(sub, [*starts[1:], ends[-1]], starts))
    runs = Runs(digests, starts)
    firsts = [(parents[n], events.adapters[n]) for n in heads]
    offsets = _offsets(runs, firsts, starts, hasher, size, find, hashes)
    keys = runs.keys(np.repeat(np.array([offset or 0 for offset in offsets], dtype=np.uint64), widths))
    if None not in offsets:
        return StoredBlocks(keys, hashes, lengths, 0)
    known = [offset is not None for offset in offsets]
    keep = np.repeat(known, widths)
    for ok, head, end in zip(known, heads, [*heads[1:], len(blocks)], strict=True):
        if not ok:
            lengths[head:end] = [0] * (end - head)
    return StoredBlocks(keys[keep], hashes[keep], lengths, len(keep) - int(keep.sum()))


def _mix_extras(digests: Keys, extras_of: Sequence[Sequence[BlockExtras | None]], lengths: Sequence[int]) -> None:
    start = 0
    for extras, length in zip(extras_of, lengths, strict=True):
        if extras:
            pairs = [
                (start + n, extra_digest(extra.media, extra.cache_salt))
                for n, extra in enumerate(extras)
                if extra is not None
            ]
            add_extras(digests, [pair for pair in pairs if pair[1]])
        start += length


def _offsets(
    runs: Runs,
    firsts: Sequence[tuple[int | None, str]],
    starts: Sequence[int],
    hasher: BlockHasher,
    size: int,
    find: Callable[[Keys], tuple[NDArray[np.bool_], Keys]],
    hashes: Keys,
) -> list[int | None]:
    """Of each run, which begin at `starts`: `firsts` has their parents and adapters. None: nobody knows the parent."""
    asked = list({parent for parent, _ in firsts if parent is not None})
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
    for run, (name, adapter) in enumerate(firsts):
        parent: int | None = None
        if name is None:
            parent = roots.get(adapter)
            if parent is None:
                parent = roots[adapter] = hasher.root(adapter, size)
        else:
            parent = outside.get(name)
            if parent is None and (at := inside.get(name or 1, starts[run])) < starts[run]:
                offset = offsets[bisect_right(starts, at) - 1]
                parent = None if offset is None else runs.key(at, offset)
        offsets.append(None if parent is None else runs.offset(run, parent))
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
