"""`network-latency-scorer`: prefers servers that answer over a short way.

When to use it: when the servers of a pool are in several zones or regions, with a small weight: a round trip matters
for the time to the first token, load matters more. The collector measures the round trip of every connection it scrapes
on, so this costs no probes.

Score: 1 - (rtt - shortest) / max(longest - shortest, minSpreadMs), over the candidates. Without the floor, servers in
one rack would score 1 and 0 for microseconds.

Parameters: `minSpreadMs` (10): differences count in full from here on.

Metrics: none. Failure: a server whose round trip was never measured has no score. Not part of llm-d-router.
"""

from __future__ import annotations

import math
from typing import Annotated

import msgspec
import numpy as np

import epp


class NetworkLatencyScorerParams(epp.Params, frozen=True):
    """See the module."""

    min_spread_ms: Annotated[float, msgspec.Meta(gt=0, description="difference in ms that counts in full")] = 10.0


class NetworkLatencyScorer(epp.Scorer[NetworkLatencyScorerParams]):
    """Min-max over the round-trip time, with a floor under the spread."""

    type = "network-latency-scorer"
    Params = NetworkLatencyScorerParams

    def __init__(self, params: NetworkLatencyScorerParams, context: epp.PluginContext) -> None:
        super().__init__(params, context)
        self._floor = params.min_spread_ms / 1000.0

    def score(self, request: epp.InferenceRequest, endpoints: epp.Endpoints) -> epp.Scores:
        rtt = endpoints.rtt
        shortest = rtt.item(rtt.argmin())
        spread = rtt.item(rtt.argmax()) - shortest
        if math.isnan(spread):  # a NaN is found first: ask the slower functions that pass over it
            shortest = float(np.fmin.reduce(rtt))
            spread = float(np.fmax.reduce(rtt)) - shortest
        scores: epp.Scores = rtt - shortest
        scores /= -max(self._floor, spread)
        scores += 1.0
        return scores
