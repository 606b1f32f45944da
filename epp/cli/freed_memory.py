"""Freed memory stays with the process for a while.

A prompt of 450 KB is a handful of buffers of that size: as it came, as text, as token ids. glibc gives such memory back
to the system when a request is through, and the next one gets it page by page, each of which the system clears first.
That is two fifths of what such a request costs. So the limits from which glibc gives memory back are raised here, once,
before the first request: what is freed at the end of the heap stays, up to `KEPT_BYTES`.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Mapping

KEPT_BYTES = 32 << 20
"""Freed memory at the end of the heap beyond this goes back: glibc's M_TRIM_THRESHOLD, 128 KiB there."""

MAPPED_BYTES = 8 << 20
"""From this size on an allocation is a mapping of its own, which always goes back: glibc's M_MMAP_THRESHOLD."""

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_OWN_SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory(environ: Mapping[str, str]) -> bool:
    """Whether glibc was told. Not when the environment tells it something itself, nor where there is no glibc."""
    if sys.platform != "linux" or any(name in environ for name in _OWN_SETTINGS):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES) and mallopt(_M_MMAP_THRESHOLD, MAPPED_BYTES))
