"""`topology-extractor`: where each server is: host, rack, zone, region, from the labels of its pod.

What it does: stores an `epp.Topology` per endpoint, which `topology-affinity-filter` and `topology-affinity-scorer`
read. It hears of endpoints by itself; no source needs to name it.

When to use it: with prefill and decode on different servers, where the way of the KV cache between them matters.
Kubernetes puts these labels on nodes, not on pods: copy them to the pods (version 1.35 and later do so for zone and
region; a mutating policy can do it for others), or name labels of your own.

Parameters, each the name of a pod label: `hostname` (kubernetes.io/hostname), `rack` (topology.kubernetes.io/rack),
`zone` (topology.kubernetes.io/zone), `region` (topology.kubernetes.io/region). Without the host's label the pod's
`spec.hostname` is taken.

Metrics: none; the state dump counts what is known. Failure: a label that is missing leaves its place unknown, and
nothing that is unknown ever matches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec

from epp.api import TOPOLOGY, DataKey, Endpoint, EndpointExtractor, Params, Topology

LEVELS = ("hostname", "rack", "zone", "region")


class TopologyExtractorParams(Params, frozen=True):
    """See the module."""

    hostname: Annotated[str, msgspec.Meta(description="pod label with the host")] = "kubernetes.io/hostname"
    rack: Annotated[str, msgspec.Meta(description="pod label with the rack")] = "topology.kubernetes.io/rack"
    zone: Annotated[str, msgspec.Meta(description="pod label with the zone")] = "topology.kubernetes.io/zone"
    region: Annotated[str, msgspec.Meta(description="pod label with the region")] = "topology.kubernetes.io/region"


class TopologyExtractor(EndpointExtractor[TopologyExtractorParams]):
    """Stores where each endpoint is."""

    type = "topology-extractor"
    stability = "alpha"
    Params = TopologyExtractorParams

    @property
    def produces(self) -> Sequence[DataKey]:
        return (DataKey(TOPOLOGY, self.name),)

    def endpoint_changed(self, row: int, endpoint: Endpoint) -> None:
        labels, names = endpoint.labels, self.params
        place = Topology(
            hostname=labels.get(names.hostname, "") or endpoint.hostname,
            rack=labels.get(names.rack, ""),
            zone=labels.get(names.zone, ""),
            region=labels.get(names.region, ""),
        )
        self.context.table.attributes[row][str(self.produces[0])] = place

    def dump_state(self) -> Any:
        table, key = self.context.table, str(self.produces[0])
        places = [table.attributes[row].get(key, Topology()) for row in table.rows.tolist()]
        return {
            "endpoints": len(places),
            "known": {level: sum(bool(getattr(place, level)) for place in places) for level in LEVELS},
        }
