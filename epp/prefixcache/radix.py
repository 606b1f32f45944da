"""The parts of the approximate index: a run of blocks, and what is known of one endpoint."""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Sequence


class Node:
    """A run of blocks that are held together.

    `hashes`: at least one; `parent`: the run before it, None at the beginning of a prompt. `stamps`: lane number of
    each holder -> the call that touched the node last for it; `holders` is the same set as bits. `children`: how many
    nodes have this one as parent. Every holder of a node holds its parent, with a stamp that is not older.
    """

    __slots__ = ("children", "hashes", "holders", "parent", "stamps")

    def __init__(self, hashes: array[int], parent: Node | None, holders: int, stamps: dict[int, int]) -> None:
        self.hashes = hashes
        self.parent = parent
        self.holders = holders
        self.stamps = stamps
        self.children = 0


class Lane:
    """One endpoint's share of the tree.

    `log`: call -> the deepest node that this call touched last, oldest call first. From there upwards, as long as the
    stamp is the same, are the blocks that will be forgotten together. `blocks`: how many it holds. `queued`: it has an
    entry in the heap of oldest lanes.
    """

    __slots__ = ("bit", "blocks", "log", "number", "queued")

    def __init__(self, number: int) -> None:
        self.number = number
        self.bit = 1 << number
        self.log: OrderedDict[int, Node] = OrderedDict()
        self.blocks = 0
        self.queued = False


def common_length(hashes: Sequence[int], path: Sequence[int], start: int) -> int:
    """How many of the node's blocks are the prompt's from `start` on, given that the first one is.

    Equal hashes at a depth mean equal prefixes, so a search by halves finds the fork.
    """
    length = min(len(hashes), len(path) - start)
    if hashes[length - 1] == path[start + length - 1]:
        return length
    low, high = 0, length - 1  # equal at low, different at high
    while high - low > 1:
        middle = (low + high) >> 1
        if hashes[middle] == path[start + middle]:
            low = middle
        else:
            high = middle
    return high
