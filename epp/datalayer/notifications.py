"""Tells extractors of endpoints that come, change and go: each change once, as it happens."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from epp.api.endpoints import Endpoint, EndpointTable
from epp.api.plugin import Clock, EndpointExtractor, Plugin

log = logging.getLogger(__name__)

ENDPOINT_SOURCE = "endpoint-notification-source"
_QUIET = 60.0


class Guard:
    """Calls plugins of others: what they raise is counted, logged once a minute each, and goes no further."""

    def __init__(self, source: str, clock: Clock, metrics: Any = None) -> None:
        self._source = source
        self._clock = clock
        self._logged: dict[str, float] = {}  # bounded by the plugins there are
        self._errors: Any = None
        if metrics is not None:
            self._errors = metrics.counter(
                "datalayer_extract_errors_total",
                "Pages of model servers that lacked something an extractor needs.",
                ("source_type", "extractor_type"),
            )

    def call(self, plugin: Plugin[Any], hook: Callable[..., None], *told: Any) -> None:
        """`hook(*told)`, whatever it raises."""
        try:
            hook(*told)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            if self._errors is not None:
                self._errors.labels(self._source, plugin.type).inc()
            now = self._clock()
            if now - self._logged.get(plugin.name, -_QUIET) >= _QUIET:
                self._logged[plugin.name] = now
                log.warning("%s: %s failed: %s", self._source, plugin.name, error, exc_info=error)


def notify_endpoints(
    table: EndpointTable, extractors: Sequence[EndpointExtractor[Any]], *, clock: Clock, metrics: Any = None
) -> None:
    """From now on `extractors` hear of the endpoints of `table`; of those that are already there at once."""
    guard = Guard(ENDPOINT_SOURCE, clock, metrics)
    # Whoever overrides nothing follows the table in its own way.
    changed = [e for e in extractors if type(e).endpoint_changed is not EndpointExtractor.endpoint_changed]
    removed = [e for e in extractors if type(e).endpoint_removed is not EndpointExtractor.endpoint_removed]

    def tell_changed(row: int, endpoint: Endpoint) -> None:
        for extractor in changed:
            guard.call(extractor, extractor.endpoint_changed, row, endpoint)

    def tell_removed(row: int, endpoint: Endpoint) -> None:
        for extractor in removed:
            guard.call(extractor, extractor.endpoint_removed, row, endpoint)

    if changed:
        table.on_added(tell_changed)
        table.on_updated(tell_changed)
        for row in table.rows.tolist():
            endpoint = table.endpoints[row]
            if endpoint is not None:
                tell_changed(row, endpoint)
    if removed:
        table.on_removed(tell_removed)
