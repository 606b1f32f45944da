"""Load, cache and LoRA facts from the pages of all engines."""

import logging
import math
import random
from pathlib import Path
from typing import Any

import msgspec
import pytest

from epp.api import LORA, Endpoint, EndpointTable, LoraInfo, PluginContext
from epp_plugins.extractors.core_metrics import CoreMetricsExtractor

DATA = Path(__file__).parents[2] / "data" / "datalayer"
PAGE = (DATA / "vllm_metrics.txt").read_bytes()
NOW = 123.0


class Server:
    """One endpoint and its extractor."""

    def __init__(self, labels: dict[str, str] | None = None, **parameters: Any) -> None:
        self.table = EndpointTable()
        context = PluginContext(
            "x", lambda: NOW, random.Random(1), logging.getLogger(), self.table, lambda name: pytest.fail(name)
        )
        self.extractor = CoreMetricsExtractor(msgspec.convert(parameters, CoreMetricsExtractor.Params), context)
        self.endpoint = Endpoint("pod", "10.0.0.1", 8000, labels=labels or {})
        self.row = self.table.add(self.endpoint)

    def read(self, page: bytes) -> dict[str, float]:
        """Extract; returns every column that has a value, rounded to what the page says."""
        self.extractor.extract(self.row, self.endpoint, page)
        return self.values()

    def values(self) -> dict[str, float]:
        names = set(self.table.columns) - {"picked_at", "inflight_requests", "inflight_tokens"}
        found = {name: float(self.table.columns[name][self.row]) for name in names}
        return {name: value for name, value in found.items() if math.isfinite(value)}


def test_a_captured_vllm_page() -> None:
    server = Server()
    assert server.read(PAGE) == {
        "waiting": 12.0,
        "running": 7.0,
        "kv_usage": 0.35686274509803917,
        "block_size": 32.0,
        "num_blocks": 256.0,
        "max_loras": 2.0,
        "scraped_at": NOW,
    }
    both = frozenset({"lora-a", "lora-b"})
    assert server.table.attributes[server.row][LORA] == LoraInfo(both, both, 2)
    assert server.read(PAGE)["waiting"] == 12.0
    assert server.extractor.dump_state()["defaultEngine"] == "vllm"


def test_engines_behind_one_port_are_joined() -> None:
    server = Server()
    values = server.read((DATA / "vllm_metrics_dp2.txt").read_bytes())
    assert values == {
        "waiting": 0.0, "running": 0.0, "kv_usage": 0.0, "block_size": 32.0, "num_blocks": 256.0, "scraped_at": NOW,
    }  # fmt: skip
    page = b"".join(
        b'%s{engine="0",model_name="a"} %s\n%s{engine="1",model_name="a"} %s\n' % (name, first, name, second)
        for name, first, second in [
            (b"vllm:num_requests_waiting", b"3", b"4"),
            (b"vllm:num_requests_running", b"1", b"2"),
            (b"vllm:kv_cache_usage_perc", b"0.25", b"0.75"),
        ]
    )
    page += b'vllm:cache_config_info{block_size="16",engine="0",num_gpu_blocks="100"} 1\n'
    page += b'vllm:cache_config_info{block_size="16",engine="1",num_gpu_blocks="50"} 1\n'
    values = server.read(page)
    assert (values["waiting"], values["running"], values["kv_usage"]) == (7.0, 3.0, 0.5)
    assert (values["block_size"], values["num_blocks"]) == (16.0, 150.0)


def test_two_models_of_one_engine_are_not_added() -> None:
    server = Server()
    page = PAGE.replace(
        b'vllm:num_requests_waiting{engine="0",model_name="tiny"} 12.0',
        b'vllm:num_requests_waiting{engine="0",model_name="a"} 5\n'
        b'vllm:num_requests_waiting{engine="0",model_name="b"} 6',
    )
    assert server.read(page)["waiting"] == 5.0


def test_the_old_vllm_name_of_the_cache_usage() -> None:
    server = Server()
    page = PAGE.replace(b"vllm:kv_cache_usage_perc", b"vllm:gpu_cache_usage_perc")
    assert server.read(page)["kv_usage"] == 0.35686274509803917


def test_a_missing_metric_is_reported_and_the_others_are_read() -> None:
    server = Server()
    server.read(PAGE)
    page = PAGE.replace(b"vllm:num_requests_waiting", b"vllm:gone").replace(b"running{engine", b"running{Engine")
    page = page.replace(b'vllm:num_requests_running{Engine="0",model_name="tiny"} 7.0', b"vllm:num_requests_running 9")
    with pytest.raises(ValueError, match="engine vllm: no vllm:num_requests_waiting"):
        server.read(page)
    assert server.values()["running"] == 9.0
    assert server.values()["waiting"] == 12.0


