"""Where a prefix-cache producer leaves its findings, and how a scorer reads them."""

from __future__ import annotations

from functools import lru_cache

import msgspec

from epp.api.endpoints import Endpoints, FloatArray
from epp.api.keys import ANY_PRODUCER, PREFIX_CACHE_MATCH, DataKey
from epp.api.request import InferenceRequest

_CACHED_BLOCKS = "PrefixCacheCachedBlocks"


@lru_cache(maxsize=64)
def _keys(producer: str) -> tuple[DataKey, DataKey]:
    """Where the match and its unweighted twin are kept."""
    return DataKey(PREFIX_CACHE_MATCH, producer), DataKey(_CACHED_BLOCKS, producer)


def declared_as(key: DataKey) -> DataKey:
    """The key that a plugin declares in order to use `key`: the match's unweighted twin is declared as the match."""
    return DataKey(PREFIX_CACHE_MATCH, key.producer) if key.type == _CACHED_BLOCKS else key


class PrefixMatch(msgspec.Struct, frozen=True, eq=False):
    """How much of the prompt each candidate already holds.

    `blocks` is weighted by tier, `cached_blocks` is not; both of shape `(n,)` count contiguous blocks from the start.
    `total_blocks` counts the prompt's blocks, `block_size_tokens` their size.
    """

    blocks: FloatArray
    cached_blocks: FloatArray
    total_blocks: int
    block_size_tokens: int


def publish_prefix_match(request: InferenceRequest, endpoints: Endpoints, producer: str, match: PrefixMatch) -> None:
    """For producers: attach the match to the request and its candidates."""
    key, cached = _keys(producer)
    request.attributes[key] = (match.total_blocks, match.block_size_tokens)
    endpoints.set(key, match.blocks)
    endpoints.set(cached, match.cached_blocks)


def prefix_match(request: InferenceRequest, endpoints: Endpoints, producer: str) -> PrefixMatch | None:
    """For consumers: the match over these candidates, None when the producer found nothing to say.

    `producer` may be `ANY_PRODUCER`: then the one match that there is, None when there are several.
    """
    if producer == ANY_PRODUCER:
        told = [key.producer for key in request.attributes if key.type == PREFIX_CACHE_MATCH]
        if len(told) != 1:
            return None
        producer = told[0]
    key, cached = _keys(producer)
    info = request.attributes.get(key)
    if info is None:
        return None
    total, block_size = info
    try:
        return PrefixMatch(endpoints.column(key), endpoints.column(cached), total, block_size)
    except LookupError:
        return None
