"""`topology-affinity-scorer`: prefers servers near the one that an earlier profile of the same request chose.

What it does: 1 for the same host, 0.2 for the same rack, 0.05 for the same zone, 0.02 for the same region, 0 for
elsewhere. The steps follow the bandwidth between two servers on such a way; a wider place than the tightest shared one
adds nothing.

When to use it: in the profile that chooses the second server (prefill, with decode chosen first), with
`topology-extractor` in the configuration. `topology-affinity-filter` demands nearness instead of preferring it.

Parameters:
- `topologyProducerName` (topology-extractor): the extractor whose places are read.
- `peerTopologyHeader` (none): `x-peer-topology`, where llm-d's coordinator says where the server is that another picker
  chose (`topology-stamp-handler`); read when this picker chose none. It is believed: set it only where no client but
  the coordinator can send it.

Metrics: none. Failure: with no server chosen before, or one whose place is not known, everybody scores 0; so does a
candidate whose place is not known.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import msgspec
import numpy as np

import epp
from epp_plugins.extractors.proximity import Proximity
from epp_plugins.extractors.topology_header import check_name

_SCORES = np.array([1.0, 0.2, 0.05, 0.02, 0.0])


class TopologyAffinityScorerParams(epp.Params, frozen=True):
    """See the module."""

    topology_producer_name: Annotated[
        str, msgspec.Meta(min_length=1, description="topology-extractor whose places are read")
    ] = "topology-extractor"
    peer_topology_header: Annotated[
        str, msgspec.Meta(description="request header that says where the server is that another picker chose")
    ] = ""

    def __post_init__(self) -> None:
        check_name("peerTopologyHeader", self.peer_topology_header)


class TopologyAffinityScorer(epp.Scorer[TopologyAffinityScorerParams]):
    """Nearness to the server chosen before."""

    type = "topology-affinity-scorer"
    stability = "alpha"
    Params = TopologyAffinityScorerParams

    def __init__(self, params: TopologyAffinityScorerParams, context: epp.PluginContext) -> None:
        super().__init__(params, context)
        self._proximity = Proximity(params.topology_producer_name, params.peer_topology_header)

    @property
    def consumes_if_present(self) -> Sequence[epp.DataKey]:
        return (self._proximity.key, epp.PEER_ENDPOINT)

    def score(self, request: epp.InferenceRequest, endpoints: epp.Endpoints) -> epp.Scores:
        levels = self._proximity.levels(request, endpoints)
        if levels is None:
            return np.zeros(len(endpoints))
        scores: epp.Scores = _SCORES[levels]
        return scores
