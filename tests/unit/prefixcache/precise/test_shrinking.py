"""A full index whose rows become wider: tiers, groups and endpoints that come late cost blocks, not bytes."""

from __future__ import annotations

import os

import numpy as np

from benchmarks.procfs import resident_bytes
from epp.kvevents.events import BlockRemoved, BlockStored
from epp.prefixcache.precise.index import PreciseIndex
from epp.prefixcache.precise.memory import SMALL_BYTES
from epp.prefixcache.precise.prompts import prompt_keys

A, B, C = "10.0.0.1:8000", "10.0.0.2:8000", "10.0.0.3:8000"
SIZE = 4
BLOCKS = 500  # per prompt
LATE = (("cpu", 0), ("storage", 0), ("gpu", 1), ("cpu", 1))


def prompt(number: int) -> bytes:
    return np.random.default_rng(number).integers(0, 100_000, BLOCKS * SIZE, dtype=np.uint32).tobytes()


def hashes(number: int, server: int) -> list[int]:
    first = 1 + server * (1 << 40) + number * BLOCKS
    return list(range(first, first + BLOCKS))


def stored(number: int, server: int = 0, medium: str = "gpu", group: int = 0) -> BlockStored:
    return BlockStored(hashes(number, server), None, prompt(number), SIZE, medium=medium, group=group)


def held(index: PreciseIndex, number: int) -> dict[str, int]:
    match = index.match(prompt_keys(index.hasher, prompt(number), SIZE))
    return {name: int(match.blocks[lane]) for name, lane in index.lanes.endpoints().items()}


def full(most: int) -> tuple[PreciseIndex, int]:
    """An index that has had to evict, of two servers with hashes of their own for every fourth prompt's blocks."""
    index = PreciseIndex(most)
    count = int(1.2 * index.blocks.capacity / BLOCKS)
    for number in range(count):
        index.apply(A, [stored(number)])
        if number % 4 == 0:
            index.apply(B, [stored(number, server=1)])
    assert index.blocks.evicted
    assert index.blocks.aliases
    return index, count


def tidied(index: PreciseIndex) -> int:
    slices = 0
    while index.tidy():
        slices += 1
    return slices


def test_rows_that_become_wider_stay_within_the_bound() -> None:
    most = 1 << 22
    index, count = full(most)
    for medium, group in LATE:
        index.apply(C, [stored(count - 1, 2, medium, group)])
        tidied(index)
        assert index.blocks.size_bytes <= most
        assert index.blocks.count <= index.blocks.high <= index.blocks.capacity
    assert index.blocks.words == 1 + len(LATE)
    assert held(index, count - 1)[C] == BLOCKS


def test_what_was_used_last_stays_and_what_stays_is_right() -> None:
    index, count = full(1 << 22)
    for medium, group in LATE:
        index.apply(C, [stored(count - 1, 2, medium, group)])
    assert tidied(index) > 3
    assert not any(held(index, number)[A] for number in range(4))
    kept = [number for number in range(count) if held(index, number)[A] == BLOCKS]
    assert kept[-1] == count - 1
    assert set(range(count - count // 4, count)) <= set(kept)
    assert all(held(index, number)[B] == (BLOCKS if number % 4 == 0 else 0) for number in kept)
    # What moved is found by the servers' hashes, and nothing else is.
    for number in kept:
        index.apply(A, [BlockRemoved(hashes(number, 0))])
        assert held(index, number)[A] == 0
        assert held(index, number)[B] == (BLOCKS if number % 4 == 0 else 0)
        index.apply(B, [BlockRemoved(hashes(number, 1))])
        assert held(index, number)[B] == 0
    assert held(index, count - 1)[C] == BLOCKS
    for medium, group in LATE:
        index.apply(C, [BlockRemoved(hashes(count - 1, 2), medium=medium, group=group)])
    for _ in range(2):  # an alias goes with the sweep after the one that took its block
        index.apply(A, [stored(0)])
        for name in (A, B, C):
            index.clear(name)
        tidied(index)
    assert (index.blocks.count, index.blocks.aliases) == (0, 0)


def test_it_takes_new_blocks_while_it_shrinks_and_afterwards() -> None:
    index, count = full(1 << 22)
    number = count
    for medium, group in LATE:
        index.apply(C, [stored(number, 2, medium, group)])
        while index.tidy():
            number += 1
            index.apply(A, [stored(number)])
            assert held(index, number)[A] == BLOCKS
    for later in range(number + 1, number + count):
        index.apply(A, [stored(later)])
        assert held(index, later)[A] == BLOCKS
    assert index.blocks.count <= index.blocks.high <= index.blocks.capacity


def test_an_index_with_room_moves_what_is_in_the_way() -> None:
    index, count = full(1 << 22)
    for number in range(count):
        if number % 3:
            index.apply(A, [BlockRemoved(hashes(number, 0))])
    kept = {number: held(index, number) for number in range(0, count, 3)}
    evicted = index.blocks.evicted
    for medium, group in LATE:
        index.apply(C, [stored(0, 2, medium, group)])
    tidied(index)
    assert index.blocks.high <= index.blocks.capacity
    assert index.blocks.evicted == evicted
    assert all(held(index, number) | {C: 0} == told | {C: 0} for number, told in kept.items())


def test_the_memory_goes_back() -> None:
    index, count = full(1 << 24)
    assert index.blocks.key.nbytes > SMALL_BYTES
    for medium, group in LATE:
        index.apply(C, [stored(count - 1, 2, medium, group)])
    wide, high = resident_bytes(os.getpid()), index.blocks.high
    tidied(index)
    index.blocks._frontier.wait()
    gone = high - index.blocks.high
    assert gone > high // 4
    # The late words of the rows that stay (32 bytes each) are there now; what the rows that went had is not.
    assert resident_bytes(os.getpid()) < wide + 8 * index.blocks.high
