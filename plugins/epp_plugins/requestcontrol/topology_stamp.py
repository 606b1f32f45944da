"""`topology-stamp-handler`: tells the coordinator where the server is that answered.

What it does: puts the place of the endpoint that a profile chose (host, rack, zone, region, from `topology-extractor`)
into the response header `x-peer-topology`. llm-d's coordinator hands it from the prefill answer on to the decode
request, where `topology-affinity-filter` and `topology-affinity-scorer` read it (`peerTopologyHeader`).

When to use: in the prefill picker, when prefill and decode have a picker each and a coordinator between them.

Parameters:
- `profileName` (the primary one): the profile whose endpoint is meant.
- `topologyProducerName` (topology-extractor): the extractor whose places are read.
- `headerName` (x-peer-topology): no other name is accepted, for coordinators hand on no other.

Metrics: none. Failure behaviour: no header when the profile did not run or the place is not known.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import msgspec

from epp.api import (
    TOPOLOGY,
    DataKey,
    InferenceRequest,
    InferenceResponse,
    Params,
    Plugin,
    PluginContext,
    SchedulingResult,
    Topology,
)
from epp_plugins.extractors.topology_header import HEADER, check_name, encode


class TopologyStampParams(Params, frozen=True):
    """See the module."""

    header_name: Annotated[str, msgspec.Meta(description="response header with the place")] = HEADER
    profile_name: Annotated[
        str, msgspec.Meta(description="profile whose endpoint is meant; empty: the primary one")
    ] = ""
    topology_producer_name: Annotated[
        str, msgspec.Meta(min_length=1, description="topology-extractor whose places are read")
    ] = "topology-extractor"

    def __post_init__(self) -> None:
        check_name("headerName", self.header_name)


class TopologyStampHandler(Plugin[TopologyStampParams]):
    """Says where the chosen endpoint is."""

    type = "topology-stamp-handler"
    stability = "alpha"
    Params = TopologyStampParams

    def __init__(self, params: TopologyStampParams, context: PluginContext) -> None:
        super().__init__(params, context)
        self._topology = DataKey(TOPOLOGY, params.topology_producer_name)
        self._place = DataKey("PeerTopology", self.name)

    @property
    def consumes_if_present(self) -> Sequence[DataKey]:
        return (self._topology,)

    def on_picked(self, request: InferenceRequest, result: SchedulingResult) -> None:
        # Now and not with the answer: the endpoint may be gone by then.
        chosen = result.profiles.get(self.params.profile_name or result.primary)
        if chosen is not None and chosen.rows:
            place = self.context.table.attributes[chosen.rows[0]].get(str(self._topology))
            if isinstance(place, Topology):
                request.attributes[self._place] = encode(place)

    def on_response_headers(self, request: InferenceRequest, response: InferenceResponse) -> None:
        place = request.attributes.get(self._place)
        if place:
            response.set_headers[HEADER] = place
