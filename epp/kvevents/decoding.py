"""From a message to events: whatever release wrote it, and whatever is wrong with it."""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field

import msgspec

from epp.kvevents import wire
from epp.kvevents.events import AllBlocksCleared, BlockExtras, BlockRemoved, BlockStored, KVEvent
from epp.kvevents.extra_keys import LONGEST, block_extras

MAX_MESSAGE_BYTES = 8 << 20
"""A longer message is refused: 8 MiB hold a prompt of 1.6 M tokens. Decoding it takes less than 0.1 s."""

MAX_WHOLE_BYTES = 32 << 10
"""Longer messages are read event by event, so that the reader can pause in between."""

INDEXED_KINDS = frozenset({"full_attention", "mla", "mla_attention", "sink_full", "sink_full_attention"})
"""Cache kinds where a block depends on all tokens before it and stays usable: others say nothing about a prefix."""

UNSUPPORTED, UNKNOWN_GROUP = "unsupported_cache_kind", "unknown_group"
"""Why an event is not for the index, as llm-d-router names it."""

_OTHER_KINDS = frozenset(
    {
        "sliding_window",
        "sliding_window_mla",
        "mamba",
        "chunked_local_attention",
        "encoder_only_attention",
        "cross_attention",
        "unknown",
    }
)
_MAX_GROUPS = 256  # KV cache groups of one engine; real ones have a handful
_MAX_NAME = 512  # characters of a LoRA or medium name
_MAX_BLOCK_SIZE = 1 << 20
_WORD = (1 << 64) - 1
_LITTLE = sys.byteorder == "little"
_ARRAYS = 1  # odd forms of `wire.TYPED` and `wire.EVENTS`: events are arrays, and bare multimodal identifiers occur
_CLEARED = AllBlocksCleared()


@dataclass(slots=True)
class DecodeStats:
    """Counts since the start. `errors` by reason: "batch" (message unreadable), "event" (one event unreadable or
    inconsistent), "too_long". `skipped` by (event type, cache kind, reason); all keys come from small fixed sets."""

    batches: int = 0
    events: int = 0
    blocks_stored: int = 0
    blocks_removed: int = 0
    clears: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    skipped: dict[tuple[str, str, str], int] = field(default_factory=dict)

    def error(self, reason: str) -> None:
        """Count something that could not be read."""
        self.errors[reason] = self.errors.get(reason, 0) + 1

    def skip(self, event: str, kind: str, reason: str) -> None:
        """Count an event that is well formed but not for the index."""
        key = (event, kind if kind in INDEXED_KINDS or kind in _OTHER_KINDS else "other", reason)
        self.skipped[key] = self.skipped.get(key, 0) + 1

    def add(self, other: DecodeStats) -> None:
        """Add the counts of `other` to these."""
        self.batches += other.batches
        self.events += other.events
        self.blocks_stored += other.blocks_stored
        self.blocks_removed += other.blocks_removed
        self.clears += other.clears
        for reason, count in other.errors.items():
            self.errors[reason] = self.errors.get(reason, 0) + count
        for key, count in other.skipped.items():
            self.skipped[key] = self.skipped.get(key, 0) + count


class Batch(msgspec.Struct, frozen=True, gc=False):
    """`timestamp` in seconds since the epoch by the publisher's clock; `rank` 0 when the publisher names none."""

    timestamp: float
    rank: int
    events: list[KVEvent]

    def doubtful(self) -> Batch:
        """The same, but what it stores is no proof of a further copy (`BlockStored.again`)."""
        events = [
            msgspec.structs.replace(event, again=True) if isinstance(event, BlockStored) else event
            for event in self.events
        ]
        return Batch(self.timestamp, self.rank, events)


