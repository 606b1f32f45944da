"""`random-picker`: any of the candidates, all equally likely, whatever the scorers say.

When to use it: as a baseline to compare with, or where filters alone decide.

Parameters: `maxNumOfEndpoints` (1): how many endpoints to name, all different, in random order.

Metrics: none. Failure: cannot fail on a non-empty list.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import msgspec

import epp


class RandomPickerParams(epp.Params, frozen=True):
    """See the module."""

    max_num_of_endpoints: Annotated[int, msgspec.Meta(ge=1, description="endpoints to name")] = 1


class RandomPicker(epp.Picker[RandomPickerParams]):
    """Uniform choice without replacement."""

    type = "random-picker"
    Params = RandomPickerParams

    def pick(
        self, request: epp.InferenceRequest, endpoints: epp.Endpoints, scores: epp.FloatArray
    ) -> Sequence[int] | epp.IntArray:
        candidates = len(endpoints)
        wanted = self.params.max_num_of_endpoints
        if wanted == 1:
            return [self.context.rng.randrange(candidates)]
        return self.context.rng.sample(range(candidates), min(wanted, candidates))
