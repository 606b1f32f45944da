"""`precise-prefix-cache-scorer`: deprecated; `precise-prefix-cache-producer` and `prefix-cache-scorer` in one.

When to use it: only for configurations that have it. Write instead:

    - type: precise-prefix-cache-producer
      parameters: {...}                      # those that this scorer has
    - type: prefix-cache-scorer
      parameters: {prefixMatchInfoProducerName: precise-prefix-cache-producer}

What it does: all that the producer does, under this plugin's name; then scores match / total, 0 without a match.

Parameters, metrics and failure behaviour are those of the producer. Consumers can name it as the producer they read.
"""

from __future__ import annotations

import numpy as np

import epp
from epp_plugins.producers.precise_prefix_cache import PrecisePrefixCacheProducer
from epp_plugins.producers.precise_prefix_cache_params import PrecisePrefixCacheParams


class PrecisePrefixCacheScorer(PrecisePrefixCacheProducer, epp.Scorer[PrecisePrefixCacheParams]):
    """Share of the prompt that a server holds, as the servers tell it."""

    type = "precise-prefix-cache-scorer"
    stability = "deprecated"

    def score(self, request: epp.InferenceRequest, endpoints: epp.Endpoints) -> epp.Scores:
        match = epp.prefix_match(request, endpoints, self.name)
        if match is None or match.total_blocks == 0:
            return np.zeros(len(endpoints))
        scores: epp.Scores = match.blocks / match.total_blocks
        return scores
