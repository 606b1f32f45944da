"""`kv-cache-utilization-scorer`: prefers servers with free KV-cache blocks: 1 - share in use.

When to use it: beside a queue scorer, so that long contexts spread before queues build up.

Parameters, metrics: none. Failure: a server that was never scraped has no score.
"""

from __future__ import annotations

import numpy as np

import epp


class KVCacheUtilizationScorer(epp.Scorer[epp.NoParams]):
    """1 - kv usage."""

    type = "kv-cache-utilization-scorer"

    def score(self, request: epp.InferenceRequest, endpoints: epp.Endpoints) -> epp.Scores:
        usage = endpoints.column("kv_usage")
        if usage.size <= epp.FEW:
            return np.array([1.0 - share for share in usage.tolist()])
        scores: epp.Scores = 1.0 - usage
        return scores
