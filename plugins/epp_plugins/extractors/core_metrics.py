"""`core-metrics-extractor`: load, cache size and LoRA adapters of a model server, from its Prometheus page.

It is there by default, behind `metrics-data-source`. The engine of an endpoint is told by the pod label
`llm-d.ai/engine-type` (older name `inference.networking.k8s.io/engine-type`): `vllm`, `sglang`, `trtllm-serve`,
`triton-tensorrt-llm`, `triton`, or one of `engineConfigs`; without the label, or with an unknown value,
`defaultEngine`.

Parameters: `engineLabelKey`, `defaultEngine` (vllm), `engineConfigs[]` with per engine `queuedRequestsSpec`,
`runningRequestsSpec`, `kvUsageSpec`, `loraSpec`, `cacheInfoSpec`, `cacheBlockSizeLabelName`,
`cacheNumBlocksLabelName`, `cacheBlockSizeSpec`, `cacheNumBlocksSpec` and `customMetrics[]` (`attributeKey`,
`metricSpec`), each of which is read into the column `attributeKey`.

Writes the columns `waiting`, `running`, `kv_usage`, `block_size`, `num_blocks`, `max_loras`, `scraped_at`, and the
attribute `lora` (`epp.LoraInfo`). Of several matching series the one with the newest timestamp counts, else the first.
A page with several data-parallel engines (label `engine`) is joined: requests and blocks add up, cache usage is the
mean. vLLM keeps stale series of `vllm:lora_requests_info`: the one with the largest value (a time) counts.

Metrics: `datalayer_extract_errors_total{source_type, extractor_type}`. Failure: a missing metric counts as an extract
error, its column keeps the last value, and all others are updated; a server without LoRA is no error. A value that is
infinite, or negative where that means nothing, is an extract error too, and its column says that nothing is known.
"""

from __future__ import annotations

import math
from collections import Counter
from operator import itemgetter
from typing import Annotated, Any

import msgspec

from epp.api import LORA, Endpoint, Extractor, LoraInfo, Params, PluginContext
from epp_plugins.extractors.engines import BUILT_IN, ENGINE_INDEX, EngineConfig, Gauge, Info, compile_engine

_ENGINE_LABEL = "llm-d.ai/engine-type"
_OLD_ENGINE_LABEL = "inference.networking.k8s.io/engine-type"
_LORA_LABELS = ("max_lora", "running_lora_adapters", "waiting_lora_adapters")
_COUNTS = frozenset({"waiting", "running", "kv_usage", "block_size", "num_blocks"})
"""Columns that have no negative values."""
_LORAS_BOUND = 4096  # distinct combinations kept


class CoreMetricsParams(Params, frozen=True):
    """Parameters of `core-metrics-extractor`."""

    engine_label_key: Annotated[str, msgspec.Meta(min_length=1, description="pod label that names the engine")] = (
        _ENGINE_LABEL
    )
    default_engine: Annotated[str, msgspec.Meta(description="engine of endpoints without the label")] = "vllm"
    engine_configs: Annotated[
        tuple[EngineConfig, ...], msgspec.Meta(description="more engines, or others in place of built-in ones")
    ] = ()

    def __post_init__(self) -> None:
        names = Counter(config.name for config in self.engine_configs)
        twice = [name for name, count in names.items() if count > 1]
        if twice:
            raise ValueError(f"engineConfigs: {twice[0]} is defined {names[twice[0]]} times")
        known = {config.name for config in BUILT_IN} | set(names)
        if self.default_engine not in known:
            raise ValueError(f"defaultEngine {self.default_engine!r} is none of {', '.join(sorted(known))}")


