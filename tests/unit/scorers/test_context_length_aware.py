"""Prompt lengths and the ranges on labels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import epp
from epp.testing import endpoints, plugin, request
from epp_plugins.scorers.context_length_aware import ContextLengthAware

LABEL = "llm-d.ai/context-length-range"


def ranges(*texts: str | None, label: str = LABEL) -> epp.Endpoints:
    return endpoints(labels=[{} if text is None else {label: text} for text in texts])


def of_length(tokens: int) -> epp.InferenceRequest:
    return request("x" * (4 * tokens))


def test_in_range_narrow_ranges_win() -> None:
    scores = plugin(ContextLengthAware).score(of_length(1000), ranges("0-2000", "0-10000", "500-1500"))
    assert scores.tolist() == pytest.approx(
        [
            0.3 + 0.7 * (0.7 / 1.2 + 0.3 * 1000 / 2000),
            0.3 + 0.7 * (0.7 / 2.0 + 0.3 * 9000 / 10000),
            0.3 + 0.7 * (0.7 / 1.1 + 0.3 * 500 / 1000),
        ]
    )


def test_out_of_range_near_ones_win() -> None:
    scores = plugin(ContextLengthAware).score(of_length(9000), ranges("0-8000", "0-2000", "10000-20000"))
    assert scores.tolist() == pytest.approx([0.3 / 2, 0.3 / 8, 0.3 / 2])


def test_ends_are_in_range_and_a_point_is_a_range() -> None:
    scores = plugin(ContextLengthAware).score(of_length(100), ranges("100-100", "100-200", "0-100", "101-200"))
    assert scores[0] == 1.0
    assert (scores[1:3] > 0.3).all()
    assert scores[3] == pytest.approx(0.3 / 1.001)


@pytest.mark.parametrize("text", ["", "8192", "a-b", "0-", "-5", "9-1", "0-2048,4096-8192", "1.5-2", "0x10-0x20", "-"])
def test_a_label_that_is_no_range_scores_zero(text: str) -> None:
    candidates = ranges(text, None, " 0 - 10 ")
    assert plugin(ContextLengthAware).score(of_length(5), candidates)[:2].tolist() == [0.0, 0.5]
    filtering = plugin(ContextLengthAware, {"enableFiltering": True})
    assert filtering.filter(of_length(5), candidates).tolist() == [False, True, True]


def test_filtering_is_off_by_default() -> None:
    assert plugin(ContextLengthAware).filter(of_length(5), ranges("10-20", None)).tolist() == [True, True]


def test_another_label() -> None:
    scorer = plugin(ContextLengthAware, {"label": "lengths"})
    assert scorer.score(of_length(5), ranges("5-5", label="lengths")).tolist() == [1.0]
    with pytest.raises(epp.ConfigError, match="label"):
        plugin(ContextLengthAware, {"label": ""})


def test_a_prompt_that_nobody_understood_has_no_length() -> None:
    opaque: Any = request(tokenised=False)
    assert np.isnan(plugin(ContextLengthAware).score(opaque, ranges("0-10", None))).all()
    filtering = plugin(ContextLengthAware, {"enableFiltering": True})
    assert filtering.filter(opaque, ranges("10-20", None)).tolist() == [True, True]


def test_labels_that_change_are_read_again() -> None:
    candidates = ranges("0-10")
    scorer = plugin(ContextLengthAware)
    assert scorer.score(of_length(100), candidates)[0] < 0.3
    known = candidates[0]
    candidates.table.add(
        epp.Endpoint(known.name, known.address, known.port, known.namespace, {LABEL: "100-100"}, pod=known.pod)
    )
    assert scorer.score(of_length(100), candidates).tolist() == [1.0]


def test_subtracting_what_can_be_fetched_is_accepted_with_a_word(caplog: pytest.LogCaptureFixture) -> None:
    told = plugin(ContextLengthAware, {"reusableTokensProducerName": "p2p"})
    assert "reusableTokensProducerName has no effect" in caplog.text
    candidates = ranges("0-2000", "0-500")
    assert told.score(of_length(1000), candidates).tolist() == (
        plugin(ContextLengthAware).score(of_length(1000), candidates).tolist()
    )
