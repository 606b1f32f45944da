"""`approx-prefix-cache-producer`: what it publishes, what it records, and how it tunes itself."""

from __future__ import annotations

import inspect
import math
from typing import Any

import msgspec
import numpy as np
import pytest

from epp.api import (
    PREFIX_CACHE_MATCH,
    TOKENIZED_PROMPT,
    DataKey,
    Endpoint,
    Endpoints,
    EndpointTable,
    InferenceRequest,
    MediaFeature,
    Payload,
    ProfileResult,
    Prompt,
    SchedulingResult,
    prefix_match,
)
from epp.telemetry.metrics import Registry
from epp.testing import plugin
from epp_plugins.producers.approx_prefix_cache import (
    MAX_BLOCKS,
    ApproxPrefixCacheProducer,
)
from tests.picks import picked

NAME = "approx-prefix-cache-producer"
BLOCK = 64 * 4  # bytes


def make(
    table: EndpointTable, name: str = NAME, metrics: Registry | None = None, **params: Any
) -> ApproxPrefixCacheProducer:
    return plugin(ApproxPrefixCacheProducer, params, name=name, table=table, metrics=metrics)


def request(*texts: bytes, model: str = "m", salt: str = "", **prompt: Any) -> InferenceRequest:
    made = InferenceRequest("r", {}, "/", b"", Payload(cache_salt=salt), 0.0, target_model=model)
    if texts:
        made.prompt = Prompt(texts, **{"estimated": True, **prompt})
    return made


def look(producer: ApproxPrefixCacheProducer, made: InferenceRequest, now: float = 0.0) -> Endpoints:
    endpoints = producer.context.table.all(now)
    assert producer.produce(made, endpoints) is None
    return endpoints


def pick(
    producer: ApproxPrefixCacheProducer,
    made: InferenceRequest,
    endpoints: Endpoints,
    row: int,
    prefill: int | None = None,
) -> None:
    producer.on_picked(made, picked(producer.context.table, endpoints, decode=row, prefill=prefill))


def sent(producer: ApproxPrefixCacheProducer, made: InferenceRequest, row: int, **more: Any) -> None:
    pick(producer, made, look(producer, made), row, **more)


def matched(producer: ApproxPrefixCacheProducer, made: InferenceRequest, now: float = 0.0) -> list[float]:
    match = prefix_match(made, look(producer, made, now), producer.name)
    assert match is not None
    assert match.cached_blocks.tolist() == match.blocks.tolist()
    return match.blocks.tolist()


def text(*blocks: str) -> bytes:
    return b"".join(block.encode() * BLOCK for block in blocks)


def test_the_match_is_what_the_endpoints_were_sent(table: EndpointTable) -> None:
    producer = make(table)
    sent(producer, request(text("a", "b", "c")), 1)
    sent(producer, request(text("a", "x")), 2)
    made = request(text("a", "b", "c", "d") + b"tail")
    match = prefix_match(made, look(producer, made), NAME)
    assert match is not None
    assert match.blocks.tolist() == [0, 3, 1]
    assert (match.total_blocks, match.block_size_tokens) == (4, 64)


def test_data_keys(table: EndpointTable) -> None:
    producer = make(table, "mine")
    assert producer.produces == (DataKey(PREFIX_CACHE_MATCH, "mine"),)
    assert producer.consumes == (DataKey(TOKENIZED_PROMPT, "token-producer"),)


def test_nothing_is_recorded_before_a_decision(table: EndpointTable) -> None:
    producer = make(table)
    made = request(text("a"))
    look(producer, made)
    assert matched(producer, request(text("a"))) == [0, 0, 0]


def test_hashes_do_not_stay_on_the_request(table: EndpointTable) -> None:
    producer = make(table)
    made = request(text("a"))
    endpoints = look(producer, made)
    pick(producer, made, endpoints, 0)
    assert set(made.attributes) == {DataKey(PREFIX_CACHE_MATCH, NAME)}
    pick(producer, made, endpoints, 1)  # nothing left to record
    assert matched(producer, request(text("a"))) == [1, 0, 0]


def test_the_prefill_endpoint_is_recorded_too(table: EndpointTable) -> None:
    producer = make(table)
    sent(producer, request(text("a")), 0, prefill=2)
    assert matched(producer, request(text("a"))) == [1, 0, 1]


def test_a_primary_profile_named_prefill_is_recorded_once(table: EndpointTable) -> None:
    producer = make(table)
    made = request(text("a"))
    endpoints = look(producer, made)
    endpoint = table.endpoints[1]
    assert endpoint is not None
    result = ProfileResult("prefill", (endpoint,), (1,), endpoints, np.zeros(3))
    producer.on_picked(made, SchedulingResult("prefill", {"prefill": result}))
    assert matched(producer, request(text("a"))) == [0, 1, 0]


