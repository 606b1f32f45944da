"""One scheduling profile: filters in order, the weighted sum of the scorers, one picker."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from epp.api.endpoints import Endpoints, FloatArray
from epp.api.errors import ResourceExhausted
from epp.api.plugin import Clock, Filter, Picker, ProfileResult, Scorer, Scores
from epp.api.request import InferenceRequest
from epp.scheduling.guard import Guarded, PluginTimings
from epp.scheduling.traced import step, tell_filtered, tell_scored, tell_top
from epp.telemetry import tracing
from epp.telemetry.tracing import Span


class SchedulingProfile:
    """`weights` go with `scorers`. The result says what every scorer thought, so that a decision can be explained."""

    def __init__(
        self,
        name: str,
        *,
        filters: Sequence[Filter[Any]],
        scorers: Sequence[tuple[Scorer[Any], float]],
        picker: Picker[Any],
        timings: PluginTimings,
        clock: Clock,
    ) -> None:
        self.name = name
        self._filters = [Guarded(f, f.filter, "Filter", timings, clock) for f in filters]
        self._scorers = [(Guarded(s, s.score, "Scorer", timings, clock), weight) for s, weight in scorers]
        self._picker = Guarded(picker, picker.pick, "Picker", timings, clock)

    def run(self, request: InferenceRequest, endpoints: Endpoints) -> ProfileResult:
        """Choose among `endpoints`; `ResourceExhausted` when the filters leave none."""
        span = request.span
        if span is None:
            return self._run(request, endpoints, None)
        with step(span, tracing.PROFILE) as profile:
            profile.set(tracing.PROFILE_NAME, self.name)
            return self._run(request, endpoints, profile)

    def _run(self, request: InferenceRequest, endpoints: Endpoints, span: Span | None) -> ProfileResult:
        if span is None:
            candidates = self._filter(request, endpoints)
            scores, by_scorer = self._score(request, candidates, None)
            positions = self._picker.run(request, candidates, scores)
        else:
            with step(span, tracing.FILTERS) as filters:
                candidates = self._filter(request, endpoints)
                tell_filtered(filters, endpoints, candidates)
            with step(span, tracing.SCORING) as scoring:
                scores, by_scorer = self._score(request, candidates, scoring)
            with step(span, tracing.PICK) as pick:
                positions = self._picker.run(request, candidates, scores)
                tell_top(pick, candidates, scores)
        if positions is None or len(positions) == 0:
            # The picker failed (counted): the best score is what any picker would have to justify not taking.
            positions = [int(scores.argmax())]
        chosen = [int(position) for position in positions]
        rows = candidates.rows
        return ProfileResult(
            profile=self.name,
            picked=tuple(candidates[position] for position in chosen),
            rows=tuple(int(rows[position]) for position in chosen),
            candidates=candidates,
            scores=scores,
            by_scorer=by_scorer,
        )

    def _filter(self, request: InferenceRequest, candidates: Endpoints) -> Endpoints:
        for guarded in self._filters:
            keep = guarded.run(request, candidates)
            if keep is None:
                continue
            if keep.shape != candidates.rows.shape or keep.dtype != np.bool_:
                guarded.failed(
                    ValueError(f"filter returned {keep.dtype}{keep.shape}, expected bool({len(candidates)},)")
                )
                continue
            if not keep.all():
                candidates = candidates.take(keep)
                if len(candidates) == 0:
                    raise ResourceExhausted(
                        f"profile {self.name}: no endpoint left after filter {guarded.plugin.name}",
                        reason="rejected-saturated",
                    )
        return candidates

    def _score(
        self, request: InferenceRequest, candidates: Endpoints, span: Span | None
    ) -> tuple[FloatArray, dict[str, Scores]]:
        total = np.zeros(len(candidates))
        by_scorer: dict[str, Scores] = {}
        for guarded, weight in self._scorers:
            raw = guarded.run(request, candidates)
            if raw is None:
                continue
            if raw.shape != total.shape:
                guarded.failed(ValueError(f"scorer returned shape {raw.shape}, expected {total.shape}"))
                continue
            by_scorer[guarded.plugin.name] = raw
            if span is not None:
                tell_scored(span, guarded.plugin.type, guarded.plugin.name, weight, raw)
            total += weight * _known(np.minimum(np.maximum(raw, 0.0), 1.0))
        return total, by_scorer


def _known(scores: Scores) -> FloatArray:
    """Scores with NaN (no data) replaced by the mean of the others, so that it speaks neither for nor against.

    With no data at all the scorer has no say: zeros.
    """
    if not np.isnan(scores.sum()):
        return scores
    missing = np.isnan(scores)
    neutral = 0.0 if missing.all() else float(scores[~missing].mean())
    return np.where(missing, neutral, scores)
