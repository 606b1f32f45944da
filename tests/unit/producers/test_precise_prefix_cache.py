"""`precise-prefix-cache-producer`: from events to matches, what it predicts, how it starts and how it is configured."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import zmq

from epp.api import (
    LORA,
    PREFIX_CACHE_MATCH,
    TOKENIZED_PROMPT,
    ConfigError,
    DataKey,
    Endpoint,
    Endpoints,
    EndpointTable,
    InferenceRequest,
    InferenceResponse,
    LoraInfo,
    Payload,
    Prompt,
    Usage,
    prefix_match,
)
from epp.kvevents.events import BlockRemoved, BlockStored
from epp.telemetry.admin import bounded
from epp.telemetry.metrics import Registry
from epp.testing import ManualClock, plugin
from epp.testing.assembly import assemble
from epp_plugins.producers.precise_prefix_cache import PrecisePrefixCacheProducer
from epp_plugins.producers.precise_prefix_cache_check import Prediction
from epp_plugins.producers.precise_prefix_cache_params import size_in_bytes
from epp_plugins.producers.precise_prefix_cache_pool import Names
from epp_plugins.producers.precise_prefix_cache_selector import parse_selector
from epp_plugins.scorers.precise_prefix_cache import PrecisePrefixCacheScorer
from tests.picks import picked

NAME = "precise-prefix-cache-producer"
LABELS = {"llm-d.ai/inference-serving": "true"}


def make(table: EndpointTable, **params: Any) -> PrecisePrefixCacheProducer:
    return plugin(PrecisePrefixCacheProducer, params, name=NAME, table=table)


def ids(blocks: int, seed: int = 0, size: int = 16) -> bytes:
    return np.random.default_rng(seed).integers(0, 90_000, blocks * size, dtype=np.uint32).tobytes()


def ask(*prompts: bytes, model: str = "m", estimated: bool = False) -> InferenceRequest:
    made = InferenceRequest("r1", {}, "/", b"", Payload(), 0.0, target_model=model)
    if prompts:
        made.prompt = Prompt(prompts, estimated=estimated)
    return made


def look(producer: PrecisePrefixCacheProducer, made: InferenceRequest) -> Endpoints:
    endpoints = producer.context.table.all(0.0)
    assert producer.produce(made, endpoints) is None
    return endpoints


def matched(producer: PrecisePrefixCacheProducer, made: InferenceRequest) -> list[float]:
    match = prefix_match(made, look(producer, made), producer.name)
    assert match is not None
    return match.cached_blocks.tolist()


def store(
    producer: PrecisePrefixCacheProducer, endpoint: str, data: bytes, first: int = 1, size: int = 16, **more: Any
) -> None:
    count = len(data) // (4 * size)
    producer.index.apply(endpoint, [BlockStored(range(first, first + count), None, data, size, **more)])


def pod(number: int) -> str:
    return f"10.0.0.{number}:8000"


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event to wait on
            await asyncio.sleep(0.01)


def test_the_match_is_what_the_servers_hold(table: EndpointTable) -> None:
    producer = make(table)
    data = ids(4)
    store(producer, pod(1), data[:192])
    store(producer, pod(2), data, medium="cpu")
    made = ask(data + ids(1, 1) + b"abcd")
    match = prefix_match(made, look(producer, made), NAME)
    assert match is not None
    assert match.cached_blocks.tolist() == [0, 3, 4]
    assert match.blocks.tolist() == pytest.approx([0, 3, 3.2])
    assert (match.total_blocks, match.block_size_tokens) == (5, 16)
    table.remove(pod(1))
    table.add(Endpoint("new", "10.0.0.1", 8000))
    assert matched(producer, ask(data)) == [0, 0, 4]


@pytest.mark.parametrize(("ours", "engine", "blocks"), [(64, 16, 1), (16, 64, 8), (48, 32, 2), (16, 16, 7)])
def test_block_sizes_may_differ(table: EndpointTable, ours: int, engine: int, blocks: int) -> None:
    producer = make(table, tokenProcessorConfig={"blockSizeTokens": ours})
    tokens = ids(1, 0, 128)
    whole = 7 * 16 // engine if engine <= 32 else 2
    store(producer, pod(0), tokens[: whole * engine * 4], size=engine)
    assert matched(producer, ask(tokens))[0] == blocks


@pytest.mark.parametrize(("engine", "left"), [("vllm", 4), ("sglang", 2)])
def test_copies_are_of_vllm(table: EndpointTable, engine: str, left: int) -> None:
    producer = make(table, kvEventsConfig={"engineType": engine})
    data = ids(4)
    copy = BlockStored([3], 2, data[2 * 64 : 3 * 64], 16)
    store(producer, pod(1), data)
    producer.index.apply(pod(1), [copy, BlockRemoved([3])])
    assert matched(producer, ask(data)) == [0, left, 0]


def test_several_prompts_count_together(table: EndpointTable) -> None:
    producer = make(table)
    store(producer, pod(0), ids(2), 1)
    store(producer, pod(0), ids(3, 1), 10)
    assert matched(producer, ask(ids(2), ids(3, 1), ids(1, 7)))[0] == 5


def test_adapters_are_known_from_events_and_from_the_servers(table: EndpointTable) -> None:
    producer = make(table)
    store(producer, pod(0), ids(3))
    assert matched(producer, ask(ids(3), model="any name of the base model"))[0] == 3
    store(producer, pod(0), ids(2), 100, lora_name="tuned")
    assert matched(producer, ask(ids(3), model="tuned"))[0] == 2
    table.attributes[0][LORA] = LoraInfo(frozenset({"fresh"}))
    producer._report()
    assert matched(producer, ask(ids(3), model="fresh"))[0] == 0


def test_nothing_to_say(table: EndpointTable, caplog: pytest.LogCaptureFixture) -> None:
    producer = make(table)
    for made in (ask(), ask(ids(2), estimated=True), ask(b"\1\0\0\0")):
        assert prefix_match(made, look(producer, made), NAME) is None
    assert sum("estimated token ids" in record.message for record in caplog.records) == 1


async def test_very_long_prompts_are_hashed_beside_the_loop(table: EndpointTable) -> None:
    producer = make(table)
    data = ids(9000)
    store(producer, pod(2), data)
    made = ask(data)
    endpoints = table.all(0.0)
    waiting = producer.produce(made, endpoints)
    assert waiting is not None
    await waiting
    match = prefix_match(made, endpoints, NAME)
    assert match is not None
    assert match.blocks.tolist() == [0, 0, 9000]


def test_a_pick_is_believed_for_a_while(table: EndpointTable) -> None:
    clock = ManualClock()
    params = {"speculativeIndexing": True, "speculativeTTL": "3s"}
    producer = plugin(PrecisePrefixCacheProducer, params, name=NAME, table=table, clock=clock)
    made = ask(ids(4))
    producer.on_picked(made, picked(table, look(producer, made), decode=1, prefill=2))
    assert matched(producer, ask(ids(4))) == [0, 4, 4]
    producer.index.expire(clock() + 2.9)
    assert matched(producer, ask(ids(4))) == [0, 4, 4]
    producer.index.expire(clock() + 3.0)
    assert matched(producer, ask(ids(4))) == [0, 0, 0]


def test_the_latest_comparisons_are_all_shown(table: EndpointTable) -> None:
    producer = make(table)
    for number in range(300):
        producer.check.compare(Prediction(str(number), 0.0, "m", pod(1), 16, 16, 99), 16)
    recent = bounded(producer.dump_state())["selfCheck"]["recent"]
    assert [entry["request"] for entry in recent] == [str(number) for number in range(200, 300)]


async def test_picks_end_at_whatever_rate_they_came(table: EndpointTable) -> None:
    clock = ManualClock()
    producer = plugin(PrecisePrefixCacheProducer, {"speculativeIndexing": True}, name=NAME, table=table, clock=clock)
    for seed in range(200):
        producer.index.speculate(pod(1), producer.index.hasher.digests(ids(1, seed), 16), clock() + 2.0)
    clock.advance(2.0)
    await producer._upkeep._turn(0.0, dict.fromkeys(("report", "log", "save"), clock()))
    assert len(producer.index.speculation) == 0


def test_a_prediction_in_larger_blocks_than_the_servers_is_not_wrong(
    table: EndpointTable, caplog: pytest.LogCaptureFixture
) -> None:
    parameters = {"tokenProcessorConfig": {"blockSizeTokens": 64}}
    producer = plugin(PrecisePrefixCacheProducer, parameters, name=NAME, table=table)
    store(producer, pod(1), ids(7))  # 112 tokens: one whole block of 64 is predicted, all 7 blocks of 16 are used
    for _ in range(64):
        made = ask(ids(8))
        producer.on_picked(made, picked(table, look(producer, made), decode=1))
        producer.on_response_end(made, InferenceResponse(200, usage=Usage(cached_tokens=112), served=pod(1)))
    assert (producer.check.recent[-1].predicted, producer.check.recent[-1].actual) == (64, 112)
    assert producer.check.dump()["wrongOfLast"] == [0, 64]
    assert "predicted wrongly" not in caplog.text


def test_predictions_are_compared_with_what_servers_report(
    table: EndpointTable, caplog: pytest.LogCaptureFixture
) -> None:
    metrics = Registry()
    producer = plugin(PrecisePrefixCacheProducer, {}, name=NAME, table=table, metrics=metrics)
    store(producer, pod(1), ids(4))
    for actual in (48, *[0] * 70):
        made = ask(ids(4))  # all of it is cached, but the last token must be computed: 3 blocks
        producer.on_picked(made, picked(table, look(producer, made), decode=1))
        producer.on_response_end(made, InferenceResponse(200, usage=Usage(cached_tokens=actual), served=pod(1)))
    recent = producer.check.recent
    assert (recent[0].predicted, recent[0].actual, recent[0].endpoint, recent[0].total) == (48, 48, pod(1), 64)
    assert (recent[1].predicted, recent[1].actual) == (48, 0)
    assert (producer.check.compared, producer.check.exact) == (71, 1)
    assert sum("predicted wrongly" in record.message for record in caplog.records) == 1
    source = metrics.source("prefix_prediction_error_tokens")
    assert source is not None
    ((_, errors),) = source.children()
    assert (errors.count, errors.sum) == (71, 70 * 48)  # type: ignore[union-attr]
    for usage, served in ((Usage(), pod(1)), (Usage(cached_tokens=3), pod(2))):
        made = ask(ids(4))
        producer.on_picked(made, picked(table, look(producer, made), decode=1))
        producer.on_response_end(made, InferenceResponse(200, usage=usage, served=served))
    assert producer.check.compared == 71
    made = ask(ids(4))
    producer.on_picked(made, picked(table, look(producer, made), decode=1))
    usage = Usage(prompt_tokens=64)  # vLLM leaves cached_tokens out when there was no hit; this server told before
    producer.on_response_end(made, InferenceResponse(200, usage=usage, served=pod(1)))
    assert (producer.check.compared, producer.check.recent[-1].actual) == (72, 0)
    made = ask(ids(4), model="m" * 10_000)
    made.id = "r" * 10_000
    producer.on_picked(made, picked(table, look(producer, made), decode=1))
    producer.on_response_end(made, InferenceResponse(200, usage=usage, served=pod(1)))
    assert len(producer.check.recent[-1].request) == len(producer.check.recent[-1].model) == 256
    table.remove(pod(1))
    assert producer.check.reported(pod(1), usage) is None
    state = msgspec.json.decode(msgspec.json.encode(producer.dump_state()))["selfCheck"]
    assert state == bounded(state)
    assert (state["compared"], state["exact"], state["wrongOfLast"]) == (73, 1, [64, 64])
    assert len(state["recent"]) == 73
    first = state["recent"][0]
    assert abs(first.pop("time") - time.time()) < 600
    assert first == {
        "request": "r1", "model": "m", "endpoint": pod(1), "predicted": 48, "actual": 48, "total": 64, "error": 0
    }  # fmt: skip


class Server:
    """A publisher of KV events as vLLM is one: PUB, and ROUTER for replays."""

    def __init__(self, context: zmq.Context[Any]) -> None:
        self.events, self.replay = context.socket(zmq.PUB), context.socket(zmq.ROUTER)
        self.port = self.events.bind_to_random_port("tcp://127.0.0.1")
        self.replay_port = self.replay.bind_to_random_port("tcp://127.0.0.1")
        self.sent: list[bytes] = []

    def publish(self, *events: dict[str, Any]) -> None:
        payload = msgspec.msgpack.encode([0.0, list(events), 0])
        self.events.send_multipart([b"kv@pod@m", len(self.sent).to_bytes(8, "big"), payload])
        self.sent.append(payload)

    def answer(self) -> None:
        """One request for a replay, if there is one."""
        if self.replay.poll(0):
            who, _, start = self.replay.recv_multipart()
            for seq in range(int.from_bytes(start, "big"), len(self.sent)):
                self.replay.send_multipart([who, b"", b"kv@pod@m", seq.to_bytes(8, "big"), self.sent[seq]])
            self.replay.send_multipart([who, b"", b"", b"\xff" * 8, b""])


def stored(data: bytes) -> dict[str, Any]:
    count = len(data) // 64
    return {
        "type": "BlockStored",
        "block_hashes": list(range(1, count + 1)),
        "parent_block_hash": None,
        "token_ids": np.frombuffer(data, dtype="<u4").tolist(),
        "block_size": 16,
    }


@pytest.fixture
def server() -> Any:
    context: zmq.Context[Any] = zmq.Context()
    yield Server(context)
    context.destroy(linger=0)


def following(server: Server, **more: Any) -> dict[str, Any]:
    discovery = {"socketPort": server.port, "replaySocketPort": server.replay_port}
    return {"kvEventsConfig": {"podDiscoveryConfig": discovery}, **more}


async def test_a_warm_start_waits_for_the_replay(server: Server) -> None:
    server.publish(stored(ids(5)))
    table = EndpointTable()
    table.add(Endpoint("known", "127.0.0.1", 8000, labels=LABELS))
    table.add(Endpoint("not selected", "127.0.0.2", 8000))
    producer = make(table, **following(server))
    assert not producer.ready()
    await producer.start()
    try:
        assert not producer.ready()

        def warm() -> bool:
            server.answer()
            return producer.ready()

        await until(warm)
        assert matched(producer, ask(ids(5))) == [5, 0]
        server.publish({"type": "BlockRemoved", "block_hashes": [4]})
        await until(lambda: matched(producer, ask(ids(5))) == [3, 0])
        state = producer.dump_state()
        assert state["warmStart"] == {"publishers": 1, "synced": 1, "ready": True}
        assert state["publishers"][0]["endpoint"] == "127.0.0.1:8000"
        table.remove("127.0.0.1:8000")
        assert producer.receiver.progress().total == 0
    finally:
        await producer.stop()


async def test_readiness_does_not_wait_for_ever(server: Server) -> None:
    clock = ManualClock()
    table = EndpointTable()
    table.add(Endpoint("silent", "127.0.0.1", 8000, labels=LABELS))
    params = following(server, warmStartLimit="7s")
    producer = plugin(PrecisePrefixCacheProducer, params, name=NAME, table=table, clock=clock)
    await producer.start()
    try:
        assert not producer.ready()
        clock.advance(7.0)
        assert producer.ready()
    finally:
        await producer.stop()


async def test_publishers_that_connect_to_us() -> None:
    table = EndpointTable()
    table.add(Endpoint("a", "10.0.0.9", 8000, labels=LABELS, pod="pod"))
    producer = make(table, kvEventsConfig={"zmqEndpoint": "tcp://127.0.0.1:*"})
    context: zmq.Context[Any] = zmq.Context()
    await producer.start()
    try:
        publisher = Server(context)
        assert producer.receiver._bound is not None
        publisher.events.connect(producer.receiver._bound.address)

        def arrived() -> bool:
            publisher.publish(stored(ids(2)))
            return matched(producer, ask(ids(2))) == [2]

        await until(arrived)
    finally:
        await producer.stop()
        context.destroy(linger=0)


def test_whose_a_topic_is() -> None:
    table = EndpointTable()
    names = Names(table).endpoint
    assert names("10.0.0.9:8000", 0) is None
    for rank in range(2):
        port = 8000 + rank
        table.add(Endpoint(f"pod-rank-{rank}", "10.0.0.9", port, pod="pod", rank=rank))
    table.add(Endpoint("other", "127.0.0.1", 8000))
    table.add(Endpoint("third", "127.0.0.1", 8001))
    for name in ("10.0.0.9", "pod", "10.0.0.9:8000"):
        assert [names(name, rank) for rank in range(3)] == ["10.0.0.9:8000", "10.0.0.9:8001", "10.0.0.9:8000"]
    assert names("10.0.0.9:8001", 1) == names("10.0.0.9:8001", 2) == "10.0.0.9:8001"
    assert [names("127.0.0.1:8001", rank) for rank in range(2)] == ["127.0.0.1:8001"] * 2
    assert names("stranger", 0) is None
    table.remove("10.0.0.9:8001")
    assert names("pod", 1) == "10.0.0.9:8000"


async def test_readiness_waits_for_endpoints_that_are_found_after_the_start(server: Server) -> None:
    clock, table = ManualClock(), EndpointTable()
    producer = plugin(PrecisePrefixCacheProducer, following(server), name=NAME, table=table, clock=clock)
    await producer.start()
    try:
        assert producer.ready()  # nobody to wait for
        table.add(Endpoint("found", "127.0.0.1", 8000, labels=LABELS))
        assert not producer.ready()
        clock.advance(30.0)
        assert producer.ready()
    finally:
        await producer.stop()


async def test_endpoints_without_the_labels_are_said(table: EndpointTable, caplog: pytest.LogCaptureFixture) -> None:
    clock = ManualClock()
    params = {"kvEventsConfig": {"podDiscoveryConfig": {"podLabelSelector": "role=decode"}}}
    producer = plugin(PrecisePrefixCacheProducer, params, name=NAME, table=table, clock=clock)
    for _ in range(20):
        producer._report()
        clock.advance(1.0)
    said = [record.message for record in caplog.records if "none of the endpoints is followed" in record.message]
    assert len(said) == 1
    assert "'role=decode'" in said[0]
    table.add(Endpoint("decoder", "10.0.0.8", 8000, labels={"role": "decode"}))
    clock.advance(1000.0)
    producer._report()
    assert len([record for record in caplog.records if "none of the endpoints" in record.message]) == 1


async def test_what_publishers_send_wrongly_is_counted(server: Server) -> None:
    metrics, table = Registry(), EndpointTable()
    table.add(Endpoint("known", "127.0.0.1", 8000, labels=LABELS))
    producer = plugin(PrecisePrefixCacheProducer, following(server), name=NAME, table=table, metrics=metrics)

    def counted(name: str) -> dict[Any, float]:
        source = metrics.source(name)
        assert source is not None
        return {values[-2:]: child.value for values, child in source.children()}  # type: ignore[union-attr]

    window = {**stored(ids(2)), "group_idx": 1, "kv_cache_spec_kind": "sliding_window"}
    await producer.start()
    try:
        server.publish(window)
        server.publish({"type": "BlockRemoved", "block_hashes": [1], "group_idx": 1})
        server.publish({"type": "BlockStored", "block_hashes": [1]}, {"type": "Nonsense"})

        def read() -> bool:
            server.answer()
            return bool(producer.receiver.stats().decode.errors.get("event"))

        await until(read)
        producer._report()
        assert counted("kv_cache_events_stores_skipped_total") == {("sliding_window", "unsupported_cache_kind"): 1}
        assert counted("kv_cache_events_removals_skipped_total") == {("sliding_window", "unsupported_cache_kind"): 1}
        assert counted("kv_event_errors_total")["precise-prefix-cache-producer", "event"] >= 1
        (publisher,) = producer.dump_state()["publishers"]
        assert publisher["errors"]["event"] >= 1
        assert publisher["skipped"]["BlockStored sliding_window unsupported_cache_kind"] == 1
    finally:
        await producer.stop()


async def test_a_snapshot_survives_and_what_is_not_confirmed_goes(table: EndpointTable, tmp_path: Path) -> None:
    file = str(tmp_path / "index")
    first = make(table, snapshotFile=file)
    await first.start()
    store(first, pod(1), ids(5), medium="gpu")
    store(first, pod(2), ids(5), medium="cpu")
    store(first, pod(2), ids(3, 1), 100, lora_name="tuned")
    store(first, "10.9.9.9:8000", ids(3, 2), 200)
    await first.stop()
    clock = ManualClock()
    params = {"snapshotFile": file, "snapshotTrust": "10s"}
    second = plugin(PrecisePrefixCacheProducer, params, name=NAME, table=table, clock=clock)
    await second.start()
    try:
        made = ask(ids(5))
        match = prefix_match(made, look(second, made), NAME)
        assert match is not None
        assert match.cached_blocks.tolist() == [0, 5, 5]
        assert match.blocks.tolist() == pytest.approx([0, 5, 4])
        assert matched(second, ask(ids(3, 1), model="tuned")) == [0, 0, 3]
        store(second, pod(1), ids(2))  # confirmed
        clock.advance(10.0)
        await until(lambda: not second.index.restored)
        assert matched(second, ask(ids(5))) == [0, 2, 0]
        await until(lambda: second.index.blocks.count == 2)
        assert "10.9.9.9:8000" not in second.index.lanes.endpoints()
    finally:
        await second.stop()


@pytest.mark.parametrize(
    "content", [b"", b"no snapshot", b"EPPIDX1\n" + b"\xff" * 8, b"EPPIDX1\n" + b"\1" + b"\0" * 7 + b"x"]
)
async def test_a_damaged_snapshot_is_said_and_left_alone(
    table: EndpointTable, tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "index"
    file.write_bytes(content)
    producer = make(table, snapshotFile=str(file))
    await producer.start()
    await producer.stop()
    assert "is not used" in caplog.text


async def test_a_snapshot_cut_short_or_of_another_seed(
    table: EndpointTable, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "index"
    first = make(table, snapshotFile=str(file))
    await first.start()
    store(first, pod(1), ids(5))
    await first.stop()
    whole = file.read_bytes()
    file.write_bytes(whole[:-20])
    second = make(table, snapshotFile=str(file))
    await second._upkeep.load()
    assert "too early" in caplog.text
    file.write_bytes(whole)
    third = make(table, snapshotFile=str(file), tokenProcessorConfig={"hashSeed": "other"})
    await third._upkeep.load()
    assert "hashSeed" in caplog.text
    assert third.index.blocks.count == 0
    fourth = make(table, snapshotFile=str(tmp_path / "no" / "such" / "folder"))
    await fourth._upkeep._save()
    assert "cannot write" in caplog.text


async def test_metrics_and_their_log(table: EndpointTable, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    clock, metrics = ManualClock(), Registry()
    config = {"enableMetrics": True, "metricsLoggingInterval": "5s"}
    params = {"indexerConfig": {"kvBlockIndexConfig": config}}
    producer = plugin(PrecisePrefixCacheProducer, params, name=NAME, table=table, clock=clock, metrics=metrics)
    await producer.start()
    try:
        store(producer, pod(1), ids(5))
        clock.advance(6.0)
        await until(lambda: "'stored': 5" in caplog.text)
        source = metrics.source("prefix_index_stored_total")
        assert source is not None
        assert [child.value for _, child in source.children()] == [5]  # type: ignore[union-attr]
        assert matched(producer, ask(ids(5)))[1] == 5
        assert matched(producer, ask(ids(4, 9))) == [0, 0, 0]
        producer.index.apply(pod(1), [BlockRemoved([5])])
        clock.advance(6.0)

        def told(name: str) -> float:
            family = metrics.source(f"kv_cache_index_{name}_total")
            assert family is not None
            (only,) = [child.value for _, child in family.children()]  # type: ignore[union-attr]
            return float(only)

        await until(lambda: told("evictions") == 1)
        assert (told("admissions"), told("lookup_requests")) == (5, 2)
        assert (told("lookup_hits"), told("max_pod_hit_count")) == (5, 5)
        latency = metrics.source("kv_cache_index_lookup_latency_seconds")
        assert latency is not None
        assert [child.count for _, child in latency.children()] == [2]  # type: ignore[union-attr]
    finally:
        await producer.stop()


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"indexerConfig": {"kvBlockIndexConfig": {"redisConfig": {"address": "http://x"}}}}, "write host:port"),
        ({"indexerConfig": {"kvBlockIndexConfig": {"redisConfig": {"address": "x:0"}}}}, "port must be a number"),
        ({"indexerConfig": {"kvBlockIndexConfig": {"redisConfig": {"address": "x:y"}}}}, "port must be a number"),
        ({"indexerConfig": {"kvBlockIndexConfig": {"redisConfig": {"address": "redis://x?ssl=1"}}}}, "option ssl"),
        ({"indexerConfig": {"kvBlockIndexConfig": {"redisConfig": {"lookupBudget": 0}}}}, "lookupBudget"),
        ({"indexerConfig": {"kvBlockIndexConfig": {"redisConfig": {"ttl": "1ms"}}}}, "at least 1s"),
        ({"indexerConfig": {"kvBlockIndexConfig": {"redisConfig": {}, "valkeyConfig": {}}}}, "keep one"),
        ({"indexerConfig": {"kvBlockIndexConfig": {"redisConfig": {"passwordFile": "/gone/away"}}}}, "/gone/away"),
        (
            {"indexerConfig": {"kvBlockIndexConfig": {"redisConfig": {"password": "a", "passwordFile": "b"}}}},
            "exclude each other",
        ),
        ({"indexerConfig": {"kvBlockIndexConfig": {"inMemoryConfig": {}, "costAwareMemoryConfig": {}}}}, "exclude"),
        ({"indexerConfig": {"kvBlockIndexConfig": {"costAwareMemoryConfig": {"size": "much"}}}}, "no size"),
        ({"indexerConfig": {"kvBlockIndexConfig": {"costAwareMemoryConfig": {"size": "5kB"}}}}, "at least 1MiB"),
        ({"kvEventsConfig": {"discoverPods": False}}, "no events could ever come"),
        ({"speculativeTTL": "soon"}, "no duration"),
        ({"tokenProcessorConfig": {"hashAlgorithm": "md5"}}, "hashAlgorithm"),
    ],
)
def test_parameters_that_are_refused(table: EndpointTable, params: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        make(table, **params)
    assert said in f"{error.value.path} {error.value}"


def test_bounds_weights_and_old_names(table: EndpointTable, caplog: pytest.LogCaptureFixture) -> None:
    index_config = {"costAwareMemoryConfig": {"size": "3MiB"}}
    producer = make(
        table,
        indexerConfig={
            "kvBlockIndexConfig": index_config,
            "kvCacheBackendConfigs": [{"name": "gpu", "weight": 1.0}, {"name": "storage", "weight": 0.25}],
            "tokenProcessorConfig": {"blockSize": 32},
            "tokenizersPoolConfig": {"modelName": "m"},
            "prefixStoreConfig": {},
        },
    )
    assert "indexerConfig.tokenizersPoolConfig and indexerConfig.prefixStoreConfig: without effect" in caplog.text
    assert producer.index.blocks.max_bytes == 3 << 20
    store(producer, pod(0), ids(4), medium="storage")
    made = ask(ids(4))
    match = prefix_match(made, look(producer, made), NAME)
    assert match is not None
    assert (match.blocks[0], match.cached_blocks[0], match.block_size_tokens) == (0.5, 2, 32)
    assert "blockSize is deprecated" in caplog.text
    sized = make(table, indexerConfig={"kvBlockIndexConfig": {"inMemoryConfig": {"size": 500, "podCacheSize": 3}}})
    assert sized.index.blocks.capacity == 500
    assert producer.consumes == (DataKey(TOKENIZED_PROMPT, "token-producer"),)
    assert producer.produces == (DataKey(PREFIX_CACHE_MATCH, NAME),)


@pytest.mark.parametrize(
    ("events", "topics"),
    [
        ({}, "kv@"),
        ({"engineType": "sglang"}, ""),
        ({"engineType": "sglang", "topicFilter": "kv@"}, "kv@"),
        ({"topicFilter": "mine"}, "mine"),
        ({"topicFilter": ""}, ""),
    ],
)
def test_topics_that_are_asked_for(table: EndpointTable, events: dict[str, Any], topics: str) -> None:
    producer = make(table, kvEventsConfig=events)
    assert producer.receiver.settings.topic_filter == topics


def test_sizes() -> None:
    assert [size_in_bytes(text) for text in ("2GiB", "2Gi", "500MB", "1.5KiB", 7)] == [
        2 << 30,
        2 << 30,
        500_000_000,
        1536,
        7,
    ]


def test_ranks_and_namespaces() -> None:
    table = EndpointTable()
    table.add(Endpoint("a", "fd00::1", 8000, "mine", LABELS, rank=3))
    table.add(Endpoint("b", "10.0.0.2", 8000, "other", LABELS))
    discovery = {"podNamespace": "mine", "socketPort": 5600, "replaySocketPort": 5700}
    producer = make(table, kvEventsConfig={"podDiscoveryConfig": discovery})
    (state,) = producer.receiver.states()
    assert (state.address, state.replay_address) == ("tcp://[fd00::1]:5603", "tcp://[fd00::1]:5703")


@pytest.mark.parametrize(
    ("text", "labels", "expected"),
    [
        ("", {}, True),
        ("a=1,b!=2", {"a": "1"}, True),
        ("a==1, b!=2", {"a": "1", "b": "2"}, False),
        ("a", {"a": ""}, True),
        ("!a", {"a": ""}, False),
        ("x/y in (1, 2),!z", {"x/y": "2"}, True),
        ("a notin (1,2)", {"a": "1"}, False),
        ("a notin (1,2)", {}, True),
    ],
)
def test_selectors(text: str, labels: dict[str, str], expected: bool) -> None:
    assert parse_selector(text)(labels) is expected


@pytest.mark.parametrize("text", ["=", "a b", "a in 1", "!a=1"])
def test_selectors_that_cannot_be_read(text: str) -> None:
    with pytest.raises(ValueError, match="podLabelSelector"):
        parse_selector(text)


CONSUMERS = """
plugins:
- type: precise-prefix-cache-producer
- type: prefix-cache-scorer
  parameters: {prefixMatchInfoProducerName: precise-prefix-cache-producer}