class CoreMetricsExtractor(Extractor[CoreMetricsParams]):
    """Reads the few metrics that scheduling needs."""

    type = "core-metrics-extractor"
    stability = "stable"
    Params = CoreMetricsParams

    def __init__(self, params: CoreMetricsParams, context: PluginContext) -> None:
        super().__init__(params, context)
        configs = {config.name: config for config in (*BUILT_IN, *params.engine_configs)}
        self._engines = {name: compile_engine(config) for name, config in configs.items()}
        self._default = self._engines[params.default_engine]
        self._label_keys = (params.engine_label_key, _OLD_ENGINE_LABEL)
        self._loras: dict[tuple[str, ...], LoraInfo] = {}
        for engine in self._engines.values():
            for gauge in engine.gauges:
                context.table.add_column(gauge.column)

    def extract(self, row: int, endpoint: Endpoint, data: bytes) -> None:
        engine = self._default
        for key in self._label_keys:
            if key in endpoint.labels:
                engine = self._engines.get(endpoint.labels[key], self._default)
                break
        columns = self.context.table.columns
        problems: list[str] = []
        updated = False
        for gauge in engine.gauges:
            try:
                value = _read(data, gauge)
            except ValueError as error:
                problems.append(str(error))
                continue
            if value is None:
                problems.append(f"no {gauge.metrics[0].spec}")
                continue
            if math.isinf(value) or (value < 0 and gauge.column in _COUNTS):
                # Taken as told, it would draw every request here, or leave a scorer nothing to compare the others by.
                problems.append(f"{gauge.metrics[0].spec} is {value}")
                value = math.nan
            columns[gauge.column][row] = value
            updated = True
        try:
            updated |= engine.lora is not None and self._read_lora(row, data, engine.lora)
        except ValueError as error:
            problems.append(str(error))
        if engine.cache_info is not None:
            try:
                self._read_cache(row, data, engine.cache_info, engine.block_size_label, engine.num_blocks_label)
                updated = True
            except ValueError as error:
                problems.append(str(error))
        if updated:
            columns["scraped_at"][row] = self.context.clock()
        if problems:
            raise ValueError(f"engine {engine.name}: {'; '.join(problems)}")

    def _read_lora(self, row: int, page: bytes, metric: Info) -> bool:
        found = metric.series(page)
        if not found:
            return False
        _, labels = max(found, key=itemgetter(0))
        key = tuple(labels.get(name, "") for name in _LORA_LABELS)
        info = self._loras.get(key)
        if info is None:
            if len(self._loras) >= _LORAS_BOUND:
                self._loras.clear()
            most = int(_number(labels, "max_lora", 0)) if key[0] else 0
            info = self._loras[key] = LoraInfo(_names(key[1]), _names(key[2]), most)
        self.context.table.attributes[row][LORA] = info
        self.context.table.columns["max_loras"][row] = info.max_active
        return True

    def _read_cache(self, row: int, page: bytes, metric: Info, block_size: str, num_blocks: str) -> None:
        found = [labels for _, labels in metric.series(page)]
        if not found:
            raise ValueError(f"no {metric.spec}")
        columns = self.context.table.columns
        if block_size:
            columns["block_size"][row] = _number(found[0], block_size, 1)
        if num_blocks:
            per_engine = {labels.get(ENGINE_INDEX): labels for labels in reversed(found)}
            columns["num_blocks"][row] = sum(_number(labels, num_blocks, 1) for labels in per_engine.values())

    def dump_state(self) -> Any:
        return {"engines": sorted(self._engines), "defaultEngine": self._default.name}


def _read(page: bytes, gauge: Gauge) -> float | None:
    for metric in gauge.metrics:
        found = metric.values(page)
        if found:
            return gauge.combine(found)
    return None


def _names(text: str) -> frozenset[str]:
    return frozenset(name for part in text.split(",") if (name := part.strip()))


def _number(labels: dict[str, str], name: str, least: int) -> float:
    told = labels.get(name, "")
    try:
        number = float(int(told))
    except (ValueError, OverflowError):
        raise ValueError(f"label {name} is {str(labels.get(name))[:40]!r}, not a whole number") from None
    if number < least:
        raise ValueError(f"label {name} is {told[:40]!r}, expected at least {least}")
    return number
