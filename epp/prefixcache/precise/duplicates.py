"""Numbers that may be there more than once."""

from __future__ import annotations

import numpy as np

from epp.prefixcache.precise.fingerprints import Numbers, Rows


def distinct(numbers: Numbers) -> tuple[Numbers, Rows, Rows | None]:
    """The distinct numbers in their order, where each occurs first, and which of them each is (None: all differ)."""
    if not _repeats(numbers):
        return numbers, np.arange(len(numbers)), None
    found, first, inverse = np.unique(numbers, return_index=True, return_inverse=True)
    order = np.argsort(first)
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    return found[order], first[order], place[inverse]


def different(rows: Rows) -> Rows:
    """Each once, ascending. (`np.unique` hashes, which takes ten times as long.)"""
    ordered = np.sort(rows)
    keep = np.ones(len(ordered), dtype=np.bool_)
    np.not_equal(ordered[1:], ordered[:-1], out=keep[1:])
    return ordered[keep]


def _repeats(numbers: Numbers) -> bool:
    ordered = np.sort(numbers)
    return bool((ordered[1:] == ordered[:-1]).any())
