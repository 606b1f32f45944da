"""`prefix-cache-affinity-filter`: narrows the choice to servers that hold most of the prompt, unless they are busy.

What it does: a server is sticky when it holds at least `affinityThreshold` of the prompt's blocks. If there are sticky
servers, only they stay. A load gate reopens the choice when even the least busy sticky server is much busier than the
least busy other one.

When to use it: before a load scorer (`token-load-scorer`): the filter decides for the cache, the scorer spreads the
load over whoever is left. With several thresholds in different profiles, use it several times.

Parameters:
- `affinityThreshold` (0.80): share of the prompt's blocks; 0 switches the filter off.
- `explorationProbability` (0): share of requests for which everybody stays, so that caches come into being elsewhere.
- `maxTTFTPenaltyMs` (18000): everybody stays when the best sticky server would answer later than the best other one by
  more than this; 0 switches this gate off. The time is estimated as tokens in flight / `peakPrefillThroughput`.
- `peakPrefillThroughput` (15928): tokens per second that one server processes at best.
- `maxTokensInFlightPenalty` (0: off): the same gate, in tokens in flight.
- `prefillCalibrationFile`, `prefillCalibrationFingerprint`: accepted, without effect: a record of measurements is not
  read; write what it measured as `peakPrefillThroughput`. `prefillCalibrationRequired: true` is therefore refused.
- `ttftSource` (prefillThroughput): `latencyPredictor` is refused, since nothing predicts latency here yet.
- `prefixMatchInfoProducerName` (approx-prefix-cache-producer), `inFlightLoadProducerName` (inflight-load-producer).

Metrics: `prefix_cache_affinity_filter_decisions_total` by plugin_name and outcome (`sticky`, `no_match`,
`load_override`, `exploration`, `not_applicable`).

Failure: never leaves nobody. Without match information everybody stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
import numpy as np

import epp
from epp_plugins.producers.inflight_load import DEFAULT_NAME, DEFAULT_PREFIX_PRODUCER, column_names

Outcome = Literal["sticky", "no_match", "load_override", "exploration", "not_applicable"]
OUTCOMES: tuple[Outcome, ...] = ("sticky", "no_match", "load_override", "exploration", "not_applicable")


class PrefixCacheAffinityFilterParams(epp.Params, frozen=True):
    """See the module."""

    affinity_threshold: Annotated[float, msgspec.Meta(ge=0, le=1, description="share that makes sticky; 0: off")] = 0.80
    exploration_probability: Annotated[
        float, msgspec.Meta(ge=0, le=1, description="share of requests for which everybody stays")
    ] = 0.0
    max_ttft_penalty_ms: Annotated[
        float, msgspec.Meta(ge=0, description="largest delay for the cache's sake, ms; 0: no limit")
    ] = msgspec.field(default=18000.0, name="maxTTFTPenaltyMs")
    max_tokens_in_flight_penalty: Annotated[
        float, msgspec.Meta(ge=0, description="the same limit in tokens in flight; 0: no limit")
    ] = 0.0
    ttft_source: Annotated[
        Literal["prefillThroughput", "latencyPredictor"], msgspec.Meta(description="what the delay is estimated from")
    ] = msgspec.field(default="prefillThroughput", name="ttftSource")
    peak_prefill_throughput: Annotated[float, msgspec.Meta(ge=0, description="tokens per second of one server")] = (
        15928.0
    )
    prefill_calibration_file: Annotated[str, msgspec.Meta(description="no effect: use peakPrefillThroughput")] = ""
    prefill_calibration_fingerprint: Annotated[str, msgspec.Meta(description="no effect")] = ""
    prefill_calibration_required: Annotated[bool, msgspec.Meta(description="true is refused")] = False
    prefix_match_info_producer_name: Annotated[
        str, msgspec.Meta(min_length=1, description="producer whose matches are read")
    ] = DEFAULT_PREFIX_PRODUCER
    in_flight_load_producer_name: Annotated[
        str, msgspec.Meta(min_length=1, description="producer whose counts are read")
    ] = DEFAULT_NAME

    def __post_init__(self) -> None:
        if self.ttft_source == "latencyPredictor":
            raise ValueError("ttftSource latencyPredictor: nothing predicts latency yet, use prefillThroughput")
        if self.max_ttft_penalty_ms and not self.peak_prefill_throughput:
            raise ValueError("peakPrefillThroughput must be above 0, or maxTTFTPenaltyMs 0")
        if self.prefill_calibration_required:
            raise ValueError(
                "prefillCalibrationRequired: calibration records are not read; set peakPrefillThroughput to the "
                "measured tokens per second and remove this"
            )


class PrefixCacheAffinityFilter(epp.Filter[PrefixCacheAffinityFilterParams]):
    """Servers that hold the prompt, unless they are too busy."""

    type = "prefix-cache-affinity-filter"
    Params = PrefixCacheAffinityFilterParams

    def __init__(self, params: PrefixCacheAffinityFilterParams, context: epp.PluginContext) -> None:
        super().__init__(params, context)
        if params.prefill_calibration_file or params.prefill_calibration_fingerprint:
            context.log.warning(
                "%s: prefillCalibrationFile and prefillCalibrationFingerprint have no effect: set "
                "peakPrefillThroughput to the measured tokens per second (here: %g)",
                self.name,
                params.peak_prefill_throughput,
            )
        _, self._tokens = column_names(params.in_flight_load_producer_name)
        by_time = params.max_ttft_penalty_ms * params.peak_prefill_throughput / 1000.0
        gates = [gate for gate in (by_time, params.max_tokens_in_flight_penalty) if gate > 0]
        # Both gates compare the same numbers, so the stricter one decides. In tokens in flight; None: no gate.
        self._most_more_tokens = min(gates, default=None)
        self._counters: dict[str, Any] = {}
        if context.metrics is not None:
            decisions = context.metrics.counter(
                "prefix_cache_affinity_filter_decisions_total",
                "Prefix cache affinity filter decisions, by outcome.",
                ("plugin_name", "outcome"),
            )
            self._counters = {outcome: decisions.labels(self.name, outcome) for outcome in OUTCOMES}

    @property
    def consumes(self) -> Sequence[epp.DataKey]:
        match = epp.DataKey(epp.PREFIX_CACHE_MATCH, self.params.prefix_match_info_producer_name)
        if self._most_more_tokens is None:
            return (match,)
        return (match, epp.DataKey(epp.INFLIGHT_LOAD, self.params.in_flight_load_producer_name))

    def filter(self, request: epp.InferenceRequest, endpoints: epp.Endpoints) -> epp.BoolArray:
        outcome, keep = self._decide(request, endpoints)
        if self._counters:
            self._counters[outcome].inc()
        return np.ones(len(endpoints), dtype=np.bool_) if keep is None else keep

    def _decide(self, request: epp.InferenceRequest, endpoints: epp.Endpoints) -> tuple[Outcome, epp.BoolArray | None]:
        """What happened, and who stays; None: everybody."""
        params = self.params
        if len(endpoints) <= 1 or params.affinity_threshold == 0:
            return "not_applicable", None
        if params.exploration_probability and self.context.rng.random() < params.exploration_probability:
            return "exploration", None
        match = epp.prefix_match(request, endpoints, params.prefix_match_info_producer_name)
        if match is None or match.total_blocks == 0:
            return "no_match", None
        sticky: epp.BoolArray = match.blocks / match.total_blocks >= params.affinity_threshold
        if not np.count_nonzero(sticky):
            return "no_match", None
        if self._most_more_tokens is not None:
            tokens = endpoints.column(self._tokens)
            among = tokens[sticky]
            # The least busy of all stands for the least busy other one: if it is sticky, nobody else is less busy.
            more = among.item(among.argmin()) - tokens.item(tokens.argmin())
            if more > self._most_more_tokens:
                return "load_override", None
        return "sticky", sticky
