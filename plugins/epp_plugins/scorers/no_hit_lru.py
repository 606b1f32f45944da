"""`no-hit-lru-scorer`: spreads requests that no server has cached, to the one that got such a request longest ago.

When to use it: beside `prefix-cache-scorer`: cold prompts fill caches, and they should fill them evenly.

What it does: when any candidate holds a part of the prompt, everybody scores 0.5 (no say). Otherwise, with n
candidates: those that never got a cold request come first (the i-th of them scores 1 - i / (n - 1)), then the others,
least recently used first: max(0, 1 - (never used + position) / (n - 1)). A single candidate scores 1. The endpoints
picked for a cold request, by the primary profile and by the profile `prefill`, become the most recently used ones.

Parameters: `lruSize` (1024): endpoints to remember; `prefixMatchInfoProducerName` (approx-prefix-cache-producer): whose
matches are read.

Metrics: none; the state dump shows the order. Failure: without match information every request counts as cold.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
import numpy as np

import epp
from epp_plugins.producers.inflight_load import DEFAULT_PREFIX_PRODUCER

_COLD = "NoHitLRUCold"
_PREFILL = "prefill"
_MAX_DUMPED = 100


class NoHitLRUScorerParams(epp.Params, frozen=True):
    """See the module."""

    lru_size: Annotated[int, msgspec.Meta(ge=1, description="endpoints to remember")] = 1024
    prefix_match_info_producer_name: Annotated[
        str, msgspec.Meta(min_length=1, description="producer whose matches are read")
    ] = DEFAULT_PREFIX_PRODUCER


class NoHitLRUScorer(epp.Scorer[NoHitLRUScorerParams]):
    """Least recently used first, for prompts that are cached nowhere."""

    type = "no-hit-lru-scorer"
    Params = NoHitLRUScorerParams

    def __init__(self, params: NoHitLRUScorerParams, context: epp.PluginContext) -> None:
        super().__init__(params, context)
        self._used: OrderedDict[int, None] = OrderedDict()  # rows, least recently used first
        self._cold = epp.DataKey(_COLD, self.name)
        context.table.on_removed(lambda row, _: self._used.pop(row, None))

    @property
    def consumes(self) -> Sequence[epp.DataKey]:
        return (epp.DataKey(epp.PREFIX_CACHE_MATCH, self.params.prefix_match_info_producer_name),)

    def score(self, request: epp.InferenceRequest, endpoints: epp.Endpoints) -> epp.Scores:
        candidates = len(endpoints)
        match = epp.prefix_match(request, endpoints, self.params.prefix_match_info_producer_name)
        if match is not None and match.blocks.any():
            return np.full(candidates, 0.5)
        request.attributes[self._cold] = True
        if candidates == 1:
            return np.ones(1)
        positions = np.full(len(endpoints.table.endpoints), -1.0)
        positions[np.fromiter(self._used, dtype=np.intp, count=len(self._used))] = np.arange(len(self._used))
        ranks: epp.FloatArray = positions[endpoints.rows]
        never = ranks < 0.0
        count = int(np.count_nonzero(never))
        ranks += count
        ranks[never] = np.arange(count)
        return np.maximum(1.0 - ranks / (candidates - 1), 0.0)

    def on_picked(self, request: epp.InferenceRequest, result: epp.SchedulingResult) -> None:
        """The endpoints of a cold request become the most recently used ones."""
        if not request.attributes.pop(self._cold, False):
            return
        for name in dict.fromkeys((result.primary, _PREFILL)):
            profile = result.profiles.get(name)
            if profile is not None and profile.rows:
                self._used[profile.rows[0]] = None
                self._used.move_to_end(profile.rows[0])
        while len(self._used) > self.params.lru_size:
            self._used.popitem(last=False)

    def dump_state(self) -> dict[str, Any]:
        """Endpoints in the order in which they come next."""
        found = [self.context.table.endpoints[row] for row in list(self._used)[:_MAX_DUMPED]]
        return {"leastRecentlyUsed": [e.key for e in found if e is not None], "used": len(self._used)}
