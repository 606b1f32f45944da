"""`price-scorer` alone, and in a whole configuration."""

from pathlib import Path

import numpy as np
import pytest
from price_scorer import PriceScorer

import epp
from epp.testing import assemble, endpoints, plugin, request

CONFIG = (Path(__file__).parents[1] / "config.yaml").read_text()


def prices(*values):
    return [{"price-per-hour": value} if value is not None else {} for value in values]


def test_cheap_servers_score_higher():
    scores = plugin(PriceScorer, {"budget": 4}).score(request(), endpoints(labels=prices("1", "2", "9")))
    assert scores.tolist() == [0.75, 0.5, 0.0]


def test_without_a_price_there_is_no_score():
    scores = plugin(PriceScorer).score(request(), endpoints(labels=prices(None, "a lot")))
    assert np.isnan(scores).all()


def test_new_endpoints_are_seen():
    scorer = plugin(PriceScorer, {"budget": 4})
    first = endpoints(labels=prices("1"))
    assert scorer.score(request(), first).tolist() == [0.75]
    first.table.add(epp.Endpoint(name="new", address="10.9.9.9", port=8000, labels={"price-per-hour": "3"}))
    assert scorer.score(request(), first.table.all(now=0.0)).tolist() == [0.75, 0.25]


def test_a_budget_of_nothing_is_refused():
    with pytest.raises(epp.ConfigError, match="budget"):
        plugin(PriceScorer, {"budget": 0})


def test_equal_load_goes_to_the_cheap_server():
    made = assemble(CONFIG)
    result = made.schedule(request(), endpoints(waiting=[2, 2, 2], labels=prices("8", "2", "6"), table=made.table))
    assert result.target.picked[0].pod == "pod-1"


def test_load_counts_more_than_the_price():
    made = assemble(CONFIG)
    result = made.schedule(request(), endpoints(waiting=[0, 9, 9], labels=prices("8", "2", "6"), table=made.table))
    assert result.target.picked[0].pod == "pod-0"
