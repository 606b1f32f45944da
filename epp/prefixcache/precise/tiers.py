"""Tiers of a server's cache and what a block in each is worth."""

from __future__ import annotations

from collections.abc import Mapping

DEFAULT_WEIGHTS: Mapping[str, float] = {"gpu": 1.0, "cpu": 0.8}
"""Those of llm-d-router: loading a block from host memory costs about a fifth of what it saves."""

UNKNOWN_WEIGHT = 1.0
ALSO_CALLED: Mapping[str, str] = {
    "cpu_pinned": "cpu",
    "cpu_tier1": "cpu",
    "cpu_tier2": "storage",
    "disk": "storage",
    "external": "storage",
}
"""Names of SGLang, of both of its schemas, for what vLLM calls otherwise."""

SPECULATIVE = "speculative"
RESTORED = "restored "
"""In front of a tier's name: as a snapshot says, not confirmed by events. Worth the same."""

MAX_TIERS = 32
"""Names of tiers come from the network: beyond so many, the rest share one."""

OTHER = "other"


def weight_of(name: str, weights: Mapping[str, float]) -> float:
    """Worth of a block in a tier; `weights` by lower-case name, the tier's own or what it is also called."""
    tier = name.lower().removeprefix(RESTORED)
    own = weights.get(tier)
    return weights.get(ALSO_CALLED.get(tier, tier), UNKNOWN_WEIGHT) if own is None else own


class Tiers:
    """Numbers for tier names, in the order in which they come. `weights` by lower-case name; 1.0 for others."""

    def __init__(self, weights: Mapping[str, float] = DEFAULT_WEIGHTS) -> None:
        self._weights = {name.lower(): weight for name, weight in weights.items()}
        self.names: list[str] = []
        self.weights: list[float] = []
        self._numbers: dict[str, int] = {}

    def known(self, name: str) -> int | None:
        """The tier's number if it has one."""
        return self._numbers.get(name)

    def number(self, name: str) -> int:
        """The tier's number; a new one for a new name."""
        number = self._numbers.get(name)
        if number is None:
            if len(self.names) >= MAX_TIERS and name != OTHER:
                return self.number(OTHER)
            number = self._numbers[name] = len(self.names)
            self.names.append(name)
            self.weights.append(weight_of(name, self._weights))
        return number
