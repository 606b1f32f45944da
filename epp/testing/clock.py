"""A clock that stands still until it is told otherwise."""

from __future__ import annotations


class ManualClock:
    """A `Clock` in seconds: call it for the time, `advance` it to let time pass."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> float:
        """Move on; returns the new time. Time does not go back."""
        if seconds < 0:
            raise ValueError(f"cannot go back by {-seconds} s")
        self.now += seconds
        return self.now