class Decoder:
    """Reads the messages of one publisher, in order.

    It remembers the shape that worked last, and which KV cache group is of which kind, because removals do not say.
    Nothing that is fed to it raises: what cannot be read is counted in `stats` and left out.
    """

    __slots__ = ("_form", "_groups", "stats")

    def __init__(self, stats: DecodeStats | None = None) -> None:
        self.stats = DecodeStats() if stats is None else stats
        self._form = 0
        self._groups: dict[int, str] = {}

    def decode(self, payload: bytes) -> Batch | None:
        """The batch in `payload`; None when it cannot be read at all. Events that cannot be read are left out."""
        if len(payload) > MAX_MESSAGE_BYTES:
            self.stats.error("too_long")
            return None
        for form in (self._form, *range(len(wire.TYPED))):
            try:
                batch: wire.TypedBatch = wire.TYPED[form].decode(payload)
            except Exception:  # whatever a publisher can provoke in a decoder must stay here
                continue
            self._form = form
            old = form % 2 == _ARRAYS
            events: list[KVEvent] = []
            for raw in batch.events:
                event = self._event(raw, old)
                if event is not None:
                    events.append(event)
            self.stats.batches += 1
            self.stats.events += len(events)
            return Batch(batch.ts, batch.data_parallel_rank or 0, events)
        return self._leniently(payload)

    def pieces(self, payload: bytes) -> Iterator[Batch]:
        """As `decode`, but one event at a time, so that the caller can let others run in between."""
        if len(payload) > MAX_MESSAGE_BYTES:
            self.stats.error("too_long")
            return
        envelope = self._envelope(payload)
        if envelope is None:
            return
        self.stats.batches += 1
        for raw in envelope.events:
            event = self._single(raw)
            if event is not None:
                self.stats.events += 1
                yield Batch(envelope.ts, envelope.data_parallel_rank or 0, [event])

    def forget(self) -> None:
        """The publisher is a new process: its groups may be others."""
        self._groups.clear()

    def _leniently(self, payload: bytes) -> Batch | None:
        """One bad event must not take the others of its batch along."""
        envelope = self._envelope(payload)
        if envelope is None:
            return None
        events = [event for event in map(self._single, envelope.events) if event is not None]
        self.stats.batches += 1
        self.stats.events += len(events)
        return Batch(envelope.ts, envelope.data_parallel_rank or 0, events)

    def _envelope(self, payload: bytes) -> wire.RawBatch | None:
        for decoder in wire.UNTYPED:
            try:
                batch: wire.RawBatch = decoder.decode(payload)
            except Exception:  # see `decode`
                continue
            return batch
        self.stats.error("batch")
        return None

    def _single(self, raw: msgspec.Raw) -> KVEvent | None:
        for form, decoder in enumerate(wire.EVENTS):
            try:
                event: wire.Event = decoder.decode(raw)
            except Exception:  # see `decode`
                continue
            return self._event(event, form % 2 == _ARRAYS)
        self.stats.error("event")
        return None

    def _event(self, raw: wire.Event, old: bool) -> KVEvent | None:
        if isinstance(raw, wire.Stored):
            return self._stored(raw, old)
        if isinstance(raw, wire.Removed):
            return self._removed(raw)
        self.stats.clears += 1
        return _CLEARED

    def _stored(self, raw: wire.Stored, old: bool) -> BlockStored | None:
        stats = self.stats
        kind = raw.kv_cache_spec_kind
        group = raw.group_idx
        if group is not None and (group in self._groups or len(self._groups) < _MAX_GROUPS):
            self._groups[group] = kind or ""
        if kind is not None and kind not in INDEXED_KINDS:
            stats.skip("BlockStored", kind, UNSUPPORTED)
            return None
        count = len(raw.block_hashes)
        tokens = b""
        size = raw.block_size
        if raw.token_ids:
            if len(raw.token_ids) != count * size or size > _MAX_BLOCK_SIZE:
                stats.error("event")
                return None
            try:
                ids = array("I", _single_tokens(raw.token_ids))
            except OverflowError:
                stats.error("event")
                return None
            if not _LITTLE:
                ids.byteswap()
            tokens = ids.tobytes()
        if not count or size < 0:
            stats.error("event")
            return None
        lora = raw.lora_name if isinstance(raw.lora_name, str) else ""
        if not lora and raw.lora_id:
            # The adapter is not named, but these blocks are not the base model's.
            lora = f"lora_id={raw.lora_id}"
        medium = raw.medium
        if len(lora) > _MAX_NAME or (medium is not None and len(medium) > _MAX_NAME):
            stats.error("event")
            return None
        parent = raw.parent_block_hash
        extras: tuple[BlockExtras | None, ...] = ()
        if raw.extra_keys and any(raw.extra_keys):
            if len(raw.extra_keys) != count:
                stats.error("event")
                return None
            extras = block_extras(raw.extra_keys, lora_name=lora, starts_prompt=not parent, bare_media=old and not kind)
        if not parent and (salt := _salt(raw)):
            first = extras[0] if extras else None
            extras = (BlockExtras(first.media if first else (), salt), *(extras[1:] or [None] * (count - 1)))
        stats.blocks_stored += count
        return BlockStored(
            _numbers(raw.block_hashes),
            _number(parent) if parent else None,  # some publishers write 0 for none
            tokens,
            size,
            lora,
            medium.lower() if medium else "gpu",
            extras,
            group or 0,
        )

    def _removed(self, raw: wire.Removed) -> BlockRemoved | None:
        group = raw.group_idx
        if group is not None:
            kind = self._groups.get(group)
            if kind is None:
                # Nothing of this group was stored since we listen, so none of it is indexed; the same hashes of
                # another group may be.
                self.stats.skip("BlockRemoved", "unknown", UNKNOWN_GROUP)
                return None
            if kind and kind not in INDEXED_KINDS:
                self.stats.skip("BlockRemoved", kind, UNSUPPORTED)
                return None
        medium = raw.medium
        if medium is not None and len(medium) > _MAX_NAME:
            self.stats.error("event")
            return None
        self.stats.blocks_removed += len(raw.block_hashes)
        return BlockRemoved(_numbers(raw.block_hashes), medium.lower() if medium else "gpu", group or 0)


def _single_tokens(ids: list[int] | list[tuple[int, int]]) -> list[int]:
    """Of pairs the first: the other one is the next pair's, or that of a token behind the block."""
    if isinstance(ids[0], tuple):
        return [pair[0] for pair in ids]
    return ids


def _salt(raw: wire.Stored) -> str:
    """As SGLang tells it."""
    if isinstance(raw.lora_name, wire.Noted):
        return raw.lora_name.cache_salt[:LONGEST]
    return (raw.cache_salt or "")[:LONGEST] if isinstance(raw, wire.StoredMap) else ""


def _number(value: wire.Hash) -> int:
    if isinstance(value, bytes):
        return int.from_bytes(value[-8:], "big")
    return value & _WORD


def _numbers(values: list[wire.Hash]) -> list[int]:
    """As unsigned 64-bit numbers. Engines write all hashes of an event the same way, which saves a look at each."""
    try:
        if min(values) >= 0:  # type: ignore[operator]
            return values  # type: ignore[return-value]
    except (TypeError, ValueError):  # bytes, a mixture, or none
        pass
    try:
        words = b"".join([value[-8:] for value in values])  # type: ignore[index]
        return list(struct.unpack(f">{len(values)}Q", words))
    except (TypeError, struct.error):  # numbers, or digests of less than 8 bytes
        return [_number(value) for value in values]
