"""`token-load-scorer`: prefers servers with fewer prompt tokens still to be computed, this request's included.

When to use it: for prefill-bound work with prompts of very different lengths, where counting requests says little. A
server that holds much of the prompt has less to add, so cache affinity is part of the score.

Score: 1 - min(tokens in flight + this request's uncached tokens, T) / T.

Parameters: `queueThresholdTokens` T (4194304: 128 requests of 32k tokens); `inFlightLoadProducerName`
(inflight-load-producer): whose counts are read; `nonTextTokenWeight` (1.0; 0 and less mean 1.0): what a token of an
image, video or audio of this request counts for where it is not cached. What is in flight already counts plainly.

Metrics: those of the producer. Failure: when the producer failed for this request, its whole prompt counts everywhere.
"""

from __future__ import annotations

import math
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
    non_text_token_weight: Annotated[
        float, msgspec.Meta(description="what a token of an image, video or audio of the request counts for")
    ] = 1.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.non_text_token_weight):
            raise ValueError("nonTextTokenWeight must be a finite number")


class TokenLoadScorer(epp.Scorer[TokenLoadScorerParams]):
    """Distance of the token load from its limit."""

    type = "token-load-scorer"
    Params = TokenLoadScorerParams

    def __init__(self, params: TokenLoadScorerParams, context: epp.PluginContext) -> None:
        super().__init__(params, context)
        _, self._in_flight = column_names(params.in_flight_load_producer_name)
        weight = params.non_text_token_weight
        self._surcharge = weight - 1.0 if weight > 0 else 0.0
        self._uncached = epp.DataKey(epp.UNCACHED_TOKENS, params.in_flight_load_producer_name)

    @property
    def consumes(self) -> Sequence[epp.DataKey]:
        return (epp.DataKey(epp.INFLIGHT_LOAD, self.params.in_flight_load_producer_name), self._uncached)

    def score(self, request: epp.InferenceRequest, endpoints: epp.Endpoints) -> epp.Scores:
        mine = endpoints.column(self._uncached) if endpoints.has(self._uncached) else request.input_tokens
        if self._surcharge and request.prompt is not None and request.prompt.features:
            mine = mine + self._surcharge * _uncached_media(request.prompt, np.broadcast_to(mine, len(endpoints)))
        scores: epp.Scores = endpoints.column(self._in_flight) + mine
        scores *= -1.0 / self.params.queue_threshold_tokens
        scores += 1.0
        return np.maximum(scores, 0.0, out=scores)


def _uncached_media(prompt: epp.Prompt, uncached: epp.FloatArray) -> epp.FloatArray:
    """Tokens of media per candidate that lie behind what it has cached of the prompt.

    Of several prompts it is not known which of them the cached tokens belong to: then all media count.
    """
    one = len(prompt.data) == 1
    cached = np.maximum(prompt.tokens - uncached, 0.0) if one else np.zeros(len(uncached))
    media: epp.FloatArray = np.zeros(len(uncached))
    for feature in prompt.features:
        media += np.clip(feature.offset + feature.length - cached, 0.0, feature.length)
    return media
