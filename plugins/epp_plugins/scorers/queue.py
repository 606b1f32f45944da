"""`queue-scorer`: prefers servers with fewer waiting requests.

When to use it: always, with prefix affinity beside it. The server with the shortest queue gets 1, the one with the
longest 0, all 1 when they are equal.

Parameters, metrics: none. Failure: a server that was never scraped has no score.
"""

from __future__ import annotations

import epp


class QueueScorer(epp.Scorer[epp.NoParams]):
    """Min-max over `waiting`, fewer is better."""

    type = "queue-scorer"

    def score(self, request: epp.InferenceRequest, endpoints: epp.Endpoints) -> epp.Scores:
        return epp.fewer_is_better(endpoints.column("waiting"))