@pytest.mark.parametrize("made", [request(), request(b""), request(text("a"))])
def test_requests_without_blocks_have_no_match(table: EndpointTable, made: InferenceRequest) -> None:
    producer = make(table, maxPrefixTokensToMatch=10)  # less than a block: nothing is hashed
    endpoints = look(producer, made)
    assert prefix_match(made, endpoints, NAME) is None
    pick(producer, made, endpoints, 0)
    assert producer.dump_state()["blocks"] == 0


def test_models_and_salts_are_apart(table: EndpointTable) -> None:
    producer = make(table)
    sent(producer, request(text("a"), salt="s"), 0)
    assert matched(producer, request(text("a"), salt="s")) == [1, 0, 0]
    assert matched(producer, request(text("a"), salt="t")) == [0, 0, 0]
    assert matched(producer, request(text("a"), model="n", salt="s")) == [0, 0, 0]


def test_several_prompts_add_up(table: EndpointTable) -> None:
    registry = Registry()
    producer = make(table, metrics=registry)
    sent(producer, request(text("a", "b"), text("c")), 0)
    sent(producer, request(text("c")), 1)
    made = request(text("a", "b", "x"), text("c"), b"")
    assert matched(producer, made) == [3, 1, 0]
    assert made.attributes[DataKey(PREFIX_CACHE_MATCH, NAME)] == (4, 64)
    sent(producer, made, 1)
    ratio = registry.histogram(
        "prefix_indexer_hit_ratio", "", [n / 10 for n in range(11)], ("plugin_name", "plugin_type")
    )
    assert ratio.labels(NAME, NAME).sum == pytest.approx(0.25)


def test_real_tokens_with_media(table: EndpointTable) -> None:
    producer = make(table)

    def made(image: str) -> InferenceRequest:
        feature = MediaFeature("image", image, offset=70, length=30)
        return request(text("a", "b", "c"), estimated=False, features=(feature,))

    sent(producer, made("cat"), 0)
    assert matched(producer, made("cat")) == [3, 0, 0]
    assert matched(producer, made("dog")) == [1, 0, 0]


@pytest.mark.parametrize(
    ("params", "blocks"),
    [
        ({}, 2048),
        ({"maxPrefixTokensToMatch": 64 * 5 + 63}, 5),
        ({"maxPrefixTokensToMatch": 0, "maxPrefixBlocksToMatch": 7}, 7),
        ({"maxPrefixTokensToMatch": 64 * 9, "maxPrefixBlocksToMatch": 7}, 9),
    ],
)
def test_limits(table: EndpointTable, params: dict[str, int], blocks: int) -> None:
    producer = make(table, **params)
    made = request(bytes(3000 * BLOCK))
    look(producer, made)
    assert made.attributes[DataKey(PREFIX_CACHE_MATCH, NAME)] == (blocks, 64)


async def test_without_limits_long_prompts_are_hashed_in_slices(table: EndpointTable) -> None:
    producer = make(table, maxPrefixTokensToMatch=0, maxPrefixBlocksToMatch=0)
    made = request(bytes(5000 * BLOCK), bytes(range(256)) * 5000)
    endpoints = table.all(0.0)
    producing = producer.produce(made, endpoints)
    assert inspect.isawaitable(producing)
    assert prefix_match(made, endpoints, NAME) is None
    await producing
    assert made.attributes[DataKey(PREFIX_CACHE_MATCH, NAME)] == (MAX_BLOCKS, 64)
    pick(producer, made, endpoints, 1)
    match = prefix_match(made, endpoints, NAME)
    assert match is not None
    again = request(bytes(64 * BLOCK))
    assert matched(producer, again) == [0, 64, 0]


def test_blocks_are_at_least_64_tokens(table: EndpointTable) -> None:
    for params in ({}, {"blockSizeTokens": 8}, {"autoTune": False, "blockSize": 32}):
        assert make(table, **params).dump_state()["blockSizeTokens"] == 64
    assert make(table, blockSizeTokens=100).dump_state()["blockSizeTokens"] == 100


def test_the_deprecated_block_size_warns(table: EndpointTable, caplog: pytest.LogCaptureFixture) -> None:
    assert make(table, blockSize=128).dump_state()["blockSizeTokens"] == 128
    assert "blockSizeTokens: 128" in caplog.text


