"""`utilization-filter`: leaves out servers that exceed one of several limits.

What it does: a server passes while each of its values is at most the limit. A value that was never measured passes.

When to use it: hard limits beside soft preferences, such as "no more than 16 waiting", where a scorer could still be
outvoted by others.

Parameters:
- `conditions`: at least one `{metric, maxValue}`. `metric` is `active-requests` (in flight from this picker),
  `running-requests`, `waiting-queue` (both as scraped) or `kv-cache-utilization` (share, up to 1).
- `fallbackOnEmpty` (false): when nobody passes, keep everybody instead of refusing the request with 429.
- `inFlightLoadProducerName` (inflight-load-producer): whose counts `active-requests` reads.

Metrics: none. Failure: see `fallbackOnEmpty`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec
import numpy as np

import epp
from epp_plugins.producers.inflight_load import DEFAULT_NAME, column_names

_COLUMNS = {"running-requests": "running", "waiting-queue": "waiting", "kv-cache-utilization": "kv_usage"}


class Condition(epp.Params, frozen=True):
    """One limit."""

    metric: Annotated[
        Literal["active-requests", "running-requests", "waiting-queue", "kv-cache-utilization"],
        msgspec.Meta(description="what is compared"),
    ]
    max_value: Annotated[float, msgspec.Meta(ge=0, description="largest value that passes")]

    def __post_init__(self) -> None:
        if self.metric == "kv-cache-utilization" and self.max_value > 1:
            raise ValueError(f"kv-cache-utilization is a share from 0 to 1, maxValue is {self.max_value}")


class UtilizationFilterParams(epp.Params, frozen=True):
    """See the module."""

    conditions: Annotated[tuple[Condition, ...], msgspec.Meta(min_length=1, description="limits: metric, maxValue")]
    fallback_on_empty: Annotated[bool, msgspec.Meta(description="keep everybody when nobody passes")] = False
    in_flight_load_producer_name: Annotated[
        str, msgspec.Meta(min_length=1, description="producer whose counts active-requests reads")
    ] = DEFAULT_NAME


class UtilizationFilter(epp.Filter[UtilizationFilterParams]):
    """Servers within limits."""

    type = "utilization-filter"
    stability = "alpha"
    Params = UtilizationFilterParams

    def __init__(self, params: UtilizationFilterParams, context: epp.PluginContext) -> None:
        super().__init__(params, context)
        requests, _ = column_names(params.in_flight_load_producer_name)
        self._limits = [(_COLUMNS.get(limit.metric, requests), limit.max_value) for limit in params.conditions]

    @property
    def consumes(self) -> Sequence[epp.DataKey]:
        if any(limit.metric == "active-requests" for limit in self.params.conditions):
            return (epp.DataKey(epp.INFLIGHT_LOAD, self.params.in_flight_load_producer_name),)
        return ()

    def filter(self, request: epp.InferenceRequest, endpoints: epp.Endpoints) -> epp.BoolArray:
        exceeds: epp.BoolArray = np.zeros(len(endpoints), dtype=np.bool_)
        for column, limit in self._limits:
            exceeds |= endpoints.column(column) > limit  # NaN exceeds nothing
        if self.params.fallback_on_empty and exceeds.all():
            return exceeds  # all True, as it happens: everybody stays
        return ~exceeds
