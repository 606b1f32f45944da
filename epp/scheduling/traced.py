"""Spans of one profile's steps, for requests that are traced; the others never come here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from epp.api.endpoints import Endpoints, FloatArray
from epp.api.plugin import Scores
from epp.telemetry import tracing

_TOP = 5


@contextmanager
def step(parent: Any, name: str) -> Iterator[Any]:
    """A span below `parent`; an exception marks it as failed. None: the request is not traced."""
    if parent is None:
        yield None
        return
    span = parent.child(name)
    try:
        yield span
    except BaseException as error:
        span.fail(error)
        raise
    finally:
        span.end()


def tell_filtered(span: Any, before: Endpoints, after: Endpoints) -> None:
    """How many went in and came out."""
    if span is not None:
        span.set(tracing.FILTER_CANDIDATES, len(before))
        span.set(tracing.FILTER_FILTERED, len(after))


def tell_scored(span: Any, kind: str, name: str, weight: float, scores: Scores) -> None:
    """One scorer's span, made after the fact so that timing costs nothing when tracing is off."""
    with step(span, tracing.SCORER + kind) as scorer:
        if scorer is not None and scorer.recording:
            scorer.set(tracing.SCORER_TYPE, kind)
            scorer.set(tracing.SCORER_NAME, name)
            scorer.set(tracing.SCORER_WEIGHT, weight)
            known = scores[~np.isnan(scores)]
            if known.size:
                scorer.set(tracing.SCORE_MAX, float(known.max()))
                scorer.set(tracing.SCORE_AVG, float(known.mean()))


def tell_top(span: Any, candidates: Endpoints, scores: FloatArray) -> None:
    """The best endpoints and their weighted sums."""
    if span is not None and span.recording:
        top = np.argsort(-scores, kind="stable")[:_TOP]
        span.set(tracing.PICKER_CANDIDATES, len(candidates))
        span.set(tracing.TOP_ENDPOINTS, [candidates[int(position)].key for position in top])
        span.set(tracing.TOP_SCORES, [float(scores[position]) for position in top])
