"""Which endpoint probably still holds which prefix: what we sent where, forgotten as the servers' caches forget.

A radix tree over block hashes, shared by all endpoints. A *node* is a run of blocks that are always held together; a
node knows its holders (an integer used as a bit set) and when each of them was last sent it. Because a block hash
names its whole prefix (`epp.prefixcache.hashing`), one table from the first hash of a node to the node replaces the
edges of the tree, and comparing the last hash of a node compares all its blocks. So everything here costs by node, not
by block: a prompt of 2 000 blocks that comes for the first time is one node.

Each endpoint has a least-recently-used order as large as that server's KV cache. It is exact, block by block, and of
the blocks that were last used together it forgets the end before the beginning, as the servers do. Hence what is known
of an endpoint is closed under prefixes, and a match is contiguous by construction (llm-d-router counts blocks behind
a gap, too).

Endpoints are known by *lane*, a bit number of our own. When an endpoint goes away no row points to its lane any more,
and the lane is emptied little by little by later calls before another endpoint gets it. A row of the endpoint table
that is used again therefore starts empty.

Hash collisions, accidental or made on purpose, can make an answer wrong by some blocks or keep a prompt from being
recorded; no bound depends on their absence, because a node is only ever reached through its parent.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Sequence
from heapq import heappop, heappush

import numpy as np
from numpy.typing import NDArray

from epp.api.endpoints import FEW, FloatArray, IntArray
from epp.prefixcache.radix import Lane, Node, common_length

# Bytes as measured with tracemalloc on CPython 3.11, a little above the mean; see docs/prefix-cache.md.
_BYTES_PER_BLOCK = 10
_BYTES_PER_NODE = 420
_BYTES_PER_HOLDING = 190

# From so many bits on, unpacking them all is faster than one by one.
_FEW = 24

# Nodes that one call may forget beside its own work: keeps a call short when much has become obsolete at once.
_TIDY = 64


class ApproximateIndex:
    """Prefixes by endpoint, with a least-recently-used order per endpoint and a bound in bytes over all.

    `max_bytes` bounds `size_bytes`; beyond it the globally oldest blocks go first. Rows are those of the
    `EndpointTable`; call `forget` when one is removed.

    `blocks` counts different blocks, `held_blocks` the sum over the endpoints, `nodes` the runs they are kept in,
    `evicted_for_bytes` the blocks that the bound in bytes has cost so far.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.blocks = 0
        self.held_blocks = 0
        self.nodes = 0
        self.evicted_for_bytes = 0
        self._holdings = 0
        self._stamp = 0
        self._heads: dict[int, Node] = {}  # first hash of a node -> the node
        # Lane 0 belongs to nobody: rows that we never recorded for point to it, and nothing is ever counted in it.
        self._lanes: list[Lane] = [Lane(0)]
        self._lane_of_row: NDArray[np.intp] = np.zeros(64, dtype=np.intp)
        self._free: list[Lane] = []
        self._gone: deque[Lane] = deque()
        self._oldest: list[tuple[int, int]] = []  # heap: (a lower bound of the lane's oldest stamp, lane number)

    @property
    def size_bytes(self) -> int:
        """Estimated memory."""
        return self.blocks * _BYTES_PER_BLOCK + self.nodes * _BYTES_PER_NODE + self._holdings * _BYTES_PER_HOLDING

    def held_by(self, row: int) -> int:
        """Number of blocks known of a row."""
        return self._lane(row).blocks

    def match(self, path: Sequence[int], rows: IntArray) -> FloatArray:
        """For each row, how many blocks of the prompt it holds, counted from the first one. Shape `(len(rows),)`."""
        if len(self._lanes) <= FEW:
            told: dict[int, float] = {}
            self._count(path, told)
            if not told:
                return np.zeros(len(rows))
            return np.array([told.get(lane, 0.0) for lane in self._lanes_of(rows).tolist()], dtype=np.float64)
        lanes = self._lanes_of(rows)
        counts = np.zeros(len(self._lanes))
        self._count(path, counts)
        matched: FloatArray = counts[lanes]
        return matched

    def _lanes_of(self, rows: IntArray) -> NDArray[np.intp]:
        try:
            return self._lane_of_row[rows]
        except IndexError:
            self._grow_rows(int(rows.max()))
            return self._lane_of_row[rows]

    def _count(self, path: Sequence[int], counts: FloatArray | dict[int, float]) -> None:
        """Walk down as long as somebody holds what comes; note where each holder is left behind."""
        heads = self._heads
        holders = 0
        parent: Node | None = None
        depth, end = 0, len(path)
        while depth < end:
            node = heads.get(path[depth])
            if node is None or node.parent is not parent:
                break
            if node.holders != holders:
                if depth:
                    _spread(counts, holders ^ node.holders, depth)  # a node's holders are among its parent's
                holders = node.holders
            common = common_length(node.hashes, path, depth)
            depth += common
            if common < len(node.hashes):
                break
            parent = node
        _spread(counts, holders, depth)

    def record(self, row: int, path: Sequence[int], capacity: int) -> int:
        """The endpoint was sent a prompt: it has these blocks now. Returns how many of them it held before.

        `capacity`: blocks its cache holds; what was used least recently is forgotten beyond it.
        """
        if len(path) > capacity:
            path = path[:capacity]
        if not path:
            return 0
        lane = self._lane(row)
        if lane.number == 0:
            lane = self._new_lane(row)
        self._stamp += 1
        held = self._touch(lane, path, self._stamp)
        if lane.log and not lane.queued:
            lane.queued = True
            heappush(self._oldest, (self._stamp, lane.number))
        if self._gone:
            self._empty_gone_lanes()
        if lane.blocks > capacity:
            self._forget_oldest(lane, lane.blocks - capacity)
        if self.size_bytes > self.max_bytes and not self._gone:  # what nobody needs goes first
            self._shrink()
        return held

    def forget(self, row: int) -> None:
        """The endpoint of this row is gone: nothing is reported for it any more; its memory is freed bit by bit."""
        lane = self._lane(row)
        if lane.number == 0:
            return
        self._lane_of_row[row] = 0
        self._gone.append(lane)

    def _touch(self, lane: Lane, path: Sequence[int], stamp: int) -> int:
        heads, log, number, bit = self._heads, lane.log, lane.number, lane.bit
        parent: Node | None = None
        depth, end, held = 0, len(path), 0
        while depth < end:
            node = heads.get(path[depth])
            if node is None:
                parent = self._append(lane, parent, path[depth:], stamp)
                break
            if node.parent is not parent:
                break  # a hash collision
            common = common_length(node.hashes, path, depth)
            if common < len(node.hashes):
                head = self._split(node, common)
                if head is None:
                    break
                node = head
            before = node.stamps.get(number)
            if before is None:
                node.holders |= bit
                lane.blocks += common
                self.held_blocks += common
                self._holdings += 1
            else:
                held += common
                if log.get(before) is node:  # it was the end of an earlier prompt, which owns nothing any more
                    del log[before]
            node.stamps[number] = stamp
            parent = node
            depth += common
        if parent is not None:
            log[stamp] = parent
        return held

    def _append(self, lane: Lane, parent: Node | None, rest: Sequence[int], stamp: int) -> Node:
        """Blocks that nobody has: make the leaf longer when it is this endpoint's alone, else begin a new node."""
        count = len(rest)
        self.blocks += count
        self.held_blocks += count
        lane.blocks += count
        if parent is not None:
            if not parent.children and parent.holders == lane.bit:
                parent.hashes.extend(rest)
                return parent
            parent.children += 1
        node = self._heads[rest[0]] = Node(array("Q", rest), parent, lane.bit, {lane.number: stamp})
        self.nodes += 1
        self._holdings += 1
        return node

    def _split(self, node: Node, at: int) -> Node | None:
        """Cut a node in two; returns the new upper part. The object stays the lower part, so that references to the
        end of a prompt and from its children stay right. None: the table's place for the lower part is taken (a hash
        collision).
        """
        heads, hashes = self._heads, node.hashes
        if hashes[at] in heads:
            return None
        upper = Node(hashes[:at], node.parent, node.holders, node.stamps.copy())
        upper.children = 1
        heads[hashes[0]] = upper
        del hashes[:at]
        heads[hashes[0]] = node
        node.parent = upper
        self.nodes += 1
        self._holdings += len(node.stamps)
        return upper

    def _forget_oldest(self, lane: Lane, count: int, nodes: int = _TIDY) -> None:
        """Drop `count` blocks of an endpoint: the least recently used first, of equals the deepest.

        Stops after `nodes` nodes; the next call goes on.
        """
        log = lane.log
        while count > 0 and nodes > 0 and log:
            nodes -= 1
            stamp = next(iter(log))
            node = log[stamp]
            length = len(node.hashes)
            if length > count:
                if node.holders == lane.bit:
                    del node.hashes[length - count :]
                    self.blocks -= count
                    lane.blocks -= count
                    self.held_blocks -= count
                    return
                upper = self._split(node, length - count)
                if upper is not None:
                    self._drop(lane, node)
                    log[stamp] = upper
                    return
            self._drop(lane, node)
            count -= length
            if node.parent is not None and node.parent.stamps.get(lane.number) == stamp:
                log[stamp] = node.parent
            else:
                del log[stamp]

    def _drop(self, lane: Lane, node: Node) -> None:
        length = len(node.hashes)
        lane.blocks -= length
        self.held_blocks -= length
        self._holdings -= 1
        del node.stamps[lane.number]
        node.holders ^= lane.bit
        if not node.holders:
            del self._heads[node.hashes[0]]
            self.nodes -= 1
            self.blocks -= length
            if node.parent is not None:
                node.parent.children -= 1

    def _empty_gone_lanes(self) -> None:
        lane = self._gone[0]
        self._forget_oldest(lane, lane.blocks)
        if not lane.log:
            self._free.append(self._gone.popleft())

    def _shrink(self) -> None:
        """Over the bound in bytes: forget the globally oldest blocks."""
        heap = self._oldest
        nodes = _TIDY
        while heap and nodes > 0 and self.size_bytes > self.max_bytes:
            stamp, number = heap[0]
            lane = self._lanes[number]
            oldest = next(iter(lane.log), None)
            if oldest != stamp:
                heappop(heap)
                if oldest is None:
                    lane.queued = False
                else:
                    heappush(heap, (oldest, number))
                continue
            nodes -= 1
            node = lane.log[oldest]
            count = len(node.hashes)
            if node.holders == lane.bit:  # else a part would free nothing: the other holders keep it
                count = min(count, (self.size_bytes - self.max_bytes) // _BYTES_PER_BLOCK + 1)
            before = lane.blocks
            self._forget_oldest(lane, count, 1)
            self.evicted_for_bytes += before - lane.blocks

    def _lane(self, row: int) -> Lane:
        return self._lanes[self._lane_of_row.item(row) if row < len(self._lane_of_row) else 0]

    def _new_lane(self, row: int) -> Lane:
        if self._free:
            lane = self._free.pop()
        else:
            lane = Lane(len(self._lanes))
            self._lanes.append(lane)
        if row >= len(self._lane_of_row):
            self._grow_rows(row)
        self._lane_of_row[row] = lane.number
        return lane

    def _grow_rows(self, row: int) -> None:
        grown = np.zeros(max(row + 1, 2 * len(self._lane_of_row)), dtype=np.intp)
        grown[: len(self._lane_of_row)] = self._lane_of_row
        self._lane_of_row = grown


def _spread(counts: FloatArray | dict[int, float], lanes: int, value: int) -> None:
    """`counts[lane] = value` for every bit set in `lanes`."""
    if not isinstance(counts, dict) and lanes.bit_count() > _FEW:
        packed = np.frombuffer(lanes.to_bytes((len(counts) + 7) // 8, "little"), dtype=np.uint8)
        counts[np.unpackbits(packed, count=len(counts), bitorder="little").view(np.bool_)] = value
        return
    while lanes:
        lowest = lanes & -lanes
        counts[lowest.bit_length() - 1] = value
        lanes ^= lowest
