"""Which metrics of which inference engine carry the load facts that the picker needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import msgspec

from epp.api import BASE_COLUMNS, Params
from epp.datalayer.exposition import Metric, MetricSpec, Reading, Sample, labels_of, matches, parse_spec

ENGINE_INDEX = "engine"
"""Label that tells the data-parallel engines behind one port apart."""

_SPEC_HELP = 'metric{label=value,label2="v"}; empty: not read'
Spec = Annotated[str, msgspec.Meta(description=_SPEC_HELP)]


class CustomMetric(Params, frozen=True):
    """A metric of your own, read into the column `attributeKey` of the endpoint table."""

    attribute_key: str
    metric_spec: Spec

    def __post_init__(self) -> None:
        if not self.attribute_key or self.attribute_key in BASE_COLUMNS:
            raise ValueError(f"attributeKey {self.attribute_key!r} is empty or the picker's own: choose another name")
        if parse_spec(self.metric_spec) is None:
            raise ValueError(f"customMetrics {self.attribute_key}: metricSpec is empty")


class EngineConfig(Params, frozen=True):
    """The metrics of one engine. An entry with the name of a built-in engine replaces it as a whole."""

    name: str
    queued_requests_spec: Spec = ""
    running_requests_spec: Spec = ""
    kv_usage_spec: Annotated[str, msgspec.Meta(description=_SPEC_HELP + ". Values from 0 to 1")] = ""
    lora_spec: Annotated[
        str,
        msgspec.Meta(description="info metric with labels max_lora, running_lora_adapters, waiting_lora_adapters"),
    ] = ""
    cache_info_spec: Annotated[str, msgspec.Meta(description="info metric that has the two labels below")] = ""
    cache_block_size_label_name: str = ""
    cache_num_blocks_label_name: str = ""
    cache_block_size_spec: Annotated[str, msgspec.Meta(description="gauge, for engines without an info metric")] = ""
    cache_num_blocks_spec: Annotated[str, msgspec.Meta(description="gauge, for engines without an info metric")] = ""
    custom_metrics: tuple[CustomMetric, ...] = ()

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("engineConfigs: every entry needs a name")
        if self.name == "default":
            raise ValueError("engineConfigs: the name default is reserved; set defaultEngine instead")
        compile_engine(self)


# vLLM before 0.10 told its cache usage under this name.
_OLD_NAMES = {"vllm:kv_cache_usage_perc": MetricSpec("vllm:gpu_cache_usage_perc")}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _sum(values: Sequence[float]) -> float:
    return sum(values)


def _first(values: Sequence[float]) -> float:
    return values[0]


@dataclass(frozen=True, slots=True)
class Gauge:
    """What goes into a column: the first of `metrics` that the page has. `combine` joins several engines."""

    column: str
    metrics: tuple[Metric, ...]
    combine: Callable[[Sequence[float]], float]


class Info:
    """A metric whose labels are the news: `series` gives value and labels of the matching ones."""

    def __init__(self, spec: MetricSpec) -> None:
        self.spec = spec
        self._series = Reading(spec.name, self._of)

    def series(self, page: bytes) -> list[tuple[float, dict[str, str]]]:
        """In page order; they are shared, do not change them."""
        return self._series(page)

    def _of(self, samples: list[Sample]) -> list[tuple[float, dict[str, str]]]:
        found = [(sample.value, labels_of(sample.labels)) for sample in samples]
        return [(value, labels) for value, labels in found if matches(labels, self.spec.labels)]


@dataclass(frozen=True, slots=True)
class Engine:
    """An `EngineConfig`, ready to be read."""

    name: str
    gauges: tuple[Gauge, ...]
    lora: Info | None
    cache_info: Info | None
    block_size_label: str
    num_blocks_label: str


def compile_engine(config: EngineConfig) -> Engine:
    """Parse all specs; ValueError names the one that is wrong.

    A page of a server with several data-parallel engines has one series per `engine` label. Requests and blocks add
    up; the cache usage is the mean, because engines of one server are alike; the block size is the first one's.
    """
    gauges = []
    for column, text, combine in (
        ("waiting", config.queued_requests_spec, _sum),
        ("running", config.running_requests_spec, _sum),
        ("kv_usage", config.kv_usage_spec, _mean),
        ("block_size", config.cache_block_size_spec, _first),
        ("num_blocks", config.cache_num_blocks_spec, _sum),
        *((metric.attribute_key, metric.metric_spec, _first) for metric in config.custom_metrics),
    ):
        spec = parse_spec(text)
        if spec is not None:
            specs = (spec, _OLD_NAMES[text]) if text in _OLD_NAMES else (spec,)
            gauges.append(Gauge(column, tuple(Metric(spec, ENGINE_INDEX) for spec in specs), combine))
    cache_info = parse_spec(config.cache_info_spec)
    if cache_info is not None and not (config.cache_block_size_label_name or config.cache_num_blocks_label_name):
        raise ValueError(
            f"engine {config.name}: cacheInfoSpec without cacheBlockSizeLabelName or cacheNumBlocksLabelName"
        )
    lora = parse_spec(config.lora_spec)
    return Engine(
        config.name,
        tuple(gauges),
        None if lora is None else Info(lora),
        None if cache_info is None else Info(cache_info),
        config.cache_block_size_label_name,
        config.cache_num_blocks_label_name,
    )


VLLM = EngineConfig(
    name="vllm",
    queued_requests_spec="vllm:num_requests_waiting",
    running_requests_spec="vllm:num_requests_running",
    kv_usage_spec="vllm:kv_cache_usage_perc",
    lora_spec="vllm:lora_requests_info",
    cache_info_spec="vllm:cache_config_info",
    cache_block_size_label_name="block_size",
    cache_num_blocks_label_name="num_gpu_blocks",
)

BUILT_IN = (
    VLLM,
    EngineConfig(
        name="sglang",
        queued_requests_spec="sglang:num_queue_reqs",
        running_requests_spec="sglang:num_running_reqs",
        kv_usage_spec="sglang:token_usage",
        cache_info_spec="sglang:cache_config_info",
        cache_block_size_label_name="page_size",
        cache_num_blocks_label_name="num_pages",
    ),
    EngineConfig(
        name="trtllm-serve",
        queued_requests_spec="trtllm_num_requests_waiting",
        running_requests_spec="trtllm_num_requests_running",
        kv_usage_spec="trtllm_kv_cache_utilization",
        cache_block_size_spec="trtllm_kv_cache_tokens_per_block",
        cache_num_blocks_spec="trtllm_kv_cache_max_blocks",
    ),
    EngineConfig(
        name="triton-tensorrt-llm",
        queued_requests_spec="nv_trt_llm_request_metrics{request_type=waiting}",
        running_requests_spec="nv_trt_llm_request_metrics{request_type=scheduled}",
        kv_usage_spec="nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type=fraction}",
        cache_block_size_spec="nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type=tokens_per}",
        cache_num_blocks_spec="nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type=max}",
    ),
    EngineConfig(
        name="triton",
        queued_requests_spec="nv_inference_pending_request_count",
        running_requests_spec="nv_inference_exec_count",
    ),
)
