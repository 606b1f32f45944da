"""Scorers that read prefix-cache matches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import epp
from epp.testing import assemble, endpoints, plugin, request
from epp_plugins.scorers.lmetric import LMetricScorer
from epp_plugins.scorers.no_hit_lru import NoHitLRUScorer, RowOrder
from epp_plugins.scorers.prefix_cache import PrefixCacheScorer


class TestPrefixCache:
    def test_share_of_the_prompt(self, match: Any) -> None:
        asked, candidates = request(), endpoints(3)
        match(asked, candidates, blocks=[0, 5, 10], total=10)
        assert plugin(PrefixCacheScorer).score(asked, candidates).tolist() == [0.0, 0.5, 1.0]

    def test_length_counts_with_a_weight(self, match: Any) -> None:
        asked, candidates = request(), endpoints(3)
        match(asked, candidates, blocks=[4, 8, 16], total=16, block_size=64)
        scorer = plugin(PrefixCacheScorer, {"matchLengthWeight": 0.5, "matchLengthScaleTokens": 512})
        # 256, 512 and 1024 tokens: (1/2)^2, 1 and capped at 1
        assert scorer.score(asked, candidates).tolist() == [0.5 * 0.25 + 0.5 * 0.25, 0.5 * 0.5 + 0.5, 1.0]

    def test_no_information_scores_zero(self, match: Any) -> None:
        asked, candidates = request(), endpoints(2)
        scorer = plugin(PrefixCacheScorer)
        assert scorer.score(asked, candidates).tolist() == [0.0, 0.0]
        match(asked, candidates, blocks=[0, 0], total=0)
        assert scorer.score(asked, candidates).tolist() == [0.0, 0.0]

    def test_another_producer(self, match: Any) -> None:
        asked, candidates = request(), endpoints(2)
        match(asked, candidates, blocks=[1, 0], total=2)
        match(asked, candidates, blocks=[0, 2], total=2, producer="precise")
        scorer = plugin(PrefixCacheScorer, {"prefixMatchInfoProducerName": "precise"})
        assert list(scorer.consumes) == [(epp.PREFIX_CACHE_MATCH, "precise")]
        assert scorer.score(asked, candidates).tolist() == [0.0, 1.0]


class TestLMetric:
    def test_uncached_tokens_times_batch(self, match: Any) -> None:
        asked, candidates = request(), endpoints(inflight_requests=[0, 1, 3])
        match(asked, candidates, blocks=[0, 6, 8], total=10)
        # 10 * 1 = 10, 4 * 2 = 8, 2 * 4 = 8 blocks
        assert plugin(LMetricScorer).score(asked, candidates).tolist() == [0.0, 1.0, 1.0]

    def test_blocks_count_whole_whatever_their_tier(self, match: Any) -> None:
        asked, candidates = request(), endpoints(3)
        match(asked, candidates, blocks=[4.0, 6.4, 0.0], cached=[4, 8, 0], total=8)
        assert plugin(LMetricScorer).score(asked, candidates).tolist() == [0.5, 1.0, 0.0]

    def test_equal_costs(self, match: Any) -> None:
        asked, candidates = request(), endpoints(inflight_requests=[2, 2])
        match(asked, candidates, blocks=[3, 3], total=8)
        assert plugin(LMetricScorer).score(asked, candidates).tolist() == [1.0, 1.0]

    def test_without_matches_load_decides(self) -> None:
        scores = plugin(LMetricScorer).score(request(), endpoints(inflight_requests=[0, 2, 4]))
        assert scores.tolist() == [1.0, 0.5, 0.0]

    def test_other_producers(self) -> None:
        scorer = plugin(LMetricScorer, {"prefixMatchInfoProducerName": "p", "inFlightLoadProducerName": "f"})
        assert list(scorer.consumes) == [(epp.PREFIX_CACHE_MATCH, "p"), (epp.INFLIGHT_LOAD, "f")]
        candidates = endpoints(2, **{"inflight_requests/f": [1, 0]})
        assert scorer.score(request(), candidates).tolist() == [0.0, 1.0]


def picked(candidates: epp.Endpoints, **positions: int) -> epp.SchedulingResult:
    """The first profile is the primary one."""
    profiles: dict[str, epp.ProfileResult | None] = {
        name: epp.ProfileResult(
            profile=name,
            picked=(candidates[position],),
            rows=(int(candidates.rows[position]),),
            candidates=candidates,
            scores=np.zeros(len(candidates)),
        )
        for name, position in positions.items()
    }
    return epp.SchedulingResult(primary=next(iter(profiles)), profiles=profiles)


class TestNoHitLRU:
    def test_a_hit_anywhere_leaves_it_to_others(self, match: Any) -> None:
        asked, candidates = request(), endpoints(3)
        scorer = plugin(NoHitLRUScorer, table=candidates.table)
        match(asked, candidates, blocks=[0, 1, 0], total=4)
        assert scorer.score(asked, candidates).tolist() == [0.5, 0.5, 0.5]
        scorer.on_picked(asked, picked(candidates, default=0))
        assert scorer.dump_state() == {"leastRecentlyUsed": [], "used": 0}

    def test_never_used_ones_first_then_by_age(self, match: Any) -> None:
        candidates = endpoints(5)
        scorer = plugin(NoHitLRUScorer, table=candidates.table)
        for position in (3, 1):  # 3 is used longest ago
            cold = request()
            match(cold, candidates, blocks=[0] * 5, total=4)
            scorer.score(cold, candidates)
            scorer.on_picked(cold, picked(candidates, default=position))
        # never used: 0, 2, 4 in their order; then 3 (rank 3), then 1 (rank 4)
        assert scorer.score(request(), candidates).tolist() == [1.0, 0.0, 0.75, 0.25, 0.5]
        assert scorer.dump_state() == {"leastRecentlyUsed": ["default/pod-3-rank-0", "default/pod-1-rank-0"], "used": 2}

    def test_cold_requests_go_round(self) -> None:
        candidates = endpoints(4)
        scorer = plugin(NoHitLRUScorer, table=candidates.table)
        order = []
        for _ in range(8):
            cold = request()
            position = int(scorer.score(cold, candidates).argmax())
            order.append(position)
            scorer.on_picked(cold, picked(candidates, default=position))
        assert order == [0, 1, 2, 3, 0, 1, 2, 3]

    def test_the_prefill_endpoint_counts_too(self) -> None:
        candidates = endpoints(3)
        scorer = plugin(NoHitLRUScorer, table=candidates.table)
        cold = request()
        scorer.score(cold, candidates)
        scorer.on_picked(cold, picked(candidates, decode=0, prefill=2, encode=1))
        assert scorer.dump_state()["leastRecentlyUsed"] == ["default/pod-0-rank-0", "default/pod-2-rank-0"]

    def test_one_candidate(self) -> None:
        candidates = endpoints(3)
        scorer = plugin(NoHitLRUScorer, table=candidates.table)
        assert scorer.score(request(), candidates.take([1])).tolist() == [1.0]

    def test_many_used_ones_that_are_no_candidates(self) -> None:
        everybody = endpoints(6)
        scorer = plugin(NoHitLRUScorer, table=everybody.table)
        for position in range(6):
            cold = request()
            scorer.score(cold, everybody)
            scorer.on_picked(cold, picked(everybody, default=position))
        assert scorer.score(request(), everybody.take([0, 1, 5])).tolist() == [1.0, 0.5, 0.0]

    def test_size_is_bounded_and_gone_endpoints_are_forgotten(self) -> None:
        candidates = endpoints(4)
        scorer = plugin(NoHitLRUScorer, {"lruSize": 2}, table=candidates.table)
        for position in (0, 1, 2):
            cold = request()
            scorer.score(cold, candidates)
            scorer.on_picked(cold, picked(candidates, default=position))
        assert scorer.dump_state()["leastRecentlyUsed"] == ["default/pod-1-rank-0", "default/pod-2-rank-0"]
        candidates.table.remove(candidates[1].host_port)
        assert scorer.dump_state() == {"leastRecentlyUsed": ["default/pod-2-rank-0"], "used": 1}

    def test_more_endpoints_than_at_the_start(self) -> None:
        candidates = endpoints(200)
        scorer = plugin(NoHitLRUScorer, table=candidates.table)
        cold = request()
        assert scorer.score(cold, candidates)[199] == 0.0
        scorer.on_picked(cold, picked(candidates, default=0))
        assert scorer.score(request(), candidates)[[0, 1, 199]].tolist() == pytest.approx([0.0, 1.0, 1 - 198 / 199])

    def test_former_parameters_are_accepted_with_a_warning(self, caplog: pytest.LogCaptureFixture) -> None:
        plugin(NoHitLRUScorer, {"prefixPluginType": "prefix-cache-scorer", "prefixPluginName": "p"})
        assert "use prefixMatchInfoProducerName (here: approx-prefix-cache-producer)" in caplog.text

    def test_in_a_pool(self) -> None:
        pool = assemble(
            """
            plugins:
            - type: no-hit-lru-scorer
            - type: prefix-cache-scorer
            schedulingProfiles:
            - name: default
              plugins:
              - {pluginRef: prefix-cache-scorer, weight: 2}
              - {pluginRef: no-hit-lru-scorer}
            """
        )
        endpoints(3, table=pool.table)
        prompts = [f"{letter * 3000}" for letter in "abc"]
        first = [
            pool.schedule(request(prompt, id=prompt[0]), pool.table.all(1000.0)).target.picked[0].name
            for prompt in prompts
        ]
        assert sorted(first) == ["pod-0-rank-0", "pod-1-rank-0", "pod-2-rank-0"]
        again = [
            pool.schedule(request(prompt, id=f"{prompt[0]}2"), pool.table.all(1000.0)).target.picked[0].name
            for prompt in prompts
        ]
        assert again == first


class TestRowOrder:
    def test_order_of_use(self) -> None:
        order = RowOrder(10)
        for row in (5, 3, 200, 5):
            order.touch(row)
        assert order.rows() == [3, 200, 5]
        assert order.positions(np.array([3, 200, 5, 7])).tolist() == [0.0, 1.0, 2.0, -1.0]

    def test_forgetting(self) -> None:
        order = RowOrder(10)
        for row in (1, 2, 3):
            order.touch(row)
        order.forget(2)
        order.forget(900)
        assert order.rows() == [1, 3]
        assert len(order) == 2

    def test_limit(self) -> None:
        order = RowOrder(2)
        for row in (1, 2, 3, 1):
            order.touch(row)
        assert order.rows() == [3, 1]
