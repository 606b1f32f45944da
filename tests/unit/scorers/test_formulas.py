"""Formulas that scorers share."""

from __future__ import annotations

import math

import numpy as np
import pytest

from epp.api.scoring import fewer_is_better, more_is_better


@pytest.mark.parametrize(
    ("values", "scores"),
    [
        ([], []),
        ([7.0], [1.0]),
        ([0.0, 0.0], [1.0, 1.0]),
        ([1.0, 3.0, 2.0], [1.0, 0.0, 0.5]),
        ([-1.0, 1.0], [1.0, 0.0]),
        ([math.nan], [math.nan]),
        ([math.nan, 4.0], [math.nan, 1.0]),
        ([4.0, math.nan, 8.0, 6.0], [1.0, math.nan, 0.0, 0.5]),
        ([5.0, math.nan, 5.0], [1.0, math.nan, 1.0]),
    ],
)
def test_fewer_is_better(values: list[float], scores: list[float]) -> None:
    before = np.array(values)
    found = fewer_is_better(before)
    assert found.tolist() == pytest.approx(scores, nan_ok=True)
    assert before.tolist() == pytest.approx(values, nan_ok=True)
    assert not np.shares_memory(found, before)


def test_more_is_better() -> None:
    assert more_is_better(np.array([1.0, math.nan, 3.0, 2.0])).tolist() == pytest.approx(
        [0.0, math.nan, 1.0, 0.5], nan_ok=True
    )
