"""`max-score-picker`: the endpoint with the highest weighted sum; equal ones are chosen among at random.

When to use it: the default. With scorers that often tie (a pool without load), chance spreads the requests.

Parameters: `maxNumOfEndpoints` (1): how many endpoints to name, best first. More than one is for gateways that walk a
list (Istio); others fail or choose at random among them.

Metrics: none. Failure: cannot fail on a non-empty list.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import msgspec
import numpy as np

import epp


class MaxScorePickerParams(epp.Params, frozen=True):
    """See the module."""

    max_num_of_endpoints: Annotated[int, msgspec.Meta(ge=1, description="endpoints to name, best first")] = 1


class MaxScorePicker(epp.Picker[MaxScorePickerParams]):
    """Highest score first, ties at random."""

    type = "max-score-picker"
    Params = MaxScorePickerParams

    def pick(
        self, request: epp.InferenceRequest, endpoints: epp.Endpoints, scores: epp.FloatArray
    ) -> Sequence[int] | epp.IntArray:
        wanted = self.params.max_num_of_endpoints
        if wanted == 1 and scores.size <= epp.FEW:
            told = scores.tolist()
            best = max(told)
            if told.count(best) == 1:
                return (told.index(best),)
            equals = [position for position, score in enumerate(told) if score == best]
            # Not `randrange`, which is two functions more: a double has chance enough for so few.
            return (equals[int(self.context.rng.random() * len(equals))],)
        if wanted == 1:
            first = scores.argmax()
            ties = (scores == scores[first]).nonzero()[0]
            return (int(first if ties.size == 1 else ties[int(self.context.rng.random() * ties.size)]),)
        order = np.array(self.context.rng.sample(range(scores.size), scores.size))
        chosen: epp.IntArray = order[np.argsort(-scores[order], kind="stable")][:wanted]
        return chosen
