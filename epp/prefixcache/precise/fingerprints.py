"""Fingerprints of numbers, eight of them to a 64-bit word, and what can be asked of thousands of such words at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.uint64]
Rows = NDArray[np.intp]

_SPREAD = np.uint64(0x9E3779B97F4A7C15)
_HALF = np.uint64(32)
_TOP = np.uint64(56)
_ONE = np.uint64(1)
_LOW = np.uint64(0x0101010101010101)
_HIGH = np.uint64(0x8080808080808080)
_LEAST_MARK = np.uint64(2)  # see `zero_bytes`


def mix(numbers: Numbers, out: Numbers | None = None) -> Numbers:
    """Numbers spread over all 64 bits, from which sets and fingerprints are taken."""
    mixed = np.multiply(numbers, _SPREAD, out=out)
    mixed ^= mixed >> _HALF
    return mixed


def fingerprints(mixed: Numbers) -> Numbers:
    """0 marks an empty slot, and 1 is not used."""
    marks: Numbers = mixed >> _TOP
    return np.maximum(marks, _LEAST_MARK, out=marks)


def zero_bytes(words: Numbers) -> Numbers:
    """The top bit of every byte that is 0. Where bytes may be 1, those above a 0 may be reported, too."""
    zeros: Numbers = words - _LOW
    zeros &= ~words
    zeros &= _HIGH
    return zeros


def equal_bytes(words: Numbers, marks: Numbers) -> Numbers:
    """The top bit of every byte that equals the mark, and of some that do not."""
    return zero_bytes(words ^ (marks * _LOW))


def lowest_byte(bits: Numbers) -> Rows:
    """Which byte has the lowest bit that is set, of those that `zero_bytes` sets; 7 when none is."""
    through: Numbers = bits - _ONE
    through ^= bits
    lowest: Rows = (np.bitwise_count(through) >> 3).astype(np.intp)
    lowest -= 1
    return lowest
