"""`pick-ages`: how old the scraped values of picked endpoints were at the pick. For benchmarks.

`/debug/plugins/state` shows `picks` and percentiles in milliseconds over the last `keep` picks, since the last look at
it. Parameters: `keep`. It scores nothing, so it belongs to no profile.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np

from epp.api import InferenceRequest, Params, Plugin, PluginContext, SchedulingResult


class PickAgesParams(Params, frozen=True):
    """How many picks count."""

    keep: int = 100_000


class PickAges(Plugin[PickAgesParams]):
    """Records `endpoints.age` of what was picked."""

    type = "pick-ages"
    Params = PickAgesParams

    def __init__(self, params: PickAgesParams, context: PluginContext) -> None:
        super().__init__(params, context)
        self._ages: deque[float] = deque(maxlen=params.keep)

    def on_picked(self, request: InferenceRequest, result: SchedulingResult) -> None:
        target = result.target
        scraped_at = self.context.table.columns["scraped_at"]
        self._ages.append(target.candidates.now - float(scraped_at[target.rows[0]]))

    def dump_state(self) -> Any:
        ages = np.array(self._ages) * 1e3
        self._ages.clear()
        if not ages.size:
            return {"picks": 0}
        p50, p99, most = np.percentile(ages, (50, 99, 100)).tolist()
        return {"picks": int(ages.size), "p50": p50, "p99": p99, "max": most}
