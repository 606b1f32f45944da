"""`token-load-scorer`: prefers servers with fewer prompt tokens still to be computed, this request's included.

When to use it: for prefill-bound work with prompts of very different lengths, where counting requests says little. A
server that holds much of the prompt has less to add, so cache affinity is part of the score.

Score: 1 - min(tokens in flight + this request's uncached tokens, T) / T.

Parameters: `queueThresholdTokens` T (4194304: 128 requests of 32k tokens); `inFlightLoadProducerName`
(inflight-load-producer): whose counts are read. `nonTextTokenWeight` is accepted and has no effect: a token of an image
counts as one of text.

Metrics: those of the producer. Failure: when the producer failed for this request, its whole prompt counts everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import msgspec
import numpy as np

import epp
from epp_plugins.producers.inflight_load import DEFAULT_NAME, column_names


class TokenLoadScorerParams(epp.Params, frozen=True):
    """See the module."""

    queue_threshold_tokens: Annotated[int, msgspec.Meta(ge=1, description="tokens that score 0")] = 4_194_304
    in_flight_load_producer_name: Annotated[
        str, msgspec.Meta(min_length=1, description="producer whose counts are read")
    ] = DEFAULT_NAME
    non_text_token_weight: Annotated[float, msgspec.Meta(description="no effect: all tokens count alike")] = 1.0


class TokenLoadScorer(epp.Scorer[TokenLoadScorerParams]):
    """Distance of the token load from its limit."""

    type = "token-load-scorer"
    Params = TokenLoadScorerParams

    def __init__(self, params: TokenLoadScorerParams, context: epp.PluginContext) -> None:
        super().__init__(params, context)
        _, self._in_flight = column_names(params.in_flight_load_producer_name)
        if params.non_text_token_weight > 0 and params.non_text_token_weight != 1.0:  # others mean 1.0 anyway
            context.log.warning(
                "%s: nonTextTokenWeight has no effect: a token of an image, video or audio counts as one of text; "
                "remove it",
                self.name,
            )
        self._uncached = epp.DataKey(epp.UNCACHED_TOKENS, params.in_flight_load_producer_name)

    @property
    def consumes(self) -> Sequence[epp.DataKey]:
        return (epp.DataKey(epp.INFLIGHT_LOAD, self.params.in_flight_load_producer_name), self._uncached)

    def score(self, request: epp.InferenceRequest, endpoints: epp.Endpoints) -> epp.Scores:
        mine = endpoints.column(self._uncached) if endpoints.has(self._uncached) else request.input_tokens
        scores: epp.Scores = endpoints.column(self._in_flight) + mine
        scores *= -1.0 / self.params.queue_threshold_tokens
        scores += 1.0
        return np.maximum(scores, 0.0, out=scores)
