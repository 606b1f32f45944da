"""`prefix-cache-scorer`: prefers servers that hold the beginning of the prompt in their KV cache.

When to use it: always, for chat and agents; weigh it against load so that a popular prefix does not pile up.

Score: (1 - w) * match / total + w * min(1, match * block size / scale)^2, with match in blocks; 0 without a match.

Parameters: `matchLengthWeight` w (0, up to 1): how much the absolute length counts; `matchLengthScaleTokens` (8192):
the length that counts in full; `prefixMatchInfoProducerName` (approx-prefix-cache-producer): whose matches are read.

Metrics: those of the producer. Failure: no match information (an opaque body) scores 0 for everybody.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import msgspec
import numpy as np

import epp


class PrefixCacheScorerParams(epp.Params, frozen=True):
    """See the module."""

    match_length_weight: Annotated[float, msgspec.Meta(ge=0, le=1, description="weight of the absolute length")] = 0.0
    match_length_scale_tokens: Annotated[int, msgspec.Meta(ge=1, description="tokens that count in full")] = 8192
    prefix_match_info_producer_name: Annotated[str, msgspec.Meta(description="producer whose matches are read")] = (
        "approx-prefix-cache-producer"
    )


class PrefixCacheScorer(epp.Scorer[PrefixCacheScorerParams]):
    """Share of the prompt that a server holds."""

    type = "prefix-cache-scorer"
    Params = PrefixCacheScorerParams

    @property
    def consumes(self) -> Sequence[epp.DataKey]:
        return (epp.DataKey(epp.PREFIX_CACHE_MATCH, self.params.prefix_match_info_producer_name),)

    def score(self, request: epp.InferenceRequest, endpoints: epp.Endpoints) -> epp.Scores:
        match = epp.prefix_match(request, endpoints, self.params.prefix_match_info_producer_name)
        if match is None or match.total_blocks == 0:
            return np.zeros(len(endpoints))
        weight = self.params.match_length_weight
        if not weight and match.blocks.size <= epp.FEW:
            return np.array([blocks / match.total_blocks for blocks in match.blocks.tolist()])
        scores: epp.Scores = match.blocks / match.total_blocks
        if weight:
            tokens = match.blocks * match.block_size_tokens
            length = np.minimum(1.0, tokens / self.params.match_length_scale_tokens) ** 2
            scores = (1.0 - weight) * scores + weight * length
        return scores
