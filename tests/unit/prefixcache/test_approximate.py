"""The approximate index in small pictures; `tests/property/test_approximate_index.py` compares it with a model."""

from __future__ import annotations

import random
import tracemalloc

import numpy as np
import pytest

from epp.prefixcache.approximate import ApproximateIndex
from epp.prefixcache.radix import common_length


@pytest.fixture
def index() -> ApproximateIndex:
    return ApproximateIndex(1 << 30)


def counts(index: ApproximateIndex, path: list[int], rows: int = 4) -> list[int]:
    return [int(count) for count in index.match(path, np.arange(rows))]


def test_an_empty_index_matches_nothing(index: ApproximateIndex) -> None:
    assert counts(index, [1, 2, 3]) == [0, 0, 0, 0]
    assert counts(index, []) == [0, 0, 0, 0]
    assert index.match([1], np.array([], dtype=np.intp)).shape == (0,)


def test_each_endpoint_matches_as_far_as_it_was_sent(index: ApproximateIndex) -> None:
    index.record(0, [1, 2, 3, 4], 100)
    index.record(1, [1, 2, 9], 100)
    index.record(2, [1], 100)
    assert counts(index, [1, 2, 3, 4, 5]) == [4, 2, 1, 0]
    assert counts(index, [1, 2]) == [2, 2, 1, 0]
    assert counts(index, [9, 2]) == [0, 0, 0, 0]


def test_rows_are_answered_in_their_order(index: ApproximateIndex) -> None:
    index.record(3, [1, 2], 100)
    assert index.match([1, 2], np.array([3, 0, 3])).tolist() == [2, 0, 2]


def test_record_tells_what_was_held_before(index: ApproximateIndex) -> None:
    assert index.record(0, [1, 2, 3], 100) == 0
    assert index.record(0, [1, 2, 7], 100) == 2
    assert index.record(0, [1, 2, 3], 100) == 3
    assert index.record(0, [], 100) == 0


def test_a_full_endpoint_forgets_the_end_of_its_oldest_prompt(index: ApproximateIndex) -> None:
    index.record(0, [1, 2, 3], 4)
    index.record(0, [7, 8, 9], 4)
    assert counts(index, [1, 2, 3])[0] == 1
    assert counts(index, [7, 8, 9])[0] == 3
    assert index.held_by(0) == 4


def test_using_a_prompt_again_keeps_it(index: ApproximateIndex) -> None:
    index.record(0, [1, 2], 4)
    index.record(0, [7, 8], 4)
    index.record(0, [1, 2], 4)
    index.record(0, [5, 6], 4)
    assert [counts(index, path)[0] for path in ([1, 2], [7, 8], [5, 6])] == [2, 0, 2]


def test_a_prompt_larger_than_the_cache_keeps_its_beginning(index: ApproximateIndex) -> None:
    index.record(0, [1, 2, 3, 4, 5], 3)
    assert counts(index, [1, 2, 3, 4, 5])[0] == 3


def test_what_one_endpoint_forgets_another_keeps(index: ApproximateIndex) -> None:
    for row in (0, 1):
        index.record(row, [1, 2, 3], 4 if row == 0 else 100)
    index.record(0, [8, 9], 4)
    assert counts(index, [1, 2, 3])[:2] == [2, 3]
    assert (index.blocks, index.held_blocks) == (5, 7)


def test_a_growing_conversation_stays_one_run(index: ApproximateIndex) -> None:
    for turn in range(1, 50):
        index.record(0, list(range(1, 4 * turn)), 1000)
    assert index.nodes == 1
    assert counts(index, list(range(1, 196)))[0] == 195


def test_a_gone_endpoint_is_out_at_once_and_its_row_starts_empty(index: ApproximateIndex) -> None:
    index.record(0, [1, 2], 100)
    index.record(1, [1, 2], 100)
    index.forget(0)
    index.forget(0)
    index.forget(77)
    assert counts(index, [1, 2])[:2] == [0, 2]
    assert index.held_by(0) == 0
    index.record(0, [1], 100)
    assert counts(index, [1, 2])[:2] == [1, 2]


def test_the_memory_of_gone_endpoints_is_freed_bit_by_bit(index: ApproximateIndex) -> None:
    for prompt in range(1000):
        index.record(0, [prompt * 10 + block for block in range(3)], 10_000)
    index.forget(0)
    before = index.nodes
    index.record(1, [-1 & (1 << 64) - 1], 10)
    assert before - 100 < index.nodes < before  # one call does not clear all of it
    for _ in range(50):
        index.record(1, [-1 & (1 << 64) - 1], 10)
    assert (index.nodes, index.blocks, index.held_blocks) == (1, 1, 1)


def test_lanes_are_used_again(index: ApproximateIndex) -> None:
    for turn in range(200):
        index.record(turn % 3, [turn + 1], 10)
        index.forget(turn % 3)
    assert len(index._lanes) < 5


def test_rows_beyond_the_first_ones(index: ApproximateIndex) -> None:
    assert index.match([1], np.array([500])).tolist() == [0]
    index.record(5000, [1, 2], 10)
    assert index.match([1, 2], np.array([500, 5000])).tolist() == [0, 2]
    assert index.held_by(100_000) == 0


def test_hundreds_of_holders(index: ApproximateIndex) -> None:
    rows = 300
    for row in range(rows):
        index.record(row, [1, 2, 3, 1000 + row], 100)
    found = index.match([1, 2, 3, 1007], np.arange(rows))
    assert found[7] == 4
    assert (np.delete(found, 7) == 3).all()


def test_the_globally_oldest_go_when_the_bytes_are_used_up() -> None:
    index = ApproximateIndex(20_000)
    for prompt in range(100):
        index.record(prompt % 4, [prompt * 10 + block + 1 for block in range(8)], 10_000)
    assert index.size_bytes <= 20_000
    assert index.evicted_for_bytes == 800 - index.held_blocks
    kept = [bool(max(counts(index, [prompt * 10 + 1]))) for prompt in range(100)]
    assert kept == sorted(kept)
    assert kept[-1]
    assert not kept[0]


def test_a_lower_capacity_is_reached_step_by_step(index: ApproximateIndex) -> None:
    for prompt in range(500):
        index.record(0, [prompt + 1], 1000)
    held = []
    for _ in range(12):
        index.record(0, [1], 10)
        held.append(index.held_by(0))
    assert held == sorted(held, reverse=True)
    assert held[0] > 400
    assert held[-1] == 10


@pytest.mark.parametrize("prompt_blocks", [2, 32, 500])
def test_the_estimate_of_bytes_is_near_the_truth(prompt_blocks: int) -> None:
    rng = random.Random(4)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        index = ApproximateIndex(1 << 30)
        for prompt in range(40_000 // prompt_blocks):
            index.record(prompt % 5, [rng.getrandbits(64) for _ in range(prompt_blocks)], 5000)
        used = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert 0.7 * used < index.size_bytes < 1.7 * used


def test_common_length() -> None:
    assert common_length([1, 2, 3], [0, 1, 2, 3, 4], 1) == 3
    assert common_length([1, 2, 3, 4], [1, 2], 0) == 2
    assert common_length([1, 2, 3, 4], [1, 2, 8, 9], 0) == 2
    assert common_length([1, 2, 3, 4], [1, 7, 8, 9], 0) == 1
