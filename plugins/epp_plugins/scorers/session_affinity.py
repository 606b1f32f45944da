"""`session-affinity-scorer`: 1 for the endpoint that served the session before, 0 for the others.

When to use it: to keep conversations where they are unless the other scorers have good reasons.
`session-affinity-filter` is the same as a hard pin; one of the two is enough.

Parameters: `strategy` (encoded_endpoint_header), `profileName`,
`encodedEndpointHeaderConfig.header` (x-session-token), `sessionIdConfig` with `sources`, `evictionTtlSeconds` (300) and
`evictionSweepSeconds` (10).

Metrics: none; the state dump counts bindings. Failure: without a session, with a token nobody can read, or with an
endpoint that is gone, everybody scores 0.
"""

from __future__ import annotations

import numpy as np

import epp
from epp_plugins.filters.session_pin import SessionAffinityParams, SessionPin


class SessionAffinityScorer(SessionPin, epp.Scorer[SessionAffinityParams]):
    """1 for the session's endpoint."""

    type = "session-affinity-scorer"
    stability = "alpha"

    def score(self, request: epp.InferenceRequest, endpoints: epp.Endpoints) -> epp.Scores:
        scores = np.zeros(len(endpoints))
        position = self.pinned(request, endpoints)
        if position is not None:
            scores[position] = 1.0
        return scores
