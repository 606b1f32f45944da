"""KV event messages as they travel: msgpack of vLLM 0.15 to 0.33 and of SGLang, one set of types per shape.

A batch is `[timestamp, events, data_parallel_rank]`, or a map with these names; an event is an array that begins with
its type (vLLM to 0.22, SGLang of 2025), or a map with `type` (vLLM from 0.24, SGLang of 2026). Fields only ever came at
the end and with a default, so all of them but the hashes are optional here, and what is not named here is ignored.

SGLang differs in three ways. It names the salt in every event of a salted prompt: as `cache_salt` in maps, in arrays
within a map that stands where vLLM has the adapter's name. With an EAGLE drafter its cache is keyed by pairs of tokens,
and `token_ids` holds those: `[[1, 2], [2, 3]]`. And it has its own names for tiers (`epp.prefixcache.precise.tiers`).
"""

from __future__ import annotations

from typing import Any

import msgspec

Hash = int | bytes
"""A 64-bit number (SGLang: signed), or the whole digest."""


class Noted(msgspec.Struct, gc=False):
    """What an array of SGLang has behind the tier when the prompt is salted."""

    cache_salt: str = ""


class Stored(msgspec.Struct, gc=False):
    """The fields of BlockStored in the order of the array."""

    block_hashes: list[Hash]
    parent_block_hash: Hash | None = None
    token_ids: list[int] | None = None
    block_size: int = 0
    lora_id: Any = None
    medium: str | None = None
    lora_name: str | Noted | None = None
    extra_keys: list[list[Any] | None] | None = None
    group_idx: int | None = None
    kv_cache_spec_kind: str | None = None


class Removed(msgspec.Struct, gc=False):
    """The fields of BlockRemoved in the order of the array."""

    block_hashes: list[Hash]
    medium: str | None = None
    group_idx: int | None = None


class StoredArray(Stored, array_like=True, tag="BlockStored", gc=False):
    """BlockStored as an array."""


class RemovedArray(Removed, array_like=True, tag="BlockRemoved", gc=False):
    """BlockRemoved as an array."""


class ClearedArray(msgspec.Struct, array_like=True, tag="AllBlocksCleared", gc=False):
    """AllBlocksCleared as an array."""


class StoredMap(Stored, tag="BlockStored", gc=False):
    """BlockStored as a map."""

    cache_salt: str | None = None


class RemovedMap(Removed, tag="BlockRemoved", gc=False):
    """BlockRemoved as a map."""


class ClearedMap(msgspec.Struct, tag="AllBlocksCleared", gc=False):
    """AllBlocksCleared as a map."""


class StoredArrayPairs(StoredArray, array_like=True, tag="BlockStored", gc=False):
    """BlockStored as an array, of a cache that is keyed by pairs."""

    token_ids: list[tuple[int, int]] | None = None  # type: ignore[assignment]


class StoredMapPairs(StoredMap, tag="BlockStored", gc=False):
    """BlockStored as a map, of a cache that is keyed by pairs."""

    token_ids: list[tuple[int, int]] | None = None  # type: ignore[assignment]


ArrayEvent = StoredArray | RemovedArray | ClearedArray
MapEvent = StoredMap | RemovedMap | ClearedMap
ArrayPairsEvent = StoredArrayPairs | RemovedArray | ClearedArray
MapPairsEvent = StoredMapPairs | RemovedMap | ClearedMap
Event = ArrayEvent | MapEvent | ArrayPairsEvent | MapPairsEvent


class _ArrayBatchOfMaps(msgspec.Struct, array_like=True):
    ts: float
    events: list[MapEvent]
    data_parallel_rank: int | None = None


class _ArrayBatchOfArrays(msgspec.Struct, array_like=True):
    ts: float
    events: list[ArrayEvent]
    data_parallel_rank: int | None = None


class _MapBatchOfMaps(msgspec.Struct):
    ts: float
    events: list[MapEvent]
    data_parallel_rank: int | None = None


class _MapBatchOfArrays(msgspec.Struct):
    ts: float
    events: list[ArrayEvent]
    data_parallel_rank: int | None = None


class _ArrayBatchOfMapPairs(msgspec.Struct, array_like=True):
    ts: float
    events: list[MapPairsEvent]
    data_parallel_rank: int | None = None


class _ArrayBatchOfArrayPairs(msgspec.Struct, array_like=True):
    ts: float
    events: list[ArrayPairsEvent]
    data_parallel_rank: int | None = None


class _ArrayBatch(msgspec.Struct, array_like=True):
    ts: float
    events: list[msgspec.Raw]
    data_parallel_rank: int | None = None


class _MapBatch(msgspec.Struct):
    ts: float
    events: list[msgspec.Raw]
    data_parallel_rank: int | None = None


TypedBatch = (
    _ArrayBatchOfMaps
    | _ArrayBatchOfArrays
    | _MapBatchOfMaps
    | _MapBatchOfArrays
    | _ArrayBatchOfMapPairs
    | _ArrayBatchOfArrayPairs
)
RawBatch = _ArrayBatch | _MapBatch

TYPED: tuple[msgspec.msgpack.Decoder[Any], ...] = (
    msgspec.msgpack.Decoder(_ArrayBatchOfMaps),
    msgspec.msgpack.Decoder(_ArrayBatchOfArrays),
    msgspec.msgpack.Decoder(_MapBatchOfMaps),
    msgspec.msgpack.Decoder(_MapBatchOfArrays),
    msgspec.msgpack.Decoder(_ArrayBatchOfMapPairs),
    msgspec.msgpack.Decoder(_ArrayBatchOfArrayPairs),
)
"""Whole batches, the usual shape first; events are maps in the even ones, arrays in the odd ones."""

UNTYPED: tuple[msgspec.msgpack.Decoder[Any], ...] = (
    msgspec.msgpack.Decoder(_ArrayBatch),
    msgspec.msgpack.Decoder(_MapBatch),
)
"""Batches whose events are still to be read, one by one."""

EVENTS: tuple[msgspec.msgpack.Decoder[Any], ...] = (
    msgspec.msgpack.Decoder(MapEvent),
    msgspec.msgpack.Decoder(ArrayEvent),
    msgspec.msgpack.Decoder(MapPairsEvent),
    msgspec.msgpack.Decoder(ArrayPairsEvent),
)
"""Single events, in the same order."""
