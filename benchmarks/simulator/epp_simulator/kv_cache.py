"""The KV cache of one simulated engine: prefix reuse and eviction on the GPU, a CPU tier behind it, and their events.

A prompt's full blocks are cached when it is scheduled, those of the answer as they fill up. `cached_tokens` is what was
found then: whole blocks, never the whole prompt, because its last token has to be computed.

With a CPU tier every block that was computed is also copied there (as vLLM's offloading connector does); blocks that
the GPU has lost are loaded from it. Further KV cache groups follow the first: a sliding-window group holds the blocks
of the last window only. They appear in events, not in hits.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from epp_simulator.block_hash import BlockChain, BlockHasher
from epp_simulator.block_pool import Block, BlockPool
from epp_simulator.kv_events import CPU, GPU, Cleared, Event, Group, Removed, Stored


@dataclass(slots=True)
class Lease:
    """What a request holds until it ends. Tokens that were in the cache; `loaded_tokens` of them on the CPU only."""

    chain: BlockChain
    blocks: list[Block] = field(default_factory=list)
    filled: int = 0
    cached_tokens: int = 0
    loaded_tokens: int = 0


class KVCache:
    """`size` blocks of `block_size` tokens, `cpu_size` on the CPU.

    `take_events` returns what happened since it was called last; nothing is kept when `record` is off.
    """

    def __init__(
        self,
        size: int,
        block_size: int,
        *,
        seed: str = "",
        cpu_size: int = 0,
        groups: Sequence[Group] = (Group(),),
        record: bool = False,
    ) -> None:
        self.block_size = block_size
        self.record = record
        self._hasher = BlockHasher(block_size, seed)
        self._pool = BlockPool(size, self._evicted)
        self._cpu_size = cpu_size
        self._cpu: OrderedDict[bytes, None] = OrderedDict()
        self._full = next(group for group in groups if group.window is None)
        self._windows = {group: set[bytes]() for group in groups if group.window is not None}
        self._events: list[Event] = []

    @property
    def usage(self) -> float:
        """Share of blocks that running requests hold, 0 to 1 (what vLLM reports: unused cached blocks are free)."""
        return min(1.0, self._pool.used / self._pool.size)

    def __len__(self) -> int:
        return len(self._pool.digests)

    def digests(self, medium: str = GPU) -> set[bytes]:
        """What a tier holds."""
        return set(self._cpu if medium == CPU else self._pool.digests)

    def has_room(self, chain: BlockChain) -> bool:
        """The blocks that a request needs are free."""
        hits = self._hits(chain)
        reused = sum(self._pool.is_free(digest) for digest in chain.digests[:hits])
        return self._blocks(len(chain.tokens)) - hits + reused <= self._pool.free

    def begin(self, chain: BlockChain) -> Lease:
        """Schedule a prompt."""
        hits = self._hits(chain)
        loads = hits
        while loads < self._reusable(chain) and chain.digests[loads] in self._cpu:
            self._cpu.move_to_end(chain.digests[loads])
            loads += 1
        lease = Lease(chain, cached_tokens=loads * self.block_size, loaded_tokens=(loads - hits) * self.block_size)
        lease.blocks = [self._pool.hit(digest) for digest in chain.digests[:hits]]
        lease.blocks += self._pool.take(self._blocks(len(chain.tokens)) - hits)
        lease.filled = hits
        self._fill(lease, loads)
        self._fill(lease, len(chain.digests))
        self._offload(chain.digests[loads:])
        return lease

    def advance(self, lease: Lease, tokens: Sequence[int]) -> None:
        """These tokens of the answer were computed."""
        chain = lease.chain
        chain.tokens.extend(tokens)
        missing = self._blocks(len(chain.tokens)) - len(lease.blocks)
        if missing > 0:
            lease.blocks += self._pool.take(missing)
        before = lease.filled
        self._hasher.extend(chain)
        self._fill(lease, len(chain.digests))
        self._offload(chain.digests[before:])

    def end(self, lease: Lease) -> None:
        """The request is over: its blocks stay cached until something needs their place."""
        self._pool.release(lease.blocks)
        lease.blocks = []

    def clear(self) -> bool:
        """Forget everything; False, and nothing happens, while requests run."""
        if not self._pool.clear():
            return False
        self._cpu.clear()
        for held in self._windows.values():
            held.clear()
        self._tell(Cleared())
        return True

    def take_events(self) -> list[Event]:
        """Events since the last call, in order."""
        events, self._events = self._events, []
        return events

    def _blocks(self, tokens: int) -> int:
        return -(-tokens // self.block_size)

    def _reusable(self, chain: BlockChain) -> int:
        """Blocks of a prompt that may come from a cache: all full ones that leave a token to compute."""
        return max(0, len(chain.tokens) - 1) // self.block_size

    def _hits(self, chain: BlockChain) -> int:
        self._hasher.extend(chain)
        hits = 0
        while hits < self._reusable(chain) and chain.digests[hits] in self._pool:
            hits += 1
        return hits

    def _fill(self, lease: Lease, end: int) -> None:
        """Blocks `lease.filled` to `end` have their contents now: one event for all of them."""
        begin, chain = lease.filled, lease.chain
        if begin >= end:
            return
        for block, digest in zip(lease.blocks[begin:end], chain.digests[begin:end], strict=True):
            self._pool.fill(block, digest)
        lease.filled = end
        for group in (self._full, *self._windows):
            self._tell(self._stored(chain, begin, end, group))
        for group, held in self._windows.items():
            held.update(chain.digests[begin:end])
            outside = end - self._blocks(group.window or 0)
            for digest in chain.digests[: max(0, outside)]:
                self._drop(group, digest)

    def _stored(self, chain: BlockChain, begin: int, end: int, group: Group) -> Stored:
        return Stored(
            digests=chain.digests[begin:end],
            parent=chain.digests[begin - 1] if begin else None,
            tokens=chain.tokens[begin * self.block_size : end * self.block_size],
            lora=chain.lora,
            extras=chain.extras[begin:end],
            group=group,
            session=chain.session,
        )

    def _offload(self, digests: Sequence[bytes]) -> None:
        if not self._cpu_size:
            return
        new = [digest for digest in digests if digest not in self._cpu][-self._cpu_size :]
        if not new:
            return
        while len(self._cpu) + len(new) > self._cpu_size:
            self._tell(Removed(self._cpu.popitem(last=False)[0], CPU))
        self._cpu.update(dict.fromkeys(new))
        self._tell(Stored(new, medium=CPU))

    def _evicted(self, digest: bytes) -> None:
        self._tell(Removed(digest, group=self._full))
        for group in self._windows:
            self._drop(group, digest)

    def _drop(self, group: Group, digest: bytes) -> None:
        held = self._windows[group]
        if digest in held:
            held.discard(digest)
            self._tell(Removed(digest, group=group))

    def _tell(self, event: Event) -> None:
        if self.record:
            self._events.append(event)
