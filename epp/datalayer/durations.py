"""Durations in plugin parameters: as in the configuration file, with "none" for an empty text and for 0."""

from __future__ import annotations

from epp.config.duration import Duration


def seconds(duration: str | float) -> float | None:
    """`50ms`, `10s`, `1m30s`, or a number of seconds. None for an empty text and for 0.

    Raises ValueError for anything else, negative ones included.
    """
    if isinstance(duration, str):
        if not duration.strip():
            return None
        try:
            value = float(Duration.parse(duration))
        except ValueError as error:
            raise ValueError(f'{duration!r} is no duration: write "50ms", "10s" or "1m30s"') from error
    else:
        value = float(duration)
    if not 0 <= value < float("inf"):
        raise ValueError(f"{duration!r} is no duration here: it must be at least 0")
    return value or None
