"""A dictionary that is bounded by the bytes of what it holds; what was asked for longest ago goes first."""

from __future__ import annotations

from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")
_LARGEST = 8
"""One entry may take this part of the bound: a single huge prompt must not push out everything else."""


class BoundedCache(Generic[K, V]):
    """At most `limit` bytes, as the callers of `put` count them. 0 keeps nothing. Not for several threads at once."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self._entries: dict[K, tuple[V, int]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: K) -> V | None:
        """What is kept under `key`; it counts as used just now."""
        entry = self._entries.pop(key, None)
        if entry is None:
            return None
        self._entries[key] = entry
        return entry[0]

    def put(self, key: K, value: V, size: int) -> None:
        """Keep `value`, which takes `size` bytes, unless it is too large."""
        if size * _LARGEST > self.limit:
            return
        before = self._entries.pop(key, None)
        if before is not None:
            self.used -= before[1]
        self._entries[key] = (value, size)
        self.used += size
        while self.used > self.limit:
            oldest = next(iter(self._entries))
            self.used -= self._entries.pop(oldest)[1]
