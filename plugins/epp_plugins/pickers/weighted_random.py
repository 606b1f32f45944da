"""`weighted-random-picker`: chance, in proportion to the scores: twice the score is picked twice as often.

When to use it: with several picker replicas, or scores that lag behind: not everybody runs to the one best server.

What it does: draws without replacement, each draw in proportion to the scores that are left. That is the distribution
of A-Res (Efraimidis and Spirakis 2006: the largest U^(1/score)), which llm-d-router computes with a random number for
every candidate; one draw here needs one. A candidate with a score of 0 or less is named only when the others are used
up; when all scores are 0 or less, everybody is equally likely.

Parameters: `maxNumOfEndpoints` (1): how many endpoints to name, in the order they were drawn.

Metrics: none. Failure: cannot fail on a non-empty list.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import msgspec
import numpy as np

import epp


class WeightedRandomPickerParams(epp.Params, frozen=True):
    """See the module."""

    max_num_of_endpoints: Annotated[int, msgspec.Meta(ge=1, description="endpoints to name")] = 1


class WeightedRandomPicker(epp.Picker[WeightedRandomPickerParams]):
    """Random choice weighted by score."""

    type = "weighted-random-picker"
    Params = WeightedRandomPickerParams

    def pick(
        self, request: epp.InferenceRequest, endpoints: epp.Endpoints, scores: epp.FloatArray
    ) -> Sequence[int] | epp.IntArray:
        weights = np.maximum(scores, 0.0)
        wanted = min(self.params.max_num_of_endpoints, len(endpoints))
        drawn: list[int] = []
        while len(drawn) < wanted:
            position = self._draw(weights)
            if position is None:
                rest = [position for position in range(len(endpoints)) if position not in drawn]
                return drawn + self.context.rng.sample(rest, wanted - len(drawn))
            drawn.append(position)
            weights[position] = 0.0
        return drawn

    def _draw(self, weights: epp.FloatArray) -> int | None:
        """A position in proportion to its weight, None when no weight is left."""
        until = weights.cumsum()
        total = float(until[-1])
        if total <= 0.0:
            return None
        position = int(until.searchsorted(self.context.rng.random() * total, side="right"))
        if position == len(until):  # the product was rounded up to the total: the last one that has weight
            position = int(until.searchsorted(total, side="left"))
        return position
