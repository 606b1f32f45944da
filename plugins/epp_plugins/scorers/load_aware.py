"""`load-aware-scorer`: half a point for an empty queue, less the longer it is, nothing from `threshold` on.

When to use it: instead of `queue-scorer` where the absolute length matters: two queues of 1 and 2 differ little here,
while min-max gives one of them 1 and the other 0.

Parameters: `threshold` (128): waiting requests that score 0. Score: 0.5 * (1 - min(waiting, threshold) / threshold).

Metrics: none. Failure: a server that was never scraped has no score.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
import numpy as np

import epp


class LoadAwareScorerParams(epp.Params, frozen=True):
    """See the module."""

    threshold: Annotated[int, msgspec.Meta(ge=1, description="waiting requests that score 0")] = 128


class LoadAwareScorer(epp.Scorer[LoadAwareScorerParams]):
    """0.5 to 0 by queue length."""

    type = "load-aware-scorer"
    Params = LoadAwareScorerParams

    def score(self, request: epp.InferenceRequest, endpoints: epp.Endpoints) -> epp.Scores:
        scores: epp.Scores = np.maximum(0.5 - endpoints.waiting * (0.5 / self.params.threshold), 0.0)
        return scores
