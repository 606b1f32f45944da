"""What the shared index is told, and what it counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields


@dataclass(slots=True)
class SharedStats:
    """Counters since the start, in blocks but for `lookups` (by outcome), `cleared` (entries) and `errors`."""

    written: int = 0
    removed: int = 0
    orphans: int = 0
    malformed: int = 0
    refused: int = 0
    cleared: int = 0
    errors: int = 0
    lookups: dict[str, int] = field(default_factory=dict)

    def add(self, other: SharedStats) -> None:
        """Add what another counted, lookups apart."""
        for each in fields(self):
            if each.name != "lookups":
                setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))


@dataclass(frozen=True, slots=True)
class SharedSettings:
    """`budget`: seconds that a lookup may take, all in all. `most_blocks`: of a request that are looked up. `ttl`:
    seconds to live of what is written, 0: for ever. `weights`: by tier, lower case."""

    budget: float = 0.005
    most_blocks: int = 1024
    ttl: int = 86_400
    most_pending_bytes: int = 64 << 20
    read_only: bool = False
    weights: Mapping[str, float] = field(default_factory=dict)
