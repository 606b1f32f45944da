"""Every picker over any scores: positions that exist, no doubles, the right number, nothing changed."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

import epp
from epp.testing import endpoints, plugin, request
from epp_plugins.pickers.max_score import MaxScorePicker
from epp_plugins.pickers.random import RandomPicker
from epp_plugins.pickers.weighted_random import WeightedRandomPicker

PICKERS = [MaxScorePicker, RandomPicker, WeightedRandomPicker]
POOL = endpoints(40)
scores_of_pools = st.lists(st.floats(-10, 1e6) | st.sampled_from([0.0, 1.0]), min_size=1, max_size=40)


@pytest.mark.parametrize("kind", PICKERS, ids=lambda kind: kind.type)
@settings(max_examples=150, deadline=None)
@given(scores=scores_of_pools, wanted=st.integers(1, 50), seed=st.integers(0, 100))
def test_positions(kind: type[epp.Picker[Any]], scores: list[float], wanted: int, seed: int) -> None:
    candidates = POOL.take(range(len(scores)))
    values = np.array(scores)
    picked = list(plugin(kind, {"maxNumOfEndpoints": wanted}, seed=seed).pick(request(), candidates, values))
    assert len(picked) == min(wanted, len(scores))
    assert len(set(map(int, picked))) == len(picked)
    assert all(0 <= position < len(scores) for position in picked)
    assert values.tolist() == scores


@settings(max_examples=150, deadline=None)
@given(scores=scores_of_pools, wanted=st.integers(1, 50), seed=st.integers(0, 100))
def test_max_score_names_the_best_in_order(scores: list[float], wanted: int, seed: int) -> None:
    candidates = POOL.take(range(len(scores)))
    picker = plugin(MaxScorePicker, {"maxNumOfEndpoints": wanted}, seed=seed)
    picked = picker.pick(request(), candidates, np.array(scores))
    assert [scores[position] for position in picked] == sorted(scores, reverse=True)[:wanted]


@settings(max_examples=150, deadline=None)
@given(scores=scores_of_pools, seed=st.integers(0, 100))
def test_weighted_random_prefers_any_weight_to_none(scores: list[float], seed: int) -> None:
    candidates = POOL.take(range(len(scores)))
    picked = plugin(WeightedRandomPicker, seed=seed).pick(request(), candidates, np.array(scores))
    assert scores[picked[0]] > 0 or max(scores) <= 0


@pytest.mark.parametrize("kind", PICKERS, ids=lambda kind: kind.type)
@pytest.mark.parametrize("score", [0.0, 0.5])
def test_a_single_candidate(kind: type[epp.Picker[Any]], score: float) -> None:
    assert list(plugin(kind).pick(request(), POOL.take([7]), np.array([score]))) == [0]
