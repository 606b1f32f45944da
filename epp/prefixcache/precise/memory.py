"""Big arrays that grow into their memory, whose next pages are made ready by a thread.

An array is reserved in full and costs memory as far as it is used. The system gives a page when it is first touched:
microseconds for one of 4 KiB, on virtual machines tens of them; with huge pages, which numpy asks for, ten milliseconds
at once. On the event loop that is a pause of all requests. So these arrays have small pages, and `Frontier` has the
kernel fill those that come next (`MADV_POPULATE_WRITE`, Linux 5.14), which changes nothing that is in them. Where that
is not possible, or the thread comes late, a page is made when it is touched: some 15 per 1024 blocks.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import threading
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

SMALL_BYTES = 1 << 20
"""Arrays up to this size are numpy's own."""

PIECE_BYTES = 1 << 18
"""Filled in one system call: others that change this process's mappings wait for it, a millisecond or two."""

_MADV_POPULATE_WRITE = 23

Array = NDArray[Any]


class _Madvise(Protocol):
    def __call__(self, address: int, length: int, advice: int, /) -> int: ...


def reserve(count: int, dtype: DTypeLike) -> Array:
    """`count` zeros; memory is used as far as it is written to."""
    wanted = np.dtype(dtype)
    size = count * wanted.itemsize
    if size <= SMALL_BYTES:
        return np.zeros(count, dtype=wanted)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        try:
            memory.madvise(mmap.MADV_NOHUGEPAGE)
        except OSError as error:  # a kernel without huge pages does not know the word
            if error.errno != errno.EINVAL:
                raise
    return np.frombuffer(memory, dtype=wanted)


class Frontier:
    """Makes pages ready ahead of arrays of equal length that are used from their beginning on.

    `stride`: entries made ready at a time, by a thread that ends with its stretch. The first stretch waits for an
    eighth of it to be used, so that what stays small costs no thread and no memory.
    """

    def __init__(self, stride: int) -> None:
        self.ready = 0
        """Entries before this one have been asked for."""
        self._stride = stride
        self._due = stride // 8
        self._threads: list[threading.Thread] = []
        self._advise = _c_madvise()

    def due(self, count: int) -> bool:
        """Whether `advance` is to be called now that `count` entries are in use: half a stride before the end."""
        return count >= self._due

    def advance(self, count: int, arrays: Sequence[Array]) -> None:
        """Make the next stretch ready."""
        begin = max(self.ready, count)
        self.ready = begin + self._stride
        self._due = self.ready - self._stride // 2
        self.fill(arrays, begin, self.ready)

    def fill(self, arrays: Sequence[Array], begin: int, end: int) -> None:
        """Make these entries ready, those that are in use already left as they are."""
        pieces = [piece for array in arrays if array.nbytes > SMALL_BYTES for piece in _pieces(array, begin, end)]
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        if not pieces or self._advise is None:
            return
        # It holds the arrays: their memory must not go away under it.
        thread = threading.Thread(target=_fill, args=(self._advise, pieces, arrays), name="page filler", daemon=True)
        thread.start()
        self._threads.append(thread)

    def wait(self) -> None:
        """Until what has been asked for is there."""
        for thread in self._threads:
            thread.join()


def _pieces(array: Array, begin: int, end: int) -> list[tuple[int, int]]:
    """Addresses and lengths of the pages of these entries."""
    page = mmap.PAGESIZE
    base = array.ctypes.data
    size = array.strides[0]
    low = base + begin * size // page * page
    high = base + min(end, len(array)) * size
    return [(at, min(PIECE_BYTES, high - at)) for at in range(low, high, PIECE_BYTES)]


def _fill(call: _Madvise, pieces: Sequence[tuple[int, int]], _arrays: Sequence[Array]) -> None:
    for address, length in pieces:
        if call(address, length, _MADV_POPULATE_WRITE) != 0:
            return  # an older kernel, or no memory left: pages come when they are touched


def _c_madvise() -> _Madvise | None:
    """The C function, called without the interpreter's lock, which `mmap.madvise` keeps."""
    if not hasattr(mmap, "MADV_NOHUGEPAGE"):
        return None  # not Linux
    function: Any = ctypes.CDLL(None).madvise
    function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    function.restype = ctypes.c_int
    return function  # type: ignore[no-any-return]
