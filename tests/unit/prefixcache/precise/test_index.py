"""The precise index: what the property test does not reach."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from epp.api import MediaFeature
from epp.kvevents.decoding import Decoder
from epp.kvevents.events import AllBlocksCleared, BlockExtras, BlockRemoved, BlockStored
from epp.prefixcache.precise.blocks import Blocks
from epp.prefixcache.precise.hashing import MOST_CHAINED, BlockHasher
from epp.prefixcache.precise.index import SWEEP_ROWS, PreciseIndex
from epp.prefixcache.precise.ingestion import MAX_BLOCK_SIZES
from epp.prefixcache.precise.lookup import Lookup
from epp.prefixcache.precise.prompts import prompt_keys
from epp.prefixcache.precise.stores import columns, cut, resolve
from epp.prefixcache.precise.tiers import MAX_TIERS, OTHER, RESTORED, Tiers

A, B = "10.0.0.1:8000", "10.0.0.2:8000"
SIZE = 16


@pytest.fixture
def index() -> PreciseIndex:
    return PreciseIndex(1 << 24)


def tokens(blocks: int, seed: int = 0, size: int = SIZE) -> bytes:
    return np.random.default_rng(seed).integers(0, 100_000, blocks * size, dtype=np.uint32).tobytes()


def stored(data: bytes, first: int = 1, parent: int | None = None, size: int = SIZE, **more: object) -> BlockStored:
    count = len(data) // (4 * size)
    return BlockStored(range(first, first + count), parent, data, size, **more)  # type: ignore[arg-type]


def held(index: PreciseIndex, data: bytes, endpoint: str, **more: object) -> float:
    lane = index.lanes.get(endpoint)
    size = index.block_sizes[0] if index.block_sizes else SIZE
    match = index.match(prompt_keys(index.hasher, data, size, **more))  # type: ignore[arg-type]
    return 0.0 if lane is None else float(match.blocks[lane])


def test_a_prompt_longer_than_a_slice(index: PreciseIndex) -> None:
    data = tokens(10_000)
    index.apply(A, [stored(data)])
    assert held(index, data, A) == 10_000
    assert held(index, data + tokens(3, 1), A) == 10_000
    index.apply(A, [BlockRemoved([9001])])
    assert held(index, data, A) == 9000


def test_a_run_continues_in_the_middle_of_an_earlier_one(index: PreciseIndex) -> None:
    data = tokens(6)
    fork = data[: 3 * 64] + tokens(2, 5)
    index.apply(A, [stored(data), stored(fork[3 * 64 :], 100, 3)])
    assert held(index, fork, A) == 5
    index.apply(B, [stored(fork[3 * 64 :], 100, 3)])
    assert held(index, fork, B) == 0  # without its beginning


def test_orphans_are_counted_and_skipped(index: PreciseIndex) -> None:
    index.apply(A, [stored(tokens(3), 10, 9), stored(tokens(2), 13, 12)])
    assert index.counters.orphans == 5
    assert index.blocks.count == 0


def test_events_that_do_not_fit_together(index: PreciseIndex) -> None:
    good = stored(tokens(2))
    index.apply(A, [BlockStored([1, 2, 3], None, tokens(2), SIZE), BlockStored([1], None, b"1234", 0), good])
    assert index.counters.malformed == 2
    assert held(index, tokens(2), A) == 2


def test_one_hash_for_two_blocks_is_a_contradiction(index: PreciseIndex) -> None:
    index.apply(A, [stored(tokens(2))])
    index.apply(B, [stored(tokens(2, 7))])
    assert index.counters.conflicts == 2
    assert held(index, tokens(2), A) == 2


def test_stored_and_removed_in_one_batch_keeps_its_order(index: PreciseIndex) -> None:
    data = tokens(2)
    index.apply(A, [stored(data), BlockRemoved([2])])
    assert held(index, data, A) == 1
    index.apply(A, [BlockRemoved([2]), stored(data)])
    assert held(index, data, A) == 2
    other = tokens(2, 3)
    index.apply(A, [BlockRemoved([1, 2]), stored(other, 50)])
    assert (held(index, data, A), held(index, other, A)) == (0, 2)


def test_cleared_in_the_middle(index: PreciseIndex) -> None:
    first, second = tokens(2), tokens(2, 1)
    index.apply(A, [stored(first), AllBlocksCleared(), stored(second, 20)])
    assert (held(index, first, A), held(index, second, A)) == (0, 2)
    assert index.counters.clears == 1


def test_a_cleared_endpoint_is_wiped_in_slices_and_its_lane_used_again(index: PreciseIndex) -> None:
    for n in range(3):
        index.apply(A, [stored(tokens(30_000, n), 1 + n * 30_000)])
    assert index.blocks.high > SWEEP_ROWS
    before = index.lanes.get(A)
    index.clear(A)
    assert held(index, tokens(10), A) == 0
    assert index.tidy()
    assert index.blocks.count > 0
    while index.tidy():
        pass
    assert index.blocks.count == 0
    assert index.blocks.high == 0  # the memory went back
    index.apply(B, [stored(tokens(2))])
    assert index.lanes.get(B) == before
    assert held(index, tokens(2), B) == 2


def test_tiers_count_by_their_weight(index: PreciseIndex) -> None:
    data = tokens(3)
    index.apply(A, [stored(data[:64]), stored(data[64:], 2, 1, medium="cpu")])
    match = index.match(prompt_keys(index.hasher, data, SIZE))
    assert match.blocks[0] == 3
    assert match.weighted[0] == pytest.approx(2.6)
    index.apply(A, [BlockStored([2], None, b"", SIZE)])  # known blocks, in the GPU too now
    assert index.counters.moved == 1
    assert index.match(prompt_keys(index.hasher, data, SIZE)).weighted[0] == pytest.approx(2.8)
    index.apply(A, [BlockRemoved([2], "cpu"), BlockRemoved([3], "cpu")])
    assert index.match(prompt_keys(index.hasher, data, SIZE)).weighted[0] == 2
    index.apply(A, [BlockStored([77], None, b"", SIZE, medium="cpu")])
    assert index.counters.orphans == 1


def test_a_block_stays_while_any_group_has_it(index: PreciseIndex) -> None:
    data = tokens(2)
    index.apply(A, [stored(data), stored(data, group=1)])
    index.apply(A, [BlockRemoved([1, 2])])
    assert held(index, data, A) == 2
    index.apply(A, [BlockRemoved([1, 2], group=1)])
    assert held(index, data, A) == 0
    assert index.blocks.count == 0


def test_a_block_stays_while_a_copy_of_it_does(index: PreciseIndex) -> None:
    data = tokens(4)
    copy = stored(data[2 * 64 : 3 * 64], 3, 2)
    index.apply(A, [stored(data), copy, copy])
    index.apply(B, [stored(data)])
    assert index.counters.copies == 2
    for left in (4, 4, 2):
        index.apply(A, [BlockRemoved([3])])
        index.apply(B, [BlockRemoved([99])])
        assert (held(index, data, A), held(index, data, B)) == (left, 4)
    index.apply(B, [BlockRemoved([3])])
    assert held(index, data, B) == 2
    # The same in another tier or group is no copy.
    index.apply(A, [stored(data), stored(data[64:], 2, 1, medium="cpu"), stored(data[64:], 2, 1, group=1)])
    assert index.counters.copies == 2


def test_every_hash_of_a_removal_takes_a_copy_or_is_forwarded(index: PreciseIndex) -> None:
    data = tokens(4)
    copy = stored(data[2 * 64 : 3 * 64], 3, 2)
    index.apply(A, [stored(data), copy, copy])
    index.apply(B, [stored(data)])

    def told() -> tuple[int, int]:
        return index.counters.suppressed, index.counters.forwarded

    index.apply(A, [BlockRemoved([3, 4])])
    assert told() == (1, 1)
    index.apply_many([(A, [BlockRemoved([3])]), (B, [BlockRemoved([3])])])
    assert told() == (2, 2)
    index.apply(A, [BlockRemoved([3])])
    assert told() == (2, 3)
    # Those that nobody knows, those of another tier, and those of a stranger are passed on, too.
    index.apply(A, [BlockRemoved([77, 78]), BlockRemoved([1], "cpu")])
    index.apply("10.0.0.9:1", [BlockRemoved([1])])
    assert told() == (2, 7)
    # Another cache group that has the block is none of the removal's business.
    index.apply(A, [stored(data[:64], group=1), BlockRemoved([1])])
    assert told() == (2, 8)


@pytest.mark.parametrize("order", [(2, 22), (22, 2)])
def test_a_copy_may_have_another_hash(index: PreciseIndex, order: tuple[int, int]) -> None:
    """vLLM 0.33 with a draft model hashes the tokens behind a block, too: equal blocks, which go one by one."""
    data = tokens(3)
    index.apply(A, [stored(data)])
    index.apply(A, [stored(data[64:128], 22, 1)])
    assert (index.counters.copies, index.counters.conflicts) == (1, 0)
    for engine, left in zip(order, (3, 1), strict=True):
        index.apply(A, [BlockRemoved([engine])])
        assert held(index, data, A) == left


def test_what_may_be_told_again_is_no_copy(index: PreciseIndex) -> None:
    data = tokens(1100)  # more than goes in one piece
    index.apply(A, [stored(data)])
    index.apply(A, [stored(data)])  # a server that is asked to tells what a request found in its cache
    index.apply(A, [stored(data[64:128], 2, 1, again=True)])
    assert index.counters.copies == 0
    index.apply(A, [BlockRemoved([1050])])
    assert held(index, data, A) == 1049


def test_copies_go_with_the_endpoint_and_are_bounded(index: PreciseIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("epp.prefixcache.precise.copies.MAX_COPIES", 2)
    data = tokens(5)
    tail = stored(data[64:], 2, 1)
    index.apply(A, [stored(data), tail, tail])
    assert index.counters.copies == 4  # twice two blocks: for the other two there is no room
    index.apply(A, [BlockRemoved([5])])
    assert held(index, data, A) == 4
    index.clear(A)
    index.apply(A, [stored(data)])
    index.apply(A, [BlockRemoved([3])])
    assert held(index, data, A) == 2


def copies_of_a_real_server() -> list[dict[str, Any]]:
    """vLLM 0.32 with 48 blocks of 32 tokens: prompts, the cached tokens it reported, and the messages it published."""
    path = Path(__file__).parents[3] / "data" / "prefixcache" / "copies.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("counted", [True, False])
def test_a_real_server_has_copies(counted: bool) -> None:
    index, decoder, wrong = PreciseIndex(1 << 22, copies=counted), Decoder(), 0
    requests = copies_of_a_real_server()
    for request in requests:
        prompt = request["prompt"]
        data = np.array(prompt, dtype="<u4").tobytes()
        predicted = min(held(index, data, A) * 32, (len(prompt) - 1) // 32 * 32)
        wrong += predicted != request["cached"]
        for payload in request["payloads"]:
            batch = decoder.decode(base64.b64decode(payload))
            assert batch is not None
            index.apply(A, batch.events)
    assert len(requests) == 70
    assert (wrong == 0) if counted else (wrong > 5)


def test_adapters_salts_and_media_share_nothing(index: PreciseIndex) -> None:
    data = tokens(3)
    picture = [MediaFeature("image", "cat", 20, 20)]
    extras = (BlockExtras((), "tenant"), None, None)
    index.apply(A, [stored(data, 1), stored(data, 11, lora_name="lora"), stored(data, 21, extras=extras)])
    index.apply(A, [stored(data, 31, extras=(None, BlockExtras(("cat",)), BlockExtras(("cat",))))])
    index.apply(B, [stored(data, 1)])
    assert (
        index.blocks.count - index.blocks.aliases == 3 * 3 + 2
    )  # block 0 of the picture's prompt is that of the plain one
    assert index.adapters == {"lora"}
    for more in ({}, {"adapter": "lora"}, {"cache_salt": "tenant"}, {"features": picture}):
        assert held(index, data, A, **more) == 3
    assert held(index, data, B, adapter="lora") == 0
    assert held(index, data, B, cache_salt="tenant") == 0
    assert held(index, data, B, features=picture) == 1
    assert held(index, data, B, cache_salt="other") == 0


def test_engines_with_other_hashes_for_the_same_blocks(index: PreciseIndex) -> None:
    data = tokens(3)
    index.apply(A, [stored(data, 1)])
    index.apply(B, [stored(data, 1001), stored(tokens(1, 8), 2000, 1003)])
    assert index.blocks.aliases == 3
    index.apply(B, [BlockRemoved([1002])])
    assert (held(index, data, A), held(index, data, B)) == (3, 1)
    index.apply(A, [BlockRemoved([1, 2, 3])])
    index.clear(B)
    while index.tidy():
        pass
    index.apply(B, [stored(tokens(1, 9), 5000), AllBlocksCleared()])
    while index.tidy():
        pass
    assert (index.blocks.count, index.blocks.aliases) == (0, 0)


def test_the_bound_in_bytes_makes_the_least_recently_used_go() -> None:
    index = PreciseIndex(1 << 20)
    capacity = index.blocks.capacity
    keep = tokens(64, 999)
    index.apply(A, [stored(keep, 1 << 40)])
    for n in range(3 * capacity // 1000):
        index.apply(A, [stored(tokens(1000, n), 1 + n * 1000)])
        assert held(index, keep, A) == 64  # asked for again and again
    assert index.blocks.count <= capacity
    assert index.blocks.evicted > capacity
    assert held(index, tokens(1000, n), A) == 1000
    assert held(index, tokens(1000, 0), A) == 0
    assert index.blocks.size_bytes <= 1.1 * (1 << 20)


def test_a_second_tier_of_a_full_index_stays_within_the_bound() -> None:
    most = 1 << 23
    index = PreciseIndex(most)
    before = index.blocks.capacity
    for n in range(before // 1000 + 1):
        index.apply(A, [stored(tokens(1000, n), 1 + n * 1000)])
    assert index.blocks.count == before
    assert index.blocks.size_bytes <= most
    for n in range(20):
        index.apply(A, [stored(tokens(1000, n), 1 + n * 1000, medium="cpu")])
        assert index.blocks.size_bytes <= 1.005 * most
    assert index.blocks.capacity == before
    assert held(index, tokens(1000, 19), A) == 1000


def test_a_third_tier_costs_memory_so_fewer_blocks_fit() -> None:
    index = PreciseIndex(1 << 20)
    before = index.blocks.capacity
    for n in range(before // 1000 + 1):
        index.apply(A, [stored(tokens(1000, n), 1 + n * 1000)])
    for number, medium in enumerate(("cpu", "storage")):
        index.apply(A, [stored(tokens(10, 1 << 20), 1 << 40 + number, medium=medium)])
    assert index.blocks.capacity < before
    while index.tidy():
        pass
    assert index.blocks.count <= index.blocks.capacity


def test_an_event_larger_than_the_index() -> None:
    index = PreciseIndex(1 << 24, max_blocks=2000)
    index.apply(A, [stored(tokens(50_000))])
    assert index.blocks.count <= 2000


def test_max_blocks() -> None:
    index = PreciseIndex(1 << 24, max_blocks=2000)
    for n in range(5):
        index.apply(A, [stored(tokens(1000, n), 1 + n * 1000)])
    assert index.blocks.count <= 2000


def test_block_sizes_are_bounded(index: PreciseIndex) -> None:
    for size in range(1, MAX_BLOCK_SIZES + 3):
        index.apply(A, [stored(tokens(1, size, size), size, size=size)])
    assert len(index.block_sizes) == MAX_BLOCK_SIZES
    assert index.counters.block_sizes_refused == 2


def test_an_odd_block_size(index: PreciseIndex) -> None:
    data = tokens(4, 3, 7)
    index.apply(A, [stored(data, size=7)])
    assert held(index, data, A) == 4
    assert index.block_size_of(A) == 7


def test_speculation_ends_but_for_what_a_later_pick_shares(index: PreciseIndex) -> None:
    data = tokens(4)
    fork = data[:128] + tokens(2, 4)
    index.speculate(A, prompt_keys(index.hasher, data, SIZE), 10.0)
    index.speculate(A, prompt_keys(index.hasher, fork, SIZE), 11.0)
    assert (held(index, data, A), held(index, fork, A)) == (4, 4)
    assert index.expire(9.9) == 0
    assert index.expire(10.0) == 1
    assert (held(index, data, A), held(index, fork, A)) == (2, 4)
    index.apply(A, [stored(fork)])  # confirmed
    assert index.expire(11.0) == 1
    assert held(index, fork, A) == 4
    assert index.blocks.count == 4
    index.speculate(A, prompt_keys(index.hasher, b"", SIZE), 10.0)
    assert len(index.speculation) == 0


def test_a_block_beside_another_ones_alias_is_found() -> None:
    """Lookups of long prompts expect a block's row beside the one before it; an alias there has no holders."""
    index = PreciseIndex(1 << 22)
    data = tokens(64)
    index.apply(A, [stored(data)])
    index.apply(A, [BlockRemoved([1])])
    index.apply(A, [stored(tokens(1, 9), 900)])  # takes the row of the removed block
    index.apply(B, [stored(data, 500)])  # the first block in a new row, and the aliases of the others behind it
    assert index.blocks.aliases == 63
    assert held(index, data, B) == 64


