"""The radix tree of the approximate index against the obvious model: one ordered dictionary per endpoint."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from xxhash import xxh64_intdigest

from epp.prefixcache.approximate import ApproximateIndex

ROWS = 6
# Few different blocks at each depth, so that prompts share, fork, shrink and grow.
prompts = st.lists(st.integers(0, 2), min_size=1, max_size=12)
rows = st.integers(0, ROWS - 1)


def chain(prompt: list[int]) -> list[int]:
    last, path = 0, []
    for block in prompt:
        last = xxh64_intdigest(bytes([block]), last)
        path.append(last)
    return path


def audit(index: ApproximateIndex) -> None:
    """The counters say what the tree holds, and every holder of a node holds its parent."""
    nodes = list(index._heads.values())
    assert all(index._heads[node.hashes[0]] is node for node in nodes)
    assert index.nodes == len(nodes)
    assert index.blocks == sum(len(node.hashes) for node in nodes)
    assert index._holdings == sum(len(node.stamps) for node in nodes)
    held = dict.fromkeys(range(len(index._lanes)), 0)
    for node in nodes:
        assert node.holders == sum(1 << number for number in node.stamps)
        assert node.holders
        assert node.children == sum(other.parent is node for other in nodes)
        for number, stamp in node.stamps.items():
            held[number] += len(node.hashes)
            if node.parent is not None:
                assert node.parent.stamps[number] >= stamp
    for lane in index._lanes:
        assert lane.blocks == held[lane.number]
        assert bool(lane.log) == bool(lane.blocks)
        assert list(lane.log) == sorted(lane.log)
    assert index.held_blocks == sum(held.values())


class AgainstModel(RuleBasedStateMachine):
    @initialize(capacity=st.integers(1, 20))
    def begin(self, capacity: int) -> None:
        self.capacity = capacity
        self.index = ApproximateIndex(1 << 30)
        self.model: dict[int, OrderedDict[int, None]] = {}

    @rule(row=rows, prompt=prompts)
    def record(self, row: int, prompt: list[int]) -> None:
        path = chain(prompt)
        order = self.model.setdefault(row, OrderedDict())
        expected = self.contiguous(row, path[: self.capacity])
        for block in reversed(path):
            order[block] = None
            order.move_to_end(block)
            if len(order) > self.capacity:
                order.popitem(last=False)
        assert self.index.record(row, path, self.capacity) == expected
        assert self.index.held_by(row) == len(order)

    @rule(row=rows)
    def forget(self, row: int) -> None:
        self.index.forget(row)
        self.model.pop(row, None)

    @rule(prompt=prompts)
    def match(self, prompt: list[int]) -> None:
        path = chain(prompt)
        found = self.index.match(path, np.arange(ROWS))
        assert found.tolist() == [self.contiguous(row, path) for row in range(ROWS)]

    def contiguous(self, row: int, path: list[int]) -> int:
        order = self.model.get(row, OrderedDict())
        count = 0
        for block in path:
            if block not in order:
                break
            count += 1
        return count

    @invariant()
    def consistent(self) -> None:
        audit(self.index)


TestAgainstModel = AgainstModel.TestCase
TestAgainstModel.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(rows, st.lists(st.integers(0, 6), min_size=1, max_size=10), st.booleans()), max_size=40),
    st.integers(1, 15),
)
def test_colliding_hashes_break_no_bound(steps: list[tuple[int, list[int], bool]], capacity: int) -> None:
    """Paths that are no chains at all: every kind of collision at once."""
    index = ApproximateIndex(1 << 30)
    for row, path, leave in steps:
        if leave:
            index.forget(row)
        else:
            index.record(row, path, capacity)
        found = index.match(path, np.arange(ROWS))
        assert ((found >= 0) & (found <= len(path))).all()
        audit(index)
        assert all(index.held_by(r) <= capacity for r in range(ROWS))
    for row in range(ROWS):
        index.forget(row)
    for _ in range(2 * ROWS):
        index.record(0, [1], 1)
    assert index.held_blocks == 1


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(rows, prompts), min_size=1, max_size=60), st.integers(600, 6000))
def test_the_bound_in_bytes_holds(steps: list[tuple[int, list[int]]], max_bytes: int) -> None:
    index = ApproximateIndex(max_bytes)
    for row, prompt in steps:
        index.record(row, chain(prompt), 100)
        audit(index)
        assert index.size_bytes <= max_bytes
