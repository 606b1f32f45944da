"""The precise index against the obvious model: one dictionary of blocks per endpoint, tier and cache group.

A block that is stored again by an event with a parent is a copy: it takes another removal.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from epp.kvevents.events import AllBlocksCleared, BlockRemoved, BlockStored
from epp.prefixcache.precise.index import PreciseIndex
from epp.prefixcache.precise.prompts import prompt_keys

SIZE = 4
ENDPOINTS = [f"10.0.0.{n}:8000" for n in range(70)]  # two words of lanes
WEIGHTS = {"gpu": 1.0, "cpu": 0.75, "storage": 0.5}
MEDIA = list(WEIGHTS)

# A prompt is a row of blocks, each one of few, so that prompts share, fork and repeat.
prompts = st.lists(st.integers(0, 2), min_size=1, max_size=9).map(tuple)
endpoints = st.sampled_from([ENDPOINTS[0], ENDPOINTS[1], ENDPOINTS[2], ENDPOINTS[66]])
media = st.sampled_from(MEDIA)
groups = st.integers(0, 1)
seeds = st.sampled_from(["same", "other"])  # engines with different seeds have different hashes for one block
adapters = st.sampled_from(["", "lora-a"])


def tokens(blocks: tuple[int, ...]) -> bytes:
    return b"".join((block * 7 + n).to_bytes(4, "little") for block in blocks for n in range(SIZE))


def engine_hash(seed: str, adapter: str, prefix: tuple[int, ...]) -> int:
    value = 1469598103934665603 + len(seed) * 31 + len(adapter)
    for block in prefix:
        value = (value * 1099511628211 + block + 1) % (1 << 64)
    return value


class AgainstModel(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.index = PreciseIndex(1 << 22, weights=WEIGHTS)
        for endpoint in ENDPOINTS:
            self.index.lanes.assign(endpoint)
        # endpoint -> {(tier, group): {(adapter, prefix): copies beyond the first, by engine hash}}
        self.model: dict[str, dict[tuple[str, int], dict[tuple[str, tuple[int, ...]], Counter[int]]]] = {}

    @rule(
        endpoint=endpoints,
        prompt=prompts,
        medium=media,
        group=groups,
        seed=seeds,
        adapter=adapters,
        cut=st.integers(1, 4),
    )
    def store(
        self, endpoint: str, prompt: tuple[int, ...], medium: str, group: int, seed: str, adapter: str, cut: int
    ) -> None:
        """In events of `cut` blocks, each the child of the one before."""
        events = []
        for begin in range(0, len(prompt), cut):
            part = prompt[begin : begin + cut]
            hashes = [engine_hash(seed, adapter, prompt[: begin + n + 1]) for n in range(len(part))]
            parent = engine_hash(seed, adapter, prompt[:begin]) if begin else None
            events.append(BlockStored(hashes, parent, tokens(part), SIZE, adapter, medium, (), group))
        self.index.apply(endpoint, events)
        blocks = self.model.setdefault(endpoint, {}).setdefault((medium, group), {})
        for n in range(len(prompt)):
            copies = blocks.get((adapter, prompt[: n + 1]))
            if copies is None:
                blocks[adapter, prompt[: n + 1]] = Counter()
            elif n >= cut:
                copies[engine_hash(seed, adapter, prompt[: n + 1])] += 1

    @rule(endpoint=endpoints, prompt=prompts, medium=media, group=groups, seed=seeds, adapter=adapters, data=st.data())
    def remove(
        self,
        endpoint: str,
        prompt: tuple[int, ...],
        medium: str,
        group: int,
        seed: str,
        adapter: str,
        data: st.DataObject,
    ) -> None:
        end = data.draw(st.integers(1, len(prompt)))
        gone = engine_hash(seed, adapter, prompt[:end])
        known = self.index.blocks.by_engine(np.array([gone], dtype=np.uint64))[0] >= 0
        self.index.apply(endpoint, [BlockRemoved([gone], medium, group)])
        held = self.model.get(endpoint, {}).get((medium, group), {})
        copies = held.get((adapter, prompt[:end]), Counter[int]())
        if copies[gone]:
            copies[gone] -= 1
        elif known:
            held.pop((adapter, prompt[:end]), None)

    @rule(endpoint=endpoints, prompt=prompts, medium=media, adapter=adapters)
    def speculate(self, endpoint: str, prompt: tuple[int, ...], medium: str, adapter: str) -> None:
        keys = prompt_keys(self.index.hasher, tokens(prompt), SIZE, adapter=adapter)
        self.index.speculate(endpoint, keys, 1.0)
        self.index.expire(2.0)

    @rule(endpoint=endpoints)
    def clear(self, endpoint: str) -> None:
        self.index.apply(endpoint, [AllBlocksCleared()])
        self.model.pop(endpoint, None)

    @rule(endpoint=endpoints)
    def gone(self, endpoint: str) -> None:
        self.index.clear(endpoint)
        self.model.pop(endpoint, None)

    @rule()
    def tidy(self) -> None:
        while self.index.tidy():
            pass

    @rule(prompt=prompts, adapter=adapters)
    def ask(self, prompt: tuple[int, ...], adapter: str) -> None:
        keys = prompt_keys(self.index.hasher, tokens(prompt), SIZE, adapter=adapter)
        match = self.index.match(keys)
        for endpoint in ENDPOINTS:
            blocks, weight = 0, 0.0
            tiers = self.model.get(endpoint, {})
            for end in range(1, len(prompt) + 1):
                where = [medium for (medium, _), held in tiers.items() if (adapter, prompt[:end]) in held]
                if not where:
                    break
                blocks += 1
                weight += max(WEIGHTS[medium] for medium in where)
            lane = self.index.lanes.get(endpoint)
            assert (0 if lane is None else match.blocks[lane]) == blocks
            assert (0 if lane is None else match.weighted[lane]) == weight

    @invariant()
    def counted(self) -> None:
        if hasattr(self, "index") and not self.index.lanes.dirty:
            different = set().union(*(held for tiers in self.model.values() for held in tiers.values()))
            assert self.index.blocks.count - self.index.blocks.aliases == len(different)


TestAgainstModel = AgainstModel.TestCase
TestAgainstModel.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
