"""Few endpoints are looped over, many are left to numpy: to the last bit with the same result."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

import epp
from epp.api.endpoints import FEW
from epp.prefixcache.approximate import ApproximateIndex
from epp.scheduling.profile import _weighted_sum
from epp.testing import endpoints, plugin, request
from epp_plugins.pickers.max_score import MaxScorePicker

MEASURED = st.one_of(st.floats(0, 1e6), st.integers(0, 5).map(float), st.just(float("nan")))
SCORE = st.one_of(st.floats(-0.5, 1.5), st.sampled_from([0.0, 0.5, 1.0]), st.just(float("nan")))


def both(module: str, act: Callable[[], Any]) -> tuple[Any, Any]:
    with patch(f"{module}.FEW", 0):
        many = act()
    return act(), many


@given(st.lists(MEASURED, min_size=1, max_size=FEW))
def test_min_max_is_the_same(values: list[float]) -> None:
    few, many = both("epp.api.scoring", lambda: epp.fewer_is_better(np.array(values)))
    assert few.dtype == many.dtype == np.float64
    assert few.tobytes() == many.tobytes() or np.array_equal(few, many, equal_nan=True)


@given(st.data(), st.integers(1, FEW), st.integers(1, 5))
def test_the_weighted_sum_is_the_same_to_the_last_bit(data: st.DataObject, endpoints: int, scorers: int) -> None:
    raw = [
        np.array(data.draw(st.lists(SCORE, min_size=endpoints, max_size=endpoints)), dtype=np.float64)
        for _ in range(scorers)
    ]
    weights = data.draw(st.lists(st.floats(0, 10), min_size=scorers, max_size=scorers))
    before = [scores.copy() for scores in raw]

    few, many = both("epp.scheduling.profile", lambda: _weighted_sum(raw, weights))

    assert np.array_equal(few, many)
    assert all(np.array_equal(one, two, equal_nan=True) for one, two in zip(raw, before, strict=True))


@given(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=1, max_size=FEW), st.integers(0, 100))
def test_the_best_is_the_same_and_so_is_chance(scores: list[float], seed: int) -> None:
    def pick() -> int:
        picker = plugin(MaxScorePicker, seed=seed)
        (position,) = picker.pick(request(), endpoints(len(scores)), np.array(scores))
        return int(position)

    few = pick()
    with patch.object(epp, "FEW", 0):
        many = pick()
    assert few == many


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 12), st.integers(0, 3)), max_size=30), st.integers(1, 12))
def test_prefix_matches_are_the_same(sent: list[tuple[int, int, int]], length: int) -> None:
    index = ApproximateIndex(1 << 20)
    for row, blocks, first in sent:
        index.record(row, [first * 1000 + block for block in range(blocks)], 100)
    rows = np.array([0, 3, 4, 9, 70], dtype=np.intp)
    for first in range(4):
        path = [first * 1000 + block for block in range(length)]
        few, many = both("epp.prefixcache.approximate", lambda path=path: index.match(path, rows))
        assert few.dtype == many.dtype
        assert few.tolist() == many.tolist()


@pytest.mark.parametrize("count", [1, 8, FEW, FEW + 1, 200])
def test_a_row_is_found_among_the_candidates(count: int) -> None:
    table = epp.EndpointTable()
    for port in range(count + 1):
        table.add(epp.Endpoint(name=f"p{port}", address="10.0.0.1", port=1000 + port))
    table.remove("10.0.0.1:1000")
    candidates = table.all(0.0)
    assert [candidates.position(row) for row in candidates.rows.tolist()] == list(range(count))
