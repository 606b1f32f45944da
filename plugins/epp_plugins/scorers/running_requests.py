"""`running-requests-size-scorer`: prefers servers with fewer requests in their batch.

When to use it: beside a queue scorer, to spread load before queues form. The server with the smallest batch gets 1,
the one with the largest 0, all 1 when they are equal.

Parameters, metrics: none. Failure: a server that was never scraped has no score.
"""

from __future__ import annotations

import epp


class RunningRequestsSizeScorer(epp.Scorer[epp.NoParams]):
    """Min-max over `running`, fewer is better."""

    type = "running-requests-size-scorer"

    def score(self, request: epp.InferenceRequest, endpoints: epp.Endpoints) -> epp.Scores:
        return epp.fewer_is_better(endpoints.running)
