"""The gauges `inflight_requests` and `inflight_tokens`: one pair per endpoint, fairness id and priority.

Looked up once per combination and kept. Series of an endpoint end with it; series at zero are cleared away when many
have gathered, since sessions (as fairness ids) come and go.
"""

from __future__ import annotations

from typing import Any

from epp.api import Endpoint

LABELS = ("endpoint_name", "namespace", "producer_name", "fairness_id", "priority")

SWEEP_AT = 2000
"""Kept combinations from which those at zero are cleared away."""


class Series:
    """What is in flight for one combination of labels. Several may share gauges once the registry's bounds are met."""

    __slots__ = ("_requests", "_tokens", "requests", "tokens")

    def __init__(self, requests: Any, tokens: Any) -> None:
        self._requests = requests
        self._tokens = tokens
        self.requests = 0
        self.tokens = 0

    def add(self, requests: int, tokens: int) -> None:
        """Count up, or down with negative numbers."""
        self.requests += requests
        self.tokens += tokens
        self._requests.inc(requests)
        self._tokens.inc(tokens)


class InflightSeries:
    """The series of one producer."""

    def __init__(self, registry: Any, producer: str) -> None:
        self._producer = producer
        self._requests = registry.gauge(
            "inflight_requests", "Requests sent to the endpoint that have not ended.", LABELS
        )
        self._tokens = registry.gauge(
            "inflight_tokens", "Tokens sent to the endpoint that are not yet processed.", LABELS
        )
        self._kept: dict[tuple[str, str, str, int], Series] = {}
        self._sweep_at = SWEEP_AT

    def __len__(self) -> int:
        return len(self._kept)

    def of(self, endpoint: Endpoint, fairness_id: str, priority: int) -> Series:
        """The series of one combination."""
        key = (endpoint.name, endpoint.namespace, fairness_id, priority)
        series = self._kept.get(key)
        if series is None:
            if len(self._kept) >= self._sweep_at:
                self._sweep()
            values = self._values(key)
            series = self._kept[key] = Series(self._requests.labels(*values), self._tokens.labels(*values))
        return series

    def forget(self, endpoint: Endpoint) -> None:
        """The endpoint is gone: so are its series. What is still in flight there counts down unseen."""
        mine = (endpoint.name, endpoint.namespace)
        for key in [key for key in self._kept if key[:2] == mine]:
            self._remove(key)

    def _sweep(self) -> None:
        for key in [key for key, series in self._kept.items() if not series.requests]:
            self._remove(key)
        self._sweep_at = max(SWEEP_AT, 2 * len(self._kept))

    def _remove(self, key: tuple[str, str, str, int]) -> None:
        del self._kept[key]
        values = self._values(key)
        self._requests.remove(*values)
        self._tokens.remove(*values)

    def _values(self, key: tuple[str, str, str, int]) -> tuple[str, str, str, str, str]:
        name, namespace, fairness_id, priority = key
        return name, namespace, self._producer, fairness_id, str(priority)
