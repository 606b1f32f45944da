"""`active-request-scorer`: prefers servers to which we have sent fewer requests that have not ended.

When to use it: for decode-bound work, where the number of running answers decides. The counts are ours and exact: they
change with every pick, not with the next scrape.

Parameters: `idleThreshold` (0): up to so many requests a server counts as idle and scores 1; `maxBusyScore` (1.0): the
best score of a server that is not idle. Score of a busy one: (max - count) / max * maxBusyScore, with the largest count
among the candidates as max. `inFlightLoadProducerName` (inflight-load-producer): whose counts are read.
`requestTimeout` is accepted for old configurations and has no effect: requests are counted until they end.

Metrics: those of `inflight-load-producer`. Failure: none of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import msgspec
import numpy as np

import epp
from epp_plugins.producers.inflight_load import DEFAULT_NAME, column_names


class ActiveRequestScorerParams(epp.Params, frozen=True):
    """See the module."""

    idle_threshold: Annotated[int, msgspec.Meta(ge=0, description="requests of a server that counts as idle")] = 0
    max_busy_score: Annotated[float, msgspec.Meta(ge=0, le=1, description="best score of a busy server")] = 1.0
    in_flight_load_producer_name: Annotated[
        str, msgspec.Meta(min_length=1, description="producer whose counts are read")
    ] = DEFAULT_NAME
    request_timeout: Annotated[str, msgspec.Meta(description="deprecated, no effect")] = ""


class ActiveRequestScorer(epp.Scorer[ActiveRequestScorerParams]):
    """Share of the busiest server's requests that this one does not have."""

    type = "active-request-scorer"
    Params = ActiveRequestScorerParams

    def __init__(self, params: ActiveRequestScorerParams, context: epp.PluginContext) -> None:
        super().__init__(params, context)
        self._in_flight, _ = column_names(params.in_flight_load_producer_name)
        if params.request_timeout:
            context.log.warning("requestTimeout has no effect: requests are counted until they end; remove it")

    @property
    def consumes(self) -> Sequence[epp.DataKey]:
        return (epp.DataKey(epp.INFLIGHT_LOAD, self.params.in_flight_load_producer_name),)

    def score(self, request: epp.InferenceRequest, endpoints: epp.Endpoints) -> epp.Scores:
        counts = endpoints.column(self._in_flight)
        idle = self.params.idle_threshold
        most = counts.item(counts.argmax())
        if most <= idle:
            return np.ones(len(endpoints))
        scores: epp.Scores = most - counts
        scores *= self.params.max_busy_score / most
        scores[counts <= idle] = 1.0
        return scores
