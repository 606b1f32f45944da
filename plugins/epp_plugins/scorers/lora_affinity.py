"""`lora-affinity-scorer`: prefers servers that have the requested LoRA adapter loaded, then those with room for it.

When to use it: when a pool serves several adapters, so that they are not swapped in and out everywhere.

| server | score |
|---|---|
| the adapter has running requests there | 1.0 |
| it can run more adapters than it has active and waiting ones | 0.8 |
| the adapter is waiting there | 0.6 |
| otherwise, or the server tells nothing of adapters | 0 |

Parameters, metrics: none. Failure: a server that was never scraped has no score.
"""

from __future__ import annotations

import numpy as np

import epp


class LoraAffinityScorer(epp.Scorer[epp.NoParams]):
    """Looks for the target model among the adapters of the last scrape."""

    type = "lora-affinity-scorer"

    def score(self, request: epp.InferenceRequest, endpoints: epp.Endpoints) -> epp.Scores:
        model = request.target_model
        scores = np.array([_affinity(info, model) for info in endpoints.attribute(epp.LORA)], dtype=np.float64)
        scores[endpoints.column("scraped_at") == -np.inf] = np.nan
        return scores


def _affinity(info: epp.LoraInfo | None, model: str) -> float:
    if info is None:
        return 0.0
    if model in info.active:
        return 1.0
    if len(info.active) + len(info.waiting) < info.max_active:
        return 0.8
    return 0.6 if model in info.waiting else 0.0
