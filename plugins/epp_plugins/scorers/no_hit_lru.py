"""`no-hit-lru-scorer`: spreads requests that no server has cached, to the one that got such a request longest ago.

When to use it: beside `prefix-cache-scorer`: cold prompts fill caches, and they should fill them evenly.

What it does: when any candidate holds a part of the prompt, everybody scores 0.5 (no say). Otherwise, with n
candidates: those that never got a cold request come first (the i-th of them scores 1 - i / (n - 1)), then the others,
least recently used first: max(0, 1 - (never used + position) / (n - 1)). A single candidate scores 1. The endpoints
picked for a cold request, by the primary profile and by the profile `prefill`, become the most recently used ones.

Parameters: `lruSize` (1024): endpoints to remember; `prefixMatchInfoProducerName` (approx-prefix-cache-producer): whose
matches are read. `prefixPluginType` and `prefixPluginName` are accepted for old configurations and have no effect.

Metrics: none; the state dump shows the order. Failure: without match information every request counts as cold.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
import numpy as np

import epp
from epp_plugins.producers.inflight_load import DEFAULT_PREFIX_PRODUCER

_COLD = "NoHitLRUCold"
_MAX_DUMPED = 100


class NoHitLRUScorerParams(epp.Params, frozen=True):
    """See the module."""

    lru_size: Annotated[int, msgspec.Meta(ge=1, description="endpoints to remember")] = 1024
    prefix_match_info_producer_name: Annotated[
        str, msgspec.Meta(min_length=1, description="producer whose matches are read")
    ] = DEFAULT_PREFIX_PRODUCER
    prefix_plugin_type: Annotated[str, msgspec.Meta(description="deprecated, no effect")] = ""
    prefix_plugin_name: Annotated[str, msgspec.Meta(description="deprecated, no effect")] = ""


class NoHitLRUScorer(epp.Scorer[NoHitLRUScorerParams]):
    """Least recently used first, for prompts that are cached nowhere."""

    type = "no-hit-lru-scorer"
    Params = NoHitLRUScorerParams

    def __init__(self, params: NoHitLRUScorerParams, context: epp.PluginContext) -> None:
        super().__init__(params, context)
        self._order = RowOrder(params.lru_size)
        self._cold = epp.DataKey(_COLD, self.name)
        if params.prefix_plugin_type or params.prefix_plugin_name:
            context.log.warning(
                "prefixPluginType and prefixPluginName have no effect: use prefixMatchInfoProducerName (here: %s)",
                params.prefix_match_info_producer_name,
            )
        context.table.on_removed(lambda row, _: self._order.forget(row))

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
        ranks = self._order.positions(endpoints.rows)
        never = ranks < 0.0
        count = int(np.count_nonzero(never))
        ranks += count
        ranks[never] = np.arange(count)
        return np.maximum(1.0 - ranks / (candidates - 1), 0.0)

    def on_picked(self, request: epp.InferenceRequest, result: epp.SchedulingResult) -> None:
        """The endpoints of a cold request become the most recently used ones."""
        if not request.attributes.pop(self._cold, False):
            return
        self._order.touch(result.target.rows[0])
        if result.prefill is not None:
            self._order.touch(result.prefill.rows[0])

    def dump_state(self) -> dict[str, Any]:
        """Endpoints in the order in which they come next."""
        found = [self.context.table.endpoints[row] for row in self._order.rows()[:_MAX_DUMPED]]
        return {"leastRecentlyUsed": [e.key for e in found if e is not None], "used": len(self._order)}


class RowOrder:
    """The order in which table rows were used, as one array: reading it for a thousand candidates is one selection."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._used = 0
        self._positions: epp.FloatArray = np.full(64, -1.0)  # by row; 0: least recently used; -1: never

    def __len__(self) -> int:
        return self._used

    def positions(self, rows: epp.IntArray) -> epp.FloatArray:
        """The position of each row, -1 for one that was never used (or too long ago to be remembered)."""
        self._reach(int(rows.max()))
        positions: epp.FloatArray = self._positions[rows]
        return positions

    def touch(self, row: int) -> None:
        """Make the row the most recently used one; beyond the limit the least recently used one is forgotten."""
        self.forget(row)
        self._positions[row] = self._used
        self._used += 1
        if self._used > self._limit:
            self.forget(int((self._positions == 0.0).argmax()))

    def forget(self, row: int) -> None:
        """The row counts as never used."""
        self._reach(row)
        position = self._positions[row]
        if position >= 0.0:
            self._positions[row] = -1.0
            self._positions[self._positions > position] -= 1.0
            self._used -= 1

    def rows(self) -> list[int]:
        """All used rows, least recently used first."""
        order: list[int] = self._positions.argsort(kind="stable")[len(self._positions) - self._used :].tolist()
        return order

    def _reach(self, row: int) -> None:
        if row >= len(self._positions):
            more = np.full(max(row + 1, 2 * len(self._positions)) - len(self._positions), -1.0)
            self._positions = np.concatenate([self._positions, more])
