"""`concurrency-detector`: saturation from what we have in flight ourselves; also a filter.

What it does: compares the requests or prompt tokens on their way to each server with a capacity that you set. Unlike
scraped metrics these counts are never late, so a burst cannot slip through between two scrapes.

When to use it: when you know how much a server of your pool can take, and all its traffic comes through this picker.

Parameters:
- `concurrencyMode` (requests): `requests`, `tokens`, or `hybrid` (both; the fuller one counts).
- `maxConcurrency` (100): requests a server can take; `maxTokenConcurrency` (1000000): tokens.
- `headroom` (0): the filter lets a server pass up to its capacity times (1 + headroom), rounded down.
- `inFlightLoadProducerName` (inflight-load-producer): whose counts are read.

Saturation is sum(in flight) / sum(capacity); hybrid: the mean over servers of the larger ratio. An empty pool is 1.0.
The filter keeps servers below their capacity; when that leaves none, the request is refused (429).

Metrics: those of the producer. Failure: cannot fail.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec
import numpy as np

import epp
from epp_plugins.producers.inflight_load import DEFAULT_NAME, column_names


class ConcurrencyDetectorParams(epp.Params, frozen=True):
    """See the module."""

    concurrency_mode: Annotated[Literal["requests", "tokens", "hybrid"], msgspec.Meta(description="what counts")] = (
        "requests"
    )
    max_concurrency: Annotated[int, msgspec.Meta(ge=1, description="requests in flight of a full server")] = 100
    max_token_concurrency: Annotated[int, msgspec.Meta(ge=1, description="tokens in flight of a full server")] = (
        1_000_000
    )
    headroom: Annotated[float, msgspec.Meta(ge=0, description="share above the capacity the filter allows")] = 0.0
    in_flight_load_producer_name: Annotated[
        str, msgspec.Meta(min_length=1, description="producer whose counts are read")
    ] = DEFAULT_NAME


class ConcurrencyDetector(epp.SaturationDetector[ConcurrencyDetectorParams], epp.Filter[ConcurrencyDetectorParams]):
    """How full servers are with what we sent them."""

    type = "concurrency-detector"
    Params = ConcurrencyDetectorParams

    def __init__(self, params: ConcurrencyDetectorParams, context: epp.PluginContext) -> None:
        super().__init__(params, context)
        requests, tokens = column_names(params.in_flight_load_producer_name)
        by_requests = (requests, params.max_concurrency)
        by_tokens = (tokens, params.max_token_concurrency)
        self._limits = {"requests": (by_requests,), "tokens": (by_tokens,), "hybrid": (by_requests, by_tokens)}[
            params.concurrency_mode
        ]
        self._allowed = [(column, int(limit * (1.0 + params.headroom))) for column, limit in self._limits]

    @property
    def consumes(self) -> Sequence[epp.DataKey]:
        return (epp.DataKey(epp.INFLIGHT_LOAD, self.params.in_flight_load_producer_name),)

    def saturation(self, endpoints: epp.Endpoints) -> float:
        if len(endpoints) == 0:
            return 1.0
        ratios = [endpoints.column(column) / limit for column, limit in self._limits]
        fuller = ratios[0] if len(ratios) == 1 else np.maximum(*ratios)
        return float(fuller.mean())  # the capacity is the same everywhere: sum / sum is the mean of the ratios

    def filter(self, request: epp.InferenceRequest, endpoints: epp.Endpoints) -> epp.BoolArray:
        keep: epp.BoolArray = np.ones(len(endpoints), dtype=np.bool_)
        for column, allowed in self._allowed:
            keep &= endpoints.column(column) < allowed
        return keep
