"""How often a server holds a block besides the first time.

vLLM does not merge equal blocks: a prompt that is in the cache as a whole has its last block computed anew, and so has
the block where a draft model's prefix ends; answers that come out alike are stored once for each. Every copy comes with
a BlockStored and goes with a BlockRemoved of the same hash, and the copy that goes first is seldom the one that is in
use. So a block is held until as many removals have come as stores.

Only what is certainly a copy counts. A run that begins a prompt does not: with `kv_cache_report_mode` "full" vLLM tells
of the blocks that a request found in the cache as if it stored them again, from the prompt's beginning. Nor does what a
replay brings a second time (`BlockStored.again`). A copy that is not counted makes its block go with the first removal,
which costs affinity; one that was none would leave a block in the index that the server does not have.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from epp.prefixcache.precise.blocks import Plane

MAX_COPIES = 1 << 17
"""Bounds memory: 20 MB. Further ones are not counted."""


class Copies:
    """Copies beyond the first, by lane, plane and engine hash (the first one of a block). `len`: blocks with any."""

    def __init__(self) -> None:
        self._of: dict[int, dict[tuple[Plane, int], int]] = {}
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def add(self, plane: Plane, lane: int, engine: int) -> bool:
        """One more copy. False: there is no room to remember it."""
        own = self._of.setdefault(lane, {})
        name = (plane, engine)
        if name not in own:
            if self._size >= MAX_COPIES:
                return False
            self._size += 1
        own[name] = own.get(name, 0) + 1
        return True

    def take(self, plane: Plane, lanes: Iterable[int], engines: Iterable[int]) -> NDArray[np.bool_]:
        """For each removal whether it takes the last copy."""
        return np.array(
            [not self._take(plane, lane, engine) for lane, engine in zip(lanes, engines, strict=True)], dtype=np.bool_
        )

    def _take(self, plane: Plane, lane: int, engine: int) -> bool:
        own = self._of.get(lane)
        count = own.get((plane, engine), 0) if own else 0
        if own is None or not count:
            return False
        if count > 1:
            own[plane, engine] = count - 1
        else:
            del own[plane, engine]
            self._size -= 1
        return True

    def forget(self, lane: int) -> None:
        """The lane holds nothing any more."""
        self._size -= len(self._of.pop(lane, ()))
