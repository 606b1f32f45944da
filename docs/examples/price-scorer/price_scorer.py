"""`price-scorer`: prefers servers that cost less, as told by a label on each of them.

When to use: pools that mix kinds of GPUs, with a weight below those of load and cache.

Parameters: `label` (which label holds the price), `budget` (the price from which an endpoint scores 0).
Metrics: none of its own. Failure behaviour: an endpoint without the label, or with one that is no number, has no
score; it then counts as average.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
import numpy as np

import epp


class PriceScorer(epp.Scorer["PriceScorer.Params"]):
    """From 1 (free) down to 0 (`budget` per hour, or more)."""

    type = "price-scorer"

    class Params(epp.Params, frozen=True):
        """In the configuration file the names are camelCase."""

        label: Annotated[str, msgspec.Meta(min_length=1, description="label with the price per hour")] = (
            "price-per-hour"
        )
        budget: Annotated[float, msgspec.Meta(gt=0, description="price per hour from which the score is 0")] = 10.0

    def __init__(self, params: PriceScorer.Params, context: epp.PluginContext) -> None:
        super().__init__(params, context)
        self._scores = np.empty(0)  # by row of the endpoint table
        self._version = -1

    def score(self, request: epp.InferenceRequest, endpoints: epp.Endpoints) -> epp.Scores:
        table = endpoints.table
        if table.version != self._version:  # labels change when endpoints do, not with every request
            self._version = table.version
            self._scores = np.array([self._score(endpoint) for endpoint in table.endpoints])
        return self._scores[endpoints.rows]

    def _score(self, endpoint: epp.Endpoint | None) -> float:
        try:
            price = float(endpoint.labels[self.params.label]) if endpoint is not None else np.nan
        except (KeyError, ValueError):
            return np.nan
        return float(np.clip(1.0 - price / self.params.budget, 0.0, 1.0))
