"""llm-d-router's metrics of each subscription to KV events, read when somebody scrapes.

`pod_identifier` is `namespace/name` of the endpoint. Each endpoint has one subscription, so a data-parallel rank that
is an endpoint has its own. All publishers that connect to the bound socket are `local-subscriber` together. A series
ends with its endpoint. Several producers that follow the same endpoints add up.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from epp.api import EndpointTable
from epp.kvevents.receiver import KVEventReceiver

BOUND = "local-subscriber"

_LABELS = ("pod_identifier",)
_Series = Iterator[tuple[tuple[str, ...], float]]


class SubscriptionMetrics:
    """What one receiver tells. `table`: to name the endpoints, which the receiver knows by `ip:port`."""

    def __init__(self, registry: Any, receiver: KVEventReceiver, table: EndpointTable) -> None:
        self._receiver = receiver
        self._table = table
        registry.sampled_gauge(
            "kv_cache_events_active_subscribers",
            "Subscriptions to KV events, connected or not: one for each publisher, one for the bound socket.",
            (),
            self._active,
            shared=True,
        )
        registry.sampled_counter(
            "kv_cache_events_messages_received_total",
            "Messages that came through the subscription, readable or not.",
            _LABELS,
            self._messages,
            shared=True,
        )
        registry.sampled_counter(
            "kv_cache_events_subscriber_reconnections_total",
            "Attempts to connect to the publisher again, those that failed included.",
            _LABELS,
            self._reconnections,
            shared=True,
        )
        registry.sampled_counter(
            "kv_cache_events_zmq_errors_total",
            "Failed attempts to connect, connections that ended (recv), and replays that failed (replay-...).",
            (*_LABELS, "operation"),
            self._errors,
            shared=True,
        )

    def _active(self) -> _Series:
        yield (), len(self._receiver.subscriptions()) + (self._receiver.received_bound is not None)

    def _messages(self) -> _Series:
        for state in self._receiver.subscriptions():
            yield (self._name(state.endpoint),), state.received
        bound = self._receiver.received_bound
        if bound is not None:
            yield (BOUND,), bound

    def _reconnections(self) -> _Series:
        for state in self._receiver.subscriptions():
            yield (self._name(state.endpoint),), state.reconnections

    def _errors(self) -> _Series:
        for state in self._receiver.subscriptions():
            for operation, count in state.zmq_errors.items():
                yield (self._name(state.endpoint), operation), count

    def _name(self, host_port: str) -> str:
        row = self._table.row_of(host_port)
        endpoint = None if row is None else self._table.endpoints[row]
        return host_port if endpoint is None else endpoint.key
