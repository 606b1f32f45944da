"""Events of many endpoints in one call of the precise index, against one dictionary per endpoint."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from epp.kvevents.events import AllBlocksCleared, BlockRemoved, BlockStored, KVEvent
from epp.prefixcache.precise import ingestion
from epp.prefixcache.precise.index import PreciseIndex
from epp.prefixcache.precise.prompts import prompt_keys

SIZE = 4
ENDPOINTS = [f"10.0.0.{number}:8000" for number in range(70)]  # two words of lanes
CHOSEN = [ENDPOINTS[number] for number in (0, 1, 2, 66, 67)]
MEDIA = {"gpu": 1.0, "cpu": 0.5}
PROMPTS = [tuple(number >> at & 1 for at in range(length)) for length in (1, 2, 4, 6) for number in range(4)]

Held = dict[str, dict[str, dict[tuple[int, ...], int]]]  # by endpoint and tier: copies of each block


def tokens(blocks: tuple[int, ...]) -> bytes:
    return b"".join((block * 7 + n).to_bytes(4, "little") for block in blocks for n in range(SIZE))


def engine_hash(prefix: tuple[int, ...]) -> int:
    value = 1469598103934665603
    for block in prefix:
        value = (value * 1099511628211 + block + 1) % (1 << 64)
    return value


operations = st.tuples(
    st.sampled_from(CHOSEN),
    st.sampled_from(["store", "store", "store", "remove", "clear"]),
    st.sampled_from(PROMPTS),
    st.sampled_from(list(MEDIA)),
    st.integers(1, 3),
)
calls = st.lists(st.lists(operations, max_size=12), min_size=1, max_size=6)
# So few different ones that blocks are stored and removed again and again.
repeated = st.lists(
    st.lists(
        st.tuples(
            st.sampled_from([CHOSEN[0], CHOSEN[3]]),
            st.sampled_from(["store", "store", "remove"]),
            st.sampled_from([(0,), (0, 1), (0, 1, 0)]),
            st.just("gpu"),
            st.integers(1, 2),
        ),
        max_size=12,
    ),
    min_size=1,
    max_size=6,
)


def events_of(kind: str, prompt: tuple[int, ...], medium: str, cut: int) -> list[KVEvent]:
    if kind == "clear":
        return [AllBlocksCleared()]
    if kind == "remove":
        return [BlockRemoved([engine_hash(prompt)], medium)]
    return [
        BlockStored(
            [engine_hash(prompt[: n + 1]) for n in range(begin, min(begin + cut, len(prompt)))],
            engine_hash(prompt[:begin]) if begin else None,
            tokens(prompt[begin : begin + cut]),
            SIZE,
            medium=medium,
        )
        for begin in range(0, len(prompt), cut)
    ]


def note(model: Held, endpoint: str, kind: str, prompt: tuple[int, ...], medium: str, cut: int) -> None:
    if kind == "clear":
        model.pop(endpoint, None)
        return
    held = model.setdefault(endpoint, {}).setdefault(medium, {})
    if kind == "remove":
        held[prompt] = held.get(prompt, 1) - 1
        if not held[prompt]:
            del held[prompt]
        return
    for n in range(len(prompt)):
        # What begins a prompt may only be told again; what has a parent is a copy.
        held[prompt[: n + 1]] = held.get(prompt[: n + 1], 0) + (n >= cut or prompt[: n + 1] not in held)


def expected(model: Held, endpoint: str, prompt: tuple[int, ...]) -> tuple[int, float]:
    blocks, weighted = 0, 0.0
    for end in range(1, len(prompt) + 1):
        where = [medium for medium, held in model.get(endpoint, {}).items() if prompt[:end] in held]
        if not where:
            break
        blocks += 1
        weighted += max(MEDIA[medium] for medium in where)
    return blocks, weighted


def check(index: PreciseIndex, model: Held) -> None:
    for prompt in PROMPTS:
        match = index.match(prompt_keys(index.hasher, tokens(prompt), SIZE))
        for endpoint in CHOSEN:
            lane = index.lanes.get(endpoint)
            found = (0, 0.0) if lane is None else (match.blocks[lane], match.weighted[lane])
            assert found == expected(model, endpoint, prompt)


@settings(max_examples=150, deadline=None)
@given(calls=calls | repeated)
def test_many_endpoints_in_one_call(calls: list[list[Any]]) -> None:
    index = PreciseIndex(1 << 22, weights=MEDIA)
    for endpoint in ENDPOINTS:
        index.lanes.assign(endpoint)
    model: Held = {}
    for call in calls:
        # As the receiver does it: one batch for each endpoint, of all that it has sent.
        batches: dict[str, list[KVEvent]] = {}
        for endpoint, kind, prompt, medium, cut in call:
            batches.setdefault(endpoint, []).extend(events_of(kind, prompt, medium, cut))
        for name in batches:
            for endpoint, kind, prompt, medium, cut in call:
                if endpoint == name:
                    note(model, endpoint, kind, prompt, medium, cut)
        index.apply_many(list(batches.items()))
        check(index, model)
    while index.tidy():
        pass
    held = set().union(*(held for tiers in model.values() for held in tiers.values()))
    assert index.blocks.count == len(held)


def test_more_than_fits_into_one_go() -> None:
    rng = np.random.default_rng(3)
    index = PreciseIndex(1 << 24)
    count = ingestion.MOST_AT_ONCE // 32 + 10
    prompts = [rng.integers(0, 150_000, 64 * SIZE, dtype=np.uint32).tobytes() for _ in range(count)]
    hashes = rng.integers(1, 1 << 63, (count, 64), dtype=np.uint64).tolist()
    half = 32 * SIZE * 4
    batches = [
        (
            ENDPOINTS[number % 70],
            [
                BlockStored(hashes[number][:32], None, data[:half], SIZE),
                BlockStored(hashes[number][32:], hashes[number][31], data[half:], SIZE),
            ],
        )
        for number, data in enumerate(prompts)
    ]
    index.apply_many(batches)
    assert index.counters.stored == index.blocks.count == count * 64
    for number, data in enumerate(prompts):
        match = index.match(prompt_keys(index.hasher, data, SIZE))
        lane = index.lanes.get(ENDPOINTS[number % 70])
        assert np.flatnonzero(match.blocks).tolist() == [lane]
        assert match.blocks[lane] == 64
    index.apply_many(
        [(endpoint, [BlockRemoved(event.block_hashes) for event in events]) for endpoint, events in batches]
    )
    assert index.blocks.count == 0
    assert index.counters.removed == count * 64
