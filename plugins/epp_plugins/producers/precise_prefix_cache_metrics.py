"""What the precise producer tells about its index, its publishers and its predictions."""

from __future__ import annotations

from typing import Any

from epp.kvevents.settings import ReceiverStats
from epp.prefixcache.precise.index import PreciseIndex

_LABELS = ("plugin_name", "plugin_type")
_ERRORS = [-4096, -512, -64, -1, 0, 63, 511, 4095]
_RECEIVED = (
    ("messages", "Messages received from publishers of KV events."),
    ("gaps", "Gaps in the sequence numbers of publishers of KV events."),
    ("lost", "Messages of publishers of KV events that no replay brought back."),
    ("restarts", "Restarts of publishers of KV events."),
    ("replays", "Replays asked for."),
    ("replays_failed", "Replays that failed."),
    ("bad_frames", "Messages from publishers of KV events that have not the frames of one."),
    ("unknown_topics", "Messages to the bound socket whose topic names no endpoint that is known."),
    ("sink_errors", "Batches of KV events that the index refused by a defect."),
)
_INDEXED = (
    ("stored", "Blocks stored, as events told."),
    ("removed", "Blocks removed, as events told."),
    ("moved", "Blocks that came into another tier, as events told."),
    ("copies", "Further copies of blocks that their server held already."),
    ("orphans", "Blocks left out because their parent is not known."),
    ("unknown_removals", "Removals of blocks that are not known."),
    ("conflicts", "Blocks left out because their engine hash is known for another block."),
    ("malformed", "Events left out because their parts do not fit together."),
)
# llm-d-router's from 0.005 on; below, where nearly all are, ours.
_LOOKUPS = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class IndexMetrics:
    """What happens in the index, under llm-d-router's names. They have no labels: several instances add up."""

    def __init__(self, registry: Any) -> None:
        def counter(name: str, text: str) -> Any:
            return registry.counter(f"kv_cache_index_{name}_total", text).labels()

        self.admissions = counter("admissions", "Blocks that came into the index.")
        self.evictions = counter("evictions", "Blocks that left the index, as events told or for want of room.")
        self._requests = counter("lookup_requests", "Prompts that were looked up.")
        self._hits = counter("lookup_hits", "Blocks from the start of the prompt that the best endpoint held.")
        self._most = counter("max_pod_hit_count", "The same as lookup_hits, under its other name.")
        self._latency = registry.histogram(
            "kv_cache_index_lookup_latency_seconds", "Seconds that a look-up took.", _LOOKUPS
        ).labels()

    def looked_up(self, most: float, seconds: float) -> None:
        """One prompt; `most`: blocks of it that the best endpoint holds."""
        self._requests.inc()
        self._hits.inc(most)
        self._most.inc(most)
        self._latency.observe(seconds)


class PreciseMetrics:
    """The children of one instance, looked up once. `details`: with what happens inside the index."""

    def __init__(self, registry: Any, name: str, kind: str, *, details: bool) -> None:
        values = (name, kind)

        def gauge(metric: str, text: str) -> Any:
            return registry.gauge(metric, text, _LABELS).labels(*values)

        def counter(metric: str, text: str) -> Any:
            return registry.counter(metric, text, _LABELS).labels(*values)

        self._size = gauge("prefix_indexer_size", "Blocks in the prefix index, summed over the endpoints.")
        self._bytes = gauge("prefix_indexer_bytes", "Estimated memory of the prefix index in bytes.")
        self._publishers = gauge("kv_event_publishers", "Publishers of KV events that are followed.")
        self._connected = gauge("kv_event_publishers_connected", "Publishers of KV events with a connection.")
        self._lag = gauge("kv_event_lag_seconds", "Longest time from a publisher's stamp to our reading.")
        self._evicted = counter("prefix_index_evicted_blocks_total", "Blocks that the bounds of the index have cost.")
        self._estimated = counter(
            "prefix_index_estimated_prompts_total", "Prompts without real token ids, for which nothing can be found."
        )
        self._errors = registry.counter(
            "kv_event_errors_total",
            "Messages (batch, too_long) and events (event) that could not be read, and were left out.",
            (*_LABELS, "reason"),
        )
        self._skipped = {
            event: registry.counter(
                f"kv_cache_events_{name}_skipped_total",
                f"{event} events of cache groups that are not indexed.",
                ("cache_kind", "reason"),
            )
            for event, name in (("BlockStored", "stores"), ("BlockRemoved", "removals"))
        }
        self._suppressed = registry.counter(
            "kv_cache_events_dedup_removed_hashes_suppressed_total",
            "Hashes in removals that took one copy of a block, of which the server holds more.",
        ).labels()
        self._forwarded = registry.counter(
            "kv_cache_events_dedup_removed_hashes_forwarded_total", "All other hashes in removals, known or not."
        ).labels()
        self.index = IndexMetrics(registry) if details else None
        self._values = values
        self._received = {key: counter(f"kv_event_{key}_total", text) for key, text in _RECEIVED}
        self._indexed = {key: counter(f"prefix_index_{key}_total", text) for key, text in (_INDEXED if details else ())}
        self._ratio = registry.histogram(
            "prefix_indexer_hit_ratio",
            "Share of the prompt's blocks that the chosen endpoint held.",
            [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1],
            _LABELS,
        ).labels(*values)
        self._hit_bytes = registry.histogram(
            "prefix_indexer_hit_bytes",
            "Length of the prefix that the chosen endpoint held, in bytes (4 per token).",
            [0, *(16 << n for n in range(13))],
            _LABELS,
        ).labels(*values)
        self._error = registry.histogram(
            "prefix_prediction_error_tokens",
            "Cached tokens that were predicted less those that the server reported.",
            _ERRORS,
            _LABELS,
        ).labels(*values)
        self._last: dict[str, float] = {}

    def hit(self, blocks: float, total: int, block_size: int) -> None:
        """What the chosen endpoint held."""
        self._ratio.observe(blocks / total)
        self._hit_bytes.observe(blocks * block_size * 4)

    def error(self, tokens: int) -> None:
        """Predicted less reported tokens of one request."""
        self._error.observe(tokens)

    def estimated(self) -> None:
        """A prompt without real token ids."""
        self._estimated.inc()

    def update(self, index: PreciseIndex, received: ReceiverStats) -> None:
        """Bring gauges and counters up to date."""
        self._size.set(index.blocks.count)
        self._bytes.set(index.blocks.size_bytes)
        self._publishers.set(received.publishers)
        self._connected.set(received.connected)
        self._lag.set(received.lag)
        self._advance("evicted", self._evicted, index.blocks.evicted)
        for key, child in self._received.items():
            self._advance(key, child, getattr(received, key))
        for reason, count in received.decode.errors.items():
            self._advance(f"error {reason}", self._errors.labels(*self._values, reason), count)
        for (event, kind, reason), count in received.decode.skipped.items():
            child = self._skipped[event].labels(kind, reason)
            self._advance(f"skipped {event} {kind} {reason}", child, count)
        self._advance("suppressed", self._suppressed, index.counters.suppressed)
        self._advance("forwarded", self._forwarded, index.counters.forwarded)
        if self.index is not None:
            self._advance("admissions", self.index.admissions, index.counters.stored)
            self._advance("evictions", self.index.evictions, index.counters.removed + index.blocks.evicted)
        for key, child in self._indexed.items():
            self._advance(f"index {key}", child, getattr(index.counters, key))

    def _advance(self, key: str, child: Any, value: float) -> None:
        before = self._last.get(key, 0.0)
        if value > before:
            child.inc(value - before)
            self._last[key] = value
