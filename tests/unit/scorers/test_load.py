"""Scorers that read what servers report of their load."""

from __future__ import annotations

import math

import numpy as np
import pytest

import epp
from epp.testing import endpoints, plugin, request
from epp_plugins.scorers.kv_cache_utilization import KVCacheUtilizationScorer
from epp_plugins.scorers.load_aware import LoadAwareScorer
from epp_plugins.scorers.network_latency import NetworkLatencyScorer
from epp_plugins.scorers.queue import QueueScorer
from epp_plugins.scorers.running_requests import RunningRequestsSizeScorer


def test_queue_is_min_max_over_waiting() -> None:
    scores = plugin(QueueScorer).score(request(), endpoints(waiting=[0, 2, 8]))
    assert scores.tolist() == [1.0, 0.75, 0.0]


def test_running_requests_is_min_max_over_running() -> None:
    scores = plugin(RunningRequestsSizeScorer).score(request(), endpoints(running=[10, 5, 0], waiting=[0, 0, 9]))
    assert scores.tolist() == [0.0, 0.5, 1.0]


@pytest.mark.parametrize("kind", [QueueScorer, RunningRequestsSizeScorer])
def test_min_max_of_equal_values_is_one(kind: type[epp.Scorer[epp.NoParams]]) -> None:
    assert plugin(kind).score(request(), endpoints(waiting=[3, 3], running=[3, 3])).tolist() == [1.0, 1.0]
    assert plugin(kind).score(request(), endpoints(waiting=[3], running=[3])).tolist() == [1.0]


def test_kv_cache_utilization_is_the_free_share() -> None:
    scores = plugin(KVCacheUtilizationScorer).score(request(), endpoints(kv_usage=[0.0, 0.25, 1.0]))
    assert scores.tolist() == [1.0, 0.75, 0.0]


def test_load_aware_is_half_a_point_less_the_queue() -> None:
    scores = plugin(LoadAwareScorer).score(request(), endpoints(waiting=[0, 32, 64, 128, 500]))
    assert scores.tolist() == [0.5, 0.375, 0.25, 0.0, 0.0]


def test_load_aware_threshold() -> None:
    scorer = plugin(LoadAwareScorer, {"threshold": 10})
    assert scorer.score(request(), endpoints(waiting=[5, 10])).tolist() == [0.25, 0.0]
    with pytest.raises(epp.ConfigError, match="threshold"):
        plugin(LoadAwareScorer, {"threshold": 0})


def test_network_latency_is_min_max_beyond_the_floor() -> None:
    scores = plugin(NetworkLatencyScorer).score(request(), endpoints(rtt=[0.001, 0.051, 0.101]))
    assert scores.tolist() == pytest.approx([1.0, 0.5, 0.0])


def test_network_latency_makes_little_of_little_differences() -> None:
    scores = plugin(NetworkLatencyScorer).score(request(), endpoints(rtt=[0.0001, 0.0006]))
    assert scores.tolist() == pytest.approx([1.0, 0.95])
    strict = plugin(NetworkLatencyScorer, {"minSpreadMs": 0.5})
    assert strict.score(request(), endpoints(rtt=[0.0001, 0.0006])).tolist() == pytest.approx([1.0, 0.0])


def test_network_latency_of_unmeasured_servers() -> None:
    scorer = plugin(NetworkLatencyScorer)
    assert scorer.score(request(), endpoints(rtt=[math.nan, 0.02, 0.01])).tolist() == pytest.approx(
        [math.nan, 0.0, 1.0], nan_ok=True
    )
    assert np.isnan(scorer.score(request(), endpoints(2))).all()


@pytest.mark.parametrize("kind", [QueueScorer, RunningRequestsSizeScorer, KVCacheUtilizationScorer, LoadAwareScorer])
def test_a_server_that_was_never_scraped_has_no_score(kind: type[epp.Scorer[epp.Params]]) -> None:
    candidates = endpoints(waiting=[1, math.nan, 3], running=[1, math.nan, 3], kv_usage=[0.1, math.nan, 0.3])
    assert np.isnan(plugin(kind).score(request(), candidates)).tolist() == [False, True, False]
    assert np.isnan(plugin(kind).score(request(), endpoints(2))).all()
