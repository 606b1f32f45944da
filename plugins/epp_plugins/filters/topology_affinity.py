"""`topology-affinity-filter`: keeps servers near the one that an earlier profile of the same request chose.

What it does: a server stays when it shares `minAffinity`, or a tighter place, with that server.

When to use it: in the profile that chooses the second server (prefill, with decode chosen first), with
`topology-extractor` in the configuration, when a far one costs more than waiting. `topology-affinity-scorer` prefers
nearness instead of demanding it.

Parameters:
- `minAffinity` (host): `host`, `rack`, `zone` or `region`.
- `topologyProducerName` (topology-extractor): the extractor whose places are read.
- `peerTopologyHeader` (none): `x-peer-topology`, where llm-d's coordinator says where the server is that another picker
  chose (`topology-stamp-handler`); read when this picker chose none. It is believed: set it only where no client but
  the coordinator can send it.
- `loadAllowance` (none): how many more requests in flight the least loaded near server may have than the least loaded
  far one; above it everybody stays. Not looked at while the place of any candidate is not known.
- `inFlightLoadProducerName` (inflight-load-producer): whose counts `loadAllowance` compares.

Metrics: none. Failure: never ends a profile: with no server chosen before, one whose place is not known, or nobody
near enough, everybody stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec
import numpy as np

import epp
from epp_plugins.extractors.proximity import Proximity
from epp_plugins.extractors.topology_header import check_name
from epp_plugins.producers.inflight_load import DEFAULT_NAME, column_names

_LEVELS = {"host": 0, "rack": 1, "zone": 2, "region": 3}


class TopologyAffinityFilterParams(epp.Params, frozen=True):
    """See the module."""

    min_affinity: Annotated[
        Literal["host", "rack", "zone", "region"], msgspec.Meta(description="widest place that counts as near")
    ] = "host"
    topology_producer_name: Annotated[
        str, msgspec.Meta(min_length=1, description="topology-extractor whose places are read")
    ] = "topology-extractor"
    peer_topology_header: Annotated[
        str, msgspec.Meta(description="request header that says where the server is that another picker chose")
    ] = ""
    load_allowance: (
        Annotated[int, msgspec.Meta(ge=0, description="requests in flight that nearness is worth")] | None
    ) = None
    in_flight_load_producer_name: Annotated[
        str, msgspec.Meta(min_length=1, description="producer whose counts loadAllowance compares")
    ] = DEFAULT_NAME

    def __post_init__(self) -> None:
        check_name("peerTopologyHeader", self.peer_topology_header)


class TopologyAffinityFilter(epp.Filter[TopologyAffinityFilterParams]):
    """Servers near the one chosen before, or everybody."""

    type = "topology-affinity-filter"
    stability = "alpha"
    Params = TopologyAffinityFilterParams

    def __init__(self, params: TopologyAffinityFilterParams, context: epp.PluginContext) -> None:
        super().__init__(params, context)
        self._proximity = Proximity(params.topology_producer_name, params.peer_topology_header)
        self._level = _LEVELS[params.min_affinity]
        self._inflight = column_names(params.in_flight_load_producer_name)[0]

    @property
    def consumes(self) -> Sequence[epp.DataKey]:
        if self.params.load_allowance is None:
            return ()
        return (epp.DataKey(epp.INFLIGHT_LOAD, self.params.in_flight_load_producer_name),)

    @property
    def consumes_if_present(self) -> Sequence[epp.DataKey]:
        return (self._proximity.key, epp.PEER_ENDPOINT)

    def filter(self, request: epp.InferenceRequest, endpoints: epp.Endpoints) -> epp.BoolArray:
        everybody = np.ones(len(endpoints), dtype=np.bool_)
        levels = self._proximity.levels(request, endpoints)
        if levels is None:
            return everybody
        near: epp.BoolArray = levels <= self._level
        if not near.any() or self._overloaded(request, endpoints, near):
            return everybody
        return near

    def _overloaded(self, request: epp.InferenceRequest, endpoints: epp.Endpoints, near: epp.BoolArray) -> bool:
        allowance = self.params.load_allowance
        if allowance is None or near.all():
            return False
        if not (near | self._proximity.known(request, endpoints, self._level)).all():
            return False
        inflight = endpoints.column(self._inflight)
        return bool(inflight[near].min() - inflight[~near].min() > allowance)
