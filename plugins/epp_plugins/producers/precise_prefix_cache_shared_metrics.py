"""What the precise producer tells about the index that it shares with others."""

from __future__ import annotations

from typing import Any

from epp.prefixcache.shared.index import SharedIndex

_LABELS = ("plugin_name", "plugin_type")
OUTCOMES = ("hit", "miss", "partial", "late", "failed", "busy", "down")
WRITES = ("written", "removed", "orphans", "malformed", "refused")


class SharedMetrics:
    """The children of one instance, looked up once."""

    def __init__(self, registry: Any, name: str, kind: str) -> None:
        values = (name, kind)

        def gauge(metric: str, text: str) -> Any:
            return registry.gauge(metric, text, _LABELS).labels(*values)

        def counter(metric: str, text: str, label: str, wanted: tuple[str, ...]) -> dict[str, Any]:
            made = registry.counter(metric, text, (*_LABELS, label))
            return {each: made.labels(*values, each) for each in wanted}

        self._up = gauge(
            "prefix_index_shared_up", "Whether the shared prefix index answers (1), or the local one is alone (0)."
        )
        self._pending = gauge(
            "prefix_index_shared_pending_bytes", "Events that wait to be written to the shared index, in bytes."
        )
        self._errors = registry.counter(
            "prefix_index_shared_errors_total", "Exchanges with the shared index that failed, lookups apart.", _LABELS
        ).labels(*values)
        self._writes = counter(
            "prefix_index_shared_writes_total",
            "Blocks for the shared index, by what became of them.",
            "outcome",
            (*WRITES, "dropped"),
        )
        self._lookups = counter(
            "prefix_index_shared_lookups_total", "Lookups in the shared index by outcome.", "outcome", OUTCOMES
        )
        self._seconds = registry.histogram(
            "prefix_index_shared_lookup_seconds",
            "How long requests waited for the shared index.",
            [0.0005, 0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.05, 0.1],
            _LABELS,
        ).labels(*values)
        self._last: dict[str, int] = {}

    def took(self, seconds: float) -> None:
        """One lookup."""
        self._seconds.observe(seconds)

    def update(self, index: SharedIndex) -> None:
        """Bring gauges and counters up to date."""
        self._up.set(float(index.up))
        self._pending.set(index.pending.bytes)
        self._advance("errors", self._errors, index.stats.errors)
        for outcome in WRITES:
            self._advance(outcome, self._writes[outcome], getattr(index.stats, outcome))
        self._advance("dropped", self._writes["dropped"], index.pending.dropped)
        for outcome, child in self._lookups.items():
            self._advance(f"lookup {outcome}", child, index.stats.lookups.get(outcome, 0))

    def _advance(self, key: str, child: Any, value: int) -> None:
        before = self._last.get(key, 0)
        if value > before:
            child.inc(value - before)
            self._last[key] = value
