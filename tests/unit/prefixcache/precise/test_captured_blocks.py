"""Blocks of real vLLM under every hash algorithm and seed: our keys tell apart what theirs do, and nothing else."""

from __future__ import annotations

import base64
import json
import struct
from pathlib import Path
from typing import Any

import msgspec
import pytest

from epp.api import MediaFeature
from epp.kvevents.decoding import Decoder
from epp.prefixcache.precise.hashing import BlockHasher
from epp.prefixcache.precise.index import PreciseIndex
from epp.prefixcache.precise.prompts import prompt_keys

_DATA = Path(__file__).parents[3] / "data" / "kvevents"
_SESSIONS = sorted(path.parent.name for path in _DATA.glob("*/blocks_verified.json"))
_VECTORS = [each for each in json.loads((_DATA / "blockhash_vectors.json").read_text())["vectors"] if each["cases"]]
_A = "10.0.0.1:8000"
_FIRST_PROMPT = [10 + 13 * n for n in range(70)]


def _packed(tokens: list[int]) -> bytes:
    return struct.pack(f"<{len(tokens)}I", *tokens)


def _matched(index: PreciseIndex, tokens: list[int], size: int, **more: Any) -> int:
    lane = index.lanes.get(_A)
    assert lane is not None
    return int(index.match(prompt_keys(index.hasher, _packed(tokens), size, **more)).blocks[lane])


def _tell(index: PreciseIndex, decoder: Decoder, events: list[dict[str, Any]]) -> None:
    batch = decoder.decode(msgspec.msgpack.encode([1.5, events, 0]))
    assert batch is not None
    assert len(batch.events) == len(events)
    index.apply(_A, batch.events)


class _Verified:
    """The blocks of one session, each with the way to it from the first block of a prompt."""

    def __init__(self, session: str) -> None:
        written = json.loads((_DATA / session / "blocks_verified.json").read_text())
        self.size: int = written["block_size"]
        self.blocks: list[dict[str, Any]] = written["blocks"]
        self._by_hash = {block["hash"]: block for block in self.blocks}
        self._root = written["none_hash"]

    def way(self, block: dict[str, Any]) -> tuple[list[int], str]:
        """Tokens from the prompt's beginning on, and its salt."""
        tokens: list[int] = []
        while True:
            tokens = block["tokens"] + tokens
            if block["parent"] == self._root:
                salts = [value for kind, value, *_ in block["extra_keys_tagged"] or () if kind == "cache_salt"]
                return tokens, salts[0] if salts else ""
            block = self._by_hash[block["parent"]]

    def event(self, block: dict[str, Any]) -> dict[str, Any]:
        """BlockStored as the server would tell it."""

        def value(digest: str) -> Any:
            return int(digest[-16:], 16) if isinstance(block["event_value"], int) else bytes.fromhex(digest)

        assert value(block["hash"]) == (
            block["event_value"] if isinstance(block["event_value"], int) else value(block["event_value"])
        )
        return {
            "type": "BlockStored",
            "block_hashes": [value(block["hash"])],
            "parent_block_hash": None if block["parent"] == self._root else value(block["parent"]),
            "token_ids": block["tokens"],
            "block_size": self.size,
            "extra_keys": [[key[1:] if len(key) > 2 else key[1] for key in block["extra_keys_tagged"]]]
            if block["extra_keys_tagged"]
            else None,
            "group_idx": 0,
        }


@pytest.mark.parametrize("session", _SESSIONS)
def test_verified_blocks_are_found_by_their_tokens(session: str) -> None:
    verified, index, decoder = _Verified(session), PreciseIndex(1 << 24), Decoder()
    assert len(verified.blocks) == 55
    for block in verified.blocks:
        _tell(index, decoder, [verified.event(block)])
        tokens, salt = verified.way(block)
        assert _matched(index, tokens, verified.size, cache_salt=salt) * verified.size == len(tokens)
    assert (index.counters.orphans, index.counters.conflicts, index.counters.malformed) == (0, 0, 0)
    ways = [verified.way(block) for block in verified.blocks]
    keys = [int(prompt_keys(index.hasher, _packed(way), verified.size, cache_salt=salt)[-1]) for way, salt in ways]
    distinct = {block["hash"] for block in verified.blocks}
    assert len(distinct) == len(set(keys)) == index.blocks.count
    assert len(set(zip(keys, [block["hash"] for block in verified.blocks], strict=True))) == len(distinct)
    for block, (tokens, salt) in zip(
        verified.blocks, ways, strict=True
    ):  # gone with its hash, and with it what follows
        _tell(
            index,
            decoder,
            [{"type": "BlockRemoved", "block_hashes": verified.event(block)["block_hashes"], "group_idx": 0}],
        )
        assert _matched(index, tokens, verified.size, cache_salt=salt) * verified.size < len(tokens)
    assert index.blocks.count == 0


