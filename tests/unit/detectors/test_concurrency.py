"""Saturation from what we have in flight ourselves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import epp
from epp.testing import assemble, endpoints, plugin, request
from epp_plugins.detectors.concurrency import ConcurrencyDetector


def load(requests: list[float], tokens: list[float]) -> epp.Endpoints:
    return endpoints(inflight_requests=requests, inflight_tokens=tokens)


SMALL = {"maxConcurrency": 10, "maxTokenConcurrency": 1000}


@pytest.mark.parametrize(
    ("mode", "saturation", "kept"),
    [
        ("requests", 20 / 30, [True, False, True]),
        ("tokens", 3000 / 3000, [False, True, True]),
        ("hybrid", (2.0 + 1.1 + 0.9) / 3, [False, False, True]),
    ],
)
def test_modes(mode: str, saturation: float, kept: list[bool]) -> None:
    pool = load([5, 11, 4], [2000, 100, 900])
    detector = plugin(ConcurrencyDetector, SMALL | {"concurrencyMode": mode})
    assert detector.saturation(pool) == pytest.approx(saturation)
    mask = detector.filter(request(), pool)
    assert mask.dtype == np.bool_
    assert mask.tolist() == kept


def test_defaults() -> None:
    detector = plugin(ConcurrencyDetector)
    pool = load([100, 99], [0, 0])
    assert detector.saturation(pool) == pytest.approx(199 / 200)
    assert detector.filter(request(), pool).tolist() == [False, True]


def test_below_the_limit_means_below() -> None:
    detector = plugin(ConcurrencyDetector, {"maxConcurrency": 3, "headroom": 0.5})  # int(4.5): 4
    assert detector.filter(request(), load([3, 4, 5], [0, 0, 0])).tolist() == [True, False, False]
    assert detector.saturation(load([3, 3], [0, 0])) == 1.0  # headroom is for the filter alone


def test_nobody_left_stays_nobody() -> None:
    assert not plugin(ConcurrencyDetector, {"maxConcurrency": 1}).filter(request(), load([1, 2], [0, 0])).any()


def test_an_empty_pool_is_full() -> None:
    assert plugin(ConcurrencyDetector).saturation(epp.EndpointTable().all(0.0)) == 1.0


def test_reads_the_counts_of_the_producer_it_is_told() -> None:
    pool = load([9, 9], [0, 0])
    pool.table.add_column("inflight_requests/mine", 0.0)[pool.rows] = np.array([1, 3])
    detector = plugin(ConcurrencyDetector, {"maxConcurrency": 2, "inFlightLoadProducerName": "mine"})
    assert list(detector.consumes) == [epp.DataKey(epp.INFLIGHT_LOAD, "mine")]
    assert detector.saturation(pool) == 1.0
    assert detector.filter(request(), pool).tolist() == [True, False]


def test_as_the_filter_of_a_profile() -> None:
    made = assemble(
        """
        plugins:
        - type: concurrency-detector
          parameters: {maxConcurrency: 2}
        - type: random-picker
        schedulingProfiles:
        - name: default
          plugins: [{pluginRef: concurrency-detector}, {pluginRef: random-picker}]
        saturationDetector: {pluginRef: concurrency-detector}
        """
    )
    pool = endpoints(2, table=made.table)
    assert made.assembly.saturation_detector.saturation(pool) == 0.0
    for _ in range(4):
        made.schedule(request(), made.table.all(0.0))
    assert made.assembly.saturation_detector.saturation(made.table.all(0.0)) == 1.0
    with pytest.raises(epp.ResourceExhausted, match="concurrency-detector"):
        made.schedule(request(), made.table.all(0.0))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"concurrencyMode": "both"}, "invalid enum value"),
        ({"maxConcurrency": 0}, ">= 1"),
        ({"maxTokenConcurrency": 0}, ">= 1"),
        ({"headroom": -1}, ">= 0"),
    ],
)
def test_parameters_are_checked(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(epp.ConfigError, match=message):
        plugin(ConcurrencyDetector, parameters)
