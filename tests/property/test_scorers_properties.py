"""Every scorer over any pool: shape, range, order of candidates, and the same numbers as one endpoint at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

import epp
from epp.testing import endpoints, plugin, request
from epp_plugins.scorers.active_request import ActiveRequestScorer
from epp_plugins.scorers.context_length_aware import ContextLengthAware
from epp_plugins.scorers.kv_cache_utilization import KVCacheUtilizationScorer
from epp_plugins.scorers.lmetric import LMetricScorer
from epp_plugins.scorers.load_aware import LoadAwareScorer
from epp_plugins.scorers.lora_affinity import LoraAffinityScorer
from epp_plugins.scorers.network_latency import NetworkLatencyScorer
from epp_plugins.scorers.no_hit_lru import NoHitLRUScorer
from epp_plugins.scorers.prefix_cache import PrefixCacheScorer
from epp_plugins.scorers.queue import QueueScorer
from epp_plugins.scorers.running_requests import RunningRequestsSizeScorer
from epp_plugins.scorers.session_affinity import SessionAffinityScorer
from epp_plugins.scorers.token_load import TokenLoadScorer

TOKENS = 500
TOTAL_BLOCKS = 31
BLOCK_SIZE = 16
PREFIX = "approx-prefix-cache-producer"
RANGE = "llm-d.ai/context-length-range"
UNCACHED = epp.DataKey(epp.UNCACHED_TOKENS, "inflight-load-producer")


@dataclass(frozen=True)
class Server:
    """One endpoint as plain numbers. None: not known."""

    waiting: float | None = 0
    running: float | None = 0
    kv_usage: float | None = 0.0
    rtt: float | None = 0.0
    requests: int = 0
    tokens: int = 0
    blocks: int = 0
    length_range: tuple[int, int] | None = None
    lora: epp.LoraInfo | None = field(default=None, hash=False)

    @property
    def uncached(self) -> float:
        return max(0, TOKENS - self.blocks * BLOCK_SIZE)


adapters = st.frozensets(st.sampled_from(["a", "b", "test-model"]), max_size=3)
counts = st.integers(0, 10_000)
maybe_counts = st.none() | st.integers(0, 10_000)
servers = st.builds(
    Server,
    waiting=maybe_counts,
    running=maybe_counts,
    kv_usage=st.none() | st.floats(0, 1),
    rtt=st.none() | st.floats(1e-6, 2),
    requests=counts,
    tokens=st.integers(0, 10_000_000),
    blocks=st.integers(0, TOTAL_BLOCKS),
    length_range=st.none() | st.tuples(st.integers(0, 2000), st.integers(0, 2000)),
    lora=st.none() | st.builds(epp.LoraInfo, adapters, adapters, st.integers(0, 4)),
)
pools = st.lists(servers, min_size=1, max_size=12)


def number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def pool_of(pool: Sequence[Server]) -> tuple[epp.InferenceRequest, epp.Endpoints]:
    """A request and its candidates with everything that producers and extractors would have found."""
    candidates = endpoints(
        waiting=[number(s.waiting) for s in pool],
        running=[number(s.running) for s in pool],
        kv_usage=[number(s.kv_usage) for s in pool],
        rtt=[number(s.rtt) for s in pool],
        inflight_requests=[s.requests for s in pool],
        inflight_tokens=[s.tokens for s in pool],
        attributes={epp.LORA: [s.lora for s in pool]},
        labels=[{} if s.length_range is None else {RANGE: "{}-{}".format(*s.length_range)} for s in pool],
    )
    asked = request("x" * (4 * TOKENS), headers={"x-session-token": "ZGVmYXVsdC9wb2QtMC1yYW5rLTA="})  # pod-0
    blocks = np.array([s.blocks for s in pool], dtype=np.float64)
    epp.publish_prefix_match(asked, candidates, PREFIX, epp.PrefixMatch(blocks, blocks, TOTAL_BLOCKS, BLOCK_SIZE))
    candidates.set(UNCACHED, np.array([s.uncached for s in pool]))
    return asked, candidates


# The formulas again, one endpoint at a time, in plain Python.


def min_max(values: list[float | None]) -> list[float]:
    known = [value for value in values if value is not None]
    if not known:
        return [math.nan] * len(values)
    low, high = min(known), max(known)
    return [math.nan if value is None else 1.0 if high == low else (high - value) / (high - low) for value in values]


def kv_cache(pool: Sequence[Server]) -> list[float]:
    return [1 - number(s.kv_usage) for s in pool]


def load_aware(pool: Sequence[Server]) -> list[float]:
    return [math.nan if s.waiting is None else 0.5 * (1 - min(s.waiting, 128) / 128) for s in pool]


def active_request(pool: Sequence[Server]) -> list[float]:
    most = max(s.requests for s in pool)
    return [1.0 if s.requests == 0 else (most - s.requests) / most for s in pool]


def token_load(pool: Sequence[Server]) -> list[float]:
    return [1 - min(s.tokens + s.uncached, 4_194_304) / 4_194_304 for s in pool]


def prefix_cache(pool: Sequence[Server]) -> list[float]:
    return [s.blocks / TOTAL_BLOCKS for s in pool]


def prefix_cache_by_length(pool: Sequence[Server]) -> list[float]:
    return [0.7 * s.blocks / TOTAL_BLOCKS + 0.3 * min(1, s.blocks * BLOCK_SIZE / 256) ** 2 for s in pool]


def lmetric(pool: Sequence[Server]) -> list[float]:
    return min_max([float((TOTAL_BLOCKS - s.blocks) * BLOCK_SIZE * (s.requests + 1)) for s in pool])


def lora_affinity(pool: Sequence[Server]) -> list[float]:
    scores = []
    for server in pool:
        info = server.lora or epp.LoraInfo()
        if "test-model" in info.active:
            scores.append(1.0)
        elif len(info.active) + len(info.waiting) < info.max_active:
            scores.append(0.8)
        else:
            scores.append(0.6 if "test-model" in info.waiting else 0.0)
    return scores


def network_latency(pool: Sequence[Server]) -> list[float]:
    known = [s.rtt for s in pool if s.rtt is not None]
    spread = max(max(known) - min(known), 0.010) if known else math.nan
    return [math.nan if s.rtt is None else 1 - (s.rtt - min(known)) / spread for s in pool]


def context_length(pool: Sequence[Server]) -> list[float]:
    scores = []
    for server in pool:
        if server.length_range is None:
            scores.append(0.5)
            continue
        low, high = server.length_range
        width = high - low
        if width < 0:
            scores.append(0.0)
        elif low <= TOKENS <= high:
            scores.append(
                1.0 if width == 0 else 0.3 + 0.7 * (0.7 / (1 + width / 10000) + 0.3 * (high - TOKENS) / width)
            )
        else:
            scores.append(0.3 / (1 + (low - TOKENS if low > TOKENS else TOKENS - high) / 1000))
    return scores


def no_hit_lru(pool: Sequence[Server]) -> list[float]:
    if any(s.blocks for s in pool):
        return [0.5] * len(pool)
    return [1.0] if len(pool) == 1 else [1 - i / (len(pool) - 1) for i in range(len(pool))]


def session_affinity(pool: Sequence[Server]) -> list[float]:
    return [1.0] + [0.0] * (len(pool) - 1)


Oracle = Callable[[Sequence[Server]], list[float]]
CASES: list[tuple[type[epp.Scorer[Any]], dict[str, Any], Oracle]] = [
    (QueueScorer, {}, lambda pool: min_max([s.waiting for s in pool])),
    (RunningRequestsSizeScorer, {}, lambda pool: min_max([s.running for s in pool])),
    (KVCacheUtilizationScorer, {}, kv_cache),
    (LoadAwareScorer, {}, load_aware),
    (ActiveRequestScorer, {}, active_request),
    (TokenLoadScorer, {}, token_load),
    (PrefixCacheScorer, {}, prefix_cache),
    (PrefixCacheScorer, {"matchLengthWeight": 0.3, "matchLengthScaleTokens": 256}, prefix_cache_by_length),
    (LMetricScorer, {}, lmetric),
    (LoraAffinityScorer, {}, lora_affinity),
    (NetworkLatencyScorer, {}, network_latency),
    (ContextLengthAware, {}, context_length),
    (NoHitLRUScorer, {}, no_hit_lru),
    (SessionAffinityScorer, {}, session_affinity),
]
every_scorer = pytest.mark.parametrize(
    ("kind", "parameters", "oracle"), CASES, ids=[f"{kind.type}{'-with' if given else ''}" for kind, given, _ in CASES]
)
BY_PLACE = {NoHitLRUScorer}
"""Never used endpoints are ranked by their place among the candidates, so their order matters."""


@every_scorer
@settings(max_examples=40, deadline=None)
@given(pool=pools)
def test_same_as_one_endpoint_at_a_time(
    kind: type[epp.Scorer[Any]], parameters: dict[str, Any], oracle: Oracle, pool: list[Server]
) -> None:
    asked, candidates = pool_of(pool)
    scores = plugin(kind, parameters, table=candidates.table).score(asked, candidates)
    assert scores.shape == (len(pool),)
    assert scores.dtype == np.float64
    known = scores[~np.isnan(scores)]
    assert ((known >= 0) & (known <= 1)).all()
    assert scores.tolist() == pytest.approx(oracle(pool), nan_ok=True, abs=1e-9)


@every_scorer
@settings(max_examples=15, deadline=None)
@given(pool=pools, data=st.data())
def test_the_order_of_candidates_does_not_matter(
    kind: type[epp.Scorer[Any]],
    parameters: dict[str, Any],
    oracle: Oracle,
    pool: list[Server],
    data: st.DataObject,
) -> None:
    asked, candidates = pool_of(pool)
    order = data.draw(st.permutations(range(len(pool))))
    scorer = plugin(kind, parameters, table=candidates.table)
    scores = scorer.score(asked, candidates)
    shuffled = scorer.score(asked, candidates.take(order))
    if kind in BY_PLACE:
        shuffled, scores = np.sort(shuffled), np.sort(scores[order])
    assert shuffled.tolist() == pytest.approx(scores.tolist() if kind in BY_PLACE else scores[order], nan_ok=True)


@every_scorer
@settings(max_examples=15, deadline=None)
@given(pool=pools)
def test_reading_changes_nothing(
    kind: type[epp.Scorer[Any]], parameters: dict[str, Any], oracle: Oracle, pool: list[Server]
) -> None:
    asked, candidates = pool_of(pool)
    table = candidates.table
    columns = {name: column.copy() for name, column in table.columns.items()}
    blocks = candidates.column(epp.DataKey(epp.PREFIX_CACHE_MATCH, PREFIX)).copy()
    uncached = candidates.column(UNCACHED).copy()
    rows = candidates.rows.copy()
    scorer = plugin(kind, parameters, table=table)
    first = scorer.score(asked, candidates).copy()
    second = scorer.score(asked, candidates)
    assert np.array_equal(first, second, equal_nan=True)
    assert np.array_equal(rows, candidates.rows)
    assert np.array_equal(blocks, candidates.column(epp.DataKey(epp.PREFIX_CACHE_MATCH, PREFIX)))
    assert np.array_equal(uncached, candidates.column(UNCACHED))
    for name, column in columns.items():
        assert np.array_equal(column, table.columns[name], equal_nan=True), name
        if candidates.has(name):
            assert np.array_equal(candidates.column(name), column[rows], equal_nan=True), name


@every_scorer
def test_a_thousand_endpoints(kind: type[epp.Scorer[Any]], parameters: dict[str, Any], oracle: Oracle) -> None:
    rng = np.random.default_rng(11)
    pool = [
        Server(
            waiting=int(rng.integers(0, 50)),
            running=None if i % 17 == 0 else int(rng.integers(0, 256)),
            kv_usage=float(rng.random()),
            rtt=None if i % 13 == 0 else float(rng.random() / 50),
            requests=int(rng.integers(0, 200)),
            tokens=int(rng.integers(0, 5_000_000)),
            blocks=0 if kind is NoHitLRUScorer else int(rng.integers(0, TOTAL_BLOCKS + 1)),
            length_range=(int(rng.integers(0, 600)), int(rng.integers(300, 2000))),
            lora=epp.LoraInfo(frozenset({"test-model"} if i % 5 == 0 else {"b"}), frozenset(), i % 3),
        )
        for i in range(1000)
    ]
    asked, candidates = pool_of(pool)
    scores = plugin(kind, parameters, table=candidates.table).score(asked, candidates)
    assert scores.tolist() == pytest.approx(oracle(pool), nan_ok=True, abs=1e-9)
