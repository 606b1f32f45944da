"""The block pool does what vLLM's does; tiers, groups and memory limits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from epp_simulator.block_hash import BlockChain, BlockHasher, Medium
from epp_simulator.kv_cache import KVCache
from epp_simulator.kv_events import CPU, Cleared, Event, EventEncoder, Group, Removed, Stored, schema

DATA = Path(__file__).parents[2] / "data"


def _jsonable(value: Any) -> Any:
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    if isinstance(value, list):
        return [_jsonable(item) for item in value]
    return {key: _jsonable(item) for key, item in value.items()} if isinstance(value, dict) else value


def test_the_captured_requests_cause_the_captured_events() -> None:
    """Real vLLM and our cache, fed with the same requests: same batches, same order, same fields, same evictions."""

    requests = json.loads((DATA / "simulator" / "vllm_requests.json").read_text())
    lines = (DATA / "kvevents" / "sha256-bytes" / "events.jsonl").read_text().splitlines()
    captured = [json.loads(line)["payload"] for line in lines]
    cache = KVCache(39, 32, record=True)  # --num-gpu-blocks-override 40, one of which vLLM never uses
    encoder = EventEncoder(schema("0.32"), 32, int_hashes=False, lora_ids={"lora-a": 1, "lora-b": 2})
    batches: list[list[Event]] = []
    for request in requests:
        if request is None:
            assert cache.clear()
            continue
        chain = BlockChain(request["prompt"], request["lora"], request["cache_salt"], session=request["session"])
        lease = cache.begin(chain)
        batches.append(cache.take_events())
        for token in request["answer"][:-1]:
            cache.advance(lease, [token])
            batches.append(cache.take_events())
        cache.end(lease)
    names: dict[str, str] = {}  # theirs of our hashes
    written = [msgspec.msgpack.decode(encoder.encode(1.5, batch)) for batch in batches if batch]
    assert len(written) == len(captured)
    for (_, ours, rank), (_, theirs, their_rank) in zip(written, captured, strict=True):
        assert rank == their_rank
        for event, other in zip(ours, _jsonable(theirs), strict=True):
            for ours_hash, their_hash in zip(event.get("block_hashes", []), other.get("block_hashes", []), strict=True):
                assert names.setdefault(ours_hash.hex(), their_hash["bytes"]) == their_hash["bytes"]
                assert event["type"] == "BlockStored" or ours_hash.hex() in names
            parent = event.get("parent_block_hash")
            if parent:
                assert names[parent.hex()] == other["parent_block_hash"]["bytes"]
            hashes = ("block_hashes", "parent_block_hash")
            assert {k: v for k, v in _jsonable(event).items() if k not in hashes} == {
                k: v for k, v in other.items() if k not in hashes
            }
            assert list(event) == list(other)


def test_a_whole_number_of_blocks_is_never_cached_whole() -> None:
    cache = KVCache(8, 4, record=True)
    tokens = list(range(8))
    cache.end(cache.begin(BlockChain(list(tokens))))
    first = cache.take_events()
    lease = cache.begin(BlockChain(list(tokens)))
    assert lease.cached_tokens == 4
    # The last block is computed again, into a second place, and told again.
    again = cache.take_events()
    assert isinstance(first[0], Stored)
    assert isinstance(again[0], Stored)
    assert again[0].digests == first[0].digests[1:]
    assert again[0].parent == first[0].digests[0]
    cache.end(lease)
    assert len(cache) == 2


def test_answers_fill_blocks_but_for_their_last_token() -> None:
    cache = KVCache(8, 4, record=True)
    lease = cache.begin(BlockChain([1, 2, 3]))
    assert cache.take_events() == []
    cache.advance(lease, [4])
    (event,) = cache.take_events()
    assert isinstance(event, Stored)
    assert list(event.tokens) == [1, 2, 3, 4]
    cache.end(lease)
    assert cache.begin(BlockChain([1, 2, 3, 4, 5])).cached_tokens == 4


def test_nothing_is_recorded_unless_asked_for() -> None:
    cache = KVCache(8, 4)
    cache.begin(BlockChain(list(range(8))))
    assert cache.take_events() == []


def test_room_is_what_is_free_without_what_is_reused() -> None:
    cache = KVCache(4, 4)
    lease = cache.begin(BlockChain(list(range(12))))
    assert not cache.has_room(BlockChain([9] * 8))
    assert cache.has_room(BlockChain([*range(12), 7]))  # three blocks shared with the running request
    cache.end(lease)
    assert cache.has_room(BlockChain([9] * 16))
    assert not cache.has_room(BlockChain([9] * 17))
    lease = cache.begin(BlockChain([9] * 40))  # it is let in alone, and goes beyond
    assert cache.usage == 1.0
    assert not cache.clear()
    cache.end(lease)
    assert cache.usage == 0.0
    assert len(cache) <= 4


def test_cpu_tier_gets_what_is_computed_and_gives_back_what_was_evicted() -> None:
    cache = KVCache(4, 4, cpu_size=6, record=True)
    first = list(range(12))
    cache.end(cache.begin(BlockChain(list(first))))
    stored, copied = cache.take_events()
    assert isinstance(stored, Stored)
    assert isinstance(copied, Stored)
    assert (copied.medium, list(copied.digests), list(copied.tokens)) == (CPU, list(stored.digests), [])
    cache.end(cache.begin(BlockChain([7] * 16)))  # the GPU has room for this one only
    events = cache.take_events()
    gone = [event.digest for event in events if isinstance(event, Removed) and event.medium != CPU]
    assert set(gone) == set(stored.digests)
    assert len(cache.digests(CPU)) == 6
    survivors = [digest for digest in stored.digests if digest in cache.digests(CPU)]
    assert survivors == list(stored.digests)[1:]  # seven blocks do not fit: the oldest went
    assert cache.begin(BlockChain([*first, 1])).cached_tokens == 0

    cache = KVCache(4, 4, cpu_size=20, record=True)
    cache.end(cache.begin(BlockChain(list(first))))
    cache.end(cache.begin(BlockChain([7] * 16)))
    cache.take_events()
    lease = cache.begin(BlockChain([*first, 1]))
    assert (lease.cached_tokens, lease.loaded_tokens) == (12, 12)
    back = [event for event in cache.take_events() if isinstance(event, Stored)]
    assert [list(event.tokens) for event in back] == [first]
    cache.end(lease)
    assert cache.clear()
    assert cache.take_events() == [Cleared()]
    assert cache.digests(CPU) == set()


def test_sliding_window_groups_hold_the_end_only() -> None:
    window = Group(0, "sliding_window", 8)
    cache = KVCache(3, 4, groups=(window, Group(1)), record=True)
    cache.end(cache.begin(BlockChain(list(range(12)))))
    full, sliding, *removed = cache.take_events()
    assert isinstance(full, Stored)
    assert isinstance(sliding, Stored)
    assert (full.group, sliding.group) == (Group(1), window)
    assert removed == [Removed(full.digests[0], group=window)]
    cache.begin(BlockChain([7] * 8))
    gone = [event for event in cache.take_events() if isinstance(event, Removed)]
    assert gone == [
        Removed(full.digests[2], group=Group(1)),
        Removed(full.digests[2], group=window),
        Removed(full.digests[1], group=Group(1)),
        Removed(full.digests[1], group=window),
    ]


def test_hashes_depend_on_everything_before_and_on_what_tells_blocks_apart() -> None:
    def digests(chain: BlockChain, seed: str = "") -> list[bytes]:
        BlockHasher(4, seed).extend(chain)
        return chain.digests

    tokens = list(range(12))
    image = [Medium("a" * 64, 3, 2)]
    variants = [
        digests(BlockChain(list(tokens))),
        digests(BlockChain(list(tokens)), "7"),
        digests(BlockChain(list(tokens), lora="l")),
        digests(BlockChain(list(tokens), cache_salt="l")),
        digests(BlockChain(list(tokens), media=image)),
        digests(BlockChain([9, *tokens[1:]])),
    ]
    assert len({digest for variant in variants for digest in variant}) == 18
    chain = BlockChain(list(tokens), lora="l", cache_salt="s", media=image)
    digests(chain)
    assert chain.extras == [
        (("lora", "l"), ("mm", "a" * 64, 3), ("cache_salt", "s")),
        (("lora", "l"), ("mm", "a" * 64, -1)),
        (("lora", "l"),),
    ]


@pytest.mark.parametrize("groups", [("sliding_window:8",), ("full_attention", "full_attention"), ("mamba",)])
def test_groups_are_checked(groups: tuple[str, ...]) -> None:
    from epp_simulator.options import SimOptions

    with pytest.raises(ValueError, match="--kv-cache-groups"):
        SimOptions(model="m", kv_cache_groups=groups)
