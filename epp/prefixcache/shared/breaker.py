"""When to leave a server alone that does not answer."""

from __future__ import annotations

import random

THRESHOLD = 3
FIRST, LONGEST = 0.5, 5.0
"""Seconds: short enough that a restarted server is found soon, long enough that a dead one costs nothing."""


class Breaker:
    """Closed until `THRESHOLD` failures in a row, then open for a time that doubles with each further failure.

    After that time it lets everybody try again; the first success closes it. Times are of the caller's clock.
    """

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._failures = 0
        self._until = 0.0

    def allows(self, now: float) -> bool:
        """Whether to try."""
        return now >= self._until

    def succeeded(self) -> None:
        """The server answered."""
        self._failures = 0
        self._until = 0.0

    def failed(self, now: float) -> None:
        """The server did not answer, or too late."""
        self._failures += 1
        if self._failures >= THRESHOLD:
            self._until = now + pause(self._failures - THRESHOLD, self._rng)


def pause(failures: int, rng: random.Random) -> float:
    """Seconds to wait after so many failures: doubled each time, and a quarter more or less so that pickers spread."""
    wait: float = min(FIRST * 2.0 ** min(failures, 16), LONGEST)
    return wait * rng.uniform(0.75, 1.25)
