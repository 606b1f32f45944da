"""The names that metrics had before `llm_d_epp_`, for dashboards and alerts that still ask for them.

Nothing is counted twice: at every scrape the old series are summed up from the new ones over the labels that the old
names do not have. `--legacy-metrics=false` leaves them out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from epp.telemetry.metrics import PREFIX, Child, Histogram, Registry

_MODELS = (("model_name", "model_name"), ("target_model_name", "target_model_name"))
_PLUGIN = tuple((label, label) for label in ("extension_point", "plugin_type", "plugin_name"))
_POOL = (("name", "name"),)
_DECISION = tuple((label, label) for label in ("plugin_type", "model_name", "decision_type"))


@dataclass(frozen=True, slots=True)
class _Twin:
    """`old` shows `new` (without prefix) with the labels (old label, new label)."""

    old: str
    kind: str
    new: str
    labels: tuple[tuple[str, str], ...]


_TWINS = (
    _Twin("inference_objective_request_total", "counter", "request_total", (*_MODELS, ("priority", "priority"))),
    _Twin(
        "inference_objective_request_error_total",
        "counter",
        "request_error_total",
        (*_MODELS, ("error_code", "error_code")),
    ),
    _Twin("inference_objective_request_duration_seconds", "histogram", "request_duration_seconds", _MODELS),
    _Twin("inference_objective_request_sizes", "histogram", "request_size_bytes", _MODELS),
    _Twin("inference_objective_response_sizes", "histogram", "response_size_bytes", _MODELS),
    _Twin("inference_objective_input_tokens", "histogram", "request_input_tokens", _MODELS),
    _Twin("inference_objective_output_tokens", "histogram", "request_output_tokens", _MODELS),
    _Twin("inference_objective_prompt_cached_tokens", "histogram", "request_cached_tokens", _MODELS),
    _Twin("inference_objective_running_requests", "gauge", "request_running", (("model_name", "model_name"),)),
    _Twin(
        "inference_objective_normalized_time_per_output_token_seconds", "histogram", "request_ntpot_seconds", _MODELS
    ),
    _Twin("inference_pool_average_kv_cache_utilization", "gauge", "average_kv_cache_utilization", _POOL),
    _Twin("inference_pool_average_queue_size", "gauge", "average_queue_size", _POOL),
    _Twin("inference_pool_average_running_requests", "gauge", "average_running_requests", _POOL),
    _Twin("inference_pool_ready_pods", "gauge", "ready_endpoints", _POOL),
    _Twin(
        "inference_pool_per_pod_queue_size",
        "gauge",
        "per_endpoint_queue_size",
        (*_POOL, ("model_server_pod", "model_server_endpoint")),
    ),
    _Twin("inference_extension_scheduler_e2e_duration_seconds", "histogram", "scheduler_e2e_duration_seconds", ()),
    _Twin(
        "inference_extension_scheduler_attempts_total",
        "counter",
        "scheduler_attempts_total",
        (
            ("status", "status"),
            ("target_model_name", "target_model_name"),
            ("pod_name", "endpoint_name"),
            ("namespace", "namespace"),
            ("port", "port"),
        ),
    ),
    _Twin("inference_extension_plugin_duration_seconds", "histogram", "plugin_duration_seconds", _PLUGIN),
    _Twin("inference_extension_prefix_indexer_size", "gauge", "prefix_indexer_size", ()),
    _Twin("inference_extension_prefix_indexer_hit_ratio", "histogram", "prefix_indexer_hit_ratio", ()),
    _Twin("inference_extension_prefix_indexer_hit_bytes", "histogram", "prefix_indexer_hit_bytes", ()),
    _Twin("inference_extension_info", "gauge", "info", (("commit", "commit"), ("build_ref", "build_ref"))),
    _Twin(
        "inference_extension_model_rewrite_decisions_total",
        "counter",
        "model_rewrite_decisions_total",
        tuple((label, label) for label in ("model_rewrite_name", "model_name", "target_model")),
    ),
    _Twin(
        "llm_d_inference_scheduler_datalayer_poll_errors_total",
        "counter",
        "datalayer_poll_errors_total",
        (("source_type", "source_type"),),
    ),
    _Twin(
        "llm_d_inference_scheduler_datalayer_extract_errors_total",
        "counter",
        "datalayer_extract_errors_total",
        (("source_type", "source_type"), ("extractor_type", "extractor_type")),
    ),
    _Twin(
        "llm_d_epp_pd_decision_total", "counter", "disagg_decision_total", (("plugin_name", "plugin_name"), *_DECISION)
    ),
    _Twin("llm_d_inference_scheduler_disagg_decision_total", "counter", "disagg_decision_total", _DECISION[1:]),
    _Twin("llm_d_inference_scheduler_pd_decision_total", "counter", "disagg_decision_total", _DECISION[1:]),
    *(
        _Twin(f"kvcache_index_{name}_total", "counter", f"kv_cache_index_{name}_total", ())
        for name in ("admissions", "evictions", "lookup_requests", "lookup_hits", "max_pod_hit_count")
    ),
    *(
        _Twin(f"kvcache_kvevents_{name}_total", "counter", f"kv_cache_events_{name}_total", ())
        for name in ("dedup_removed_hashes_suppressed", "dedup_removed_hashes_forwarded")
    ),
    _Twin("kvcache_index_lookup_latency_seconds", "histogram", "kv_cache_index_lookup_latency_seconds", ()),
)

_Items = Sequence[tuple[tuple[str, ...], Child]]


def add_legacy_metrics(registry: Registry) -> None:
    """Show the old names too. Call once per registry; the new ones may be registered before or after."""
    for twin in _TWINS:
        help = f"[ALPHA] [Deprecated: use {PREFIX}{twin.new}]"
        names = tuple(old for old, _ in twin.labels)
        registry.computed(twin.kind, twin.old, help, names, _items(registry, twin))


def _items(registry: Registry, twin: _Twin) -> Callable[[], _Items]:
    def items() -> _Items:
        source = registry.source(twin.new)
        if source is None:
            return ()
        positions = [source.label_names.index(new) for _, new in twin.labels]
        children = source.children()
        if positions == list(range(len(source.label_names))):
            return children
        groups: dict[tuple[str, ...], list[Child]] = {}
        for values, child in children:
            groups.setdefault(tuple([values[i] for i in positions]), []).append(child)
        return [(values, group[0] if len(group) == 1 else _total(group)) for values, group in groups.items()]

    return items


def _total(children: Sequence[Child]) -> Child:
    first = children[0]
    if isinstance(first, Histogram):
        histogram = Histogram(first.bounds)
        for child in children:
            if isinstance(child, Histogram):
                histogram.add_counts(child.counts, child.sum, child.count)
        return histogram
    total = type(first)()
    total.value = sum(child.value for child in children if not isinstance(child, Histogram))
    return total
