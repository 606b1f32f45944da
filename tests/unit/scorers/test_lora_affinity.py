"""Adapters of the last scrape."""

from __future__ import annotations

import math

import numpy as np
import pytest

import epp
from epp.testing import endpoints, plugin, request
from epp_plugins.scorers.lora_affinity import LoraAffinityScorer

BUSY = epp.LoraInfo(active=frozenset({"a", "b"}), waiting=frozenset({"c"}), max_active=2)
ROOM = epp.LoraInfo(active=frozenset({"a"}), waiting=frozenset(), max_active=2)


@pytest.mark.parametrize(
    ("model", "scores"),
    [
        ("a", [1.0, 1.0, 0.0]),  # active in both
        ("b", [1.0, 0.8, 0.0]),  # active in the full one, room in the other
        ("c", [0.6, 0.8, 0.0]),  # waiting in the full one
        ("d", [0.0, 0.8, 0.0]),
    ],
)
def test_tiers(model: str, scores: list[float]) -> None:
    candidates = endpoints(attributes={epp.LORA: [BUSY, ROOM, None]})
    assert plugin(LoraAffinityScorer).score(request(model=model), candidates).tolist() == scores


def test_waiting_adapters_take_room() -> None:
    info = epp.LoraInfo(active=frozenset({"a"}), waiting=frozenset({"b"}), max_active=2)
    candidates = endpoints(attributes={epp.LORA: [info]})
    assert plugin(LoraAffinityScorer).score(request(model="c"), candidates).tolist() == [0.0]


def test_the_target_model_counts_not_the_one_asked_for() -> None:
    asked = request(model="alias")
    asked.target_model = "a"
    candidates = endpoints(attributes={epp.LORA: [ROOM]})
    assert plugin(LoraAffinityScorer).score(asked, candidates).tolist() == [1.0]


def test_a_server_that_was_never_scraped_has_no_score() -> None:
    candidates = endpoints(attributes={epp.LORA: [ROOM, None]}, scraped_at=[1000.0, -math.inf])
    scores = plugin(LoraAffinityScorer).score(request(model="a"), candidates)
    assert scores[0] == 1.0
    assert np.isnan(scores[1])
