"""The keys of a prompt's blocks, with what tells it apart from one with the same tokens."""

from __future__ import annotations

from collections.abc import Iterable

from epp.api.request import MediaFeature
from epp.prefixcache.precise.hashing import TOKEN_BYTES, BlockHasher, Keys, add_extras, chain, extra_digest


def prompt_keys(
    hasher: BlockHasher,
    data: bytes,
    block_size: int,
    *,
    adapter: str = "",
    cache_salt: str = "",
    features: Iterable[MediaFeature] = (),
    most: int = 1 << 20,
) -> Keys:
    """Keys of the first `most` whole blocks of one prompt (`Prompt.data`). About 60 ns a block of 16 tokens.

    As vLLM does it, the salt belongs to block 0 and a medium to every block that it reaches into, in order of offset.
    """
    view = memoryview(data)[: most * block_size * TOKEN_BYTES]
    digests = hasher.digests(view, block_size)
    media: dict[int, list[str]] = {}
    for feature in features:
        last = (feature.offset + max(1, feature.length) - 1) // block_size
        for block in range(feature.offset // block_size, min(last + 1, len(digests))):
            media.setdefault(block, []).append(feature.hash)
    if cache_salt and len(digests):
        media.setdefault(0, [])
    if media:
        add_extras(
            digests, [(block, extra_digest(names, cache_salt if block == 0 else "")) for block, names in media.items()]
        )
    return chain(digests, hasher.root(adapter, block_size))
