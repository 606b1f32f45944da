"""Counts and reports what goes wrong while collecting, without flooding the log."""

from __future__ import annotations

import logging
from typing import Any

from epp.api.endpoints import Endpoint
from epp.api.plugin import Clock

_EVERY = 60.0  # seconds between two log lines about the same thing


class FailureLog:
    """Every failure is counted; each (what, endpoint) is logged at most once a minute, with the number left out.

    Memory is bounded by the endpoints there are: `forget` drops those of a gone endpoint.
    """

    def __init__(self, log: logging.Logger, clock: Clock, metrics: Any = None) -> None:
        self._log = log
        self._clock = clock
        self._last: dict[str, dict[str, tuple[float, int]]] = {}
        self._polls: Any = None
        self._extracts: Any = None
        if metrics is not None:
            self._polls = metrics.counter(
                "datalayer_poll_errors_total", "Failed fetches from model servers.", ("source_type",)
            )
            self._extracts = metrics.counter(
                "datalayer_extract_errors_total",
                "Pages of model servers that lacked something an extractor needs.",
                ("source_type", "extractor_type"),
            )

    def poll(self, source: str, endpoint: Endpoint, error: BaseException) -> None:
        """A fetch failed."""
        if self._polls is not None:
            self._polls.labels(source).inc()
        self._report(endpoint, source, "%s: cannot fetch from %s (%s)", error)

    def recovered(self, source: str, endpoint: Endpoint) -> None:
        """A fetch succeeded after failures."""
        if self._last.get(endpoint.host_port, {}).pop(source, None) is not None:
            self._log.info("%s: %s (%s) answers again", source, endpoint.key, endpoint.host_port)

    def extract(self, source: str, extractor: str, endpoint: Endpoint, error: BaseException) -> None:
        """An extractor could not read all it needs."""
        if self._extracts is not None:
            self._extracts.labels(source, extractor).inc()
        self._report(endpoint, extractor, "%s: cannot read the page of %s (%s)", error)

    def forget(self, endpoint: Endpoint) -> None:
        """The endpoint is gone."""
        self._last.pop(endpoint.host_port, None)

    def _report(self, endpoint: Endpoint, what: str, message: str, error: BaseException) -> None:
        about = self._last.setdefault(endpoint.host_port, {})
        now = self._clock()
        logged, left_out = about.get(what, (-_EVERY, 0))
        if now - logged < _EVERY:
            about[what] = (logged, left_out + 1)
            return
        about[what] = (now, 0)
        more = f", and {left_out} more in the last minute" if left_out else ""
        # A ValueError is an answer of ours; anything else may be a bug, and its traceback helps.
        unexpected = not isinstance(error, ValueError | OSError | EOFError) and type(error).__name__ != "HttpError"
        self._log.warning(
            message + ": %s%s",
            what,
            endpoint.key,
            endpoint.host_port,
            str(error) or type(error).__name__,
            more,
            exc_info=error if unexpected else None,
        )
