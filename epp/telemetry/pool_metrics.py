"""How a pool is doing: averages and deviations over its endpoints, recomputed every few seconds.

Only endpoints whose measurements are fresh count. Averages are rounded to two decimals and keep their last value when
no endpoint is fresh, as llm-d-router has it; the standard deviation is that of a sample (n - 1).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from epp.api.endpoints import EndpointTable
from epp.telemetry.metrics import Registry

_COLUMNS = {
    "kv_cache_utilization": ("kv_usage", "use of the KV cache (0 to 1)"),
    "queue_size": ("waiting", "requests queued in a model server"),
    "running_requests": ("running", "requests running in a model server"),
}


class PoolMetrics:
    """The gauges of every pool of the process, by the pool's name."""

    def __init__(self, registry: Registry) -> None:
        self._tables: dict[str, EndpointTable] = {}
        self._averages = {
            suffix: registry.gauge(f"average_{suffix}", f"Average {what} over the pool.", ("name",))
            for suffix, (_, what) in _COLUMNS.items()
        }
        self._deviations = {
            suffix: registry.gauge(f"std_dev_{suffix}", f"Standard deviation of {what} over the pool.", ("name",))
            for suffix, (_, what) in _COLUMNS.items()
        }
        self._ready = registry.gauge("ready_endpoints", "Endpoints with fresh measurements.", ("name",))
        registry.sampled_gauge(
            "per_endpoint_queue_size",
            "Requests queued in each model server.",
            ("name", "model_server_endpoint"),
            self._queues,
        )

    def update(self, pool: str, table: EndpointTable, now: float, staleness: float) -> None:
        """Recompute the gauges of one pool. `staleness`: seconds after which a measurement no longer counts."""
        self._tables[pool] = table
        rows = table.rows
        fresh = rows[now - table.columns["scraped_at"][rows] <= staleness]
        self._ready.labels(pool).set(len(fresh))
        for suffix, (column, _) in _COLUMNS.items():
            values = table.columns[column][fresh]
            values = values[~np.isnan(values)]
            if values.size == 0:
                continue
            deviation = float(values.std(ddof=1)) if values.size > 1 else 0.0
            self._averages[suffix].labels(pool).set(round(float(values.mean()), 2))
            self._deviations[suffix].labels(pool).set(round(deviation, 2))

    def remove(self, pool: str) -> None:
        """The pool is no longer served."""
        self._tables.pop(pool, None)
        for family in (self._ready, *self._averages.values(), *self._deviations.values()):
            family.remove(pool)

    def _queues(self) -> Iterator[tuple[tuple[str, str], float]]:
        for pool, table in self._tables.items():
            waiting = table.columns["waiting"]
            seen: set[str] = set()
            for row in table.rows.tolist():
                endpoint = table.endpoints[row]
                if endpoint is None or np.isnan(waiting[row]):
                    continue
                # Two series with the same labels would make Prometheus drop the whole page.
                name = endpoint.name if endpoint.name not in seen else f"{endpoint.key}@{endpoint.host_port}"
                seen.add(name)
                yield (pool, name), float(waiting[row])
