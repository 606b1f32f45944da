"""The chain of block hashes."""

from __future__ import annotations

import pytest
from xxhash import xxh64_intdigest

from epp.api.request import MediaFeature
from epp.prefixcache.hashing import BlockChain, media_marks, root_hash


def hashes(data: bytes, *, block_size: int = 2, root: int = 7, max_blocks: int = 100, **rest: object) -> list[int]:
    chain = BlockChain(data, block_size, root, max_blocks, **rest)  # type: ignore[arg-type]
    chain.extend(max_blocks)
    return chain.hashes


def test_a_block_hash_is_seeded_with_the_one_before() -> None:
    first = xxh64_intdigest(b"aaaaaaaa", 7)
    assert hashes(b"aaaaaaaabbbbbbbb") == [first, xxh64_intdigest(b"bbbbbbbb", first)]


def test_equal_blocks_after_different_beginnings_differ() -> None:
    assert hashes(b"aaaaaaaacccccccc")[1] != hashes(b"bbbbbbbbcccccccc")[1]


def test_the_partial_last_block_is_left_out() -> None:
    assert hashes(b"aaaaaaaabbbb") == hashes(b"aaaaaaaa")


def test_a_prompt_shorter_than_a_block_is_hashed_as_it_is() -> None:
    assert hashes(b"aaaa") == [xxh64_intdigest(b"aaaa", 7)]


def test_an_empty_prompt_has_no_blocks() -> None:
    assert hashes(b"") == []


@pytest.mark.parametrize("limit", [0, 1, 3])
def test_blocks_beyond_the_limit_are_not_hashed(limit: int) -> None:
    data = b"abcdefgh" * 5
    assert hashes(data, max_blocks=limit) == hashes(data)[:limit]


def test_extending_in_steps_gives_the_same_chain() -> None:
    data = bytes(range(200))
    chain = BlockChain(data, 2, 7, 100)
    steps = []
    while step := chain.extend(7):
        steps.append(step)
    assert steps == [7, 7, 7, 4]
    assert chain.total == 25
    assert chain.hashes == hashes(data)


def test_the_root_separates_models_and_tenants() -> None:
    roots = [root_hash("m"), root_hash("m", "a"), root_hash("ma"), root_hash("n"), root_hash("", "m")]
    assert len(set(roots)) == len(roots)
    assert root_hash("m", "a") == root_hash("m", "a")


def test_a_prompt_for_an_adapter_shares_nothing_with_the_base_model() -> None:
    base, adapter = root_hash("base"), root_hash("adapter")
    assert not set(hashes(b"x" * 64, root=base)) & set(hashes(b"x" * 64, root=adapter))


def test_media_make_placeholder_tokens_different() -> None:
    data = b"\x00" * 48  # 12 tokens, six blocks of two
    cat = media_marks([MediaFeature("image", "cat", offset=5, length=4)], 0, 2)
    dog = media_marks([MediaFeature("image", "dog", offset=5, length=4)], 0, 2)
    assert set(cat) == {2}
    with_cat, with_dog = hashes(data, marks=cat), hashes(data, marks=dog)
    assert with_cat[:2] == with_dog[:2] == hashes(data)[:2]
    assert not set(with_cat[2:]) & set(with_dog[2:])
    assert hashes(data, marks=media_marks([MediaFeature("image", "cat", 5, 4)], 0, 2)) == with_cat


def test_media_marks_are_of_one_prompt_and_in_order() -> None:
    a, b = MediaFeature("image", "a", 0, 1), MediaFeature("image", "b", 1, 1)
    assert media_marks([a, b], 0, 2) != media_marks([b, a], 0, 2)
    assert media_marks([MediaFeature("image", "a", 0, 1, prompt=1)], 0, 2) == {}
    chain = BlockChain(b"\x00" * 32, 2, 7, 10, media_marks([a, b], 0, 2))
    while chain.extend(1):
        pass
    assert chain.hashes == hashes(b"\x00" * 32, marks=media_marks([a, b], 0, 2))
