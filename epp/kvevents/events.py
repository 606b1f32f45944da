"""KV cache events as the index takes them, whatever engine and release they came from.

Engine hashes are opaque: 64-bit integers, the last 8 bytes (big-endian) of longer digests. Token ids are packed as in
`epp.api.Prompt.data`: little-endian uint32, so that a stored block and a prompt are hashed by the same code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec


class BlockExtras(msgspec.Struct, frozen=True):
    """What tells a block apart from another with the same tokens: `media` identifiers in order, the tenant's salt."""

    media: tuple[str, ...] = ()
    cache_salt: str = ""


class BlockStored(msgspec.Struct, frozen=True):
    """A run of consecutive whole blocks entered a cache.

    `token_ids` holds `len(block_hashes) * block_size` ids, or nothing when the event only moves known blocks to another
    tier. `parent_hash` None: the run starts a prompt. `medium`: the tier in lower case ("gpu", "cpu", "storage", ...),
    "gpu" when the engine does not say. `lora_name` empty: the base model. `extras`: one per block, or empty. `again`:
    the same store may have been told before, or removals before it may be lost, so it is no proof of a further copy.
    """

    block_hashes: Sequence[int]
    parent_hash: int | None
    token_ids: bytes
    block_size: int
    lora_name: str = ""
    medium: str = "gpu"
    extras: tuple[BlockExtras | None, ...] = ()
    group: int = 0
    again: bool = False


class BlockRemoved(msgspec.Struct, frozen=True):
    """Blocks left the tier `medium`."""

    block_hashes: Sequence[int]
    medium: str = "gpu"
    group: int = 0


class AllBlocksCleared(msgspec.Struct, frozen=True):
    """The cache is empty, in every tier."""


KVEvent = BlockStored | BlockRemoved | AllBlocksCleared


class EventSink(Protocol):
    """Who takes the events: the index.

    `endpoint` is the `ip:port` of the server whose cache it is. Calls come from the event loop, in the order in which
    the publisher sent the events; each must return within a millisecond or so, which is why they come in small batches.
    """

    def apply_many(self, batches: Sequence[tuple[str, Sequence[KVEvent]]]) -> None:
        """Take what several endpoints sent, the events of each in this order.

        When it raises, the same batches come again, one endpoint at a time.
        """

    def clear(self, endpoint: str) -> None:
        """Forget all that this endpoint holds: it restarted, was cleared, or is gone."""
