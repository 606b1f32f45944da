"""Equal prefixes have equal hashes, and nothing else has."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from epp.prefixcache.hashing import BlockChain, root_hash

tokens = st.lists(st.integers(0, 3), max_size=40).map(lambda ids: b"".join(i.to_bytes(4, "little") for i in ids))


def hashes(data: bytes, block_size: int, step: int = 1000) -> list[int]:
    chain = BlockChain(data, block_size, root_hash("m"), 1000)
    while chain.extend(step):
        pass
    assert len(chain.hashes) == chain.total
    return chain.hashes


@given(tokens, tokens, st.integers(1, 6), st.integers(1, 9))
def test_chains_agree_exactly_on_the_common_prefix(a: bytes, b: bytes, block_size: int, step: int) -> None:
    size = block_size * 4
    one, other = hashes(a, block_size, step), hashes(b, block_size)
    for depth, (left, right) in enumerate(zip(one, other, strict=False)):
        end = (depth + 1) * size
        same = a[:end] == b[:end]
        assert (left == right) == same


@given(tokens, st.integers(1, 6))
def test_the_number_of_blocks(data: bytes, block_size: int) -> None:
    count = len(data) // 4
    assert len(hashes(data, block_size)) == (count // block_size if count >= block_size else min(count, 1))