def test_a_page_with_nothing_counts_as_never_read() -> None:
    server = Server()
    with pytest.raises(ValueError, match="cache_config_info"):
        server.read(b"")
    assert server.values() == {}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b'usage_perc{engine="0",model_name="tiny"} 0.3', b'usage_perc{engine="0"} x0.3', "not a number"),
        (b'num_gpu_blocks="256"', b'num_gpu_blocks="None"', "num_gpu_blocks is 'None'"),
        (b'num_gpu_blocks="256"', b'num_gpu_blocks="' + b"9" * 400 + b'"', "num_gpu_blocks is '9{40}', not a whole"),
        (b'num_gpu_blocks="256"', b'num_gpu_blocks="0"', "num_gpu_blocks is '0', expected at least 1"),
        (b'block_size="32"', b'block_size="-32"', "block_size is '-32', expected at least 1"),
        (b'max_lora="2"', b'max_lora="two"', "max_lora is 'two'"),
        (b'max_lora="2"', b'max_lora="-2"', "max_lora is '-2', expected at least 0"),
        (b"vllm:lora_requests_info{", b"vllm:lora_requests_info{\"", "cannot read"),
    ],
)  # fmt: skip
def test_values_that_make_no_sense(old: bytes, new: bytes, message: str) -> None:
    server = Server()
    assert old in PAGE
    with pytest.raises(ValueError, match=message):
        server.read(PAGE.replace(old, new))
    assert server.values()["waiting"] == 12.0


@pytest.mark.parametrize("value", [b"-0.5", b"+Inf", b"-Inf", b"1e400"])
def test_a_value_that_no_server_can_have_is_none(value: bytes) -> None:
    """A negative cache usage would draw every request here; an infinite queue leaves nothing to compare others by."""
    server = Server()
    server.read(PAGE)
    line = b'vllm:kv_cache_usage_perc{engine="0",model_name="tiny"} 0.35686274509803917'
    assert line in PAGE
    with pytest.raises(ValueError, match="vllm:kv_cache_usage_perc is "):
        server.read(PAGE.replace(line, line.split(b" ")[0] + b" " + value))
    assert "kv_usage" not in server.values()
    assert server.values()["waiting"] == 12.0


def test_a_custom_value_may_be_negative_but_not_infinite() -> None:
    custom = {"attributeKey": "offset", "metricSpec": "mine"}
    server = Server(engineConfigs=[{"name": "vllm", "customMetrics": [custom]}])
    assert server.read(b"mine -3.5\n")["offset"] == -3.5
    with pytest.raises(ValueError, match="mine is inf"):
        server.read(b"mine +Inf\n")
    assert "offset" not in server.values()


def test_no_lora_is_no_error() -> None:
    server = Server()
    page = b"\n".join(line for line in PAGE.split(b"\n") if b"lora" not in line)
    assert "max_loras" not in server.read(page)
    assert LORA not in server.table.attributes[server.row]


def test_the_latest_lora_series_wins_and_may_be_empty() -> None:
    server = Server()
    lines = b"".join(
        b'vllm:lora_requests_info{max_lora="%s",running_lora_adapters="%s",waiting_lora_adapters="%s"} %s\n' % series
        for series in [(b"4", b"a", b"", b"1e9"), (b"4", b"", b" b , c", b"3e9"), (b"4", b"x", b"x", b"2e9")]
    )
    page = b"\n".join(line for line in PAGE.split(b"\n") if b"lora" not in line) + lines
    server.read(page)
    assert server.table.attributes[server.row][LORA] == LoraInfo(frozenset(), frozenset({"b", "c"}), 4)


SGLANG = b"""sglang:num_queue_reqs{model_name="m"} 4.0
sglang:num_running_reqs{model_name="m"} 5.0
sglang:token_usage{model_name="m"} 0.28
sglang:cache_config_info{num_pages="1000",page_size="64"} 1.0
"""
TRTLLM = b"""trtllm_num_requests_waiting{model_name="m"} 4
trtllm_num_requests_running{model_name="m"} 5
trtllm_kv_cache_utilization{model_name="m"} 0.28
trtllm_kv_cache_tokens_per_block{model_name="m"} 64
trtllm_kv_cache_max_blocks{model_name="m"} 1000
"""
TRITON_TRTLLM = b"""nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="waiting",version="1"} 4
nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="scheduled",version="1"} 5
nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="max",version="1"} 512
nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="max",model="tensorrt_llm",version="1"} 1000
nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="free",model="tensorrt_llm",version="1"} 720
nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="tokens_per",model="tensorrt_llm",version="1"} 64
nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="fraction",model="tensorrt_llm",version="1"} 0.28
"""


