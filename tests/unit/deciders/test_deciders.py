"""Who gets a server of its own for the prompt and the media, and what is said where there is no data."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest

import epp
from epp.telemetry.metrics import Registry
from epp.testing import endpoints, plugin, request
from epp_plugins.deciders.always_disagg_multimodal import AlwaysDisaggMultimodalDecider
from epp_plugins.deciders.always_disagg_pd import AlwaysDisaggPDDecider
from epp_plugins.deciders.prefix_based import PrefixBasedPDDecider

APPROXIMATE, PRECISE = "approx-prefix-cache-producer", "precise-prefix-cache-producer"


def decode(position: int = 0, **cached: list[float]) -> tuple[epp.InferenceRequest, epp.ProfileResult]:
    """A request of 100 tokens, and the decode server at `position` of three; `cached` blocks of 16 by producer."""
    asked = request("abcd" * 100)
    candidates = endpoints(3)
    for name, blocks in cached.items():
        held = np.array(blocks)
        producer = {"approximate": APPROXIMATE, "precise": PRECISE}[name]
        epp.publish_prefix_match(asked, candidates, producer, epp.PrefixMatch(held / 2, held, 7, 16))
    row = int(candidates.rows[position])
    return asked, epp.ProfileResult("decode", (candidates[position],), (row,), candidates, np.zeros(3))


def fallbacks(metrics: Registry) -> dict[str, float]:
    family = metrics.source("disagg_fallback_total")
    assert family is not None
    return {values[2]: child.value for values, child in family.children()}  # type: ignore[union-attr]


def prefix_based(metrics: Registry | None = None, **params: Any) -> PrefixBasedPDDecider:
    return plugin(PrefixBasedPDDecider, params, metrics=metrics or Registry())


def test_always() -> None:
    decider = plugin(AlwaysDisaggPDDecider)
    assert decider.disaggregate(request(""), None)
    assert decider.disaggregate(*decode())
    assert decider.consumes == ()


@pytest.mark.parametrize(
    ("params", "position", "expected"),
    [
        ({}, 0, False),  # off
        ({"nonCachedTokens": 100}, 0, True),  # nothing cached, exactly enough
        ({"nonCachedTokens": 101}, 0, False),
        ({"nonCachedTokens": 84}, 1, True),  # one block of 16: 84 are left
        ({"nonCachedTokens": 85}, 1, False),
        ({"nonCachedTokens": 4}, 2, True),  # six blocks: 4 are left; weights by tier do not count
        ({"nonCachedTokens": 5}, 2, False),
        ({"nonCachedTokens": 1, "promptTokens": 100}, 0, True),
        ({"nonCachedTokens": 1, "promptTokens": 101}, 0, False),
        ({"promptTokens": 1}, 0, False),
    ],
)
@pytest.mark.parametrize("producer", ["approximate", "precise"])
def test_prefix_based(params: dict[str, int], position: int, expected: bool, producer: str) -> None:
    """Whichever producer there is, its matches count."""
    assert prefix_based(**params).disaggregate(*decode(position, **{producer: [0.0, 1.0, 6.0]})) is expected


def test_a_named_producer_is_read_beside_others() -> None:
    asked, chosen = decode(approximate=[6.0, 0, 0], precise=[0.0, 0, 0])
    for producer, expected in ((PRECISE, True), (APPROXIMATE, False)):
        decider = prefix_based(nonCachedTokens=50, prefixMatchInfoProducerName=producer)
        assert decider.disaggregate(asked, chosen) is expected
        assert epp.DataKey(epp.PREFIX_CACHE_MATCH, producer) in decider.consumes


def test_off_needs_no_data_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        decider = prefix_based(promptTokens=5)
    assert decider.consumes == ()
    assert "no prompt ever goes to a prefill server" in caplog.text


def test_without_tokens_the_prompt_stays_and_is_counted() -> None:
    metrics = Registry()
    _, chosen = decode()
    blind = request("abcd" * 100, tokenised=False)
    assert not prefix_based(metrics, nonCachedTokens=1).disaggregate(blind, chosen)
    assert not plugin(AlwaysDisaggMultimodalDecider, metrics=metrics).disaggregate(blind, chosen)
    assert fallbacks(metrics) == {"no-tokens": 1.0}
    family = metrics.source("disagg_fallback_total")
    assert family is not None
    assert [values[0] for values, _ in family.children()] == [
        "prefix-based-pd-decider",
        "always-disagg-multimodal-decider",
    ]


def test_without_match_information_the_length_decides_and_is_counted() -> None:
    metrics = Registry()
    decider = prefix_based(metrics, nonCachedTokens=100)
    assert decider.disaggregate(*decode())
    assert fallbacks(metrics) == {"no-prefix-info": 1.0}
    assert not prefix_based(metrics, nonCachedTokens=101).disaggregate(*decode())  # too short to have to look
    assert fallbacks(metrics) == {"no-prefix-info": 1.0}


def test_prefix_based_needs_a_decode_server() -> None:
    assert not prefix_based(nonCachedTokens=1).disaggregate(request("abcd"), None)


@pytest.mark.parametrize("name", ["nonCachedTokens", "promptTokens"])
def test_negative_numbers_are_refused(name: str) -> None:
    with pytest.raises(epp.ConfigError, match=name):
        prefix_based(**{name: -1})


def test_media() -> None:
    decider = plugin(AlwaysDisaggMultimodalDecider)
    asked, chosen = decode()
    assert asked.prompt is not None
    assert not decider.disaggregate(asked, chosen)
    asked.prompt.features = (epp.MediaFeature("image", "ab", 0, 10),)
    assert decider.disaggregate(asked, chosen)
    assert decider.disaggregate(asked, None)
