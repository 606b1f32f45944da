"""`always-disagg-multimodal-decider`: every request with an image, video or audio gets servers that encode it.

When to use it: as `deciders.encode` of `disagg-profile-handler`, with encode servers in the pool.

Parameters: none. Metrics: `disagg_fallback_total` with reason `no-tokens`. Failure: a request that nobody tokenised (a
body no parser understood) counts as one without media, and in that metric.
"""

from __future__ import annotations

from collections.abc import Sequence

import epp
from epp_plugins.profiles.disagg_metrics import NO_TOKENS, Fallbacks


class AlwaysDisaggMultimodalDecider(epp.Decider[epp.NoParams]):
    """Yes to media."""

    type = "always-disagg-multimodal-decider"

    def __init__(self, params: epp.NoParams, context: epp.PluginContext) -> None:
        super().__init__(params, context)
        self._fallbacks = Fallbacks(self)

    @property
    def consumes(self) -> Sequence[epp.DataKey]:
        return (epp.DataKey(epp.TOKENIZED_PROMPT, epp.ANY_PRODUCER),)

    def disaggregate(self, request: epp.InferenceRequest, decode: epp.ProfileResult | None) -> bool:
        prompt = request.prompt
        if prompt is None:
            self._fallbacks.count(NO_TOKENS)
            return False
        return bool(prompt.features)
