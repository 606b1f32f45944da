"""KV cache events as each release of vLLM writes them: msgpack, arrays or maps.

The fields of a release are a table; the bytes come from msgspec with the same structure options that vLLM uses, so what
is left out when it equals its default is left out in the same places. Sources: the class definitions in vLLM's
releases 0.15 to 0.33.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

GPU, CPU = "GPU", "CPU"

ExtraKey = tuple[Any, ...]
"""Tagged: ("lora", name), ("mm", identifier, offset in the block), ("cache_salt", salt)."""


@dataclass(frozen=True, slots=True)
class Group:
    """A KV cache group: its layers cache in the same way. `window` in tokens, None for full attention."""

    index: int = 0
    kind: str = "full_attention"
    window: int | None = None


@dataclass(frozen=True, slots=True)
class Stored:
    """Consecutive full blocks entered a tier. No `tokens`: blocks that are known already, copied to another tier."""

    digests: Sequence[bytes]
    parent: bytes | None = None
    tokens: Sequence[int] = ()
    lora: str = ""
    extras: Sequence[Sequence[ExtraKey]] = ()
    medium: str = GPU
    group: Group | None = None
    session: str | None = None


@dataclass(frozen=True, slots=True)
class Removed:
    """A block left a tier."""

    digest: bytes
    medium: str = GPU
    group: Group | None = None


@dataclass(frozen=True, slots=True)
class Cleared:
    """All blocks are gone."""


Event = Stored | Removed | Cleared

_STORED = (
    ["block_hashes", "parent_block_hash", "token_ids", "block_size", "lora_id", "medium", "lora_name"],
    {
        "0.18": ["extra_keys"],
        "0.20": ["group_idx"],
        "0.22": ["kv_cache_spec_kind", "kv_cache_spec_sliding_window"],
        "0.26": ["locality"],
        "0.30": ["ownership", "session_id"],
        "0.33": ["lookahead_token_ids"],
    },
)
_REMOVED = (
    ["block_hashes", "medium"],
    {"0.20": ["group_idx"], "0.26": ["locality"], "0.30": ["ownership"]},
)
RELEASES = ("0.15", "0.18", "0.20", "0.22", "0.24", "0.26", "0.28", "0.30", "0.31", "0.32", "0.33", "main")
"""Releases whose format differs; `main` is a development state in which batches were maps, too."""

_MAPS_FROM = "0.24"
_TOPIC_IN_REPLAY_FROM = "0.26"
_MEDIA_OFFSETS_FROM = "0.22"


def _since(release: str, first: str) -> bool:
    return RELEASES.index(release) >= RELEASES.index(first)


@dataclass(frozen=True)
class Schema:
    """How one release writes events."""

    release: str
    stored: type[msgspec.Struct]
    removed: type[msgspec.Struct]
    cleared: type[msgspec.Struct]
    batch: type[msgspec.Struct]

    @property
    def topic_in_replay(self) -> bool:
        """Replay answers carry the topic."""
        return _since(self.release, _TOPIC_IN_REPLAY_FROM)

    @property
    def media_offsets(self) -> bool:
        """Multimodal keys are `[identifier, offset]`, not bare identifiers."""
        return _since(self.release, _MEDIA_OFFSETS_FROM)


def schema(release: str) -> Schema:
    """The schema of a release; ValueError for one that is not in `RELEASES`."""
    if release not in RELEASES:
        raise ValueError(f"--kv-events-schema {release!r}: known are {', '.join(RELEASES)}")
    arrays = not _since(release, _MAPS_FROM)

    def event(name: str, base: list[str], later: Mapping[str, list[str]]) -> type[msgspec.Struct]:
        fields: list[Any] = [(field_name, Any) for field_name in base]
        for first, names in later.items():
            if _since(release, first):
                fields += [(field_name, Any, None) for field_name in names]
        return msgspec.defstruct(name, fields, tag=True, array_like=arrays, omit_defaults=True)

    batch = msgspec.defstruct(
        "KVEventBatch",
        [("ts", float), ("events", list), ("data_parallel_rank", Any, None)],
        array_like=release != "main",
        omit_defaults=True,
    )
    stored, removed = event("BlockStored", *_STORED), event("BlockRemoved", *_REMOVED)
    return Schema(release, stored, removed, event("AllBlocksCleared", [], {}), batch)


@dataclass(slots=True)
class EventEncoder:
    """Batches of one engine. `lora_ids`: the numbers that vLLM gives adapters, from 1.

    `int_hashes`: 64-bit numbers (the end of the digest, big-endian) instead of whole digests. `tagged`: extra keys as
    `["cache_salt", salt]` instead of bare values.
    """

    schema: Schema
    block_size: int
    rank: int = 0
    int_hashes: bool = True
    tagged: bool = False
    lora_ids: Mapping[str, int] = field(default_factory=dict)
    _encoder: msgspec.msgpack.Encoder = field(default_factory=msgspec.msgpack.Encoder)

    def encode(self, timestamp: float, events: Sequence[Event]) -> bytes:
        """The payload of a message; what a release cannot express (other groups before 0.20) is left out."""
        encoded = [self._event(event) for event in events if self._expressible(event)]
        return self._encoder.encode(self.schema.batch(timestamp, encoded, self.rank))

    def _expressible(self, event: Event) -> bool:
        grouped = isinstance(event, Stored | Removed) and event.group is not None and event.group.window is not None
        return not grouped or "group_idx" in self.schema.stored.__struct_fields__

    def _event(self, event: Event) -> msgspec.Struct:
        if isinstance(event, Cleared):
            return self.schema.cleared()
        group = event.group
        if isinstance(event, Removed):
            removed = {"block_hashes": [self._hash(event.digest)], "medium": event.medium}
            return self._build(self.schema.removed, removed | {"group_idx": group.index if group else None})
        values = {
            "block_hashes": [self._hash(digest) for digest in event.digests],
            "parent_block_hash": None if event.parent is None else self._hash(event.parent),
            "token_ids": list(event.tokens),
            "block_size": self.block_size,
            "lora_id": self.lora_ids.get(event.lora),
            "medium": event.medium,
            "lora_name": event.lora or None,
            "extra_keys": [self._keys(keys) for keys in event.extras] if event.extras else None,
            "group_idx": group.index if group else None,
            "kv_cache_spec_kind": group.kind if group else None,
            "kv_cache_spec_sliding_window": group.window if group else None,
            "session_id": event.session,
        }
        return self._build(self.schema.stored, values)

    def _build(self, kind: type[msgspec.Struct], values: Mapping[str, Any]) -> msgspec.Struct:
        return kind(**{name: values.get(name) for name in kind.__struct_fields__})

    def _hash(self, digest: bytes) -> int | bytes:
        return int.from_bytes(digest[-8:], "big") if self.int_hashes else digest

    def _keys(self, keys: Sequence[ExtraKey]) -> list[Any] | None:
        return [list(key) if self.tagged else self._bare(key) for key in keys] or None

    def _bare(self, key: ExtraKey) -> Any:
        if key[0] != "mm":
            return key[1]
        return list(key[1:]) if self.schema.media_offsets else key[1]
