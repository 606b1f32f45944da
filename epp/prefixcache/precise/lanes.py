"""Which bit stands for which endpoint.

An endpoint that is cleared gives its *lane* back at once and gets another one when it stores again. The old bits are
still set in millions of entries: the lane is *dirty* until a sweep over the index has wiped them, bit by bit of its
work, and only then is it used again. So clearing costs nothing when it happens and nobody ever sees an old bit.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

WORD = 64


class Lanes:
    """Lanes by endpoint. `words` is how many 64-bit words a block's holders take; `version` grows with each change."""

    def __init__(self) -> None:
        self.version = 0
        self._of: dict[str, int] = {}
        self._free: list[int] = []
        self._dirty: set[int] = set()
        self._sweeping: set[int] = set()
        self._next = 0

    def __len__(self) -> int:
        return len(self._of)

    @property
    def words(self) -> int:
        return max(1, -(-self._next // WORD))

    @property
    def dirty(self) -> int:
        """Lanes that wait for a sweep or are being swept."""
        return len(self._dirty) + len(self._sweeping)

    def endpoints(self) -> dict[str, int]:
        """Lane by endpoint; not to be changed."""
        return self._of

    def get(self, endpoint: str) -> int | None:
        return self._of.get(endpoint)

    def assign(self, endpoint: str) -> int:
        """The endpoint's lane, a fresh one if it has none."""
        lane = self._of.get(endpoint)
        if lane is None:
            if self._free:
                lane = self._free.pop()
            else:
                lane = self._next
                self._next += 1
            self._of[endpoint] = lane
            self.version += 1
        return lane

    def release(self, endpoint: str) -> bool:
        """Forget the endpoint. False: it had no lane, there is nothing to forget."""
        lane = self._of.pop(endpoint, None)
        if lane is None:
            return False
        self._dirty.add(lane)
        self.version += 1
        return True

    def begin_sweep(self) -> NDArray[np.uint64] | None:
        """Per word, the bits that the sweep shall wipe; None when there is nothing to do."""
        if not self._dirty:
            return None
        self._sweeping, self._dirty = self._dirty, set()
        bits = np.zeros(self.words, dtype=np.uint64)
        for lane in self._sweeping:
            bits[lane // WORD] |= np.uint64(1 << lane % WORD)
        return bits

    def end_sweep(self) -> None:
        """The bits of the lanes being swept are gone: they may be used again."""
        self._free.extend(sorted(self._sweeping, reverse=True))
        self._sweeping = set()
