"""Leaves a backend alone that keeps failing, so that it costs the requests nothing."""

from __future__ import annotations

from epp.api import Clock

FAILURES = 5
"""In a row, until the backend is left alone: one hiccup is not an outage."""

FIRST_PAUSE = 1.0
LONGEST_PAUSE = 30.0


class Breaker:
    """`allows()` before each call, then `succeeded()` or `failed()`.

    After `FAILURES` in a row it is `open`: one call is let through after a pause of 1 s, then 2 s, up to 30 s, until
    one succeeds. Callers let that one call run without waiting for it.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._failures = 0
        self._pause = FIRST_PAUSE
        self._retry_at = 0.0

    @property
    def open(self) -> bool:
        """Whether the backend is left alone."""
        return self._failures >= FAILURES

    def allows(self) -> bool:
        """Whether a call may be made now. True while open is the one trial of this pause."""
        if not self.open:
            return True
        now = self._clock()
        if now < self._retry_at:
            return False
        self._retry_at = now + self._pause
        return True

    def succeeded(self) -> None:
        """The backend works."""
        self._failures = 0
        self._pause = FIRST_PAUSE

    def failed(self) -> None:
        """The backend did not answer as it should."""
        self._failures += 1
        if self._failures == FAILURES:
            self._retry_at = self._clock() + self._pause
        elif self.open:
            self._pause = min(self._pause * 2, LONGEST_PAUSE)
            self._retry_at = self._clock() + self._pause
