"""`inflight-load-producer`: columns, the load of this request, and when it is released.

`tests/property/test_inflight_accounting.py` goes through arbitrary orders of events.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from epp.api import (
    ANY_PRODUCER,
    INFLIGHT_LOAD,
    PREFIX_CACHE_MATCH,
    TOKENIZED_PROMPT,
    UNCACHED_TOKENS,
    DataKey,
    Endpoint,
    Endpoints,
    EndpointTable,
    InferenceRequest,
    InferenceResponse,
    Payload,
    PrefixMatch,
    Prompt,
    publish_prefix_match,
)
from epp.telemetry.metrics import Registry
from epp.testing import plugin
from epp_plugins.producers.inflight_load import InflightLoadProducer, column_names
from epp_plugins.producers.inflight_series import LABELS, SWEEP_AT, InflightSeries
from tests.picks import picked

NAME = "inflight-load-producer"


def make(
    table: EndpointTable, name: str = NAME, metrics: Registry | None = None, **params: Any
) -> InflightLoadProducer:
    return plugin(InflightLoadProducer, params, name=name, table=table, metrics=metrics)


def request(tokens: int, max_tokens: int | None = None) -> InferenceRequest:
    made = InferenceRequest("r", {}, "/", b"", Payload(max_tokens=max_tokens), 0.0)
    made.prompt = Prompt((bytes(4 * tokens),), estimated=True)
    return made


def pick(
    producer: InflightLoadProducer, made: InferenceRequest, endpoints: Endpoints, row: int, prefill: int | None = None
) -> None:
    producer.on_picked(made, picked(producer.context.table, endpoints, prefill=prefill, decode=row))


def counts(table: EndpointTable, name: str = NAME) -> tuple[list[float], list[float]]:
    requests, tokens = column_names(name)
    return table.columns[requests][:3].tolist(), table.columns[tokens][:3].tolist()


def test_data_keys(table: EndpointTable) -> None:
    prompt = DataKey(TOKENIZED_PROMPT, "token-producer")
    default = make(table)
    assert default.produces == (DataKey(INFLIGHT_LOAD, NAME), DataKey(UNCACHED_TOKENS, NAME))
    assert default.consumes == (prompt,)
    assert default.consumes_if_present == (DataKey(PREFIX_CACHE_MATCH, ANY_PRODUCER),)
    named = make(table, prefixMatchInfoProducerName="mine")
    assert named.consumes == (prompt, DataKey(PREFIX_CACHE_MATCH, "mine"))
    assert named.consumes_if_present == ()


def test_from_pick_to_end(table: EndpointTable) -> None:
    producer = make(table)
    made, endpoints = request(100), table.all(0.0)
    producer.produce(made, endpoints)
    pick(producer, made, endpoints, 1)
    assert counts(table) == ([0, 1, 0], [0, 100, 0])
    producer.on_first_chunk(made, InferenceResponse())
    assert counts(table) == ([0, 1, 0], [0, 0, 0])
    producer.on_response_end(made, InferenceResponse())
    assert counts(table) == ([0, 0, 0], [0, 0, 0])
    producer.on_response_end(made, InferenceResponse())
    assert counts(table) == ([0, 0, 0], [0, 0, 0])


def test_the_next_request_sees_the_load(table: EndpointTable) -> None:
    producer = make(table)
    made = request(7)
    endpoints = table.all(0.0)
    producer.produce(made, endpoints)
    pick(producer, made, endpoints, 2)
    after = table.all(0.0)
    assert after.inflight_requests.tolist() == [0, 0, 1]
    assert after.inflight_tokens.tolist() == [0, 0, 7]


def test_a_request_that_ends_without_an_answer(table: EndpointTable) -> None:
    producer = make(table)
    made, endpoints = request(100), table.all(0.0)
    producer.produce(made, endpoints)
    pick(producer, made, endpoints, 1)
    producer.on_response_end(made, InferenceResponse())
    assert counts(table) == ([0, 0, 0], [0, 0, 0])


def test_the_prefill_endpoint_is_released_with_the_first_chunk(table: EndpointTable) -> None:
    producer = make(table)
    made, endpoints = request(10), table.all(0.0)
    producer.produce(made, endpoints)
    pick(producer, made, endpoints, 0, prefill=1)
    assert counts(table) == ([1, 1, 0], [10, 10, 0])
    producer.on_first_chunk(made, InferenceResponse())
    assert counts(table) == ([1, 0, 0], [0, 0, 0])
    producer.on_response_end(made, InferenceResponse())
    assert counts(table) == ([0, 0, 0], [0, 0, 0])


def test_cached_tokens_are_not_computed_again(table: EndpointTable) -> None:
    producer = make(table)
    made, endpoints = request(300), table.all(0.0)
    blocks = np.array([0.0, 3.0, 5.0])
    publish_prefix_match(
        made,
        endpoints,
        "approx-prefix-cache-producer",
        PrefixMatch(blocks, blocks, total_blocks=4, block_size_tokens=64),
    )
    producer.produce(made, endpoints)
    uncached = endpoints.column(DataKey(UNCACHED_TOKENS, NAME))
    assert uncached.tolist() == [300, 300 - 3 * 64, 0]
    some = endpoints.take([2, 1])
    pick(producer, made, some, 1)
    assert counts(table)[1] == [0, 300 - 3 * 64, 0]


def test_matches_of_another_producer_do_not_count(table: EndpointTable) -> None:
    producer = make(table, prefixMatchInfoProducerName="mine")
    made, endpoints = request(64), table.all(0.0)
    ones = np.ones(3)
    publish_prefix_match(made, endpoints, "approx-prefix-cache-producer", PrefixMatch(ones, ones, 1, 64))
    producer.produce(made, endpoints)
    assert endpoints.column(DataKey(UNCACHED_TOKENS, NAME)).tolist() == [64, 64, 64]
    publish_prefix_match(made, endpoints, "mine", PrefixMatch(ones, ones, 1, 64))
    producer.produce(made, endpoints)
    assert endpoints.column(DataKey(UNCACHED_TOKENS, NAME)).tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("params", "max_tokens", "output"),
    [
        ({}, None, 150),
        ({"outputRatio": 0.5}, None, 50),
        ({"maxEstimatedOutputTokens": 40}, None, 40),
        ({}, 20, 20),
        ({"maxEstimatedOutputTokens": 10}, 20, 10),
        ({}, -5, 0),
    ],
)
def test_estimated_output(table: EndpointTable, params: dict[str, Any], max_tokens: int | None, output: int) -> None:
    producer = make(table, addEstimatedOutputTokens=True, **params)
    made, endpoints = request(100, max_tokens), table.all(0.0)
    ones = np.ones(3)
    publish_prefix_match(made, endpoints, "approx-prefix-cache-producer", PrefixMatch(ones, ones, 1, 64))
    producer.produce(made, endpoints)
    assert endpoints.column(DataKey(UNCACHED_TOKENS, NAME)).tolist() == [36 + output] * 3
    pick(producer, made, endpoints, 0, prefill=1)
    assert counts(table)[1] == [36 + output, 36, 0]
    producer.on_first_chunk(made, InferenceResponse())
    assert counts(table) == ([1, 0, 0], [output, 0, 0])
    producer.on_response_end(made, InferenceResponse())
    assert counts(table) == ([0, 0, 0], [0, 0, 0])


def test_without_produce_the_whole_prompt_counts(table: EndpointTable) -> None:
    producer = make(table)
    made = request(9)
    pick(producer, made, table.all(0.0), 0)
    assert counts(table) == ([1, 0, 0], [9, 0, 0])


def test_without_a_prompt_only_the_request_counts(table: EndpointTable) -> None:
    producer = make(table)
    made, endpoints = request(0), table.all(0.0)
    made.prompt = None
    producer.produce(made, endpoints)
    pick(producer, made, endpoints, 0)
    assert counts(table) == ([1, 0, 0], [0, 0, 0])


def test_nothing_is_taken_from_the_next_owner_of_a_row(table: EndpointTable) -> None:
    producer = make(table)
    old, endpoints = request(5), table.all(0.0)
    pick(producer, old, endpoints, 1)
    table.remove("10.0.0.1:8000")
    assert table.add(Endpoint("pod-9", "10.0.0.9", 8000)) == 1
    assert counts(table)[0][1] == 0
    new, endpoints = request(3), table.all(0.0)
    pick(producer, new, endpoints, 1)
    producer.on_first_chunk(old, InferenceResponse())
    producer.on_response_end(old, InferenceResponse())
    assert counts(table) == ([0, 1, 0], [0, 3, 0])


def test_a_second_instance_has_its_own_columns(table: EndpointTable) -> None:
    first, second = make(table), make(table, "other", addEstimatedOutputTokens=True)
    made, endpoints = request(10), table.all(0.0)
    for producer in (first, second):
        producer.produce(made, endpoints)
        pick(producer, made, endpoints, 0)
    assert counts(table) == ([1, 0, 0], [10, 0, 0])
    assert counts(table, "other") == ([1, 0, 0], [25, 0, 0])
    assert "inflight_tokens/other" in table.columns
    first.on_response_end(made, InferenceResponse())
    assert counts(table)[0] == [0, 0, 0]
    assert counts(table, "other")[0] == [1, 0, 0]


def test_gauges(table: EndpointTable) -> None:
    registry = Registry()
    producer = make(table, metrics=registry)
    made, endpoints = request(10), table.all(0.0)
    made.fairness_id, made.priority = "team", -3
    pick(producer, made, endpoints, 1)
    labels = ("pod-1", "default", NAME, "team", "-3")
    requests, tokens = (registry.gauge(name, "", LABELS) for name in ("inflight_requests", "inflight_tokens"))
    assert (requests.labels(*labels).value, tokens.labels(*labels).value) == (1, 10)
    producer.on_first_chunk(made, InferenceResponse())
    assert (requests.labels(*labels).value, tokens.labels(*labels).value) == (1, 0)
    table.remove("10.0.0.1:8000")
    assert len(requests) == len(tokens) == 0
    producer.on_response_end(made, InferenceResponse())
    assert len(requests) == 0


def test_series_at_zero_are_cleared_when_many_have_gathered() -> None:
    registry = Registry()
    series = InflightSeries(registry, NAME)
    endpoint = Endpoint("pod", "10.0.0.1", 8000)
    busy = series.of(endpoint, "busy", 0)
    busy.add(1, 5)
    for number in range(SWEEP_AT - 1):
        series.of(endpoint, "flow", number).add(0, 0)
    assert len(series) == SWEEP_AT
    assert series.of(endpoint, "busy", 0) is busy
    series.of(endpoint, "one more", 0)
    assert len(series) == 2
    assert len(registry.gauge("inflight_requests", "", LABELS)) == 2
    busy.add(-1, -5)
    assert registry.gauge("inflight_tokens", "", LABELS).labels("pod", "default", NAME, "busy", "0").value == 0


def test_the_state_shows_the_busiest() -> None:
    table = EndpointTable()
    for number in range(120):
        table.add(Endpoint(f"pod-{number}", f"10.0.0.{number}", 8000))
    producer = make(table)
    row = table.row_of("10.0.0.77:8000")
    assert row is not None
    pick(producer, request(4), table.all(0.0), row)
    state = producer.dump_state()
    assert state["endpoints"][0] == {"endpoint": "default/pod-77", "requests": 1, "tokens": 4}
    assert (len(state["endpoints"]), state["endpointsTotal"], state["truncated"]) == (100, 120, True)
    assert msgspec.json.encode(state)