def test_a_call_of_more_blocks_than_powers_are_kept_for() -> None:
    hasher = BlockHasher()
    data = tokens(MOST_CHAINED + 10, 1)
    parts = cut(stored(data))
    found = resolve(columns(parts), hasher, lambda engines: (np.zeros(len(engines), dtype=np.bool_), engines))
    assert (found.keys == prompt_keys(hasher, data, SIZE)).all()
    assert found.orphans == 0
    assert np.bincount(found.event).tolist() == [len(part.block_hashes) for part in parts]


def test_many_picks_with_one_beginning_end_one_by_one(index: PreciseIndex) -> None:
    shared = tokens(3)
    prompts = [shared + tokens(2, seed) for seed in range(1, 9)]
    longer = prompts[2] + tokens(2, 50)
    for number, data in enumerate([*prompts, longer]):
        index.speculate(A, prompt_keys(index.hasher, data, SIZE), float(number))
    for number, data in enumerate(prompts):
        assert index.expire(float(number)) == 1
        assert held(index, data, A) == (5 if data is prompts[2] else 3)
        assert all(held(index, other, A) == 5 for other in prompts[number + 1 :])
    assert held(index, longer, A) == 7
    assert index.expire(99.0) == 1
    assert index.blocks.count == 0


@pytest.mark.parametrize(("name", "bound"), [("MAX_RECORDS", 3), ("MAX_KEYS", 12)])
def test_picks_are_believed_only_as_far_as_there_is_room(
    index: PreciseIndex, monkeypatch: pytest.MonkeyPatch, name: str, bound: int
) -> None:
    monkeypatch.setattr(f"epp.prefixcache.precise.speculation.{name}", bound)
    prompts = [tokens(4, seed) for seed in range(5)]
    for data in prompts:
        index.speculate(A, prompt_keys(index.hasher, data, SIZE), 1e9)
    assert len(index.speculation) == 3
    assert [held(index, data, A) for data in prompts] == [0, 0, 4, 4, 4]


