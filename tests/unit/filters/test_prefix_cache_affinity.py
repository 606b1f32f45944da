"""Sticky until busy: who stays for the sake of the cache."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import epp
from epp.api.prefix import PrefixMatch
from epp.telemetry.metrics import Registry
from epp.testing import endpoints, plugin, request
from epp_plugins.filters.prefix_cache_affinity import OUTCOMES, PrefixCacheAffinityFilter

APPROX = "approx-prefix-cache-producer"


class Case:
    """A filter over endpoints that hold `blocks` of `total` and have `tokens` in flight."""

    def __init__(
        self,
        blocks: list[float],
        *,
        total: int = 10,
        tokens: list[float] | None = None,
        producer: str = APPROX,
        seed: int = 0,
        **parameters: Any,
    ) -> None:
        self.candidates = endpoints(len(blocks))
        self.candidates.table.columns["inflight_tokens"][self.candidates.rows] = tokens or [0.0] * len(blocks)
        self.request = request()
        values = np.array(blocks, dtype=np.float64)
        epp.publish_prefix_match(self.request, self.candidates, producer, PrefixMatch(values, values, total, 64))
        self.metrics = Registry()
        self.filter = plugin(
            PrefixCacheAffinityFilter, parameters, table=self.candidates.table, metrics=self.metrics, seed=seed
        )

    def kept(self) -> list[int]:
        mask = self.filter.filter(self.request, self.candidates)
        assert mask.dtype == np.bool_
        positions: list[int] = mask.nonzero()[0].tolist()
        return positions

    def counted(self) -> dict[str, float]:
        decisions = self.metrics.counter(
            "prefix_cache_affinity_filter_decisions_total",
            "Prefix cache affinity filter decisions, by outcome.",
            ("plugin_name", "outcome"),
        )
        counts = {outcome: decisions.labels(self.filter.name, outcome).value for outcome in OUTCOMES}
        return {outcome: count for outcome, count in counts.items() if count}


def test_only_those_at_the_threshold_stay() -> None:
    case = Case([7, 8, 0, 10])
    assert case.kept() == [1, 3]
    assert case.counted() == {"sticky": 1}


def test_nobody_holds_enough() -> None:
    case = Case([7, 0, 3])
    assert case.kept() == [0, 1, 2]
    assert case.counted() == {"no_match": 1}


def test_everybody_holds_enough() -> None:
    assert Case([9, 9, 10], tokens=[1e9, 0, 0]).kept() == [0, 1, 2]


@pytest.mark.parametrize(("extra", "expected"), [(286_704, [0]), (286_705, [0, 1])])
def test_the_gate_in_time(extra: float, expected: list[int]) -> None:
    """18 s at 15 928 tokens per second are 286 704 tokens."""
    case = Case([10, 0], tokens=[1000 + extra, 1000])
    assert case.kept() == expected
    assert case.counted() == ({"sticky": 1} if expected == [0] else {"load_override": 1})


def test_the_best_of_each_side_is_compared() -> None:
    busy = 1_000_000.0
    assert Case([10, 10, 0, 0], tokens=[busy, 0, busy, 0]).kept() == [0, 1]
    assert Case([10, 10, 0, 0], tokens=[busy, busy, busy, 0]).kept() == [0, 1, 2, 3]
    assert Case([10, 10, 0, 0], tokens=[busy, 0, busy, busy]).kept() == [0, 1]


def test_the_gate_can_be_turned_off() -> None:
    case = Case([10, 0], tokens=[1e12, 0], maxTTFTPenaltyMs=0)
    assert case.kept() == [0]
    assert list(case.filter.consumes) == [epp.DataKey(epp.PREFIX_CACHE_MATCH, APPROX)]


@pytest.mark.parametrize(("tokens", "expected"), [(100, [0]), (101, [0, 1])])
def test_the_gate_in_tokens(tokens: float, expected: list[int]) -> None:
    assert Case([10, 0], tokens=[tokens, 0], maxTTFTPenaltyMs=0, maxTokensInFlightPenalty=100).kept() == expected


def test_the_stricter_gate_decides() -> None:
    both = {"maxTokensInFlightPenalty": 5000, "maxTTFTPenaltyMs": 100, "peakPrefillThroughput": 10_000}
    assert Case([10, 0], tokens=[1000, 0], **both).kept() == [0]
    assert Case([10, 0], tokens=[1001, 0], **both).kept() == [0, 1]
    both["maxTokensInFlightPenalty"] = 500
    assert Case([10, 0], tokens=[501, 0], **both).kept() == [0, 1]


@pytest.mark.parametrize("total", [0, 10])
def test_nothing_to_decide(total: int) -> None:
    assert Case([10], total=10).counted() == {}
    alone = Case([10], total=10)
    assert alone.kept() == [0]
    assert alone.counted() == {"not_applicable": 1}
    off = Case([10, 0], total=total, affinityThreshold=0)
    assert off.kept() == [0, 1]
    assert off.counted() == {"not_applicable": 1}


def test_no_match_information() -> None:
    case = Case([10, 0])
    mask = case.filter.filter(request(), endpoints(2))
    assert mask.all()
    empty = Case([0, 0], total=0)
    assert empty.kept() == [0, 1]
    assert empty.counted() == case.counted() == {"no_match": 1}


def test_exploration() -> None:
    case = Case([10, 0], explorationProbability=0.25, seed=7)
    explored = sum(len(case.kept()) == 2 for _ in range(4000))
    assert 880 <= explored <= 1120  # 1000, four standard deviations on both sides
    assert case.counted() == {"exploration": explored, "sticky": 4000 - explored}
    assert Case([10, 0], explorationProbability=1).kept() == [0, 1]


def test_reads_the_producers_it_is_told() -> None:
    case = Case(
        [10, 0],
        producer="precise",
        maxTTFTPenaltyMs=0,
        maxTokensInFlightPenalty=1,
        prefixMatchInfoProducerName="precise",
        inFlightLoadProducerName="mine",
    )
    assert list(case.filter.consumes) == [
        epp.DataKey(epp.PREFIX_CACHE_MATCH, "precise"),
        epp.DataKey(epp.INFLIGHT_LOAD, "mine"),
    ]
    case.candidates.table.add_column("inflight_tokens/mine", 0.0)
    assert case.kept() == [0]


def test_without_a_metrics_registry() -> None:
    case = Case([10, 0])
    context = epp.PluginContext(
        name="quiet",
        clock=case.filter.context.clock,
        rng=case.filter.context.rng,
        log=case.filter.context.log,
        table=case.candidates.table,
        find=case.filter.context.find,
    )
    quiet = PrefixCacheAffinityFilter(case.filter.params, context)
    assert quiet.filter(case.request, case.candidates).tolist() == [True, False]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"affinityThreshold": 1.1}, "<= 1"),
        ({"explorationProbability": -0.1}, ">= 0"),
        ({"maxTTFTPenaltyMs": -1}, ">= 0"),
        ({"prefillCalibrationRequired": True}, "set peakPrefillThroughput to the measured"),
        ({"ttftSource": "latencyPredictor"}, "nothing predicts latency yet"),
        ({"ttftSource": "guess"}, "invalid enum value"),
        ({"peakPrefillThroughput": 0}, "peakPrefillThroughput must be above 0"),
        ({"maxTtftPenaltyMs": 5}, "did you mean `maxTTFTPenaltyMs`"),
    ],
)
def test_parameters_are_checked(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(epp.ConfigError, match=message):
        plugin(PrefixCacheAffinityFilter, parameters)


def test_a_calibration_record_is_accepted_with_a_word(caplog: pytest.LogCaptureFixture) -> None:
    plugin(PrefixCacheAffinityFilter, {"peakPrefillThroughput": 9000, "prefillCalibrationRequired": False})
    assert not caplog.text
    plugin(PrefixCacheAffinityFilter, {"prefillCalibrationFile": "r.json", "prefillCalibrationFingerprint": "sha256:a"})
    assert "prefillCalibrationFile and prefillCalibrationFingerprint have no effect" in caplog.text
