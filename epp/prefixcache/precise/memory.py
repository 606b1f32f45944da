"""Big arrays that grow into their memory, in huge pages that a thread makes ready.

An array is reserved in full and costs memory as far as it is used. The system gives a page when it is first touched:
microseconds for one of 4 KiB, on virtual machines tens of them; ten milliseconds for one of 2 MiB, which on the event
loop is a pause of all requests. But entries that are read or written in no order are found faster in huge pages, by a
quarter to a half: the processor remembers where these are for much more memory.

So these arrays have small pages wherever the loop comes first, and `Frontier` has a thread touch what comes next in
huge ones. It writes zeros, where the loop does not write before the thread is through. A system call that fills pages
(`MADV_POPULATE_WRITE`, Linux 5.14) keeps all others that change this process's mappings waiting, allocations too, for
as long as it takes; a write does not (since Linux 6.4). Where there are no huge pages, small ones are made ready.
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

HUGE_BYTES = 1 << 21
"""A huge page, of processors whose small ones have 4 KiB. Elsewhere no piece is one, or a part of one."""

PIECE_BYTES = 1 << 18
"""Filled in one system call, where it must be one: others wait for it, a millisecond or two."""

_MADV_POPULATE_WRITE = 23

Array = NDArray[Any]
Piece = tuple[int, int]
"""Address and length."""


class _Madvise(Protocol):
    def __call__(self, address: int, length: int, advice: int, /) -> int: ...


def reserve(count: int, dtype: DTypeLike) -> Array:
    """`count` zeros; memory is used as far as it is written to."""
    wanted = np.dtype(dtype)
    size = count * wanted.itemsize
    if size <= SMALL_BYTES:
        return np.zeros(count, dtype=wanted)
    memory = mmap.mmap(-1, size + HUGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        try:
            memory.madvise(mmap.MADV_NOHUGEPAGE)
        except OSError as error:  # a kernel without huge pages does not know the word
            if error.errno != errno.EINVAL:
                raise
    begin = -np.frombuffer(memory, dtype=np.uint8).ctypes.data % HUGE_BYTES
    return np.frombuffer(memory, dtype=wanted, count=count, offset=begin)


class Frontier:
    """Makes pages ready ahead of arrays of equal length that are used from their beginning on.

    `stride`: entries made ready at a time, by a thread that ends with its stretch, while those before are being used.
    The first stretch comes late, so that what stays small costs no thread and no memory.
    """

    def __init__(self, stride: int) -> None:
        self.ready = 0
        """Entries before this one have been asked for."""
        self._stride = stride
        self._due = stride // 2
        self._stretch: _Stretch | None = None
        self._threads: list[threading.Thread] = []
        self._advise = _c_madvise()

    def due(self, count: int) -> bool:
        """Whether `advance` is to be called before `count` entries are in use."""
        return count > self._due

    def advance(self, count: int, arrays: Sequence[Array], most: int) -> None:
        """Make the next stretch ready, of `most` entries in all. Nobody uses it before the next call."""
        if self._stretch is not None:
            self._stretch.stop()
        begin = max(self.ready, -(-count // self._stride) * self._stride)
        self._due = begin
        self.ready = begin + self._stride
        if self._advise is not None:
            end = min(self.ready, most)
            pieces = [piece for array in arrays if array.nbytes > SMALL_BYTES for piece in _huge(array, begin, end)]
            self._stretch = _Stretch(self._advise, pieces, arrays)

    def fill(self, arrays: Sequence[Array], begin: int, end: int) -> None:
        """Make these entries ready, in small pages, while they are being used."""
        pieces = [piece for array in arrays if array.nbytes > SMALL_BYTES for piece in _small(array, begin, end)]
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        if not pieces or self._advise is None:
            return
        # It holds the arrays: their memory must not go away under it.
        thread = threading.Thread(target=_fill, args=(self._advise, pieces, arrays), name="page filler", daemon=True)
        thread.start()
        self._threads.append(thread)

    def release(self, arrays: Sequence[Array], begin: int) -> None:
        """Give back the memory behind these entries, which nobody uses any more. They are zeros from now on."""
        if self._stretch is not None:
            self._stretch.stop()
        for array in arrays:
            if self._advise is not None and array.nbytes > SMALL_BYTES:
                base, size, page = array.ctypes.data, array.strides[0], mmap.PAGESIZE
                low, high = -(-(base + begin * size) // page) * page, (base + array.nbytes) // page * page
                if low < high:
                    self._advise(low, high - low, mmap.MADV_DONTNEED)

    def wait(self) -> None:
        """Until what has been asked for is there."""
        if self._stretch is not None:
            self._stretch.wait()
        for thread in self._threads:
            thread.join()


class _Stretch:
    """A thread that touches pages nobody uses yet. It holds the arrays: their memory must not go away under it."""

    def __init__(self, call: _Madvise, pieces: Sequence[Piece], arrays: Sequence[Array]) -> None:
        self._call = call
        self._pieces = pieces
        self._arrays = arrays
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="page filler", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Nothing is written any more. If it is late, this waits for the page at hand: the next user's, as likely."""
        self._stopped = True
        self.wait()

    def wait(self) -> None:
        self._thread.join()

    def _run(self) -> None:
        for address, length in self._pieces:
            if self._stopped:
                return  # pages come when they are touched, and are small
            # Huge for this moment only: the event loop must not meet such a page anywhere, nor the kernel make one of
            # small ones behind our back, which holds up whoever uses them.
            self._call(address, length, mmap.MADV_HUGEPAGE)
            ctypes.memset(address, 0, length)
            self._call(address, length, mmap.MADV_NOHUGEPAGE)


def _huge(array: Array, begin: int, end: int) -> list[Piece]:
    """The huge pages that begin with these entries, or in them."""
    base = array.ctypes.data
    size = array.strides[0]
    low, high = (-(-(base + entry * size) // HUGE_BYTES) * HUGE_BYTES for entry in (begin, end))
    high = min(high, base + array.nbytes)
    return [(at, min(HUGE_BYTES, high - at)) for at in range(low, high, HUGE_BYTES)]


def _small(array: Array, begin: int, end: int) -> list[Piece]:
    """The pages of these entries."""
    page = mmap.PAGESIZE
    base = array.ctypes.data
    size = array.strides[0]
    low = base + begin * size // page * page
    high = base + min(end, len(array)) * size
    return [(at, min(PIECE_BYTES, high - at)) for at in range(low, high, PIECE_BYTES)]


def _fill(call: _Madvise, pieces: Sequence[Piece], _arrays: Sequence[Array]) -> None:
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