@pytest.mark.parametrize("session", _SESSIONS)
def test_after_a_session_only_what_came_after_the_reset_is_there(session: str) -> None:
    index, decoder = PreciseIndex(1 << 24), Decoder()
    for line in (_DATA / session / "frames.jsonl").read_text().splitlines():
        batch = decoder.decode(base64.b64decode(json.loads(line)["frames"][2]))
        assert batch is not None
        index.apply(_A, batch.events)
    while index.tidy():
        pass
    assert _matched(index, _FIRST_PROMPT, 32) == len(_FIRST_PROMPT) // 32
    assert index.blocks.count == len(_FIRST_PROMPT) // 32
    assert (index.counters.orphans, index.counters.conflicts, index.counters.malformed) == (0, 0, 0)


def _bytes(value: Any) -> Any:
    """Byte strings as they were before they became JSON."""
    if isinstance(value, dict):
        return bytes.fromhex(value["bytes"])
    return [_bytes(item) for item in value] if isinstance(value, list) else value


def _asked(case: dict[str, Any]) -> dict[str, Any]:
    """What a request for these blocks says besides its tokens."""
    first = case["blocks"][0]["extra_keys"] or []
    tagged = {key[0]: key[1:] for key in first if isinstance(key, list)}
    name = case["name"]
    adapter = "my-lora" if "lora" in name else ""
    salt = "salt-1" if "salt" in name else ""
    media = [MediaFeature("image", "img-hash-abc", 3, 20)] if "mm" in name else []
    assert bool(adapter) == ("lora" in tagged or "my-lora" in first)
    return {"adapter": adapter, "cache_salt": salt, "features": media}


@pytest.mark.parametrize("vector", _VECTORS, ids=lambda vector: f"{vector['algo']}-{vector['PYTHONHASHSEED']}")
def test_every_way_to_tell_blocks_apart(vector: dict[str, Any]) -> None:
    """Adapters, salts, media and embeddings, tagged and as older releases wrote them."""
    contents: dict[int, tuple[Any, ...]] = {}
    for case in vector["cases"]:
        index, decoder = PreciseIndex(1 << 22), Decoder()
        size = len(case["blocks"][0]["tokens"])
        parent = None
        asked = _asked(case)
        for block in case["blocks"]:
            told = block["event_extra_keys"] if block["event_extra_keys"] is not None else [block["extra_keys"]]
            digest = bytes.fromhex(block["hash"])
            assert int.from_bytes(digest[-8:], "big") == block["int64"]
            event = {
                "type": "BlockStored",
                "block_hashes": [digest],
                "parent_block_hash": parent,
                "token_ids": block["tokens"],
                "block_size": size,
                "lora_name": asked["adapter"] or None,
                "extra_keys": _bytes(told),
            }
            _tell(index, decoder, [event])
            parent = digest
        tokens = [token for block in case["blocks"] for token in block["tokens"]]
        expected = 0 if case["name"] == "prompt_embeds" else len(case["blocks"])  # no request names embeddings
        assert _matched(index, tokens, size, **asked) == expected
        for other in (
            {},
            {"adapter": "my-lora"},
            {"cache_salt": "salt-1"},
            {"features": [MediaFeature("image", "img-hash-abc", 3, 20)]},
        ):
            if {**{"adapter": "", "cache_salt": "", "features": []}, **other} != asked:
                assert _matched(index, tokens, size, **other) == 0
        for depth, key in enumerate(prompt_keys(BlockHasher(""), _packed(tokens), size, **asked).tolist(), 1):
            content = (
                size,
                tuple(tokens[: depth * size]),
                asked["adapter"],
                asked["cache_salt"],
                bool(asked["features"]),
            )
            assert contents.setdefault(key, content) == content
    assert len(set(contents.values())) == len(contents)