def test_the_block_size_is_that_of_most_endpoints(table: EndpointTable) -> None:
    producer = make(table)
    sizes = table.columns["block_size"]
    sizes[:3] = [128, 256, np.nan]
    look(producer, request(text("a")), now=0.0)
    assert producer.dump_state()["blockSizeTokens"] == 128  # a tie: the smaller
    sizes[:3] = [128, 256, 256]
    look(producer, request(text("a")), now=0.5)
    assert producer.dump_state()["blockSizeTokens"] == 128  # looked at once a second
    look(producer, request(text("a")), now=1.0)
    assert producer.dump_state()["blockSizeTokens"] == 256
    sizes[:3] = np.nan
    look(producer, request(text("a")), now=2.0)
    assert producer.dump_state()["blockSizeTokens"] == 64


def test_without_tuning_the_servers_are_not_asked(table: EndpointTable) -> None:
    producer = make(table, autoTune=False, blockSizeTokens=80, lruCapacityPerServer=2)
    table.columns["block_size"][:3] = 128
    table.columns["num_blocks"][:3] = 1000
    sent(producer, request(bytes(80 * 4 * 5)), 0)
    assert producer.dump_state()["blockSizeTokens"] == 80
    assert producer.dump_state()["endpoints"]["default/pod-0"] == 2


@pytest.mark.parametrize(
    ("block_size", "num_blocks", "held"),
    [(16, 12, 3), (16, math.nan, 4), (math.nan, 12, 4), (16, math.inf, 4), (16, 2, 4)],
)
def test_the_capacity_is_that_of_the_server(
    table: EndpointTable, block_size: float, num_blocks: float, held: int
) -> None:
    producer = make(table, lruCapacityPerServer=4)
    table.columns["block_size"][0] = block_size
    table.columns["num_blocks"][0] = num_blocks
    sent(producer, request(text(*"abcdefgh")), 0)
    assert matched(producer, request(text(*"abcdefgh"))) == [held, 0, 0]


def test_a_capacity_of_zero_is_the_default(table: EndpointTable) -> None:
    producer = make(table, lruCapacityPerServer=0)
    sent(producer, request(text(*"abcdefgh")), 0)
    assert matched(producer, request(text(*"abcdefgh"))) == [8, 0, 0]


def test_a_new_endpoint_on_an_old_row_starts_empty(table: EndpointTable) -> None:
    producer = make(table)
    sent(producer, request(text("a")), 1)
    table.remove("10.0.0.1:8000")
    assert table.add(Endpoint("pod-9", "10.0.0.9", 8000)) == 1
    assert matched(producer, request(text("a"))) == [0, 0, 0]


def test_two_instances_do_not_disturb_each_other(table: EndpointTable) -> None:
    registry = Registry()
    gpu, cpu = make(table, "gpu", registry), make(table, "cpu", registry, blockSizeTokens=128)
    made = request(text("a", "a", "b"))
    endpoints = table.all(0.0)
    assert gpu.produce(made, endpoints) is None
    assert cpu.produce(made, endpoints) is None
    pick(gpu, made, endpoints, 0)
    pick(cpu, made, endpoints, 0)
    again = request(text("a", "a", "c"))
    endpoints = table.all(0.0)
    gpu.produce(again, endpoints)
    cpu.produce(again, endpoints)
    found = [prefix_match(again, endpoints, name) for name in ("gpu", "cpu")]
    assert [match and (match.blocks[0], match.total_blocks) for match in found] == [(2, 3), (1, 1)]


def test_metrics(table: EndpointTable) -> None:
    registry = Registry()
    producer = make(table, metrics=registry)
    sent(producer, request(text("a", "b")), 0)
    sent(producer, request(text("a", "b", "c", "d")), 0)
    labels = ("plugin_name", "plugin_type")
    ratio = registry.histogram("prefix_indexer_hit_ratio", "", [n / 10 for n in range(11)], labels).labels(NAME, NAME)
    hit = registry.histogram("prefix_indexer_hit_bytes", "", [0, *(16 << n for n in range(13))], labels).labels(
        NAME, NAME
    )
    assert (ratio.count, ratio.sum) == (2, 0.5)
    assert (hit.count, hit.sum) == (2, 2 * 64 * 4)
    assert registry.gauge("prefix_indexer_size", "", labels).labels(NAME, NAME).value == 4
    assert registry.gauge("prefix_indexer_bytes", "", labels).labels(NAME, NAME).value > 0


def test_the_state_shows_the_largest_endpoints() -> None:
    table = EndpointTable()
    for number in range(150):
        table.add(Endpoint(f"pod-{number}", f"10.0.0.{number}", 8000))
    producer = make(table)
    row = table.row_of("10.0.0.140:8000")
    assert row is not None
    sent(producer, request(text("a", "b")), row)
    state = producer.dump_state()
    assert len(state["endpoints"]) == 100
    assert next(iter(state["endpoints"].items())) == ("default/pod-140", 2)
    assert state["endpointsTotal"] == 150
    assert msgspec.json.encode(state)
