"""`session-affinity-filter`: keeps a session on the endpoint that served it before, as long as that is a candidate.

When to use it: when moving a conversation is worse than waiting: state outside the KV cache, or very long contexts.
`session-affinity-scorer` is the same as a preference that load can outweigh; one of the two is enough.

Parameters:
- `strategy` (encoded_endpoint_header): the answer carries a header with a token for the endpoint, and a client that
  sends it back is served there again. `session_id`: the client, or a plugin before, names the session, and this process
  remembers the endpoint of its first request; nothing goes back to the client.
- `profileName` (empty: the primary profile): whose endpoint is meant. With disaggregated serving use one instance per
  profile, each with a header of its own.
- `encodedEndpointHeaderConfig.header` (x-session-token).
- `sessionIdConfig`: `sources` (header x-session-id), each a `header` or an `attribute` with its `producer`; the first
  that has an id wins. `evictionTtlSeconds` (300), `evictionSweepSeconds` (10).

Metrics: none; the state dump counts bindings. Failure: never ends a profile: without a session, with a token nobody
can read, or with an endpoint that is gone or filtered out, everybody stays.
"""

from __future__ import annotations

import numpy as np

import epp
from epp_plugins.filters.session_pin import SessionAffinityParams, SessionPin


class SessionAffinityFilter(SessionPin, epp.Filter[SessionAffinityParams]):
    """Only the session's endpoint, or everybody."""

    type = "session-affinity-filter"
    stability = "alpha"

    def filter(self, request: epp.InferenceRequest, endpoints: epp.Endpoints) -> epp.BoolArray:
        position = self.pinned(request, endpoints)
        if position is None:
            return np.ones(len(endpoints), dtype=np.bool_)
        keep: epp.BoolArray = np.zeros(len(endpoints), dtype=np.bool_)
        keep[position] = True
        return keep
