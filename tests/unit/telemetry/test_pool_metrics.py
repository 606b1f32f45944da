"""Averages over the fresh endpoints of a pool."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families as parse

from epp.api.endpoints import Endpoint, EndpointTable
from epp.telemetry.exposition import render_now
from epp.telemetry.legacy_metrics import add_legacy_metrics
from epp.telemetry.metrics import Registry
from epp.telemetry.pool_metrics import PoolMetrics


def table_of(*rows: tuple[str, float, float, float, float]) -> EndpointTable:
    """Rows of (name, scraped_at, waiting, running, kv_usage)."""
    table = EndpointTable(capacity=2)
    for i, (name, scraped_at, waiting, running, kv_usage) in enumerate(rows):
        row = table.add(Endpoint(name, f"10.0.0.{i}", 8000, namespace=f"ns{i}"))
        for column, value in (
            ("scraped_at", scraped_at),
            ("waiting", waiting),
            ("running", running),
            ("kv_usage", kv_usage),
        ):
            table.columns[column][row] = value
    return table


def values(registry: Registry) -> dict[str, float]:
    return {
        s.name.removeprefix("llm_d_epp_") + s.labels.get("model_server_endpoint", ""): s.value
        for family in parse(render_now(registry).decode())
        for s in family.samples
    }


def test_only_fresh_endpoints_count() -> None:
    registry = Registry()
    pool = PoolMetrics(registry)
    table = table_of(("a", 9.5, 1, 2, 0.101), ("b", 9.0, 4, 6, 0.333), ("stale", 3.0, 100, 100, 1.0))
    pool.update("p", table, now=10.0, staleness=2.0)
    assert values(registry) == {
        "average_kv_cache_utilization": 0.22,
        "average_queue_size": 2.5,
        "average_running_requests": 4.0,
        "std_dev_kv_cache_utilization": 0.16,
        "std_dev_queue_size": 2.12,
        "std_dev_running_requests": 2.83,
        "ready_endpoints": 2,
        "per_endpoint_queue_sizea": 1,
        "per_endpoint_queue_sizeb": 4,
        "per_endpoint_queue_sizestale": 100,
    }


def test_averages_keep_their_value_when_nothing_is_fresh() -> None:
    registry = Registry()
    pool = PoolMetrics(registry)
    table = table_of(("a", 9.5, 7, 2, float("nan")))
    pool.update("p", table, now=10.0, staleness=2.0)
    assert values(registry)["std_dev_queue_size"] == 0.0
    assert "average_kv_cache_utilization" not in values(registry)
    pool.update("p", table, now=100.0, staleness=2.0)
    assert values(registry)["average_queue_size"] == 7
    assert values(registry)["ready_endpoints"] == 0


def test_equal_names_and_unmeasured_endpoints_do_not_break_the_page() -> None:
    registry = Registry()
    pool = PoolMetrics(registry)
    pool.update("p", table_of(("a", 9, 1, 1, 0), ("a", 9, 2, 1, 0), ("new", 0, float("nan"), 0, 0)), 10.0, 2.0)
    sizes = {k: v for k, v in values(registry).items() if k.startswith("per_endpoint")}
    assert sizes == {"per_endpoint_queue_sizea": 1, "per_endpoint_queue_sizens1/a@10.0.0.1:8000": 2}


def test_a_pool_that_goes_away_takes_its_gauges_with_it() -> None:
    registry = Registry()
    pool = PoolMetrics(registry)
    pool.update("p", table_of(("a", 9, 1, 1, 0)), 10.0, 2.0)
    pool.remove("p")
    assert values(registry) == {}


def test_twins() -> None:
    registry = Registry()
    add_legacy_metrics(registry)
    PoolMetrics(registry).update("p", table_of(("a", 9, 3, 1, 0.5)), 10.0, 2.0)
    text = render_now(registry).decode()
    assert 'inference_pool_ready_pods{name="p"} 1.0' in text
    assert 'inference_pool_average_queue_size{name="p"} 3.0' in text
    assert 'inference_pool_per_pod_queue_size{model_server_pod="a",name="p"} 3.0' in text
