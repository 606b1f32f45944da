"""`utilization-detector`: saturation from the queues and KV caches of the servers; also a filter.

When to use it: the default source of saturation. Sheddable requests are refused while it says 1.0 or more.

Parameters: `queueDepthThreshold` (5), `kvCacheUtilThreshold` (0.8), `metricsStalenessThreshold` (200ms), `headroom`
(0): the filter lets endpoints pass up to the thresholds times (1 + headroom).

The load of an endpoint is max(waiting / queueDepthThreshold, kv usage / kvCacheUtilThreshold); a value that the server
does not report is left out. Saturation is the mean over the endpoints; one without fresh values counts 1.0, and so does
an empty pool. The filter keeps fresh endpoints with a load below 1 + headroom, and everybody when that leaves none.

What counts as fresh follows the collector: it asks an idle pool every second or two, so a fixed 200 ms would call a
pool saturated that merely rests. A value is fresh up to the threshold or 2.5 times the interval the collector aimed at
for that endpoint since it read the value (column `scrape_interval`), whichever is longer. llm-d-router, which asks
every 50 ms whether there is traffic or not, compares with the threshold alone.

Metrics: none. Failure: cannot fail.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
import numpy as np

import epp
from epp.datalayer.durations import seconds

_INTERVALS = 2.5
_SCRAPE_INTERVAL = "scrape_interval"


class UtilizationDetectorParams(epp.Params, frozen=True):
    """See the module."""

    queue_depth_threshold: Annotated[int, msgspec.Meta(ge=1, description="waiting requests of a full server")] = 5
    kv_cache_util_threshold: Annotated[
        float, msgspec.Meta(gt=0, le=1, description="share of KV blocks in use of a full server")
    ] = 0.8
    metrics_staleness_threshold: Annotated[str, msgspec.Meta(description="age up to which values count")] = "200ms"
    headroom: Annotated[float, msgspec.Meta(ge=0, description="share above the thresholds the filter allows")] = 0.0

    def __post_init__(self) -> None:
        seconds(self.metrics_staleness_threshold)


class UtilizationDetector(epp.SaturationDetector[UtilizationDetectorParams], epp.Filter[UtilizationDetectorParams]):
    """How full servers say they are."""

    type = "utilization-detector"
    Params = UtilizationDetectorParams

    def __init__(self, params: UtilizationDetectorParams, context: epp.PluginContext) -> None:
        super().__init__(params, context)
        self._staleness = seconds(params.metrics_staleness_threshold) or 0.0

    def saturation(self, endpoints: epp.Endpoints) -> float:
        if len(endpoints) == 0:
            return 1.0
        load = self._load(endpoints)
        load[np.isnan(load)] = 1.0
        return float(load.mean())

    def filter(self, request: epp.InferenceRequest, endpoints: epp.Endpoints) -> epp.BoolArray:
        keep: epp.BoolArray = self._load(endpoints) < 1.0 + self.params.headroom
        return keep if keep.any() else np.ones(len(endpoints), dtype=np.bool_)

    def _load(self, endpoints: epp.Endpoints) -> epp.FloatArray:
        """1: at a threshold; NaN without fresh values."""
        params = self.params
        load: epp.FloatArray = np.fmax(
            endpoints.waiting / params.queue_depth_threshold, endpoints.kv_usage / params.kv_cache_util_threshold
        )
        load[~self._fresh(endpoints)] = np.nan
        return load

    def _fresh(self, endpoints: epp.Endpoints) -> epp.BoolArray:
        allowed: epp.FloatArray | float = self._staleness
        if endpoints.has(_SCRAPE_INTERVAL):
            allowed = np.fmax(_INTERVALS * endpoints.column(_SCRAPE_INTERVAL), self._staleness)
        fresh: epp.BoolArray = endpoints.age <= allowed
        return fresh