- type: no-hit-lru-scorer
  parameters: {prefixMatchInfoProducerName: precise-prefix-cache-producer}
- type: lmetric-scorer
  parameters: {prefixMatchInfoProducerName: precise-prefix-cache-producer}
- type: prefix-cache-affinity-filter
  parameters: {prefixMatchInfoProducerName: precise-prefix-cache-producer}
- type: inflight-load-producer
  parameters: {prefixMatchInfoProducerName: precise-prefix-cache-producer}
schedulingProfiles:
- name: default
  plugins:
  - pluginRef: prefix-cache-affinity-filter
  - {pluginRef: prefix-cache-scorer, weight: 2}
  - pluginRef: no-hit-lru-scorer
  - pluginRef: lmetric-scorer
"""


class TokensPayload(Payload):
    """A request that brought its token ids."""

    def __init__(self, ids: list[int]) -> None:
        super().__init__("completions", model="m")
        self.ids = ids

    def token_ids(self) -> tuple[list[int], ...]:
        return (self.ids,)


@pytest.mark.parametrize("config", [CONSUMERS, """
plugins:
- type: precise-prefix-cache-scorer
  parameters: {kvEventsConfig: {topicFilter: kv@}}
schedulingProfiles:
- name: default
  plugins: [pluginRef: precise-prefix-cache-scorer]
