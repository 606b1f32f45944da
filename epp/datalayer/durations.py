"""Durations in plugin parameters, as Go writes them."""

from __future__ import annotations

import re

_PART = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|µs|ms|s|m|h)")
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def seconds(duration: str | float) -> float | None:
    """`50ms`, `10s`, `1m30s`, or a number of seconds. None for an empty text and for 0.

    Raises ValueError for anything else, negative ones included.
    """
    if isinstance(duration, str):
        text = duration.strip()
        if text in ("", "0"):
            return None
        total, position = 0.0, 0
        while position < len(text):
            part = _PART.match(text, position)
            if part is None:
                raise ValueError(f'{duration!r} is no duration: write "50ms", "10s" or "1m30s"')
            total += float(part[1]) * _UNITS[part[2]]
            position = part.end()
        return total or None
    if not 0 <= duration < float("inf"):
        raise ValueError(f"{duration!r} is no duration: it must be at least 0")
    return float(duration) or None
