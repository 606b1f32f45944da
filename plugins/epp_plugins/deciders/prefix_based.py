"""`prefix-based-pd-decider`: prompts of which the decode server would have to read much go to a prefill server.

What it does: with `input` tokens in the prompt, of which the chosen decode server holds `cached blocks * block size`,
a prefill server is asked for when

    input >= promptTokens  and  input >= nonCachedTokens  and  input - cached >= nonCachedTokens > 0

Cached blocks count in whole, in whatever tier they are.

When to use it: as `deciders.prefill` of `disagg-profile-handler`. Handing over a prompt costs a transfer of its KV
blocks and a second queue; below some number of tokens it is quicker to read them beside the answers under way.

Parameters:
- `nonCachedTokens` (0): tokens to be read from which the transfer pays; 0: never, which is said at start.
- `promptTokens` (0): prompts shorter than this are never handed over, cached or not.
- `prefixMatchInfoProducerName`: whose matches are read; empty: those of the one producer there is, approximate or
  precise. With several the start fails until one is named.

Metrics: `disagg_fallback_total` by reason. Failure: a request that nobody tokenised (`no-tokens`) stays with its decode
server. Without match information (`no-prefix-info`) nothing counts as cached, so that the length alone decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import msgspec

import epp
from epp_plugins.profiles.disagg_metrics import NO_PREFIX_INFO, NO_TOKENS, Fallbacks


class PrefixBasedPDDeciderParams(epp.Params, frozen=True):
    """See the module."""

    non_cached_tokens: Annotated[int, msgspec.Meta(ge=0, description="tokens to read that pay; 0: never")] = 0
    prompt_tokens: Annotated[int, msgspec.Meta(ge=0, description="shorter prompts stay")] = 0
    prefix_match_info_producer_name: Annotated[
        str, msgspec.Meta(description="producer whose matches are read; empty: the only one")
    ] = epp.ANY_PRODUCER


class PrefixBasedPDDecider(epp.Decider[PrefixBasedPDDeciderParams]):
    """Yes to prompts that are long and not cached."""

    type = "prefix-based-pd-decider"
    Params = PrefixBasedPDDeciderParams

    def __init__(self, params: PrefixBasedPDDeciderParams, context: epp.PluginContext) -> None:
        super().__init__(params, context)
        self._fallbacks = Fallbacks(self)
        if not params.non_cached_tokens:
            context.log.warning("%s: nonCachedTokens is 0, so no prompt ever goes to a prefill server", self.name)

    @property
    def consumes(self) -> Sequence[epp.DataKey]:
        if not self.params.non_cached_tokens:
            return ()
        return (
            epp.DataKey(epp.TOKENIZED_PROMPT, epp.ANY_PRODUCER),
            epp.DataKey(epp.PREFIX_CACHE_MATCH, self.params.prefix_match_info_producer_name),
        )

    def disaggregate(self, request: epp.InferenceRequest, decode: epp.ProfileResult | None) -> bool:
        params = self.params
        threshold = params.non_cached_tokens
        if not threshold or decode is None:
            return False
        prompt = request.prompt
        if prompt is None:
            self._fallbacks.count(NO_TOKENS)
            return False
        if prompt.tokens < max(threshold, params.prompt_tokens):
            return False
        return prompt.tokens - self._cached(request, decode) >= threshold

    def _cached(self, request: epp.InferenceRequest, decode: epp.ProfileResult) -> int:
        """Tokens of the prompt that the decode server holds."""
        candidates = decode.candidates
        match = epp.prefix_match(request, candidates, self.params.prefix_match_info_producer_name)
        if match is None:
            self._fallbacks.count(NO_PREFIX_INFO)
            return 0
        position = candidates.position(decode.rows[0])
        return int(match.cached_blocks[position]) * match.block_size_tokens
