"""`session-affinity-scorer`: 1 for the endpoint that served the session before, 0 for the others.

When to use it: to keep conversations where they are unless the other scorers have good reasons.
`session-affinity-filter` is the same as a hard pin; one of the two is enough.

Parameters:
- `strategy` (encoded_endpoint_header): the answer carries a header with a token for the endpoint, and a client that
  sends it back is served there again. `session_id`: the client, or a plugin before, names the session, and this process
  remembers the endpoint of its first request; nothing goes back to the client.
- `profileName` (empty: the primary profile): whose endpoint is meant. With disaggregated serving use one instance per
  profile, each with a header of its own.
- `encodedEndpointHeaderConfig.header` (x-session-token).
- `sessionIdConfig`: `sources` (header x-session-id), each a `header` or an `attribute` with its `producer`; the first
  that has an id wins. `evictionTtlSeconds` (300), `evictionSweepSeconds` (10).

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
