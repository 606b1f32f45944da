"""One scheduling profile: filters in order, the weighted sum of the scorers, one picker."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from epp.api.endpoints import FEW, Endpoint, Endpoints, FloatArray
from epp.api.errors import ResourceExhausted
from epp.api.plugin import Clock, Filter, Picker, ProfileResult, Scorer, Scores
from epp.api.request import InferenceRequest
from epp.scheduling.guard import Guarded, PluginTimings
from epp.scheduling.traced import step, tell_filtered, tell_scored, tell_top
from epp.telemetry import tracing
from epp.telemetry.tracing import Span

_NUMBERS = "fiub"
"""Kinds of numpy arrays that count as scores."""


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
        if span is not None:
            with step(span, tracing.PROFILE) as profile:
                profile.set(tracing.PROFILE_NAME, self.name)
                return self._result(*self._traced(request, endpoints, profile))
        candidates = self._filter(request, endpoints) if self._filters else endpoints
        scores, by_scorer = self._score(request, candidates, None)
        return self._result(candidates, scores, by_scorer, self._picker.run_with(request, candidates, scores))

    def _traced(
        self, request: InferenceRequest, endpoints: Endpoints, span: Span
    ) -> tuple[Endpoints, FloatArray, dict[str, Scores], Any]:
        with step(span, tracing.FILTERS) as filters:
            candidates = self._filter(request, endpoints)
            tell_filtered(filters, endpoints, candidates)
        with step(span, tracing.SCORING) as scoring:
            scores, by_scorer = self._score(request, candidates, scoring)
        with step(span, tracing.PICK) as pick:
            positions = self._picker.run_with(request, candidates, scores)
            tell_top(pick, candidates, scores)
        return candidates, scores, by_scorer, positions

    def _result(
        self, candidates: Endpoints, scores: FloatArray, by_scorer: dict[str, Scores], positions: Any
    ) -> ProfileResult:
        rows = candidates.rows
        known = candidates.table.endpoints
        picked: list[Endpoint] = []
        picked_rows: list[int] = []
        try:
            for position in positions:
                row = rows.item(position)
                endpoint = known[row]
                if endpoint is None:
                    raise LookupError(f"the endpoint at {position} has been removed")
                picked.append(endpoint)
                picked_rows.append(row)
            if not picked:
                raise LookupError("there are none")
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # what a picker returns is as foreign as the picker
            if positions is None:
                self._picker.returned_nothing("positions")
            else:
                self._picker.failed(ValueError(f"picker returned {positions!r}, expected positions: {error}"))
            # The best score is what any picker would have to justify not taking.
            best = int(scores.argmax())
            picked, picked_rows = [candidates[best]], [rows.item(best)]
        return ProfileResult(
            profile=self.name,
            picked=tuple(picked),
            rows=tuple(picked_rows),
            candidates=candidates,
            scores=scores,
            by_scorer=by_scorer,
        )

    def _filter(self, request: InferenceRequest, candidates: Endpoints) -> Endpoints:
        for guarded in self._filters:
            keep = guarded.run(request, candidates)
            if keep is None:
                guarded.returned_nothing("an array of bool")
                continue
            try:
                fits = keep.shape == candidates.rows.shape and keep.dtype == np.bool_
            except Exception:
                fits = False
            if not fits:
                guarded.failed(
                    ValueError(f"filter returned {_described(keep)}, expected a numpy array: bool({len(candidates)},)")
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
        shape = candidates.rows.shape
        by_scorer: dict[str, Scores] = {}
        known: list[Scores] = []
        weights: list[float] = []
        for guarded, weight in self._scorers:
            raw = guarded.run(request, candidates)
            if raw.__class__ is not np.ndarray or raw.shape != shape or raw.dtype.kind not in _NUMBERS:
                raw = self._checked(guarded, raw, shape)
                if raw is None:
                    continue
            by_scorer[guarded.name] = raw
            known.append(raw)
            weights.append(weight)
            if span is not None:
                tell_scored(span, guarded.plugin.type, guarded.name, weight, raw)
        if not weights:
            return np.zeros(shape), by_scorer
        return _weighted_sum(known, weights), by_scorer

    def _checked(self, guarded: Guarded, raw: Any, shape: tuple[int, ...]) -> Scores | None:
        """A result that is not plainly an array of numbers: as it is when it will do, else None, and counted."""
        if raw is None:
            guarded.returned_nothing("an array of scores")
            return None
        try:
            fits = raw.shape == shape and raw.dtype.kind in _NUMBERS and not isinstance(raw, np.ma.MaskedArray)
        except Exception:
            fits = False
        if not fits:
            guarded.failed(
                ValueError(f"scorer returned {_described(raw)}, expected a numpy array: float64({shape[0]},)")
            )
            return None
        scores: Scores = raw
        return scores


def _described(result: Any) -> str:
    """What a plugin returned, in the form of what was expected."""
    return f"{result.dtype}{result.shape}" if isinstance(result, np.ndarray) else f"a {type(result).__name__}"


def _weighted_sum(raw: list[Scores], weights: list[float]) -> FloatArray:
    """All scorers in one go, because a numpy call costs as much as ten endpoints in it.

    Column by column the same operations in the same order, unlike a matrix product: endpoints with equal scores get
    equal sums to the last bit, and the picker can tell that they are equal. The loop for few endpoints does just that.
    """
    if raw[0].size <= FEW:
        sums = [0.0] * raw[0].size
        for scores, weight in zip(raw, weights, strict=True):
            told = scores.tolist()
            if not any(told):  # as where nobody has anything of the prompt: it changes no sum
                continue
            if math.isnan(sum(told)):
                break
            sums = [
                total + (score if score < 1.0 else 1.0) * weight if score > 0.0 else total
                for total, score in zip(sums, told, strict=True)
            ]
        else:
            return np.array(sums)
    matrix = np.array(raw)  # (scorers, endpoints), a copy
    np.maximum(matrix, 0.0, out=matrix)
    np.minimum(matrix, 1.0, out=matrix)
    matrix *= np.array(weights)[:, None]
    total: FloatArray = np.add.reduce(matrix, axis=0)
    if math.isnan(np.add.reduce(total)):
        _fill_unknown(matrix)
        total = np.add.reduce(matrix, axis=0)
    return total


def _fill_unknown(matrix: FloatArray) -> None:
    """NaN (no data) becomes the mean of the scorer's others, so that it speaks neither for nor against.

    With no data at all the scorer has no say: zeros.
    """
    for scores in matrix:
        missing = np.isnan(scores)
        if missing.any():
            scores[missing] = 0.0 if missing.all() else scores[~missing].mean()
