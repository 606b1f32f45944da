"""Scorers that read what this picker has in flight."""

from __future__ import annotations

import numpy as np
import pytest

import epp
from epp.testing import assemble, endpoints, plugin, request
from epp_plugins.scorers.active_request import ActiveRequestScorer
from epp_plugins.scorers.token_load import TokenLoadScorer

UNCACHED = epp.DataKey(epp.UNCACHED_TOKENS, "inflight-load-producer")


class TestActiveRequest:
    def test_share_of_the_busiest(self) -> None:
        scores = plugin(ActiveRequestScorer).score(request(), endpoints(inflight_requests=[0, 1, 3, 4]))
        assert scores.tolist() == [1.0, 0.75, 0.25, 0.0]

    def test_idle_ones_score_one(self) -> None:
        scorer = plugin(ActiveRequestScorer, {"idleThreshold": 2, "maxBusyScore": 0.5})
        assert scorer.score(request(), endpoints(inflight_requests=[0, 2, 5, 10])).tolist() == [1.0, 1.0, 0.25, 0.0]

    def test_an_idle_pool(self) -> None:
        assert plugin(ActiveRequestScorer).score(request(), endpoints(3)).tolist() == [1.0, 1.0, 1.0]
        scorer = plugin(ActiveRequestScorer, {"idleThreshold": 4})
        assert scorer.score(request(), endpoints(inflight_requests=[4, 0])).tolist() == [1.0, 1.0]

    def test_brings_its_producer(self) -> None:
        assert tuple(plugin(ActiveRequestScorer).consumes) == ((epp.INFLIGHT_LOAD, "inflight-load-producer"),)

    def test_another_producer(self) -> None:
        scorer = plugin(ActiveRequestScorer, {"inFlightLoadProducerName": "mine"})
        assert list(scorer.consumes) == [(epp.INFLIGHT_LOAD, "mine")]
        candidates = endpoints(2, **{"inflight_requests/mine": [2, 1], "inflight_requests": [0, 9]})
        assert scorer.score(request(), candidates).tolist() == [0.0, 0.5]

    def test_a_former_parameter_is_accepted_with_a_warning(self, caplog: pytest.LogCaptureFixture) -> None:
        plugin(ActiveRequestScorer, {"requestTimeout": "2m"})
        assert "requestTimeout has no effect" in caplog.text

    @pytest.mark.parametrize("parameters", [{"idleThreshold": -1}, {"maxBusyScore": 1.5}])
    def test_refused_parameters(self, parameters: dict[str, float]) -> None:
        with pytest.raises(epp.ConfigError, match=next(iter(parameters))):
            plugin(ActiveRequestScorer, parameters)


class TestTokenLoad:
    def test_tokens_in_flight_and_of_this_request(self) -> None:
        candidates = endpoints(inflight_tokens=[0, 500, 900, 2000])
        candidates.set(UNCACHED, np.array([0.0, 250.0, 100.0, 0.0]))
        scorer = plugin(TokenLoadScorer, {"queueThresholdTokens": 1000})
        assert scorer.score(request(), candidates).tolist() == pytest.approx([1.0, 0.25, 0.0, 0.0])

    def test_default_threshold(self) -> None:
        candidates = endpoints(inflight_tokens=[4194304 / 2, 4194304])
        candidates.set(UNCACHED, np.zeros(2))
        assert plugin(TokenLoadScorer).score(request(), candidates).tolist() == pytest.approx([0.5, 0.0])

    def test_without_the_producer_the_whole_prompt_counts(self) -> None:
        scorer = plugin(TokenLoadScorer, {"queueThresholdTokens": 100})
        scores = scorer.score(request("x" * 100), endpoints(inflight_tokens=[0, 25]))  # 25 tokens
        assert scores.tolist() == pytest.approx([0.75, 0.5])

    def test_another_producer(self) -> None:
        scorer = plugin(TokenLoadScorer, {"inFlightLoadProducerName": "mine", "queueThresholdTokens": 10})
        assert list(scorer.consumes) == [(epp.INFLIGHT_LOAD, "mine"), (epp.UNCACHED_TOKENS, "mine")]
        candidates = endpoints(2, **{"inflight_tokens/mine": [0, 5], "inflight_tokens": [9, 9]})
        candidates.set(epp.DataKey(epp.UNCACHED_TOKENS, "mine"), np.zeros(2))
        assert scorer.score(request(), candidates).tolist() == pytest.approx([1.0, 0.5])

    @pytest.mark.parametrize(("weight", "scores"), [(1.0, [0.7, 0.8]), (3.0, [0.5, 0.7]), (0, [0.7, 0.8])])
    def test_media_may_weigh_more_where_they_are_not_cached(self, weight: float, scores: list[float]) -> None:
        scorer = plugin(TokenLoadScorer, {"nonTextTokenWeight": weight, "queueThresholdTokens": 100})
        asked = request()
        picture = epp.MediaFeature("image", "h", 10, 10)
        asked.prompt = epp.Prompt((bytes(4 * 30),), estimated=True, features=(picture,))
        candidates = endpoints(inflight_tokens=[0, 5])
        candidates.set(UNCACHED, np.array([30.0, 15.0]))  # the second one has half of the picture
        assert scorer.score(asked, candidates).tolist() == pytest.approx(scores)

    def test_which_of_several_prompts_is_cached_is_not_known(self) -> None:
        scorer = plugin(TokenLoadScorer, {"nonTextTokenWeight": 2, "queueThresholdTokens": 100})
        asked = request()
        pictures = (epp.MediaFeature("image", "h", 0, 10), epp.MediaFeature("image", "h", 0, 10, prompt=1))
        asked.prompt = epp.Prompt((bytes(40), bytes(40)), estimated=True, features=pictures)
        assert scorer.score(asked, endpoints(inflight_tokens=[0])).tolist() == pytest.approx([0.6])

    @pytest.mark.parametrize("weight", [".nan", ".inf"])
    def test_a_weight_is_a_number(self, weight: str) -> None:
        with pytest.raises(epp.ConfigError, match="nonTextTokenWeight"):
            assemble(f"plugins: [{{type: token-load-scorer, parameters: {{nonTextTokenWeight: {weight}}}}}]")

    def test_with_the_real_producer_a_burst_spreads(self) -> None:
        pool = assemble(
            """
            plugins:
            - type: token-load-scorer
            schedulingProfiles:
            - name: default
              plugins: [{pluginRef: token-load-scorer}]
            """
        )
        candidates = endpoints(4, table=pool.table)
        names = [
            pool.schedule(request("x" * 4000, id=str(i)), pool.table.all(1000.0)).target.picked[0].name
            for i in range(len(candidates))
        ]
        assert sorted(names) == ["pod-0-rank-0", "pod-1-rank-0", "pod-2-rank-0", "pod-3-rank-0"]
