"""How full servers say they are, and when what they said is too old."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import epp
from epp.testing import endpoints, plugin, request
from epp_plugins.detectors.utilization import UtilizationDetector

NAN = float("nan")
NOW = 1000.0


def saturation(parameters: dict[str, Any] | None = None, **columns: Any) -> float:
    return plugin(UtilizationDetector, parameters).saturation(endpoints(now=NOW, **columns))


def kept(parameters: dict[str, Any] | None = None, **columns: Any) -> list[bool]:
    mask = plugin(UtilizationDetector, parameters).filter(request(), endpoints(now=NOW, **columns))
    assert mask.dtype == np.bool_
    result: list[bool] = mask.tolist()
    return result


def test_mean_of_the_worse_of_queue_and_cache() -> None:
    # 2/5 over 0.2/0.8, then 0.6/0.8 over 1/5
    assert saturation(waiting=[2, 1], kv_usage=[0.2, 0.6]) == pytest.approx((0.4 + 0.75) / 2)


def test_a_mean_beyond_full() -> None:
    assert saturation(waiting=[20, 0], kv_usage=[0.0, 0.0]) == pytest.approx(2.0)


def test_own_thresholds() -> None:
    own = {"queueDepthThreshold": 10, "kvCacheUtilThreshold": 0.5}
    assert saturation(own, waiting=[5], kv_usage=[0.4]) == pytest.approx(0.8)


def test_an_empty_pool_is_full() -> None:
    assert plugin(UtilizationDetector).saturation(epp.EndpointTable().all(NOW)) == 1.0


@pytest.mark.parametrize(("age", "expected"), [(0.199, 0.0), (0.201, 1.0), (float("inf"), 1.0)])
def test_without_a_collector_the_threshold_decides(age: float, expected: float) -> None:
    assert saturation(waiting=[0.0], kv_usage=[0.0], scraped_at=[NOW - age]) == expected


@pytest.mark.parametrize(
    ("interval", "age", "fresh"),
    [
        (1.5, 1.7, True),  # idle: asked every 1.5 s
        (1.5, 3.74, True),
        (1.5, 3.76, False),
        (0.05, 0.19, True),  # hot: the threshold is longer than 2.5 intervals
        (0.05, 0.21, False),
        (NAN, 0.19, True),
        (NAN, 0.21, False),
    ],
)
def test_with_a_collector_its_pace_decides(interval: float, age: float, fresh: bool) -> None:
    columns: dict[str, Any] = {
        "waiting": [0.0],
        "kv_usage": [0.0],
        "scraped_at": [NOW - age],
        "scrape_interval": [interval],
    }
    assert saturation(**columns) == (0.0 if fresh else 1.0)
    assert kept(
        **columns
        | {"waiting": [0, 0], "kv_usage": [0, 0]}
        | {"scraped_at": [NOW - age, NOW], "scrape_interval": [interval, interval]}
    ) == [fresh, True]


def test_staleness_is_a_duration() -> None:
    patient = {"metricsStalenessThreshold": "2s"}
    assert saturation(patient, waiting=[0.0], kv_usage=[0.0], scraped_at=[NOW - 1.9]) == 0.0
    with pytest.raises(epp.ConfigError, match="is no duration"):
        plugin(UtilizationDetector, {"metricsStalenessThreshold": "soon"})


def test_what_a_server_does_not_report_is_left_out() -> None:
    assert saturation(waiting=[4, NAN], kv_usage=[NAN, 0.4]) == pytest.approx((0.8 + 0.5) / 2)
    assert saturation(waiting=[NAN], kv_usage=[NAN]) == 1.0
    assert kept(waiting=[4, NAN, NAN], kv_usage=[NAN, 0.4, NAN]) == [True, True, False]


@pytest.mark.parametrize(
    ("headroom", "expected"),
    [(0.0, [True, False, False, True, False]), (0.25, [True, True, False, True, True])],
)
def test_filter_keeps_those_below_both_thresholds(headroom: float, expected: list[bool]) -> None:
    assert kept({"headroom": headroom}, waiting=[4, 6, 7, 0, 0], kv_usage=[0.0, 0.0, 0.0, 0.79, 0.9]) == expected


def test_filter_fails_open() -> None:
    assert kept(waiting=[9, 9], kv_usage=[0.1, 0.1]) == [True, True]
    assert kept(waiting=[0, 0], kv_usage=[0, 0], scraped_at=[NOW - 9, NOW - 9]) == [True, True]


def test_reads_and_writes_nothing_else() -> None:
    candidates = endpoints(waiting=[NAN, 9], kv_usage=[0.1, 0.9], now=NOW)
    detector = plugin(UtilizationDetector)
    detector.saturation(candidates)
    detector.filter(request(), candidates)
    assert np.isnan(candidates.waiting[0])
    assert candidates.kv_usage.tolist() == [0.1, 0.9]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"queueDepthThreshold": 0}, ">= 1"),
        ({"kvCacheUtilThreshold": 0}, "> 0"),
        ({"kvCacheUtilThreshold": 80}, "<= 1"),
        ({"headroom": -0.1}, ">= 0"),
    ],
)
def test_parameters_are_checked(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(epp.ConfigError, match=message):
        plugin(UtilizationDetector, parameters)
