"""Filters and detectors against the same rules written endpoint by endpoint, over any numbers, labels and order."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import epp
from epp.api.prefix import PrefixMatch
from epp.testing import endpoints, plugin, request
from epp_plugins.detectors.concurrency import ConcurrencyDetector
from epp_plugins.detectors.utilization import UtilizationDetector
from epp_plugins.filters.label_selector import LabelSelectorFilter
from epp_plugins.filters.prefix_cache_affinity import PrefixCacheAffinityFilter
from epp_plugins.filters.session_affinity import SessionAffinityFilter
from epp_plugins.filters.utilization import UtilizationFilter

NOW = 1000.0
NAN = math.nan

counts = st.one_of(st.just(NAN), st.integers(0, 12).map(float))
shares = st.one_of(st.just(NAN), st.integers(0, 20).map(lambda n: n / 20))
ages = st.sampled_from([0.0, 0.1, 0.5, 3.0, math.inf])
paces = st.sampled_from([NAN, 0.05, 0.15, 1.5])
Row = tuple[float, float, float, float, float, float, float]
rows = st.lists(
    st.tuples(counts, counts, shares, st.integers(0, 12), st.integers(0, 900), ages, paces).map(
        lambda row: tuple(map(float, row))
    ),
    min_size=1,
    max_size=12,
)
COLUMNS = ("waiting", "running", "kv_usage", "inflight_requests", "inflight_tokens", "age", "scrape_interval")


def pool_of(values: list[Row]) -> epp.Endpoints:
    columns: dict[str, Any] = dict(zip(COLUMNS, map(list, zip(*values, strict=True)), strict=True))
    columns["scraped_at"] = [NOW - age for age in columns.pop("age")]
    return endpoints(now=NOW, **columns)


def masks(made: epp.Filter[Any], pool: epp.Endpoints, asked: epp.InferenceRequest) -> list[bool]:
    """What the filter says, after checking what holds for every filter: shape, type, input left alone, order."""
    before = {name: column.copy() for name, column in pool.table.columns.items()}
    mask = made.filter(asked, pool)
    assert mask.shape == (len(pool),)
    assert mask.dtype == np.bool_
    for name, column in pool.table.columns.items():
        np.testing.assert_array_equal(column, before[name])
    backwards = np.arange(len(pool))[::-1]
    assert made.filter(asked, pool.take(backwards)).tolist() == mask[::-1].tolist()
    mask_list: list[bool] = mask.tolist()
    mask[:] = False  # it is the caller's
    assert made.filter(asked, pool).tolist() == mask_list
    return mask_list


CONDITIONS = {
    "active-requests": 3,
    "running-requests": 1,
    "waiting-queue": 0,
    "kv-cache-utilization": 2,
}


@given(
    rows,
    st.dictionaries(st.sampled_from(sorted(CONDITIONS)), st.integers(0, 20), min_size=1),
    st.booleans(),
)
def test_utilization_filter(values: list[Row], limits: dict[str, int], fallback: bool) -> None:
    bounds = {
        metric: limit / 20 if metric == "kv-cache-utilization" else float(limit) for metric, limit in limits.items()
    }
    made = plugin(
        UtilizationFilter,
        {
            "conditions": [{"metric": metric, "maxValue": limit} for metric, limit in bounds.items()],
            "fallbackOnEmpty": fallback,
        },
    )
    expected = [not any(row[CONDITIONS[metric]] > limit for metric, limit in bounds.items()) for row in values]
    if fallback and not any(expected):
        expected = [True] * len(values)
    assert masks(made, pool_of(values), request()) == expected


def utilization_load(row: Row, queue: int, cache: float) -> float | None:
    """Load of one endpoint; None without fresh values."""
    waiting, _, kv_usage, _, _, age, pace = row
    allowed = 0.2 if math.isnan(pace) else max(0.2, 2.5 * pace)
    known = [x for x in (waiting / queue, kv_usage / cache) if not math.isnan(x)]
    return max(known) if known and age <= allowed else None


@given(rows, st.integers(1, 10), st.sampled_from([0.3, 0.8, 1.0]), st.sampled_from([0.0, 0.25, 1.0]))
def test_utilization_detector(values: list[Row], queue: int, cache: float, headroom: float) -> None:
    made = plugin(
        UtilizationDetector, {"queueDepthThreshold": queue, "kvCacheUtilThreshold": cache, "headroom": headroom}
    )
    pool = pool_of(values)
    loads = [utilization_load(row, queue, cache) for row in values]
    assert made.saturation(pool) == pytest.approx(np.mean([1.0 if load is None else load for load in loads]))
    expected = [load is not None and load < 1.0 + headroom for load in loads]
    assert masks(made, pool, request()) == (expected if any(expected) else [True] * len(values))


@given(
    rows,
    st.sampled_from(["requests", "tokens", "hybrid"]),
    st.integers(1, 12),
    st.integers(1, 900),
    st.sampled_from([0.0, 0.2, 1.0]),
)
def test_concurrency_detector(values: list[Row], mode: str, requests: int, tokens: int, headroom: float) -> None:
    made = plugin(
        ConcurrencyDetector,
        {
            "concurrencyMode": mode,
            "maxConcurrency": requests,
            "maxTokenConcurrency": tokens,
            "headroom": headroom,
        },
    )
    pool = pool_of(values)
    by_requests = [row[3] < int(requests * (1 + headroom)) for row in values]
    by_tokens = [row[4] < int(tokens * (1 + headroom)) for row in values]
    expected, full = {
        "requests": (by_requests, sum(row[3] for row in values) / (requests * len(values))),
        "tokens": (by_tokens, sum(row[4] for row in values) / (tokens * len(values))),
        "hybrid": (
            [a and b for a, b in zip(by_requests, by_tokens, strict=True)],
            sum(max(row[3] / requests, row[4] / tokens) for row in values) / len(values),
        ),
    }[mode]
    assert masks(made, pool, request()) == expected
    assert made.saturation(pool) == pytest.approx(full)


label_sets = st.lists(
    st.dictionaries(st.sampled_from("abc"), st.sampled_from(["x", "y", ""]), max_size=3), min_size=1, max_size=12
)
expressions = st.lists(
    st.one_of(
        st.fixed_dictionaries(
            {
                "key": st.sampled_from("abc"),
                "operator": st.sampled_from(["In", "NotIn"]),
                "values": st.lists(st.sampled_from(["x", "y", ""]), min_size=1, max_size=2),
            }
        ),
        st.fixed_dictionaries({"key": st.sampled_from("abc"), "operator": st.sampled_from(["Exists", "DoesNotExist"])}),
    ),
    max_size=3,
)


def selected(labels: Mapping[str, str], wanted: Mapping[str, str], requirements: list[dict[str, Any]]) -> bool:
    for key, value in wanted.items():
        if key not in labels or labels[key] != value:
            return False
    for requirement in requirements:
        key, operator = requirement["key"], requirement["operator"]
        there = key in labels
        among = there and labels[key] in requirement.get("values", ())
        if not {"In": among, "NotIn": not among, "Exists": there, "DoesNotExist": not there}[operator]:
            return False
    return True


@given(label_sets, st.dictionaries(st.sampled_from("abc"), st.sampled_from(["x", "y"]), max_size=2), expressions)
def test_label_selector(
    labels: list[dict[str, str]], wanted: dict[str, str], requirements: list[dict[str, Any]]
) -> None:
    made = plugin(LabelSelectorFilter, {"matchLabels": wanted, "matchExpressions": requirements})
    expected = [selected(one, wanted, requirements) for one in labels]
    assert masks(made, endpoints(labels=labels), request()) == expected


holdings = st.lists(st.tuples(st.integers(0, 20), st.integers(0, 50)), min_size=1, max_size=12)


@given(holdings, st.sampled_from([0.0, 0.05, 0.5, 0.8, 1.0]), st.sampled_from([0, 1, 10]), st.sampled_from([0, 500]))
def test_prefix_cache_affinity_filter(
    values: list[tuple[int, int]], threshold: float, most_tokens: int, most_ms: int
) -> None:
    made = plugin(
        PrefixCacheAffinityFilter,
        {
            "affinityThreshold": threshold,
            "maxTokensInFlightPenalty": most_tokens,
            "maxTTFTPenaltyMs": most_ms,
            "peakPrefillThroughput": 40,
        },
    )
    pool = endpoints(inflight_tokens=[float(tokens) for _, tokens in values])
    asked = request()
    blocks = np.array([float(held) for held, _ in values])
    epp.publish_prefix_match(asked, pool, "approx-prefix-cache-producer", PrefixMatch(blocks, blocks, 20, 64))

    sticky = [held / 20 >= threshold for held, _ in values]
    expected = sticky if threshold and any(sticky) else [True] * len(values)
    if not all(expected):
        best = min(tokens for (_, tokens), kept in zip(values, sticky, strict=True) if kept)
        other = min(tokens for (_, tokens), kept in zip(values, sticky, strict=True) if not kept)
        too_slow = most_ms > 0 and (best - other) / 40 * 1000 > most_ms
        too_busy = most_tokens > 0 and best - other > most_tokens
        if too_slow or too_busy:
            expected = [True] * len(values)
    if len(values) > 1:
        assert masks(made, pool, asked) == expected
    else:
        assert masks(made, pool, asked) == [True]


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(st.sampled_from("stuv"), st.integers(0, 4), st.sampled_from([0.0, 4.0, 11.0])),
        min_size=1,
        max_size=25,
    )
)
def test_sessions_are_remembered_for_as_long_as_they_are_used(steps: list[tuple[str, int, float]]) -> None:
    """Any order of sessions, picks and pauses: as a plain dictionary with times says."""
    now = [NOW]
    pool = endpoints(5)
    made = plugin(
        SessionAffinityFilter,
        {"strategy": "session_id", "sessionIdConfig": {"evictionTtlSeconds": 10, "evictionSweepSeconds": 3}},
        table=pool.table,
        clock=lambda: now[0],
    )
    model: dict[str, tuple[int, float]] = {}
    for session, choice, pause in steps:
        now[0] += pause
        asked = request(headers={"x-session-id": session})
        bound = model.get(session)
        if bound is not None and now[0] - bound[1] > 10:
            bound = None
        mask = made.filter(asked, pool).tolist()
        assert mask == [bound is None or bound[0] == position for position in range(5)]
        position = choice if bound is None else bound[0]
        model[session] = (position, now[0])
        result = epp.ProfileResult("default", (pool[position],), (int(pool.rows[position]),), pool, np.zeros(5))
        made.on_picked(asked, epp.SchedulingResult("default", {"default": result}))


HOSTILE = st.one_of(st.text(max_size=40), st.binary(max_size=30).map(lambda raw: raw.hex()))


@given(HOSTILE)
def test_any_token_of_a_client_leaves_somebody(value: str) -> None:
    pool = endpoints(3)
    made = plugin(SessionAffinityFilter, table=pool.table)
    assert masks(made, pool, request(headers={"x-session-token": value})) == [True, True, True]


def test_a_thousand_endpoints_as_one_by_one() -> None:
    rng = np.random.default_rng(7)
    values: list[Row] = [
        (
            float(rng.integers(0, 12)),
            float(rng.integers(0, 12)),
            float(rng.integers(0, 20)) / 20,
            float(rng.integers(0, 12)),
            float(rng.integers(0, 900)),
            float(rng.choice([0.0, 0.5])),
            0.15,
        )
        for _ in range(1000)
    ]
    pool = pool_of(values)
    loads = [utilization_load(row, 5, 0.8) for row in values]
    detector = plugin(UtilizationDetector)
    assert detector.saturation(pool) == pytest.approx(np.mean([1.0 if load is None else load for load in loads]))
    assert masks(detector, pool, request()) == [load is not None and load < 1 for load in loads]
    limits = plugin(
        UtilizationFilter,
        {"conditions": [{"metric": "waiting-queue", "maxValue": 6}, {"metric": "active-requests", "maxValue": 6}]},
    )
    assert masks(limits, pool, request()) == [row[0] <= 6 and row[3] <= 6 for row in values]
