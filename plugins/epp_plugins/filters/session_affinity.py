"""`session-affinity-filter`: keeps a session on the endpoint that served it before, as long as that is a candidate.

When to use it: when moving a conversation is worse than waiting: state outside the KV cache, or very long contexts.
`session-affinity-scorer` is the same as a preference that load can outweigh; one of the two is enough.

Parameters: see `session_binding`: `strategy` (encoded_endpoint_header), `profileName`,
`encodedEndpointHeaderConfig.header` (x-session-token), `sessionIdConfig` with `sources`, `evictionTtlSeconds` (300) and
`evictionSweepSeconds` (10).

Metrics: none; the state dump counts bindings. Failure: never ends a profile: without a session, with a token nobody
can read, or with an endpoint that is gone or filtered out, everybody stays.
"""

from __future__ import annotations

import numpy as np

import epp
from epp_plugins.filters.session_binding import SessionAffinity, SessionAffinityParams


class SessionAffinityFilter(SessionAffinity, epp.Filter[SessionAffinityParams]):
    """Only the session's endpoint, or everybody."""

    type = "session-affinity-filter"
    stability = "alpha"

    def filter(self, request: epp.InferenceRequest, endpoints: epp.Endpoints) -> epp.BoolArray:
        row = self.session_row(request, endpoints.table, endpoints.now)
        if row is not None:
            keep: epp.BoolArray = endpoints.rows == row
            if keep.any():
                return keep
        return np.ones(len(endpoints), dtype=np.bool_)
