"""Metrics of the transport and of exchanges: what is open, what was refused, what broke."""

from __future__ import annotations

import logging
from functools import partial

from epp.api.plugin import Clock
from epp.telemetry.logs import RateLimitedLog
from epp.telemetry.metrics import Registry
from epp.transport.limits import COUNTED, TransportStats

log = logging.getLogger("epp.extproc")


_OPEN = {
    "connections": "Connections that are open.",
    "streams": "HTTP/2 streams that are open.",
}
_SO_FAR = {
    "connections_total": "Connections accepted.",
    "streams_total": "Streams accepted.",
    "protocol_errors": "Protocol errors of peers.",
    "tls_failures": "TLS handshakes and records that failed.",
    "handler_errors": "Handlers that failed.",
}


class ExchangeMetrics:
    """Implements `epp.extproc.settings.ExchangeObserver`."""

    def __init__(self, registry: Registry, clock: Clock) -> None:
        self._failed = registry.counter(
            "extproc_internal_errors_total", "Failures of the picker inside an exchange, by kind.", ("kind",)
        )
        self._violations = registry.counter(
            "extproc_protocol_violations_total", "Streams ended because the gateway broke the protocol.", ("problem",)
        )
        self._log = RateLimitedLog(log, clock)

    def failed(self, error: BaseException) -> None:
        """A bug of ours; the request was answered all the same."""
        kind = type(error).__name__
        self._failed.labels(kind).inc()
        self._log.error(f"failed:{kind}", "an exchange failed: %s: %s", kind, error, error=error)

    def violated(self, problem: str) -> None:
        """The gateway broke the protocol."""
        kind = problem.partition(" (")[0]  # behind it are sizes: each would be a series of its own
        self._violations.labels(kind).inc()
        self._log.warning(f"violated:{kind}", "the gateway broke the protocol: %s", problem)


def _value(stats: TransportStats, name: str) -> list[tuple[tuple[str, ...], float]]:
    return [((), float(getattr(stats, name)))]


def expose_transport(registry: Registry, stats: TransportStats) -> None:
    """Gauges and counters of a transport, read when the page is."""
    for name, text in _OPEN.items():
        registry.sampled_gauge(f"transport_{name}", text, (), partial(_value, stats, name))
    for name, text in _SO_FAR.items():
        full = f"transport_{name.removesuffix('_total')}_total"
        registry.sampled_counter(full, text, (), partial(_value, stats, name))
    registry.sampled_counter(
        "transport_limits_hit_total",
        "How often a limit ended a stream or a connection.",
        ("limit",),
        # From 0: Prometheus sees no increase in a series that begins with its first hit.
        lambda: [((limit,), float(stats.limits_hit.get(limit, 0))) for limit in COUNTED],
    )
