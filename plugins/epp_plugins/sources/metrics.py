"""`metrics-data-source`: the Prometheus page of every model server.

Use it (it is there by default) with `core-metrics-extractor`, or with an extractor of your own for other metrics of the
same page. Parameters: `scheme`, `path`, `port`, `insecureSkipVerify`, `caCertPath`, `clientCertPath`, `clientKeyPath`,
`interval`. Without `interval` the collector adapts its pace to the traffic, its CPU budget and the server
(`docs/data-layer.md`); with it, each endpoint is asked at exactly that interval, busy or idle.

Metrics: `datalayer_poll_errors_total{source_type}`. Failure: an endpoint that does not answer within a second, or not
with 200, keeps its last values, whose age grows (`endpoints.age`), and is asked less and less often, every 5 seconds
in the end. Other endpoints do not notice.
"""

from __future__ import annotations

from epp_plugins.sources.http import HttpSource


class MetricsDataSource(HttpSource):
    """Fetches `/metrics`."""

    type = "metrics-data-source"
    stability = "stable"
