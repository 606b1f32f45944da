"""`random-picker` and `weighted-random-picker`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

import epp
from epp.testing import endpoints, plugin, request
from epp_plugins.pickers.random import RandomPicker
from epp_plugins.pickers.weighted_random import WeightedRandomPicker

DRAWS = 4000


def drawn(picker: epp.Picker[Any], scores: Sequence[float]) -> Counter[int]:
    asked, candidates, values = request(), endpoints(len(scores)), np.array(scores)
    return Counter(int(picker.pick(asked, candidates, values)[0]) for _ in range(DRAWS))


def test_random_takes_no_notice_of_scores() -> None:
    counts = drawn(plugin(RandomPicker), [0.0, 1.0, 100.0, 0.0])
    assert all(abs(counts[position] - DRAWS / 4) < 150 for position in range(4))


def test_random_names_different_ones() -> None:
    picker = plugin(RandomPicker, {"maxNumOfEndpoints": 3})
    for _ in range(50):
        assert len(set(picker.pick(request(), endpoints(5), np.zeros(5)))) == 3
    assert sorted(picker.pick(request(), endpoints(2), np.zeros(2))) == [0, 1]


def test_weighted_is_in_proportion() -> None:
    counts = drawn(plugin(WeightedRandomPicker), [1.0, 2.0, 5.0])
    assert counts[0] / DRAWS == pytest.approx(1 / 8, abs=0.03)
    assert counts[1] / DRAWS == pytest.approx(2 / 8, abs=0.03)
    assert counts[2] / DRAWS == pytest.approx(5 / 8, abs=0.03)


def test_weighted_never_takes_a_zero_while_there_are_others() -> None:
    counts = drawn(plugin(WeightedRandomPicker), [0.0, 1.0, -3.0, 1.0, 0.0])
    assert set(counts) == {1, 3}


@pytest.mark.parametrize("score", [0.0, -1.0])
def test_weighted_without_weights_is_uniform(score: float) -> None:
    counts = drawn(plugin(WeightedRandomPicker), [score] * 4)
    assert all(abs(counts[position] - DRAWS / 4) < 150 for position in range(4))


def test_weighted_names_zeros_last() -> None:
    picker = plugin(WeightedRandomPicker, {"maxNumOfEndpoints": 4})
    for _ in range(50):
        order = list(picker.pick(request(), endpoints(4), np.array([0.0, 1.0, 0.0, 3.0])))
        assert set(order[:2]) == {1, 3}
        assert set(order[2:]) == {0, 2}


def test_weighted_second_place_is_in_proportion_to_what_is_left() -> None:
    picker = plugin(WeightedRandomPicker, {"maxNumOfEndpoints": 2})
    asked, candidates, scores = request(), endpoints(3), np.array([1.0, 2.0, 1.0])
    pairs = Counter(tuple(map(int, picker.pick(asked, candidates, scores))) for _ in range(DRAWS))
    assert pairs[(1, 0)] / DRAWS == pytest.approx(1 / 4, abs=0.03)  # 2/4 * 1/2
    assert pairs[(0, 1)] / DRAWS == pytest.approx(1 / 6, abs=0.03)  # 1/4 * 2/3
    assert scores.tolist() == [1.0, 2.0, 1.0]


def test_weighted_when_the_draw_is_rounded_up_to_the_total() -> None:
    picker = plugin(WeightedRandomPicker)

    class Highest:
        def random(self) -> float:
            return 1.0  # what 1 - 2^-53 times the total may be rounded to

    object.__setattr__(picker.context, "rng", Highest())
    assert list(picker.pick(request(), endpoints(4), np.array([1.0, 1.0, 0.0, 0.0]))) == [1]
