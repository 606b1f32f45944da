"""llm-d-router's metrics of subscriptions and removals, as a scrape shows them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
import zmq
from prometheus_client.parser import text_string_to_metric_families as parse

from epp.api import Endpoint, EndpointTable
from epp.kvevents.events import BlockRemoved, BlockStored
from epp.telemetry.exposition import render_now
from epp.telemetry.legacy_metrics import add_legacy_metrics
from epp.telemetry.metrics import Registry
from epp.testing import ManualClock, plugin
from epp_plugins.producers.precise_prefix_cache import PrecisePrefixCacheProducer
from tests.waiting import until

LABELS = {"llm-d.ai/inference-serving": "true"}
_PREFIX = "llm_d_epp_kv_cache_events_"


class Publisher:
    """A PUB socket that counts its messages."""

    def __init__(self, context: zmq.Context[Any], address: str = "tcp://127.0.0.1:*") -> None:
        self.socket = context.socket(zmq.PUB)
        self.socket.bind(address)
        self.address = self.socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self.port = int(self.address.rpartition(":")[2])
        self.sent = 0

    def publish(self) -> None:
        self.socket.send_multipart(
            [b"kv@pod@m", self.sent.to_bytes(8, "big"), msgspec.msgpack.encode([time.time(), [], 0])]
        )
        self.sent += 1


@pytest.fixture
def context() -> Iterator[zmq.Context[Any]]:
    with zmq.Context() as context:
        context.linger = 0
        yield context


def make(table: EndpointTable, metrics: Registry, name: str = "p", **events: Any) -> PrecisePrefixCacheProducer:
    params = {"kvEventsConfig": events}
    return plugin(PrecisePrefixCacheProducer, params, name=name, table=table, metrics=metrics, clock=ManualClock())  # type: ignore[no-any-return]


def scrape(metrics: Registry, prefix: str = _PREFIX) -> dict[tuple[str, ...], float]:
    """Name without the prefix and label values, sorted by label -> value."""
    samples = {}
    for family in parse(render_now(metrics).decode()):
        for sample in family.samples:
            if sample.name.startswith(prefix):
                name = sample.name.removeprefix(prefix)
                key = (name, *(value for _, value in sorted(sample.labels.items())))
                assert key not in samples
                samples[key] = sample.value
    return samples


async def test_the_series_of_a_subscription_from_its_beginning_to_its_end(context: zmq.Context[Any]) -> None:
    publisher = Publisher(context)
    metrics, table = Registry(), EndpointTable()
    table.add(Endpoint("vllm-0-rank-0", "127.0.0.1", 8000, namespace="prod", labels=LABELS))
    table.add(Endpoint("not selected", "127.0.0.2", 8000))
    producer = make(table, metrics, podDiscoveryConfig={"socketPort": publisher.port})
    key = "prod/vllm-0-rank-0"
    assert scrape(metrics) == {
        ("active_subscribers",): 1,
        ("messages_received_total", key): 0,
        ("subscriber_reconnections_total", key): 0,
        ("dedup_removed_hashes_suppressed_total",): 0,
        ("dedup_removed_hashes_forwarded_total",): 0,
    }
    await producer.start()
    try:

        def heard() -> bool:
            publisher.publish()
            return scrape(metrics)["messages_received_total", key] > 0

        await until(heard)
        publisher.socket.send_multipart([b"kv@pod@m", b"no number", b""])
        (state,) = producer.receiver.subscriptions()
        await until(lambda: state.bad_frames == 1)
        assert scrape(metrics)["messages_received_total", key] == state.messages + 1
        publisher.socket.close(0)
        # The label names of all of them, sorted: operation comes before pod_identifier.
        await until(lambda: scrape(metrics).get(("zmq_errors_total", "recv", key)) == 1)
        await until(lambda: scrape(metrics).get(("zmq_errors_total", "connect", key), 0) >= 1)
        assert scrape(metrics)["subscriber_reconnections_total", key] >= 1
        (told,) = producer.dump_state()["publishers"]
        assert told["reconnections"] >= 1
        assert told["zmqErrors"]["recv"] == 1
        table.remove("127.0.0.1:8000")
        left = scrape(metrics)
        assert not [labels for labels in left if key in labels]
        assert left["active_subscribers",] == 0
    finally:
        await producer.stop()


def test_nothing_grows_with_endpoints_that_come_and_go() -> None:
    metrics, table = Registry(), EndpointTable()
    make(table, metrics)
    before = len(render_now(metrics))
    for number in range(3000):
        table.add(Endpoint(f"pod-{number}", "10.0.0.1", 8000, labels=LABELS))
    assert scrape(metrics)["active_subscribers",] == 1  # all had one address
    assert ("messages_received_total", "default/pod-2999") in scrape(metrics)
    table.remove("10.0.0.1:8000")
    assert len(render_now(metrics)) == before


async def test_publishers_that_connect_are_one_subscription(context: zmq.Context[Any]) -> None:
    metrics, table = Registry(), EndpointTable()
    table.add(Endpoint("pod", "127.0.0.1", 8000, labels=LABELS))
    producer = make(table, metrics, zmqEndpoint="tcp://127.0.0.1:*", discoverPods=False)
    assert scrape(metrics)["active_subscribers",] == 0
    await producer.start()
    try:
        assert scrape(metrics)["messages_received_total", "local-subscriber"] == 0
        assert scrape(metrics)["active_subscribers",] == 1
        bound = producer.receiver._bound
        assert bound is not None
        socket = context.socket(zmq.PUB)
        socket.connect(bound.address)

        def heard() -> bool:
            socket.send_multipart([b"kv@stranger@m", bytes(8), b""])
            return scrape(metrics)["messages_received_total", "local-subscriber"] >= 3

        await until(heard)
        assert not [labels for labels in scrape(metrics) if labels[0] == "subscriber_reconnections_total"]
        socket.close(0)
    finally:
        await producer.stop()


async def test_two_producers_that_follow_the_same_endpoint_add_up(context: zmq.Context[Any]) -> None:
    publisher = Publisher(context)
    metrics, table = Registry(), EndpointTable()
    table.add(Endpoint("pod", "127.0.0.1", 8000, labels=LABELS))
    producers = [make(table, metrics, name, podDiscoveryConfig={"socketPort": publisher.port}) for name in "ab"]
    for producer in producers:
        await producer.start()
    try:

        def heard() -> bool:
            publisher.publish()
            return all(producer.receiver.stats().messages > 1 for producer in producers)

        await until(heard)
        both = sum(producer.receiver.stats().messages for producer in producers)
        assert scrape(metrics)["messages_received_total", "default/pod"] == both
        assert scrape(metrics)["active_subscribers",] == 2
    finally:
        for producer in producers:
            await producer.stop()


def test_removals_under_the_new_and_the_old_names() -> None:
    metrics, table = Registry(), EndpointTable()
    add_legacy_metrics(metrics)
    producers = [make(table, metrics, name) for name in "ab"]
    for producer in producers:
        block = bytes(64)
        first, copy = BlockStored([1], None, block, 16), BlockStored([2], 1, block, 16)
        producer.index.apply("10.0.0.1:8000", [first, copy, copy, BlockRemoved([2]), BlockRemoved([2, 1, 77])])
        producer._report()
        producer._report()
    told = {"dedup_removed_hashes_suppressed_total": 2, "dedup_removed_hashes_forwarded_total": 6}
    new, old = scrape(metrics), scrape(metrics, "kvcache_kvevents_")
    for name, value in told.items():
        assert new[name,] == value
    assert old == {(name,): value for name, value in told.items()}


def test_lookups_have_the_buckets_of_the_dashboards() -> None:
    """Those of Go's client, and finer ones below."""
    metrics, table = Registry(), EndpointTable()
    plugin(
        PrecisePrefixCacheProducer,
        {"indexerConfig": {"kvBlockIndexConfig": {"enableMetrics": True}}},
        name="p", table=table, metrics=metrics,
    )  # fmt: skip
    page = render_now(metrics).decode()
    for bound in ("0.005", "0.01", "0.025", "0.05", "0.1", "0.25", "0.5", "1", "2.5", "5", "10", "+Inf"):
        assert f'llm_d_epp_kv_cache_index_lookup_latency_seconds_bucket{{le="{bound}"}}' in page
