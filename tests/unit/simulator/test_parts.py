"""Latency formulas, cache blocks, option sources."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epp_simulator.block_hash import BlockChain
from epp_simulator.fake_metrics import FakeMetrics
from epp_simulator.kv_cache import KVCache
from epp_simulator.latency import LatencyModel
from epp_simulator.options import SimOptions, duration, parse
from epp_simulator.tokens import tokenize


def test_per_token_prefill_counts_uncached_tokens_and_load() -> None:
    options = SimOptions(
        model="m", prefill_overhead=0.03, prefill_time_per_token=0.001, time_factor_under_load=3.0, max_num_seqs=5
    )
    model = LatencyModel(options, random.Random(1))
    assert model.prefill(100, 40, 1) == pytest.approx(0.09)
    assert model.prefill(100, 40, 5) == pytest.approx(0.27)
    assert model.load_factor(3) == pytest.approx(2.0)


def test_fetching_what_another_server_read_takes_the_transfer_time() -> None:
    constant = LatencyModel(SimOptions(model="m", kv_cache_transfer_latency=0.1), random.Random(1))
    assert constant.transfer(7) == constant.transfer(70) == 0.1
    per_token = LatencyModel(SimOptions(model="m", kv_cache_transfer_time_per_token=0.001), random.Random(1))
    assert per_token.transfer(70) == pytest.approx(0.07)
    chosen = SimOptions(
        model="m",
        latency_calculator="per-token",
        kv_cache_transfer_latency=0.1,
        kv_cache_transfer_time_per_token=0.001,
        time_factor_under_load=3.0,
    )
    assert LatencyModel(chosen, random.Random(1)).transfer(10) == pytest.approx(0.01)
    wide = SimOptions(model="m", kv_cache_transfer_latency=0.1, kv_cache_transfer_latency_std_dev=10.0)
    samples = [LatencyModel(wide, random.Random(seed)).transfer(1) for seed in range(200)]
    assert 0.03 - 1e-9 <= min(samples) < max(samples) <= 0.17 + 1e-9


def test_constant_prefill_when_a_ttft_is_given_and_jitter_is_clamped() -> None:
    options = SimOptions(model="m", time_to_first_token=0.1, time_to_first_token_std_dev=10.0)
    model = LatencyModel(options, random.Random(1))
    samples = [model.prefill(10_000, 0, 1) for _ in range(500)]
    assert 0.03 - 1e-9 <= min(samples) < max(samples) <= 0.17 + 1e-9


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 60)), max_size=40))
def test_cache_never_exceeds_its_size_by_more_than_what_runs(requests: list[tuple[int, int]]) -> None:
    cache = KVCache(16, 8)
    leases = []
    for seed, length in requests:
        leases.append(cache.begin(BlockChain([seed] * length)))
        if len(leases) > 2:
            cache.end(leases.pop(0))
    for lease in leases:
        cache.end(lease)
    assert cache.usage == 0.0
    assert len(cache) <= 16


def test_cached_prefix_is_shared_per_adapter_and_salt() -> None:
    cache = KVCache(64, 8)
    tokens = list(range(40))
    cache.end(cache.begin(BlockChain(tokens)))
    assert cache.begin(BlockChain(tokens)).cached_tokens == 32  # the last token is always computed
    assert cache.begin(BlockChain(tokens[:24] + [999] * 16)).cached_tokens == 24
    assert cache.begin(BlockChain(tokens, lora="b")).cached_tokens == 0
    assert cache.begin(BlockChain(tokens, cache_salt="s")).cached_tokens == 0


@given(st.text(max_size=200), st.text(max_size=50))
def test_tokens_of_a_prefix_are_a_prefix(text: str, more: str) -> None:
    short, long = tokenize(text), tokenize(text + more)
    assert long[: max(0, len(short) - 1)] == short[: max(0, len(short) - 1)]


@pytest.mark.parametrize(
    ("text", "seconds"), [("100ms", 0.1), ("750us", 0.00075), ("1.5s", 1.5), ("1m30s", 90.0), (250, 0.25)]
)
def test_durations(text: str | int, seconds: float) -> None:
    assert duration(text) == pytest.approx(seconds)


def test_option_sources_and_errors(tmp_path: Path) -> None:
    config = tmp_path / "sim.yaml"
    config.write_text(
        'model: from-file\nmax-num-seqs: 7\ntime-to-first-token: 20ms\nlora-modules: [\'{"name":"a"}\', b]\n'
    )
    options = parse(["--config", str(config), "--port", "9000", "--enforce-eager"], {"SIM_MODEL": "from-env"})
    assert (options.model, options.max_num_seqs, options.port) == ("from-env", 7, 9000)
    assert options.time_to_first_token == pytest.approx(0.02)
    assert options.lora_modules == ("a", "b")
    with pytest.raises(ValueError, match="--model is required"):
        parse([], {})
    with pytest.raises(ValueError, match="block-size 17"):
        parse(["--model", "m", "--block-size", "17"], {})
    config.write_text("modle: x\n")
    with pytest.raises(ValueError, match="unknown key 'modle'"):
        parse(["--config", str(config)], {})


def test_fake_waves() -> None:
    now = [0.0]
    fakes = FakeMetrics(
        {"waiting-requests": "squarewave:1:9:10s", "kv-cache-usage": "rampreset:0:1:10s"}, lambda: now[0]
    )
    now[0] = 2.5
    assert (fakes.value("waiting-requests", 0), fakes.value("kv-cache-usage", 0)) == (1.0, 0.25)
    now[0] = 17.5
    assert (fakes.value("waiting-requests", 0), fakes.value("kv-cache-usage", 0)) == (9.0, 0.75)
    assert fakes.value("running-requests", 3) == 3