def test_seeds_make_different_keys() -> None:
    one, other = PreciseIndex(1 << 20, seed="1"), PreciseIndex(1 << 20, seed="2")
    data = tokens(2)
    assert set(prompt_keys(one.hasher, data, SIZE).tolist()).isdisjoint(prompt_keys(other.hasher, data, SIZE).tolist())


def test_tiers_of_sglang_have_the_weights_of_what_they_are() -> None:
    tiers = Tiers({"cpu": 0.8, "storage": 0.3, "disk": 0.2})
    for name in ("CPU_PINNED", "cpu_tier1", "disk", "external", "cpu_tier2", f"{RESTORED}cpu_pinned", "gpu", "?"):
        tiers.number(name)
    assert tiers.weights == [0.8, 0.8, 0.2, 0.3, 0.3, 0.8, 1.0, 1.0]


def test_tier_names_are_bounded() -> None:
    tiers = Tiers({"disk": 0.25})
    for n in range(MAX_TIERS + 5):
        tiers.number(f"tier-{n}")
    assert tiers.names[-1] == OTHER
    assert tiers.number("disk") == tiers.number("yet another")
    assert Tiers({"DISK": 0.25}).weights == []


def test_the_table_keeps_what_does_not_fit_into_its_sets() -> None:
    names = np.random.default_rng(1).integers(1, 1 << 63, 40_000, dtype=np.uint64)
    table = Lookup(10_000, lambda: names)  # four times too small: its sets overflow
    rows = np.arange(len(names))
    for begin in range(0, len(names), 500):
        table.insert(names[begin : begin + 500], rows[begin : begin + 500])
    assert len(table._overflow) > 1000
    assert (table.find(names) == rows).all()
    table.remove(names[::2], rows[::2])
    found = table.find(names)
    assert (found[::2] == -1).all()
    assert (found[1::2] == rows[1::2]).all()
    with pytest.raises(ValueError, match="at most"):
        Lookup(1 << 40, lambda: names)