@pytest.mark.parametrize(
    ("engine", "page"), [("sglang", SGLANG), ("trtllm-serve", TRTLLM), ("triton-tensorrt-llm", TRITON_TRTLLM)]
)
@pytest.mark.parametrize("label", ["llm-d.ai/engine-type", "inference.networking.k8s.io/engine-type"])
def test_other_engines(engine: str, page: bytes, label: str) -> None:
    assert Server({label: engine}).read(page) == {
        "waiting": 4.0, "running": 5.0, "kv_usage": 0.28, "block_size": 64.0, "num_blocks": 1000.0, "scraped_at": NOW,
    }  # fmt: skip


def test_triton_tells_requests_only() -> None:
    page = b'nv_inference_pending_request_count{model="m"} 4\nnv_inference_exec_count{model="m"} 5\n'
    server = Server({"llm-d.ai/engine-type": "triton"})
    assert server.read(page) == {"waiting": 4.0, "running": 5.0, "scraped_at": NOW}


def test_the_engine_of_an_endpoint() -> None:
    assert Server({"llm-d.ai/engine-type": "unheard-of"}).read(PAGE)["waiting"] == 12.0
    assert Server(defaultEngine="sglang").read(SGLANG)["waiting"] == 4.0
    assert Server({"engine": "sglang"}, engineLabelKey="engine").read(SGLANG)["waiting"] == 4.0
    newer = {"llm-d.ai/engine-type": "sglang", "inference.networking.k8s.io/engine-type": "vllm"}
    assert Server(newer).read(SGLANG)["waiting"] == 4.0


def test_engines_of_the_user() -> None:
    mine = {
        "name": "mine",
        "queuedRequestsSpec": 'queue{kind="all", shard=1}',
        "customMetrics": [{"attributeKey": "power", "metricSpec": "power_watts"}],
    }
    server = Server({"llm-d.ai/engine-type": "mine"}, engineConfigs=[mine])
    page = b'queue{kind="all",shard="0"} 1\nqueue{kind="all",shard="1"} 2\npower_watts 350.5\n'
    assert server.read(page) == {"waiting": 2.0, "power": 350.5, "scraped_at": NOW}
    assert server.table.all(NOW).column("power").tolist() == [350.5]


def test_a_user_entry_replaces_the_built_in_one_as_a_whole() -> None:
    server = Server(engineConfigs=[{"name": "vllm", "runningRequestsSpec": "vllm:num_requests_running"}])
    assert server.read(PAGE) == {"running": 7.0, "scraped_at": NOW}


def test_cache_info_with_one_label_only() -> None:
    engine = {"name": "e", "cacheInfoSpec": "vllm:cache_config_info{engine=0}", "cacheBlockSizeLabelName": "block_size"}
    values = Server(engineConfigs=[engine], defaultEngine="e").read(PAGE)
    assert values == {"block_size": 32.0, "scraped_at": NOW}
    engine["cacheNumBlocksLabelName"] = "num_gpu_blocks"
    del engine["cacheBlockSizeLabelName"]
    assert Server(engineConfigs=[engine], defaultEngine="e").read(PAGE)["num_blocks"] == 256.0


def test_memory_stays_bounded_when_labels_never_repeat() -> None:
    server = Server()
    for index in range(5000):
        page = (
            PAGE.replace(b'running_lora_adapters="lora-b,lora-a"', b'running_lora_adapters="l%d"' % index)
            if index < 3
            else (
                b'vllm:lora_requests_info{max_lora="2",running_lora_adapters="l%d",waiting_lora_adapters=""} 1\n'
                % index
            )
        )
        try:
            server.read(page)
        except ValueError:
            assert index >= 3
        assert server.table.attributes[server.row][LORA].active == {f"l{index}"}
    assert len(server.extractor._loras) <= 4096


@pytest.mark.parametrize(
    "bad",
    [
        {"defaultEngine": "none"},
        {"engineConfigs": [{"name": "default"}]},
        {"engineConfigs": [{"name": ""}]},
        {"engineConfigs": [{"name": "a"}, {"name": "a"}]},
        {"engineConfigs": [{"name": "a", "kvUsageSpec": "a{b"}]},
        {"engineConfigs": [{"name": "a", "cacheInfoSpec": "a"}]},
        {"engineConfigs": [{"name": "a", "customMetrics": [{"attributeKey": "waiting", "metricSpec": "x"}]}]},
        {"engineConfigs": [{"name": "a", "customMetrics": [{"attributeKey": "x", "metricSpec": ""}]}]},
        {"engineConfigs": [{"name": "a", "kvUsage": "x"}]},
    ],
)
def test_parameters_that_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        Server(**bad)
