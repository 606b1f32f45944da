"""Writes what servers tell into the shared index: events to keys, keys to scripts."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from epp.kvevents.events import AllBlocksCleared, BlockRemoved, BlockStored
from epp.prefixcache.precise.hashing import BlockHasher, Keys
from epp.prefixcache.precise.stores import columns, cut, engine_hashes, resolve, well_formed
from epp.prefixcache.shared import layout
from epp.prefixcache.shared.layout import CHUNK, NAME_OVERHEAD, WIDTH, field, marker, packed, unpacked
from epp.prefixcache.shared.pending import Operation
from epp.prefixcache.shared.server import Server
from epp.prefixcache.shared.settings import SharedStats

MAX_PARENTS = 1 << 17
"""Engine hashes whose keys are remembered, 20 MB; the server is asked for others."""

_ASKED_AT_ONCE = 1024


class Writer:
    """Everything it does can be repeated: what failed half-way is given to it again. `ttl`: seconds, 0: for ever."""

    def __init__(self, server: Server, hasher: BlockHasher, prefix: str, ttl: int) -> None:
        self._server = server
        self._hasher = hasher
        self._prefix = prefix
        self._ttl = ttl
        self._parents: OrderedDict[int, int] = OrderedDict()

    async def clear(self, endpoints: Sequence[str]) -> int:
        """Remove the entries of these endpoints: a walk over all blocks, in steps that others do not notice."""
        cursor, removed = 0, 0
        markers = [marker(endpoint) for endpoint in endpoints]
        width = NAME_OVERHEAD + WIDTH
        while True:
            cursor, names = await self._server.scan(cursor, self._prefix + "b")
            for begin in range(0, len(names), CHUNK):
                some = b"".join(name for name in names[begin : begin + CHUNK] if len(name) == width)
                if some:
                    removed += int(await self._server.run(layout.CLEAR, some, width, *markers))
            if not cursor:
                return removed

    async def write(self, operations: Sequence[Operation]) -> SharedStats:
        """Write stores and removals in this order; what became of them."""
        counts = SharedStats()
        scripts: list[tuple[object, ...]] = []
        stores: list[tuple[str, BlockStored]] = []
        await self._find_parents(operations)
        for endpoint, event, _ in operations:
            if isinstance(event, AllBlocksCleared):
                continue
            if isinstance(event, BlockStored) and event.token_ids:
                if well_formed(event):
                    stores.append((endpoint, event))
                else:
                    counts.malformed += len(event.block_hashes)
                continue
            self._store(stores, scripts, counts)
            stores = []
            who = field(endpoint, event.medium, event.group)
            hashes = engine_hashes(event.block_hashes)
            for begin in range(0, len(hashes), CHUNK):
                some = packed(hashes[begin : begin + CHUNK])
                if isinstance(event, BlockRemoved):
                    scripts.append((layout.REMOVE, self._prefix, who, some))
                else:
                    scripts.append((layout.MOVE, self._prefix, who, self._ttl, some))
            if isinstance(event, BlockRemoved):
                counts.removed += len(hashes)
            else:
                counts.written += len(hashes)
        self._store(stores, scripts, counts)
        if scripts:
            await self._server.run_all(scripts)
        return counts

    def _store(
        self, stores: Sequence[tuple[str, BlockStored]], scripts: list[tuple[object, ...]], counts: SharedStats
    ) -> None:
        """Stores by block size: one never continues another's. Holders that follow each other go together."""
        by_size: dict[int, list[tuple[str, BlockStored]]] = {}
        for endpoint, event in stores:
            who = field(endpoint, event.medium, event.group)
            by_size.setdefault(event.block_size, []).extend((who, part) for part in cut(event))
        for size, parts in by_size.items():
            stored = resolve(columns(event for _, event in parts), self._hasher, self._find)
            counts.orphans += stored.orphans
            counts.written += len(stored.keys)
            self._remember(stored.keys, stored.engines)
            holders = [who for who, _ in parts]
            ends = [number for number in range(1, len(parts)) if holders[number] != holders[number - 1]]
            for first, last in zip([0, *ends], [*ends, len(parts)], strict=True):
                begin, end = np.searchsorted(stored.event, [first, last]).tolist()
                for at in range(begin, end, CHUNK):
                    some = slice(at, min(at + CHUNK, end))
                    keys, engines = packed(stored.keys[some]), packed(stored.engines[some])
                    scripts.append((layout.STORE, self._prefix, holders[first], self._ttl, size, keys, engines))

    def _find(self, engines: Keys) -> tuple[NDArray[np.bool_], Keys]:
        keys = [self._parents.get(name) for name in engines.tolist()]
        known = np.array([key is not None for key in keys], dtype=np.bool_)
        return known, np.array([key or 0 for key in keys], dtype=np.uint64)

    def _remember(self, keys: Keys, engines: Keys) -> None:
        parents = self._parents
        parents.update(zip(engines.tolist(), keys.tolist(), strict=True))
        while len(parents) > MAX_PARENTS:
            parents.popitem(last=False)

    async def _find_parents(self, operations: Sequence[Operation]) -> None:
        """Ask the server for the keys of parents that this picker has not written lately."""
        coming: set[int] = set()
        wanted: dict[int, None] = {}
        for operation in operations:
            event = operation.event
            if isinstance(event, BlockStored) and event.token_ids:
                name = event.parent_hash
                if name is not None and name not in coming:
                    if name in self._parents:
                        self._parents.move_to_end(name)
                    else:
                        wanted[name] = None
                coming.update(event.block_hashes)
        asked = engine_hashes(list(wanted))
        beginning = f"{self._prefix}e".encode()
        for begin in range(0, len(asked), _ASKED_AT_ONCE):
            part = asked[begin : begin + _ASKED_AT_ONCE]
            data = packed(part)
            names = [beginning + data[at : at + WIDTH] for at in range(0, len(data), WIDTH)]
            known, keys = unpacked(await self._server.get(names))
            chosen = np.array(known, dtype=np.bool_)
            self._remember(keys[chosen], part[chosen])