def test_an_expected_row_beyond_the_last_one_is_not_taken() -> None:
    blocks = Blocks(1 << 24, 1024)
    keys = np.arange(1000, 1064, dtype=np.uint64)
    blocks.upsert(np.arange(1, 1023 - 63 + 1, dtype=np.uint64), None)
    blocks.upsert(keys[16:], None)
    blocks.upsert(keys[1:15], None)
    blocks.upsert(keys[[0, 15]], None)  # the last but one row, and the last one: 15 blocks on, expected beyond the end
    rows = blocks.leading(keys)
    assert (blocks.key[rows] == keys).all()


def test_a_prompt_is_looked_up_as_far_as_it_is_known() -> None:
    blocks = Blocks(1 << 24, 1 << 20)
    rng = np.random.default_rng(3)
    keys = rng.integers(1, 1 << 63, 1000, dtype=np.uint64)
    rows = blocks.upsert(keys[rng.permutation(1000)], None)
    assert len(rows) == 1000
    for known in (0, 1, 15, 16, 17, 63, 64, 65, 500, 999, 1000):
        asked = keys.copy()
        asked[known:] += np.uint64(1)
        found = blocks.leading(asked)
        assert (blocks.key[found] == keys[:known]).all()
        asked = keys.copy()
        asked[known : known + 1] += np.uint64(1)  # what comes after it does not count
        assert len(blocks.leading(asked)) == known


@pytest.mark.parametrize("most", [1, 500, 1500, 5000])
def test_an_index_smaller_than_what_comes_at_once(most: int) -> None:
    index = PreciseIndex(1 << 24, max_blocks=most)
    for start in (1, 1 << 40):  # engines that hash at random: the second one's hashes need rows of their own
        events = [stored(tokens(16, n), start + n * 16) for n in range(512)]
        for endpoint in (A, B):
            index.apply_many([(endpoint, events)])
        index.speculate(A, prompt_keys(index.hasher, tokens(3000, 1), SIZE), 1.0)
        while index.tidy():
            pass
        assert 0 < index.blocks.count <= most
    index.apply(A, [stored(tokens(1, 5), 7)])
    assert held(index, tokens(1, 5), A) == 1


def test_blocks_that_come_from_several_servers_at_once_are_neighbours() -> None:
    blocks = Blocks(1 << 24, 1 << 20)
    keys = np.random.default_rng(5).integers(1, 1 << 63, 64, dtype=np.uint64)
    rows = blocks.upsert(np.tile(keys, 2), np.arange(1, 129, dtype=np.uint64))
    assert (rows == np.tile(np.arange(64), 2)).all()
