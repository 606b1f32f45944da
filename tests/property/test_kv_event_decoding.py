"""Random events, written as every release writes them, come out the same."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from epp.kvevents.decoding import Decoder
from epp.kvevents.events import AllBlocksCleared, BlockExtras, BlockRemoved, BlockStored, KVEvent

_MEDIA = st.integers(0, 2**256 - 1).map(lambda number: f"{number:064x}")
_TEXT = st.text("abcxyzäé-_ ", min_size=1, max_size=20)


@dataclass(frozen=True)
class Release:
    """How one release writes: `fields` of BlockStored after lora_id, as the array ends or the map may hold."""

    name: str
    fields: tuple[str, ...]
    events_are_maps: bool = False
    batch_is_map: bool = False
    media: str = "pair"  # "bare", "pair", "tagged"
    digests: bool = False


_BASE = ("medium", "lora_name")
_GROUPS = (*_BASE, "extra_keys", "group_idx")
_KINDS = (*_GROUPS, "kv_cache_spec_kind", "kv_cache_spec_sliding_window")
_RELEASES = [
    Release("sglang", ()),
    Release("0.15", _BASE),
    Release("0.18", (*_BASE, "extra_keys"), media="bare"),
    Release("0.20", _GROUPS, media="bare"),
    Release("0.22", _KINDS),
    Release("0.24", _KINDS, events_are_maps=True),
    Release("map batch", _KINDS, events_are_maps=True, batch_is_map=True),
    Release("0.26", (*_KINDS, "locality"), events_are_maps=True),
    Release("0.32", (*_KINDS, "locality", "ownership", "session_id"), events_are_maps=True),
    Release("0.32 digests", (*_KINDS, "locality"), events_are_maps=True, digests=True),
    Release("0.33 tagged", (*_KINDS, "session_id", "lookahead_token_ids"), events_are_maps=True, media="tagged"),
    Release("map batch of arrays", _KINDS, batch_is_map=True, digests=True),
]


@st.composite
def _blocks(draw: st.DrawFn, release: Release) -> tuple[dict[str, Any], KVEvent | None]:
    """(what a server means, what we shall make of it)"""
    hashes = draw(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=6))
    size = draw(st.integers(1, 8))
    count = len(hashes) * size
    tokens = draw(st.lists(st.integers(0, 2**32 - 1), min_size=count, max_size=count) | st.just([]))
    parent = draw(st.none() | st.integers(1, 2**64 - 1))
    has = set(release.fields)
    medium = draw(st.sampled_from(["GPU", "CPU", "STORAGE"])) if "medium" in has else "GPU"
    lora = draw(st.just("") | _TEXT) if "lora_name" in has else ""
    group = draw(st.integers(0, 3)) if "group_idx" in has else 0
    kind = draw(st.sampled_from(["full_attention", "mamba"])) if "kv_cache_spec_kind" in has else "full_attention"
    extras: list[BlockExtras | None] = [None] * len(hashes)
    keys: list[list[Any] | None] = [None] * len(hashes)
    if "extra_keys" in has:
        for index in range(len(hashes)):
            media = draw(st.lists(_MEDIA, max_size=2))
            salt = draw(st.just("") | _TEXT) if index == 0 and parent is None else ""
            if salt == lora:
                salt = ""
            written: list[Any] = []
            if lora:
                written.append(["lora", lora, "/p"] if release.media == "tagged" else lora)
            for identifier in media:
                offset = draw(st.integers(-9, 9))
                form = {"bare": identifier, "pair": [identifier, offset], "tagged": ["mm", identifier, offset]}
                written.append(form[release.media])
            if salt:
                written.append(["cache_salt", salt] if release.media == "tagged" else salt)
            keys[index] = written or None
            extras[index] = BlockExtras(tuple(media), salt) if media or salt else None
    meant = {
        "type": "BlockStored",
        "block_hashes": hashes,
        "parent_block_hash": parent,
        "token_ids": tokens,
        "block_size": size,
        "lora_id": 1 if lora else None,
        "medium": medium,
        "lora_name": lora or None,
        "extra_keys": keys,
        "group_idx": group,
        "kv_cache_spec_kind": kind,
        "kv_cache_spec_sliding_window": None,
        "locality": "LOCAL",
        "ownership": None,
        "session_id": "s",
        "lookahead_token_ids": [[1]] * len(hashes),
    }
    event = BlockStored(
        hashes,
        parent,
        struct.pack(f"<{len(tokens)}I", *tokens),
        size,
        lora,
        medium.lower(),
        tuple(extras) if any(extras) else (),
        group,
    )
    return meant, event if kind == "full_attention" else None


@st.composite
def _removal(draw: st.DrawFn, release: Release) -> tuple[dict[str, Any], KVEvent | None]:
    hashes = draw(st.lists(st.integers(0, 2**64 - 1), max_size=6))
    medium = draw(st.sampled_from(["GPU", "CPU"])) if "medium" in release.fields else "GPU"
    return {"type": "BlockRemoved", "block_hashes": hashes, "medium": medium}, BlockRemoved(hashes, medium.lower())


def _write(release: Release, meant: dict[str, Any]) -> Any:
    def number(value: int) -> int | bytes:
        return b"\xa5" * 24 + value.to_bytes(8, "big") if release.digests else value

    values = dict(meant)
    if "block_hashes" in values:
        values["block_hashes"] = [number(value) for value in values["block_hashes"]]
    if values.get("parent_block_hash") is not None:
        values["parent_block_hash"] = number(values["parent_block_hash"])
    always = ("type", "block_hashes", "parent_block_hash", "token_ids", "block_size", "lora_id")
    names = [name for name in (*always, *release.fields) if name in values]
    if release.events_are_maps:
        return {name: values[name] for name in reversed(names)}
    return [values[name] for name in names]


@given(st.data(), st.sampled_from(_RELEASES))
def test_what_is_written_is_read(data: st.DataObject, release: Release) -> None:
    cleared = st.just(({"type": "AllBlocksCleared"}, AllBlocksCleared()))
    drawn = data.draw(st.lists(_blocks(release) | _removal(release) | cleared, max_size=5))
    stamp = data.draw(st.floats(0, 2e9))
    rank = data.draw(st.none() | st.integers(0, 63))
    written = [_write(release, meant) for meant, _ in drawn]
    batch = {"ts": stamp, "events": written, "data_parallel_rank": rank} if release.batch_is_map else [stamp, written]
    if isinstance(batch, list) and rank is not None:
        batch.append(rank)
    payload = msgspec.msgpack.encode(batch)
    expected = [event for _, event in drawn if event is not None]

    decoder = Decoder()
    decoded = decoder.decode(payload)
    assert decoded is not None
    assert (decoded.timestamp, decoded.rank) == (stamp, rank or 0)
    assert decoded.events == expected
    assert decoder.stats.errors == {}
    assert [event for piece in Decoder().pieces(payload) for event in piece.events] == expected


@given(
    st.recursive(st.none() | st.integers(-(2**63), 2**64 - 1) | st.binary() | st.text(), lambda inner: st.lists(inner))
)
def test_anything_at_all_is_survived(value: Any) -> None:
    decoder = Decoder()
    for wrapped in (value, [1.0, value], [1.0, [value]], [1.0, [["BlockStored", value, value, value, value, value]]]):
        payload = msgspec.msgpack.encode(wrapped)
        decoder.decode(payload)
        list(decoder.pieces(payload))
    assert decoder.stats.errors
