"""Prefix blocks of a simulated server: full blocks are shared, running requests pin theirs, the oldest unused go."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

import xxhash


@dataclass(slots=True)
class Lease:
    """Blocks a request holds until it ends. `cached_tokens`: tokens that needed no computing."""

    blocks: list[int] = field(default_factory=list)
    private: int = 0
    cached_tokens: int = 0


class KVCache:
    """`size` blocks of `block_size` tokens. Adapter name and cache salt are part of a block's identity."""

    def __init__(self, size: int, block_size: int) -> None:
        self.size = size
        self.block_size = block_size
        self._pins: dict[int, int] = {}
        self._unused: OrderedDict[int, None] = OrderedDict()
        self._private = 0

    @property
    def usage(self) -> float:
        """Share of blocks that running requests hold, 0 to 1 (what vLLM reports: unused cached blocks are free)."""
        return min(1.0, (len(self._pins) + self._private) / self.size)

    def begin(self, tokens: Sequence[int], identity: str) -> Lease:
        """Pin the blocks of a prompt, reusing a cached prefix; at least one token is always computed."""
        lease = Lease()
        hashes = self._chain(tokens, identity)
        hits = 0
        for block in hashes:
            if block not in self._pins and block not in self._unused:
                break
            hits += 1
        lease.cached_tokens = min(hits * self.block_size, max(0, len(tokens) - 1) // self.block_size * self.block_size)
        for block in hashes:
            self._pin(block)
            lease.blocks.append(block)
        lease.private = 1 if len(tokens) % self.block_size else 0
        self._private += lease.private
        self._evict()
        return lease

    def grow(self, lease: Lease, generated: int) -> None:
        """Account for generated tokens (they are not shared here)."""
        wanted = 1 + generated // self.block_size
        if wanted > lease.private:
            self._private += wanted - lease.private
            lease.private = wanted
            self._evict()

    def end(self, lease: Lease) -> None:
        """Unpin: shared blocks stay until something needs their place."""
        # Last block first: evicting a block makes the ones behind it useless, so they should go before it.
        for block in reversed(lease.blocks):
            pins = self._pins.get(block, 0) - 1
            if pins > 0:
                self._pins[block] = pins
            elif block in self._pins:
                del self._pins[block]
                self._unused[block] = None
        self._private -= lease.private
        lease.blocks = []
        lease.private = 0
        self._evict()

    def clear(self) -> None:
        """Forget every unused block."""
        self._unused.clear()

    def __len__(self) -> int:
        return len(self._pins) + len(self._unused)

    def _chain(self, tokens: Sequence[int], identity: str) -> list[int]:
        parent = xxhash.xxh64_intdigest(identity.encode())
        size = self.block_size
        chain: list[int] = []
        for start in range(0, len(tokens) - size + 1, size):
            block = b"".join(token.to_bytes(4, "little") for token in tokens[start : start + size])
            parent = xxhash.xxh64_intdigest(block, parent)
            chain.append(parent)
        return chain

    def _pin(self, block: int) -> None:
        self._unused.pop(block, None)
        self._pins[block] = self._pins.get(block, 0) + 1

    def _evict(self) -> None:
        while self._unused and len(self._pins) + len(self._unused) + self._private > self.size:
            self._unused.popitem(last=False)
