"""Limits on load metrics."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import epp
from epp.testing import assemble, endpoints, plugin, request
from epp_plugins.filters.utilization import UtilizationFilter

NAN = float("nan")


def kept(parameters: dict[str, Any], **columns: Any) -> list[bool]:
    mask: list[bool] = plugin(UtilizationFilter, parameters).filter(request(), endpoints(**columns)).tolist()
    return mask


@pytest.mark.parametrize(
    ("metric", "column"),
    [
        ("active-requests", "inflight_requests"),
        ("running-requests", "running"),
        ("waiting-queue", "waiting"),
    ],
)
def test_at_most_the_limit_passes(metric: str, column: str) -> None:
    assert kept({"conditions": [{"metric": metric, "maxValue": 4}]}, **{column: [3, 4, 5]}) == [True, True, False]


def test_share_of_the_cache() -> None:
    conditions = [{"metric": "kv-cache-utilization", "maxValue": 0.9}]
    assert kept({"conditions": conditions}, kv_usage=[0.5, 0.9, 0.91]) == [True, True, False]


def test_any_limit_that_is_exceeded_counts() -> None:
    conditions = [{"metric": "waiting-queue", "maxValue": 1}, {"metric": "running-requests", "maxValue": 10}]
    assert kept({"conditions": conditions}, waiting=[0, 0, 2, 2], running=[10, 11, 10, 11]) == [
        True,
        False,
        False,
        False,
    ]


def test_what_was_never_measured_passes() -> None:
    conditions = [{"metric": "waiting-queue", "maxValue": 0}, {"metric": "kv-cache-utilization", "maxValue": 0.5}]
    assert kept({"conditions": conditions}, waiting=[NAN, NAN, 1], kv_usage=[NAN, 0.6, NAN]) == [True, False, False]


def test_nobody_left_unless_it_falls_back() -> None:
    parameters: dict[str, Any] = {"conditions": [{"metric": "waiting-queue", "maxValue": 1}]}
    assert kept(parameters, waiting=[2, 3]) == [False, False]
    assert kept(parameters | {"fallbackOnEmpty": True}, waiting=[2, 3]) == [True, True]
    assert kept(parameters | {"fallbackOnEmpty": True}, waiting=[1, 3]) == [True, False]


def test_reads_the_counts_of_the_producer_it_is_told() -> None:
    active = [{"metric": "active-requests", "maxValue": 2}]
    default = plugin(UtilizationFilter, {"conditions": active})
    assert list(default.consumes) == [epp.DataKey(epp.INFLIGHT_LOAD, "inflight-load-producer")]
    other = plugin(UtilizationFilter, {"conditions": active, "inFlightLoadProducerName": "mine"})
    assert list(other.consumes) == [epp.DataKey(epp.INFLIGHT_LOAD, "mine")]
    candidates = endpoints(2, inflight_requests=[9, 0])
    candidates.table.add_column("inflight_requests/mine", 0.0)[candidates.rows] = np.array([0, 9])
    assert other.filter(request(), candidates).tolist() == [True, False]
    assert not plugin(UtilizationFilter, {"conditions": [{"metric": "waiting-queue", "maxValue": 2}]}).consumes


def test_its_producer_is_added() -> None:
    made = assemble(
        """
        plugins:
        - type: utilization-filter
          parameters: {conditions: [{metric: active-requests, maxValue: 0}]}
        - type: random-picker
        schedulingProfiles:
        - name: default
          plugins: [{pluginRef: utilization-filter}, {pluginRef: random-picker}]
        """
    )
    candidates = endpoints(2, table=made.table)
    hosts = {made.schedule(request(), made.table.all(0.0)).target.picked[0].key for _ in range(2)}
    assert len(hosts) == len(candidates)
    with pytest.raises(epp.ResourceExhausted, match="utilization-filter") as refused:
        made.schedule(request(), made.table.all(0.0))
    assert refused.value.reason == "rejected-saturated"


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({}, "`conditions` is missing"),
        ({"conditions": []}, "length >= 1"),
        ({"conditions": [{"metric": "waiting-queue"}]}, "`maxValue` is missing"),
        ({"conditions": [{"metric": "waiting-queue", "maxValue": -1}]}, ">= 0"),
        ({"conditions": [{"metric": "waiting", "maxValue": 1}]}, "invalid enum value"),
        ({"conditions": [{"metric": "kv-cache-utilization", "maxValue": 90}]}, "share from 0 to 1"),
    ],
)
def test_parameters_are_checked(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(epp.ConfigError, match=message):
        plugin(UtilizationFilter, parameters)
