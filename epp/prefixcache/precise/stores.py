"""A run of BlockStored events as arrays: keys of all blocks, whatever their parents, in a handful of numpy calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from epp.kvevents.events import BlockStored
from epp.prefixcache.precise.hashing import CHUNK, BlockHasher, Keys, add_extras, chain_runs, extra_digest, follow


@dataclass(frozen=True, slots=True)
class StoredBlocks:
    """Blocks with known parents: `event[i]` is the position of the event that block `i` came with."""

    keys: Keys
    engines: Keys
    event: NDArray[np.intp]
    orphans: int


def engine_hashes(hashes: Sequence[int]) -> Keys:
    """Engine hashes as an array. 0 stands for "none" in the index, so it is taken for 1."""
    array = np.array(hashes, dtype=np.uint64)
    array[array == 0] = 1
    return array


def resolve(
    events: Sequence[BlockStored], hasher: BlockHasher, find: Callable[[Keys], tuple[NDArray[np.bool_], Keys]]
) -> StoredBlocks:
    """Keys of the blocks of events that all have one block size, at least one block, and as many ids as they need.

    `find` tells which engine hashes are known, and the keys of their blocks. A parent may also have come with an
    earlier event of the same call. Runs without a known parent are left out and their blocks counted in `orphans`.
    """
    block_size = events[0].block_size
    lengths = np.array([len(event.block_hashes) for event in events], dtype=np.intp)
    ends = np.cumsum(lengths)
    starts = ends - lengths
    hashes = engine_hashes([block for event in events for block in event.block_hashes])
    digests = hasher.digests(b"".join([event.token_ids for event in events]), block_size)
    for event, start in zip(events, starts.tolist(), strict=True):
        if event.extras:
            pairs = [
                (start + n, extra_digest(extra.media, extra.cache_salt))
                for n, extra in enumerate(event.extras)
                if extra is not None
            ]
            add_extras(digests, [pair for pair in pairs if pair[1]])
    local, power = chain_runs(digests, starts, lengths)
    parents, known = _parents(events, hasher, find, starts, hashes, local, power)
    keys = local + np.repeat(parents, lengths) * power
    event_of = np.repeat(np.arange(len(events)), lengths)
    if known.all():
        return StoredBlocks(keys, hashes, event_of, 0)
    keep = np.repeat(known, lengths)
    return StoredBlocks(keys[keep], hashes[keep], event_of[keep], int((~keep).sum()))


def _parents(
    events: Sequence[BlockStored],
    hasher: BlockHasher,
    find: Callable[[Keys], tuple[NDArray[np.bool_], Keys]],
    starts: NDArray[np.intp],
    hashes: Keys,
    local: Keys,
    power: Keys,
) -> tuple[Keys, NDArray[np.bool_]]:
    ends = np.append(starts[1:], len(hashes)) - 1
    last = dict(zip(hashes.take(ends).tolist(), range(len(events)), strict=True))
    asked = [name for n, e in enumerate(events) if (name := e.parent_hash) is not None and last.get(name, n) >= n]
    outside: dict[int, int] = {}
    if asked:
        found, keys = find(engine_hashes(asked))
        outside = {name: key for name, key, ok in zip(asked, keys.tolist(), found.tolist(), strict=True) if ok}
    position: dict[int, int] = {}
    if len(outside) < len(set(asked)):  # in the middle of an earlier run, or nothing that is known
        position = dict(zip(hashes.tolist(), range(len(hashes)), strict=True))
    end_powers, end_locals = power.take(ends).tolist(), local.take(ends).tolist()
    roots: dict[str, int] = {}
    parents: list[int | None] = []
    for number, event in enumerate(events):
        name = event.parent_hash
        parent: int | None = None
        if name is None:
            parent = roots.get(event.lora_name)
            if parent is None:
                parent = roots[event.lora_name] = hasher.root(event.lora_name, event.block_size)
        elif (before := last.get(name, number)) < number:
            if (grandparent := parents[before]) is not None:
                parent = follow(end_locals[before], end_powers[before], grandparent)
        elif (key := outside.get(name)) is not None:
            parent = key
        elif (at := position.get(name)) is not None and at < starts[number]:
            owner = int(np.searchsorted(starts, at, side="right")) - 1
            if (grandparent := parents[owner]) is not None:
                parent = follow(int(local[at]), int(power[at]), grandparent)
        parents.append(parent)
    known = np.array([parent is not None for parent in parents])
    return np.array([parent or 0 for parent in parents], dtype=np.uint64), known


def well_formed(event: BlockStored) -> bool:
    """Whether the event has as many token ids as its blocks need; extras, if any, one per block."""
    count, size = len(event.block_hashes), event.block_size
    return size > 0 and len(event.token_ids) == count * size * 4 and len(event.extras) in {0, count}


def cut(event: BlockStored, most: int = CHUNK) -> list[BlockStored]:
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
            )
        )
    return parts
