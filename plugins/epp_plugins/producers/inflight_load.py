"""`inflight-load-producer`: how much we have sent to each endpoint that has not been answered yet.

What it does: counts requests and prompt tokens per endpoint, exactly and at once: up when an endpoint is picked,
before the next request is looked at; down when the answer begins (tokens) and ends (request). Scraped queue lengths
are tens of milliseconds old, in which a burst would pile up on one endpoint; these counts never are. For each candidate
it also says how many tokens of *this* request it would have to compute: the prompt less what its prefix cache holds.

When to use: with `token-load-scorer`, `active-request-scorer`, `concurrency-detector` and whatever else reads in-flight
load. It is part of the default configuration; with `dataLayer.injectDefaults: false` it is only created when a plugin
needs it.

Columns of the table: `inflight_requests` and `inflight_tokens` for the instance named `inflight-load-producer`; an
instance with another name counts in `inflight_requests/<name>` and `inflight_tokens/<name>`.

Accounting: each profile's first endpoint gets one request and the uncached tokens. The primary endpoint's tokens are
released with the first chunk of the answer (the prompt has been processed), its request with the end; any other
profile's endpoint (`prefill`) is released as a whole with the first chunk. The end releases what is left, whatever its
cause. Nothing is ever released from an endpoint that took over the row of a gone one.

Parameters: see `InflightLoadParams`. With `addEstimatedOutputTokens` the estimated answer counts on the primary
endpoint until the request ends, the prompt still only until the first chunk (upstream holds both until the end, and
then also adds the estimate to a prefill endpoint, which does not generate the answer).

Metrics: `inflight_requests` and `inflight_tokens` by endpoint, producer, fairness id and priority.

Failure behaviour: without a prompt a request counts 0 tokens; without prefix matches nothing counts as cached.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta

from epp.api import (
    ANY_PRODUCER,
    FEW,
    INFLIGHT_LOAD,
    PREFIX_CACHE_MATCH,
    TOKENIZED_PROMPT,
    UNCACHED_TOKENS,
    DataKey,
    Endpoints,
    FloatArray,
    InferenceRequest,
    InferenceResponse,
    Params,
    PluginContext,
    PrefixMatch,
    Producer,
    ProfileResult,
    SchedulingResult,
    prefix_match,
)
from epp_plugins.producers.inflight_series import InflightSeries, Series

DEFAULT_NAME = "inflight-load-producer"
DEFAULT_PREFIX_PRODUCER = "approx-prefix-cache-producer"
_HELD = "InFlightLoadHeld"
_MAX_DUMPED = 100


class InflightLoadParams(Params, frozen=True):
    """Names and defaults of llm-d-router.

    `outputRatio`: estimated output tokens per prompt token; bounded by `maxEstimatedOutputTokens` (0: no bound) and by
    what the client allows. `prefixMatchInfoProducerName`: whose matches are read; empty: those of
    `approx-prefix-cache-producer`, else of the only producer of them, if there is one. `syncCrossReplicaState` is
    accepted and has no effect: replicas do not share their counts.
    """

    add_estimated_output_tokens: Annotated[bool, Meta(description="count the answer too, estimated")] = False
    output_ratio: Annotated[float, Meta(ge=0, description="estimated output tokens per prompt token")] = 1.5
    max_estimated_output_tokens: Annotated[int, Meta(ge=0, description="bound of the estimate; 0: none")] = 0
    prefix_match_info_producer_name: Annotated[
        str, Meta(description="whose matches count as cached; empty: the approximate one, else the only one")
    ] = ""
    sync_cross_replica_state: Annotated[bool, Meta(description="no effect: replicas do not share counts")] = True


class _Hold(msgspec.Struct, eq=False, gc=False):
    """What one request holds of one endpoint."""

    row: int
    generation: int
    prompt_tokens: int
    output_tokens: int
    primary: bool
    series: Series | None
    requests: int = 1


class InflightLoadProducer(Producer[InflightLoadParams]):
    """Counts what is on its way."""

    type = "inflight-load-producer"
    stability = "stable"
    Params = InflightLoadParams

    def __init__(self, params: InflightLoadParams, context: PluginContext) -> None:
        super().__init__(params, context)
        self.requests_column, self.tokens_column = column_names(self.name)
        self._table = context.table
        self._table.add_column(self.requests_column, 0.0)
        self._table.add_column(self.tokens_column, 0.0)
        self._estimates = params.add_estimated_output_tokens
        self._prefix_producer = params.prefix_match_info_producer_name
        self._uncached = DataKey(UNCACHED_TOKENS, self.name)
        self._held = DataKey(_HELD, self.name)
        self._series: InflightSeries | None = None
        if context.metrics is not None:
            self._series = series = InflightSeries(context.metrics, self.name)
            self._table.on_removed(lambda _, endpoint: series.forget(endpoint))

    @property
    def consumes(self) -> Sequence[DataKey]:
        prompt = DataKey(TOKENIZED_PROMPT, "token-producer")
        if self.params.prefix_match_info_producer_name:
            return (prompt, DataKey(PREFIX_CACHE_MATCH, self._prefix_producer))
        return (prompt,)

    @property
    def consumes_if_present(self) -> Sequence[DataKey]:
        if self.params.prefix_match_info_producer_name:
            return ()
        return (DataKey(PREFIX_CACHE_MATCH, ANY_PRODUCER),)

    @property
    def produces(self) -> Sequence[DataKey]:
        return (DataKey(INFLIGHT_LOAD, self.name), self._uncached)

    def produce(self, request: InferenceRequest, endpoints: Endpoints) -> None:
        """Tokens of this request that each candidate would have to compute (and generate, if so configured)."""
        prompt = request.prompt
        tokens = 0 if prompt is None else prompt.tokens
        output = self._estimated_output(request) if self._estimates else 0
        match = self._match(request, endpoints) if tokens else None
        if match is None:
            uncached: FloatArray = np.full(len(endpoints), float(tokens + output))
        elif match.blocks.size <= FEW:
            size = match.block_size_tokens
            uncached = np.array(
                [(left if (left := tokens - blocks * size) > 0.0 else 0.0) + output for blocks in match.blocks.tolist()]
            )
        else:
            uncached = np.maximum(tokens - match.blocks * match.block_size_tokens, 0.0)
            if output:
                uncached += output
        endpoints.set(self._uncached, uncached)

    def on_picked(self, request: InferenceRequest, result: SchedulingResult) -> None:
        """One request and its tokens on the first endpoint of every profile."""
        target = result.target
        output = self._estimated_output(request) if self._estimates else 0
        holds: list[_Hold] = []
        request.attributes[self._held] = holds
        for profile in result.profiles.values():
            if profile is not None and profile.rows:
                # One by one: should one fail, those before it are known and will be released.
                holds.append(self._hold(request, profile, output, profile is target))  # noqa: PERF401

    def on_first_chunk(self, request: InferenceRequest, response: InferenceResponse) -> None:
        """The prompt has been processed."""
        for hold in request.attributes.get(self._held, ()):
            if hold.primary:
                self._release(hold, 0, hold.prompt_tokens, 0)
            else:
                self._release(hold, hold.requests, hold.prompt_tokens, hold.output_tokens)

    def on_response_end(self, request: InferenceRequest, response: InferenceResponse) -> None:
        """Whatever is left."""
        for hold in request.attributes.pop(self._held, ()):
            self._release(hold, hold.requests, hold.prompt_tokens, hold.output_tokens)

    def dump_state(self) -> dict[str, Any]:
        """The endpoints with most in flight."""
        table = self._table
        rows = table.rows
        requests, tokens = table.columns[self.requests_column][rows], table.columns[self.tokens_column][rows]
        busiest = np.lexsort((rows, -tokens, -requests))[:_MAX_DUMPED].tolist()
        shown = []
        for position in busiest:
            endpoint = table.endpoints[int(rows[position])]
            if endpoint is not None:
                shown.append(
                    {"endpoint": endpoint.key, "requests": int(requests[position]), "tokens": int(tokens[position])}
                )
        return {"endpoints": shown, "endpointsTotal": len(rows), "truncated": len(rows) > _MAX_DUMPED}

    def _match(self, request: InferenceRequest, endpoints: Endpoints) -> PrefixMatch | None:
        if self._prefix_producer:
            return prefix_match(request, endpoints, self._prefix_producer)
        match = prefix_match(request, endpoints, DEFAULT_PREFIX_PRODUCER)
        return match if match is not None else prefix_match(request, endpoints, ANY_PRODUCER)

    def _estimated_output(self, request: InferenceRequest) -> int:
        params = self.params
        estimate = int(request.input_tokens * params.output_ratio)
        if params.max_estimated_output_tokens:
            estimate = min(estimate, params.max_estimated_output_tokens)
        allowed = request.payload.max_tokens
        return estimate if allowed is None else max(0, min(estimate, allowed))

    def _hold(self, request: InferenceRequest, profile: ProfileResult, output: int, primary: bool) -> _Hold:
        row = profile.rows[0]
        candidates = profile.candidates
        try:
            prompt_tokens = int(candidates.column(self._uncached).item(candidates.position(row))) - output
        except LookupError:  # `produce` failed for this request
            prompt_tokens = request.input_tokens
        if not primary:
            output = 0
        series = None
        if self._series is not None:
            series = self._series.of(profile.picked[0], request.fairness_id, request.priority)
        hold = _Hold(row, self._table.generation.item(row), prompt_tokens, output, primary, series)
        self._add(row, 1, prompt_tokens + output)
        if series is not None:
            series.add(1, prompt_tokens + output)
        return hold

    def _release(self, hold: _Hold, requests: int, prompt_tokens: int, output_tokens: int) -> None:
        """Give back a part, once: what has been given back is no longer in the hold."""
        tokens = prompt_tokens + output_tokens
        if not requests and not tokens:
            return
        hold.requests -= requests
        hold.prompt_tokens -= prompt_tokens
        hold.output_tokens -= output_tokens
        if hold.series is not None:
            hold.series.add(-requests, -tokens)
        if self._table.is_current(hold.row, hold.generation):
            self._add(hold.row, -requests, -tokens)

    def _add(self, row: int, requests: int, tokens: int) -> None:
        columns = self._table.columns
        if requests:
            column = columns[self.requests_column]
            column[row] = column.item(row) + requests
        if tokens:
            column = columns[self.tokens_column]
            column[row] = column.item(row) + tokens


def column_names(producer: str) -> tuple[str, str]:
    """Where the instance of this name counts: the columns of requests and of tokens."""
    suffix = "" if producer == DEFAULT_NAME else f"/{producer}"
    return f"inflight_requests{suffix}", f"inflight_tokens{suffix}"
