"""KV event messages as they travel: msgpack of vLLM 0.15 to 0.33 and of SGLang, one set of types per shape.

A batch is `[timestamp, events, data_parallel_rank]`, or a map with these names; an event is an array that begins with
its type (vLLM to 0.22, SGLang), or a map with `type` (vLLM from 0.24). Fields only ever came at the end and with a
default, so all of them but the hashes are optional here, and what is not named here is ignored.
"""

from __future__ import annotations

from typing import Any

import msgspec

Hash = int | bytes
"""A 64-bit number (SGLang: signed), or the whole digest."""


class Stored(msgspec.Struct, gc=False):
    """The fields of BlockStored in the order of the array."""

    block_hashes: list[Hash]
    parent_block_hash: Hash | None = None
    token_ids: list[int] | None = None
    block_size: int = 0
    lora_id: Any = None
    medium: str | None = None
    lora_name: str | None = None
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


class RemovedMap(Removed, tag="BlockRemoved", gc=False):
    """BlockRemoved as a map."""


class ClearedMap(msgspec.Struct, tag="AllBlocksCleared", gc=False):
    """AllBlocksCleared as a map."""


ArrayEvent = StoredArray | RemovedArray | ClearedArray
MapEvent = StoredMap | RemovedMap | ClearedMap


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


class _ArrayBatch(msgspec.Struct, array_like=True):
    ts: float
    events: list[msgspec.Raw]
    data_parallel_rank: int | None = None


class _MapBatch(msgspec.Struct):
    ts: float
    events: list[msgspec.Raw]
    data_parallel_rank: int | None = None


TypedBatch = _ArrayBatchOfMaps | _ArrayBatchOfArrays | _MapBatchOfMaps | _MapBatchOfArrays
RawBatch = _ArrayBatch | _MapBatch

TYPED: tuple[msgspec.msgpack.Decoder[Any], ...] = (
    msgspec.msgpack.Decoder(_ArrayBatchOfMaps),
    msgspec.msgpack.Decoder(_ArrayBatchOfArrays),
    msgspec.msgpack.Decoder(_MapBatchOfMaps),
    msgspec.msgpack.Decoder(_MapBatchOfArrays),
)
"""Whole batches, the usual shape first."""

UNTYPED: tuple[msgspec.msgpack.Decoder[Any], ...] = (
    msgspec.msgpack.Decoder(_ArrayBatch),
    msgspec.msgpack.Decoder(_MapBatch),
)
"""Batches whose events are still to be read, one by one."""

EVENTS: tuple[msgspec.msgpack.Decoder[Any], ...] = (
    msgspec.msgpack.Decoder(MapEvent),
    msgspec.msgpack.Decoder(ArrayEvent),
)
