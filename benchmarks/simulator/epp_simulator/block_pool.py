"""The physical blocks of a KV cache, managed as vLLM's block pool does.

Free blocks form a queue. A block that is freed keeps its contents and goes to the end, one that was never full goes to
the front; the front is taken when a new block is needed, and only then its contents are gone. A hit takes a block out
of the middle of the queue.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass


@dataclass(slots=True, eq=False)
class Block:
    """`digest` None: nothing that could be reused. `spare`: made beyond the size of the pool, and not kept."""

    digest: bytes | None = None
    pins: int = 0
    spare: bool = False


class BlockPool:
    """`size` blocks. `evicted` is called with the digest of each block whose contents are overwritten.

    The same contents can be in several blocks: two requests may compute them, and a prompt that is a whole number of
    blocks recomputes its last one even when that is cached.
    """

    def __init__(self, size: int, evicted: Callable[[bytes], None]) -> None:
        self.size = size
        self._evicted = evicted
        self._free: OrderedDict[Block, None] = OrderedDict((Block(), None) for _ in range(size))
        self._cached: dict[bytes, dict[Block, None]] = {}
        self._spares = 0

    @property
    def free(self) -> int:
        """Blocks that no request holds, cached ones included."""
        return len(self._free)

    @property
    def used(self) -> int:
        """Blocks that requests hold."""
        return self.size - len(self._free) + self._spares

    @property
    def digests(self) -> Collection[bytes]:
        """The contents that can be hit."""
        return self._cached.keys()

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._cached

    def is_free(self, digest: bytes) -> bool:
        """A hit on these contents would take a block out of the free queue."""
        return next(iter(self._cached[digest])).pins == 0

    def hit(self, digest: bytes) -> Block:
        """Pin the block with these contents; KeyError when there is none."""
        block = next(iter(self._cached[digest]))
        if not block.pins:
            del self._free[block]
        block.pins += 1
        return block

    def take(self, count: int) -> list[Block]:
        """Pinned blocks without contents. Beyond the size of the pool, spare ones: a running request goes on."""
        taken: list[Block] = []
        for _ in range(count):
            if self._free:
                block, _ = self._free.popitem(last=False)
                self._evict(block)
            else:
                block = Block(spare=True)
                self._spares += 1
            block.pins = 1
            taken.append(block)
        return taken

    def fill(self, block: Block, digest: bytes) -> None:
        """The block has these contents from now on."""
        block.digest = digest
        self._cached.setdefault(digest, {})[block] = None

    def release(self, blocks: Sequence[Block]) -> None:
        """Unpin the blocks of a request, in its order."""
        # The last block first: it is of no use without those before it, so it goes before them.
        for block in reversed(blocks):
            block.pins -= 1
            if block.pins:
                continue
            if block.spare:
                self._evict(block)
                self._spares -= 1
            else:
                self._free[block] = None
                if block.digest is None:
                    self._free.move_to_end(block, last=False)

    def clear(self) -> bool:
        """Forget all contents; False, and nothing happens, while a request holds a block."""
        if self.used:
            return False
        for holders in self._cached.values():
            for block in holders:
                block.digest = None
        self._cached.clear()
        return True

    def _evict(self, block: Block) -> None:
        if block.digest is None:
            return
        holders = self._cached[block.digest]
        del holders[block]
        if not holders:
            del self._cached[block.digest]
        digest, block.digest = block.digest, None
        self._evicted(digest)
