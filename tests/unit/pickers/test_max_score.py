"""`max-score-picker`."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

import epp
from epp.testing import endpoints, plugin, request
from epp_plugins.pickers.max_score import MaxScorePicker


def test_the_best() -> None:
    assert list(plugin(MaxScorePicker).pick(request(), endpoints(3), np.array([0.1, 0.9, 0.5]))) == [1]


def test_ties_are_broken_at_random() -> None:
    picker = plugin(MaxScorePicker)
    drawn = Counter(int(picker.pick(request(), endpoints(4), np.array([1.0, 0.5, 1.0, 1.0]))[0]) for _ in range(600))
    assert set(drawn) == {0, 2, 3}
    assert min(drawn.values()) > 150


def test_several_best_first() -> None:
    picker = plugin(MaxScorePicker, {"maxNumOfEndpoints": 3})
    scores = np.array([0.1, 0.9, 0.5, 0.9])
    orders = {tuple(map(int, picker.pick(request(), endpoints(4), scores))) for _ in range(50)}
    assert orders == {(1, 3, 2), (3, 1, 2)}


def test_no_more_than_there_are() -> None:
    picker = plugin(MaxScorePicker, {"maxNumOfEndpoints": 10})
    assert list(picker.pick(request(), endpoints(2), np.array([0.0, 1.0]))) == [1, 0]


def test_the_same_seed_picks_the_same() -> None:
    scores = np.ones(50)
    first, second = (
        [int(picker.pick(request(), endpoints(50), scores)[0]) for _ in range(5)]
        for picker in (plugin(MaxScorePicker, seed=7), plugin(MaxScorePicker, seed=7))
    )
    assert first == second


def test_none_is_refused() -> None:
    with pytest.raises(epp.ConfigError, match="maxNumOfEndpoints"):
        plugin(MaxScorePicker, {"maxNumOfEndpoints": 0})
