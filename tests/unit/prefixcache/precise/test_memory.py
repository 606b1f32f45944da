"""Arrays whose pages are made ready ahead of their use."""

from __future__ import annotations

import ctypes
import mmap
import threading
from pathlib import Path

import numpy as np
import pytest

from epp.prefixcache.precise import memory
from epp.prefixcache.precise.memory import HUGE_BYTES, SMALL_BYTES, Frontier, reserve

ENTRIES = 1 << 22
STRIDE = 1 << 18


def resident(array: np.ndarray) -> int:
    """Bytes of the array's pages that are in memory."""
    begin = array.ctypes.data // mmap.PAGESIZE * mmap.PAGESIZE
    pages = -(-(array.ctypes.data + array.nbytes - begin) // mmap.PAGESIZE)
    present = (ctypes.c_ubyte * pages)()
    assert ctypes.CDLL(None).mincore(ctypes.c_void_p(begin), ctypes.c_size_t(pages * mmap.PAGESIZE), present) == 0
    return sum(page & 1 for page in present) * mmap.PAGESIZE


def in_huge_pages() -> int:
    """Bytes of this process."""
    (line,) = (line for line in Path("/proc/self/smaps_rollup").read_text().splitlines() if "AnonHugePages" in line)
    return int(line.split()[1]) * 1024


def huge_pages() -> bool:
    """Whether this kernel gives huge pages to those who ask."""
    path = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    return path.exists() and "[never]" not in path.read_text()


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
    assert not frontier.due(STRIDE // 2)  # what stays small costs nothing
    array[:STRIDE] = np.arange(STRIDE)
    table[:STRIDE] = 7
    before, huge = resident(array), in_huge_pages()
    assert frontier.due(STRIDE // 2 + 1)
    frontier.advance(STRIDE // 2 + 1, [array, table], ENTRIES)
    frontier.wait()
    assert frontier.ready == 2 * STRIDE
    assert resident(array) == before + STRIDE * 8
    assert resident(table) == STRIDE * 32 * 2
    assert in_huge_pages() == huge + (STRIDE * 40 if huge_pages() else 0)
    assert not frontier.due(STRIDE)
    assert frontier.due(STRIDE + 1)
    assert (array[:STRIDE] == np.arange(STRIDE)).all()
    assert (table[:STRIDE] == 7).all()
    assert not array[STRIDE:].any()
    assert not table[STRIDE:].any()


def test_pages_are_touched_once_whatever_the_size_of_entries() -> None:
    frontier = Frontier(STRIDE)
    arrays = [reserve(ENTRIES, np.uint64), reserve(ENTRIES, np.uint32), reserve(ENTRIES, np.uint8)]
    expected = [np.zeros(ENTRIES, dtype=array.dtype) for array in arrays]
    for count in range(STRIDE // 4, ENTRIES + 1, STRIDE // 4):
        if frontier.due(count):
            frontier.advance(count, arrays, ENTRIES)
        for array, other in zip(arrays, expected, strict=True):
            part = slice(count - STRIDE // 4, count)
            array[part] = other[part] = count % 251
    frontier.wait()
    for array, other in zip(arrays, expected, strict=True):
        assert (array == other).all()
        assert array.ctypes.data % HUGE_BYTES == 0


def test_a_late_thread_is_stopped_before_its_pages_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    started, go_on = threading.Event(), threading.Event()

    def slow(address: int, length: int, advice: int) -> int:
        started.set()
        assert go_on.wait(10)
        return 0

    monkeypatch.setattr(memory, "_c_madvise", lambda: slow)
    frontier = Frontier(STRIDE)
    array = reserve(ENTRIES, np.uint64)
    frontier.advance(STRIDE, [array, reserve(ENTRIES, np.uint64)], ENTRIES)
    assert started.wait(10)
    threading.Timer(0.2, go_on.set).start()
    frontier.advance(STRIDE + 1, [], ENTRIES)  # comes back when nothing is written any more
    assert go_on.is_set()
    array[:] = 1
    frontier.wait()
    assert array.all()


def test_nothing_beyond_the_most_entries_is_made_ready() -> None:
    frontier = Frontier(STRIDE)
    array = reserve(ENTRIES, np.uint64)
    frontier.advance(STRIDE, [array], STRIDE)
    frontier.wait()
    assert resident(array) == 0
    frontier.advance(2 * STRIDE, [array], 2 * STRIDE + 1)
    frontier.wait()
    assert resident(array) == HUGE_BYTES


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
        calls.append(advice)
        return -1

    monkeypatch.setattr(memory, "_c_madvise", lambda: refuse)
    frontier = Frontier(STRIDE)
    array = reserve(ENTRIES, np.uint64)
    frontier.fill([array], 0, STRIDE)
    frontier.wait()
    assert len(calls) == 1  # it does not ask again in this stretch
    huge = in_huge_pages()
    frontier.advance(STRIDE, [array], ENTRIES)
    frontier.wait()
    assert in_huge_pages() <= huge
    assert resident(array) == STRIDE * 8  # in small pages
    array[STRIDE : 2 * STRIDE] = 3
    assert int(array.sum()) == 3 * STRIDE
    monkeypatch.setattr(memory, "_c_madvise", lambda: None)
    frontier = Frontier(STRIDE)
    frontier.advance(STRIDE, [array], ENTRIES)
    frontier.wait()
    assert frontier.ready == 2 * STRIDE
