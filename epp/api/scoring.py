"""Formulas that many scorers share."""

from __future__ import annotations

import numpy as np

from epp.api.endpoints import FloatArray
from epp.api.plugin import Scores


def fewer_is_better(values: FloatArray) -> Scores:
    """Min-max over the candidates: the lowest value gets 1, the highest 0, all 1 when all are equal. NaN stays NaN."""
    known = values[~np.isnan(values)] if np.isnan(values).any() else values
    if known.size == 0:
        return np.full(values.shape, np.nan)
    low, high = known.min(), known.max()
    if high == low:
        return np.where(np.isnan(values), np.nan, 1.0)
    scores: Scores = (high - values) / (high - low)
    return scores


def more_is_better(values: FloatArray) -> Scores:
    """Min-max over the candidates: the highest value gets 1."""
    return fewer_is_better(-values)
