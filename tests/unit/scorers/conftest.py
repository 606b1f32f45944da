"""Data that producers would have put on a request and its candidates."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

import epp

Match = Callable[..., None]


@pytest.fixture
def match() -> Match:
    """`match(request, candidates, blocks=[...], total=..)`: what a prefix-cache producer found."""

    def put(
        request: epp.InferenceRequest,
        candidates: epp.Endpoints,
        *,
        blocks: Sequence[float],
        cached: Sequence[float] | None = None,
        total: int,
        block_size: int = 16,
        producer: str = "approx-prefix-cache-producer",
    ) -> None:
        found = epp.PrefixMatch(
            np.array(blocks, dtype=np.float64),
            np.array(blocks if cached is None else cached, dtype=np.float64),
            total,
            block_size,
        )
        epp.publish_prefix_match(request, candidates, producer, found)

    return put
