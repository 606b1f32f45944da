"""`prefix-based-pd-decider` against its formula, whatever the numbers."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

import epp
from epp.testing import endpoints, plugin, request
from epp_plugins.deciders.prefix_based import PrefixBasedPDDecider

NATURAL = st.integers(0, 300)


@given(
    tokens=NATURAL,
    non_cached=NATURAL,
    prompt=NATURAL,
    cached=st.lists(st.integers(0, 40), min_size=1, max_size=5),
    block_size=st.sampled_from([1, 16, 64]),
    known=st.booleans(),
    data=st.data(),
)
def test_formula(
    tokens: int, non_cached: int, prompt: int, cached: list[int], block_size: int, known: bool, data: st.DataObject
) -> None:
    position = data.draw(st.integers(0, len(cached) - 1))
    decider = plugin(PrefixBasedPDDecider, {"nonCachedTokens": non_cached, "promptTokens": prompt})
    asked = request("abcd" * tokens)
    candidates = endpoints(len(cached))
    if known:
        held = np.array(cached, dtype=np.float64)
        match = epp.PrefixMatch(held * 0.8, held, 40, block_size)
        epp.publish_prefix_match(asked, candidates, "anybody", match)
    chosen = epp.ProfileResult(
        "decode", (candidates[position],), (int(candidates.rows[position]),), candidates, candidates.waiting
    )
    held_tokens = cached[position] * block_size if known else 0
    expected = non_cached > 0 and tokens >= prompt and tokens >= non_cached and tokens - held_tokens >= non_cached
    assert decider.disaggregate(asked, chosen) is expected
