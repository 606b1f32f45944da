"""Formulas that many scorers share."""

from __future__ import annotations

import math

import numpy as np

from epp.api.endpoints import FEW, FloatArray
from epp.api.plugin import Scores


def fewer_is_better(values: FloatArray) -> Scores:
    """Min-max over the candidates: the lowest value gets 1, the highest 0, all 1 when all are equal. NaN stays NaN."""
    if values.size == 0:
        return np.zeros(0)
    if values.size <= FEW:
        told = values.tolist()
        if not math.isnan(sum(told)):
            most = max(told)
            width = most - min(told)
            return np.array([(most - value) / width for value in told] if width > 0.0 else [1.0] * len(told))
    # Positions, because numpy finds them five times faster than the values themselves; the first NaN wins both.
    high = values.item(values.argmax())
    span = high - values.item(values.argmin())
    if span > 0.0:
        scores: Scores = high - values
        scores /= span
        return scores
    missing = np.isnan(values)
    if span == 0.0 or missing.all():
        return np.where(missing, np.nan, 1.0)
    scores = np.full(values.shape, np.nan)
    scores[~missing] = fewer_is_better(values[~missing])
    return scores


def more_is_better(values: FloatArray) -> Scores:
    """Min-max over the candidates: the highest value gets 1, the lowest 0, all 1 when all are equal. NaN stays NaN."""
    return fewer_is_better(-values)
