"""Model names that operators map to others, by weight: InferenceModelRewrite. Implements `naming.Rewrites`.

A rule for exactly this model is preferred to one for all models; then the oldest object; then the first rule in it. One
rule decides. Of its targets one is drawn by weight: without any weights all are equal, among weighted ones a
target without a weight is never drawn.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate

import msgspec


class Target(msgspec.Struct, frozen=True):
    """A model to ask for instead, with a share in relation to the others."""

    model: str
    weight: int | None = None


class RewriteRule(msgspec.Struct, frozen=True):
    """`models` empty: all models."""

    targets: tuple[Target, ...]
    models: tuple[str, ...] = ()


class Rewrite(msgspec.Struct, frozen=True):
    """One object. `created` orders objects: RFC 3339 in UTC, as the API server writes it; equal ones by name."""

    name: str
    rules: tuple[RewriteRule, ...]
    created: str = ""

    def model_names(self) -> Iterator[str]:
        """All models that are named, asked for or given."""
        for rule in self.rules:
            yield from rule.models
            for target in rule.targets:
                yield target.model


Decided = Callable[[str, str, str], None]
"""Hears of each decision: name of the rewrite, model asked for, target."""


class _Draw:
    """Targets of one rule, ready to be drawn from."""

    __slots__ = ("_bounds", "_models", "_rng", "rewrite")

    def __init__(self, rewrite: str, targets: tuple[Target, ...], rng: random.Random) -> None:
        weighted = [target for target in targets if target.weight]
        self.rewrite = rewrite
        self._rng = rng
        self._models = [target.model for target in weighted or targets]
        self._bounds = list(accumulate((target.weight or 0) for target in weighted) if weighted else [])

    def draw(self) -> str:
        if len(self._models) == 1:
            return self._models[0]
        if not self._bounds:
            return self._rng.choice(self._models)
        return self._models[bisect_right(self._bounds, self._rng.randrange(self._bounds[-1]))]


class RewriteTable:
    """Replaced as a whole when something changes; a look-up costs one dictionary access."""

    def __init__(self, rng: random.Random, decided: Decided | None = None) -> None:
        self._rng = rng
        self._decided = decided
        self._exact: dict[str, _Draw] = {}
        self._generic: _Draw | None = None
        self.size = 0

    def replace(self, rewrites: Iterable[Rewrite]) -> None:
        """All objects there are."""
        exact: dict[str, _Draw] = {}
        generic: _Draw | None = None
        ordered = sorted(rewrites, key=lambda rewrite: (rewrite.created, rewrite.name))
        for rewrite in ordered:
            for rule in rewrite.rules:
                if not rule.targets:
                    continue
                draw = _Draw(rewrite.name, rule.targets, self._rng)
                for model in rule.models:
                    exact.setdefault(model, draw)
                if not rule.models and generic is None:
                    generic = draw
        self._exact, self._generic = exact, generic
        self.size = len(ordered)

    def target(self, model: str) -> str | None:
        """The model to ask the server for; None: no rule applies."""
        draw = self._exact.get(model) or self._generic
        if draw is None:
            return None
        target = draw.draw()
        if self._decided is not None:
            self._decided(draw.rewrite, model, target)
        return target
