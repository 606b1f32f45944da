"""`active-request-scorer`: prefers servers to which we have sent fewer requests that have not ended.

When to use it: for decode-bound work, where the number of running answers decides. The counts are ours and exact: they
change with every pick, not with the next scrape.

Parameters: `idleThreshold` (0): up to so many requests a server counts as idle and scores 1; `maxBusyScore` (1.0): the
best score of a server that is not idle. Score of a busy one: (max - count) / max * maxBusyScore, with the largest count
among the candidates as max.

Metrics: those of `inflight-load-producer`. Failure: none of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import msgspec
import numpy as np

import epp
from epp_plugins.producers.inflight_load import DEFAULT_NAME


class ActiveRequestScorerParams(epp.Params, frozen=True):
    """See the module."""

    idle_threshold: Annotated[int, msgspec.Meta(ge=0, description="requests of a server that counts as idle")] = 0
    max_busy_score: Annotated[float, msgspec.Meta(ge=0, le=1, description="best score of a busy server")] = 1.0


class ActiveRequestScorer(epp.Scorer[ActiveRequestScorerParams]):
    """Share of the busiest server's requests that this one does not have."""

    type = "active-request-scorer"
    Params = ActiveRequestScorerParams

    @property
    def consumes(self) -> Sequence[epp.DataKey]:
        return (epp.DataKey(epp.INFLIGHT_LOAD, DEFAULT_NAME),)

    def score(self, request: epp.InferenceRequest, endpoints: epp.Endpoints) -> epp.Scores:
        counts = endpoints.inflight_requests
        idle = self.params.idle_threshold
        most = counts.item(counts.argmax())
        if most <= idle:
            return np.ones(len(endpoints))
        scores: epp.Scores = most - counts
        scores *= self.params.max_busy_score / most
        scores[counts <= idle] = 1.0
        return scores
