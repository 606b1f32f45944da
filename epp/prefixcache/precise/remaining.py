"""What a removal leaves: a block of which the endpoint holds another copy is still there."""

from __future__ import annotations

import msgspec
import numpy as np

from epp.kvevents.events import BlockRemoved
from epp.prefixcache.precise.index import PreciseIndex
from epp.prefixcache.precise.lanes import WORD
from epp.prefixcache.precise.stores import engine_hashes


def really_removed(index: PreciseIndex, endpoint: str, event: BlockRemoved) -> BlockRemoved:
    """The event without the blocks that `index`, which has been told of it, still counts as held.

    For who keeps no copies: the index counts them (`copies.py`), and knows that the rest stays until the last one goes.
    """
    lane = index.lanes.get(endpoint)
    tier = index.tiers.known(event.medium)
    if not index.counters.copies or lane is None or tier is None:
        return event
    columns = index.blocks.planes.get((tier, event.group), ())
    if lane // WORD >= len(columns):
        return event
    rows = index.blocks.by_engine(engine_hashes(event.block_hashes))
    if index.blocks.aliases:
        known = np.flatnonzero(rows >= 0)
        rows[known] = index.blocks.by_key(index.blocks.key.take(rows[known]))
    bits = columns[lane // WORD].take(np.maximum(rows, 0)) & np.uint64(1 << lane % WORD)
    stays = (rows >= 0) & (bits != 0)
    if not stays.any():
        return event
    gone = np.flatnonzero(~stays).tolist()
    return msgspec.structs.replace(event, block_hashes=[event.block_hashes[at] for at in gone])
