"""How deep a JSON text nests, without decoding it.

Every byte is looked at by vector operations only, a megabyte at a time, so that neither a long prompt nor a hostile
body costs a Python step per byte or more than a few megabytes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_CHUNK = 1 << 20
_QUOTE, _BACKSLASH = 0x22, 0x5C
# `[` and `{`, `]` and `}` differ in bit 0x20 only.
_OPEN, _CLOSE = 0x7B, 0x7D
# Below this many bytes two calls of bytes.replace cost less than setting up arrays.
_SMALL = 1 << 14
_LONG_RUN = 8


def exceeds_depth(body: bytes, limit: int) -> int | None:
    """Byte offset of the first bracket outside a string that nests deeper than `limit`; None: there is none.

    For text that is not JSON the answer means nothing, but it ends and never raises.
    """
    if len(body) <= limit:
        return None
    # How many open. `replace` looks for a byte with memchr, ten times as fast as `count` where there are few.
    if len(body) <= _SMALL and (2 * len(body) - len(body.replace(b"[", b"")) - len(body.replace(b"{", b"")) <= limit):
        return None
    depth = 0
    in_string = False
    escaped = False
    for start in range(0, len(body), _CHUNK):
        chunk = np.frombuffer(body, dtype=np.uint8, count=min(_CHUNK, len(body) - start), offset=start)
        folded = chunk | 0x20
        opening = folded == _OPEN
        if len(body) <= _CHUNK and np.count_nonzero(opening) <= limit:
            return None  # what most bodies are done with: too few brackets to be deep, in or out of strings
        quotes, escaped = _string_bounds(chunk, escaped)
        brackets = np.flatnonzero(opening | (folded == _CLOSE))
        inside = (np.searchsorted(quotes, brackets) & 1).astype(np.bool_) ^ in_string
        brackets = brackets[~inside]
        if brackets.size:
            levels = depth + np.cumsum(np.where(opening[brackets], 1, -1))
            if levels.max() > limit:
                return start + int(brackets[np.argmax(levels > limit)])
            depth = int(levels[-1])
        in_string ^= bool(quotes.size & 1)
    return None


def _string_bounds(chunk: NDArray[np.uint8], escaped: bool) -> tuple[NDArray[np.intp], bool]:
    """Positions of the quotes that open or close a string, and whether the byte after the chunk is escaped.

    A quote counts unless an odd run of backslashes precedes it; `escaped` continues a run from the chunk before.
    """
    quotes = np.flatnonzero(chunk == _QUOTE)
    first = bool(quotes.size and quotes[0] == 0)
    rest = quotes[1:] if first else quotes
    behind_slash = chunk[rest - 1] == _BACKSLASH
    if behind_slash.any():
        counts = ~behind_slash
        counts[behind_slash] = _run_lengths(chunk, rest[behind_slash] - 1, escaped) & 1 == 0
        rest = rest[counts]
    if first and not escaped:
        rest = np.concatenate([quotes[:1], rest])
    if chunk[-1] != _BACKSLASH:
        return rest, False
    return rest, bool(_run_lengths(chunk, np.array([chunk.size - 1]), escaped)[0] & 1)


def _run_lengths(chunk: NDArray[np.uint8], ends: NDArray[np.intp], escaped: bool) -> NDArray[np.intp]:
    """Lengths of the runs of backslashes that end at `ends`; one that fills the chunk's start goes on before it."""
    lengths = np.ones(ends.size, dtype=np.intp)
    open_runs = np.arange(ends.size)
    for back in range(1, _LONG_RUN):
        at = ends[open_runs] - back
        lengths[open_runs[at < 0]] += escaped
        open_runs = open_runs[(at >= 0) & (chunk[at] == _BACKSLASH)]
        if not open_runs.size:
            return lengths
        lengths[open_runs] += 1
    # Long runs are rare; for them the starts of all runs are looked up.
    slashes = np.flatnonzero(chunk == _BACKSLASH)
    starts = slashes.copy()
    starts[1:][np.diff(slashes) == 1] = 0
    starts = np.maximum.accumulate(starts)[np.searchsorted(slashes, ends)]
    long_lengths: NDArray[np.intp] = ends - starts + 1 + ((starts == 0) & escaped)
    return long_lengths