"""])  # fmt: skip
def test_every_consumer_reads_it(table: EndpointTable, config: str) -> None:
    built = assemble(config, table=table)
    name = "precise-prefix-cache-scorer" if config is not CONSUMERS else NAME
    producer = built[name]
    assert isinstance(producer, PrecisePrefixCacheProducer)
    assert isinstance(producer, PrecisePrefixCacheScorer) == (config is not CONSUMERS)
    store(producer, pod(2), ids(8))
    for _ in range(5):
        made = InferenceRequest(
            "r", {}, "/", b"", TokensPayload(np.frombuffer(ids(8), dtype="<u4").tolist()), 0.0, target_model="m"
        )
        result = built.schedule(made, table.all(0.0))
        assert result.target.picked[0].host_port == pod(2)
    cold = InferenceRequest("r", {}, "/", b"", Payload(), 0.0, target_model="m")
    built.schedule(cold, table.all(0.0))


async def test_a_failing_turn_does_not_end_the_upkeep(
    table: EndpointTable, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    clock, file = ManualClock(), tmp_path / "index"
    params = {"snapshotFile": str(file), "snapshotInterval": "1s"}
    producer = plugin(PrecisePrefixCacheProducer, params, name=NAME, table=table, clock=clock)
    monkeypatch.setattr("epp_plugins.producers.precise_prefix_cache.adapters", lambda table: {}["broken"])
    await producer.start()
    try:
        clock.advance(2.0)
        await until(lambda: "upkeep of the index failed" in caplog.text)
        await until(file.exists)  # the next turn
    finally:
        await producer.stop()
