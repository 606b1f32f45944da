"""`lmetric-scorer`: prompt tokens still to be computed, times requests in flight: the lower the product the better.

When to use it: as the only scorer of a profile; it weighs cache affinity and load without weights to tune.

cost = (total blocks - matched blocks) * block size * (requests in flight + 1); the lowest cost of the candidates scores
1, the highest 0, all 1 when they are equal. Matched blocks are counted whole, whatever tier they are in: a block that
has to come from CPU memory need not be computed.

Parameters: `prefixMatchInfoProducerName` (approx-prefix-cache-producer), `inFlightLoadProducerName`
(inflight-load-producer): whose data is read.

Metrics: those of the producers. Failure: without match information the whole prompt counts, so load alone decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import msgspec

import epp
from epp_plugins.producers.inflight_load import DEFAULT_NAME, DEFAULT_PREFIX_PRODUCER, column_names


class LMetricScorerParams(epp.Params, frozen=True):
    """See the module."""

    prefix_match_info_producer_name: Annotated[
        str, msgspec.Meta(min_length=1, description="producer whose matches are read")
    ] = DEFAULT_PREFIX_PRODUCER
    in_flight_load_producer_name: Annotated[
        str, msgspec.Meta(min_length=1, description="producer whose counts are read")
    ] = DEFAULT_NAME


class LMetricScorer(epp.Scorer[LMetricScorerParams]):
    """Min-max over uncached tokens times batch size."""

    type = "lmetric-scorer"
    Params = LMetricScorerParams

    def __init__(self, params: LMetricScorerParams, context: epp.PluginContext) -> None:
        super().__init__(params, context)
        self._in_flight, _ = column_names(params.in_flight_load_producer_name)

    @property
    def consumes(self) -> Sequence[epp.DataKey]:
        return (
            epp.DataKey(epp.PREFIX_CACHE_MATCH, self.params.prefix_match_info_producer_name),
            epp.DataKey(epp.INFLIGHT_LOAD, self.params.in_flight_load_producer_name),
        )

    def score(self, request: epp.InferenceRequest, endpoints: epp.Endpoints) -> epp.Scores:
        cost = endpoints.column(self._in_flight) + 1.0
        match = epp.prefix_match(request, endpoints, self.params.prefix_match_info_producer_name)
        if match is not None and match.total_blocks:
            cost *= match.total_blocks - match.cached_blocks  # the block size is a factor of all: min-max ignores it
        return epp.fewer_is_better(cost)
