"""Arrays whose pages are made ready ahead of their use."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np
import pytest

from epp.prefixcache.precise import memory
from epp.prefixcache.precise.memory import SMALL_BYTES, Frontier, reserve

ENTRIES = 1 << 22
STRIDE = 1 << 18


def resident(array: np.ndarray) -> int:
    """Bytes of the mapping with the array's first byte that are in memory, as Linux counts them."""
    address = array.ctypes.data
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        words = line.split()
        if "-" in words[0] and not words[0].endswith(":"):
            begin, end = (int(part, 16) for part in words[0].split("-"))
            inside = begin <= address < end
        elif inside and words[0] == "Rss:":
            return int(words[1]) * 1024
    raise AssertionError("no such mapping")


def test_an_array_costs_memory_as_far_as_it_is_used() -> None:
    array = reserve(ENTRIES, np.uint64)
    assert (array.shape, array.dtype, array[-1]) == ((ENTRIES,), np.uint64, 0)
    array[: mmap.PAGESIZE // 8 * 3] = 1
    assert resident(array) < 1 << 20  # no huge page either
    small = reserve(100, np.uint32)
    assert small.nbytes <= SMALL_BYTES
    assert not small.any()


def test_what_comes_next_is_made_ready_and_what_is_there_stays() -> None:
    frontier = Frontier(STRIDE)
    array, table = reserve(ENTRIES, np.uint64), reserve(ENTRIES * 8, np.uint32).reshape(-1, 8)
    assert not frontier.due(STRIDE // 16)  # what stays small costs nothing
    array[:] = np.arange(ENTRIES)
    table[: STRIDE // 2] = 7
    assert frontier.due(STRIDE // 2)
    frontier.advance(STRIDE // 2, [array, table])
    frontier.wait()
    assert frontier.ready == STRIDE // 2 + STRIDE
    assert not frontier.due(STRIDE - 1)
    assert frontier.due(STRIDE)
    assert (array == np.arange(ENTRIES)).all()
    assert (table[: STRIDE // 2] == 7).all()
    assert not table[STRIDE // 2 :].any()


def test_only_the_asked_entries_are_made_ready() -> None:
    frontier = Frontier(STRIDE)
    array = reserve(ENTRIES, np.uint64)
    frontier.fill([array], STRIDE, 2 * STRIDE)
    frontier.wait()
    assert STRIDE * 8 <= resident(array) <= STRIDE * 8 + (1 << 20)
    frontier.fill([array], ENTRIES - 1000, ENTRIES + STRIDE)  # beyond the end there is nothing
    frontier.wait()
    assert resident(array) <= STRIDE * 8 + (1 << 20)


def test_where_the_kernel_cannot_pages_come_when_they_are_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def refuse(address: int, length: int, advice: int) -> int:
        calls.append(length)
        return -1

    monkeypatch.setattr(memory, "_c_madvise", lambda: refuse)
    frontier = Frontier(STRIDE)
    array = reserve(ENTRIES, np.uint64)
    frontier.advance(STRIDE, [array])
    frontier.wait()
    assert len(calls) == 1  # it does not ask again in this stretch
    array[STRIDE : 2 * STRIDE] = 3
    assert int(array.sum()) == 3 * STRIDE
    monkeypatch.setattr(memory, "_c_madvise", lambda: None)
    frontier = Frontier(STRIDE)
    frontier.advance(STRIDE, [array])
    frontier.wait()
    assert frontier.ready == 2 * STRIDE
