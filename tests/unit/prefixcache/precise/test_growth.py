"""An index that grows over many stretches of pages, while threads make them ready, against a dictionary."""

from __future__ import annotations

import numpy as np

from epp.kvevents.events import BlockRemoved, BlockStored
from epp.prefixcache.precise.index import PreciseIndex
from epp.prefixcache.precise.prompts import prompt_keys

SIZE = 4
BLOCKS = 64  # per prompt
PROMPTS = 3000
ENDPOINTS = [f"10.0.0.{number}:8000" for number in range(70)]  # two words of holders


def medium_of(number: int) -> str:
    """The second tier comes when there are many blocks already."""
    return "cpu" if number > PROMPTS // 2 and number % 3 == 0 else "gpu"


def test_nothing_is_lost_while_pages_are_made_ready() -> None:
    rng = np.random.default_rng(7)
    index = PreciseIndex(1 << 27)
    prompts: dict[int, tuple[bytes, list[int], set[str]]] = {}
    for number in range(PROMPTS):
        data = rng.integers(0, 150_000, BLOCKS * SIZE, dtype=np.uint32).tobytes()
        hashes = rng.integers(1, 1 << 63, BLOCKS, dtype=np.uint64).tolist()
        holders = {ENDPOINTS[number % 70], ENDPOINTS[number * 7 % 70]}
        for endpoint in holders:
            index.apply(endpoint, [BlockStored(hashes, None, data, SIZE, medium=medium_of(number))])
        prompts[number] = (data, hashes, holders)
        if number % 10 == 9:
            gone = number - 5
            _, hashes, holders = prompts.pop(gone)
            for endpoint in holders:
                index.apply(endpoint, [BlockRemoved(hashes, medium=medium_of(gone))])
    assert index.blocks.count == len(prompts) * BLOCKS
    assert index.blocks.evicted == 0
    lanes = index.lanes.endpoints()
    for data, _, holders in prompts.values():
        match = index.match(prompt_keys(index.hasher, data, SIZE))
        held = {endpoint for endpoint, lane in lanes.items() if match.blocks[lane]}
        assert held == holders
        assert {match.blocks[lanes[endpoint]] for endpoint in holders} == {BLOCKS}
