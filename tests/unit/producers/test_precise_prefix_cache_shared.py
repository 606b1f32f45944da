"""`redisConfig`: producers that share what they learn over a real server, with TLS and a password, and without it."""

from __future__ import annotations

import asyncio
import base64
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from benchmarks.redis_server import RedisServer
from epp.api import ConfigError, Endpoints, EndpointTable, InferenceRequest, Payload, Prompt, prefix_match
from epp.kvevents.decoding import Decoder
from epp.kvevents.events import AllBlocksCleared, BlockRemoved, BlockStored, KVEvent
from epp.kvevents.settings import PublisherState
from epp.prefixcache.precise.index import PreciseIndex
from epp.telemetry.metrics import Registry
from epp.testing import plugin
from epp_plugins.producers.precise_prefix_cache import PrecisePrefixCacheProducer
from epp_plugins.producers.precise_prefix_cache_shared import Tee

NAME = "precise-prefix-cache-producer"
RIGHTS = [f"+{name}" for name in ["eval", "get", "mget", "set", "del", "sadd", "smembers", "expire", "scan", "select"]]
POD, OTHER = "10.0.0.1:8000", "10.0.0.2:8000"


def ids(blocks: int, seed: int = 0, size: int = 16) -> bytes:
    return np.random.default_rng(seed).integers(0, 90_000, blocks * size, dtype=np.uint32).tobytes()


def ask(*prompts: bytes) -> InferenceRequest:
    made = InferenceRequest("r1", {}, "/", b"", Payload(), 0.0, target_model="m")
    made.prompt = Prompt(prompts, estimated=False)
    return made


@asynccontextmanager
async def producer(
    table: EndpointTable, metrics: Registry | None = None, *, tokens: int = 16, name: str = "redisConfig", **redis: Any
) -> AsyncIterator[PrecisePrefixCacheProducer]:
    params = {
        "tokenProcessorConfig": {"blockSizeTokens": tokens},
        "indexerConfig": {"kvBlockIndexConfig": {name: {"lookupBudget": "5s", **redis}}},
        "kvEventsConfig": {"discoverPods": False},  # no publishers: events come through `learn`
    }
    made = plugin(PrecisePrefixCacheProducer, params, name=NAME, table=table, metrics=metrics, clock=time.monotonic)
    await made.start()
    try:
        yield made
    finally:
        await made.stop()


def learn(into: PrecisePrefixCacheProducer, endpoint: str, *events: KVEvent) -> None:
    into.receiver.sink.apply_many([(endpoint, events)])


def stored(data: bytes, first: int = 1, size: int = 16, **more: Any) -> BlockStored:
    return BlockStored(range(first, first + len(data) // (4 * size)), None, data, size, **more)


async def look(by: PrecisePrefixCacheProducer, made: InferenceRequest) -> Endpoints:
    endpoints = by.context.table.all(0.0)
    waiting = by.produce(made, endpoints)
    if waiting is not None:
        await waiting
    return endpoints


async def matched(by: PrecisePrefixCacheProducer, *prompts: bytes) -> list[float]:
    made = ask(*prompts)
    match = prefix_match(made, await look(by, made), NAME)
    assert match is not None
    return match.cached_blocks.tolist()


async def until(condition: Callable[[], bool | Awaitable[bool]], seconds: float = 30) -> None:
    async with asyncio.timeout(seconds):
        while True:
            met = condition()
            if met if isinstance(met, bool) else await met:
                return
            await asyncio.sleep(0.02)


async def finds(by: PrecisePrefixCacheProducer, expected: list[float], *prompts: bytes) -> None:
    async def found() -> bool:
        return await matched(by, *prompts) == expected

    await until(found)


def value(metrics: Registry, name: str, outcome: str = "") -> float:
    source = metrics.source(name)
    assert source is not None
    children = {labels[-1] if outcome else "": child.value for labels, child in source.children()}  # type: ignore[union-attr]
    return children[outcome]


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[RedisServer]:
    async with RedisServer(tmp_path) as running:
        yield running


async def test_one_learns_and_the_other_matches(table: EndpointTable, server: RedisServer) -> None:
    metrics = Registry()
    address = server.url
    async with (
        producer(table, address=address) as learns,
        producer(table, metrics, name="valkeyConfig", address=address, readOnly=True) as asks,
    ):
        learn(learns, POD, stored(ids(8)), stored(ids(3, 1), 50, medium="cpu"))
        learn(learns, "10.9.9.9:8000", stored(ids(8)))  # of another pool
        await finds(asks, [0, 8, 0], ids(8) + ids(2, 5))
        await finds(asks, [0, 11, 0], ids(8), ids(3, 1))  # two prompts of one request
        learn(asks, OTHER, stored(ids(9)))  # what both know counts once, what one knows is not lost
        assert await matched(asks, ids(9)) == [0, 8, 9]
        match = prefix_match(made := ask(ids(3, 1)), await look(asks, made), NAME)
        assert match is not None
        assert match.blocks.tolist() == pytest.approx([0, 2.4, 0])
        dumped = asks.dump_state()["shared"]
        assert dumped["address"] == f"127.0.0.1:{server.port}"
        assert (dumped["up"], dumped["written"]) == (True, 0)
        assert msgspec.json.encode(dumped)
        await until(lambda: value(metrics, "prefix_index_shared_up") == 1)
        await until(lambda: value(metrics, "prefix_index_shared_lookups_total", "hit") >= 4)
        source = metrics.source("prefix_index_shared_lookup_seconds")
        assert source is not None


async def test_a_picker_that_restarts_knows_what_it_had_told(table: EndpointTable, server: RedisServer) -> None:
    async with producer(table, address=server.url) as before:
        learn(before, POD, stored(ids(5)))
        await finds(before, [0, 5, 0], ids(5))
        await until(lambda: not len(before.shared.index.pending))  # type: ignore[union-attr]
    async with producer(table, address=server.url) as after:
        await finds(after, [0, 5, 0], ids(5))


@pytest.mark.parametrize(("ours", "engine", "blocks"), [(64, 16, 1), (16, 64, 8)])
async def test_engines_with_other_block_sizes(
    table: EndpointTable, server: RedisServer, ours: int, engine: int, blocks: int
) -> None:
    async with (
        producer(table, address=server.url, tokens=ours) as learns,
        producer(table, address=server.url, tokens=ours) as asks,
    ):
        tokens = ids(1, 0, 128)
        learn(learns, POD, stored(tokens[: 4 * engine * (7 if engine == 16 else 2)], size=engine))
        await finds(asks, [0, blocks, 0], tokens)


async def test_who_left_the_pool_leaves_the_shared_index(table: EndpointTable, server: RedisServer) -> None:
    other = EndpointTable()
    for row in table.rows.tolist():
        endpoint = table.endpoints[row]
        assert endpoint is not None
        other.add(endpoint)
    async with producer(table, address=server.url) as first, producer(other, address=server.url) as second:
        learn(first, POD, stored(ids(5)))
        learn(first, OTHER, stored(ids(4)))
        await finds(second, [0, 5, 4], ids(5))
        table.remove(POD)
        await finds(second, [0, 0, 4], ids(5))


async def test_endpoints_that_are_known_from_the_start_are_not_asked_about(
    table: EndpointTable, server: RedisServer
) -> None:
    def state(endpoint: str, **more: Any) -> PublisherState:
        return PublisherState(endpoint, 0, "tcp://x", None, **{"status": "live", "last_seq": 9, "messages": 10, **more})

    async with producer(table, address=server.url) as asks:
        shared = asks.shared
        assert shared is not None
        known = [state(f"10.0.0.{number}:8000") for number in range(3)]
        shared.refresh(known)
        endpoints = asks.context.table.all(0.0)
        assert asks.produce(ask(ids(5)), endpoints) is None
        for unsure in ({"messages": 9}, {"lost": 1}, {"status": "connecting"}, {"last_seq": None}, {"duplicates": 1}):
            shared.refresh([*known[:2], state(OTHER, **unsure)])
            waiting = asks.produce(ask(ids(5)), endpoints)
            assert waiting is not None, unsure
            await waiting
        for sure in ({"messages": 4, "replayed": 6}, {"messages": 1, "restarts": 1}):
            shared.refresh([*known[:2], state(OTHER, **sure)])
            assert asks.produce(ask(ids(5)), endpoints) is None
        shared.refresh(known[:2])
        learn(asks, OTHER, stored(ids(5)))
        assert asks.produce(ask(ids(5)), endpoints) is None  # all that is asked about holds the whole prompt


async def test_a_very_long_prompt(table: EndpointTable, server: RedisServer) -> None:
    async with (
        producer(table, address=server.url, lookupBlocks=9000) as learns,
        producer(table, address=server.url, lookupBlocks=9000) as asks,
    ):
        learn(learns, POD, stored(ids(9000)))
        await finds(asks, [0, 9000, 0], ids(9000))


async def test_without_the_server_the_local_index_stands(table: EndpointTable, server: RedisServer) -> None:
    metrics = Registry()
    async with producer(table, metrics, address=server.url, lookupBudget="50ms") as made:
        learn(made, POD, stored(ids(5)))
        await until(lambda: value(metrics, "prefix_index_shared_up") == 1)
        server.send(signal.SIGSTOP)
        assert await matched(made, ids(6)) == [0, 5, 0]
        await until(lambda: value(metrics, "prefix_index_shared_up") == 0)
        await server.kill()
        loop = asyncio.get_running_loop()
        began = loop.time()
        for _ in range(200):
            assert await matched(made, ids(6)) == [0, 5, 0]
        assert loop.time() - began < 200 * 0.05  # they are not even sent
        assert value(metrics, "prefix_index_shared_errors_total") >= 1
        learn(made, OTHER, stored(ids(6)))
        await server.start()
        await until(lambda: value(metrics, "prefix_index_shared_up") == 1)
        await until(lambda: value(metrics, "prefix_index_shared_writes_total", "written") == 11)
        assert value(metrics, "prefix_index_shared_writes_total", "dropped") == 0


def certificate(folder: Path) -> tuple[Path, Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "redis")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    files = folder / "cert.pem", folder / "key.pem", folder / "ca.pem"
    pem = made.public_bytes(serialization.Encoding.PEM)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    for file, data in zip(files, (pem, private, pem), strict=True):
        file.write_bytes(data)
    return files


async def test_tls_user_password_and_database(table: EndpointTable, tmp_path: Path) -> None:
    files = certificate(tmp_path)
    rules = ["--user", "picker", "on", ">se:cret/", "~epp:*", *RIGHTS, "--user", "default", "off"]
    async with RedisServer(tmp_path, certificate=files, flags=rules) as server:
        address = f"{server.url.replace('rediss', 'valkeys')}/5?ssl_ca_certs={files[2]}"
        secret = tmp_path / "password"
        secret.write_text("se:cret/\n")
        who = {"username": "picker", "passwordFile": str(secret)}
        escaped = address.replace("://", "://picker:se%3Acret%2F@")
        async with (
            producer(table, address=address, **who) as learns,
            producer(table, address=escaped) as asks,
            producer(table, address=address, db=6, **who) as elsewhere,
            producer(table, Registry(), address=server.url, **who) as distrusts,
            producer(table, address=address, username="picker", password="wrong") as wrong,
        ):
            learn(learns, POD, stored(ids(5)))
            await finds(asks, [0, 5, 0], ids(5))
            assert await matched(elsewhere, ids(5)) == [0, 0, 0]
            for refused in (distrusts, wrong):
                shared = refused.shared
                assert shared is not None
                await until(lambda shared=shared: shared.index.stats.errors > 0)  # type: ignore[misc]
                assert not shared.index.up
            assert "cret" not in str(asks.dump_state())


def test_without_redis_py_the_start_is_refused(table: EndpointTable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "redis.asyncio", None)
    with pytest.raises(ConfigError, match="pip install"):
        plugin(
            PrecisePrefixCacheProducer,
            {"indexerConfig": {"kvBlockIndexConfig": {"redisConfig": {}}}},
            name=NAME,
            table=table,
        )


class Shared:
    """A sink that writes down what it hears."""

    def __init__(self) -> None:
        self.heard: list[object] = []

    def apply_many(self, batches: object) -> None:
        self.heard.append(batches)

    def clear(self, endpoint: str) -> None:
        self.heard.append(endpoint)


def test_both_sinks_hear_everything() -> None:
    local, shared = PreciseIndex(1 << 22), Shared()
    tee = Tee(local, shared)
    tee.apply_many([(POD, [stored(ids(1))])])
    assert local.blocks.count == 1
    tee.clear(POD)
    assert local.lanes.get(POD) is None
    assert shared.heard == [[(POD, [stored(ids(1))])], POD]


def test_the_shared_index_is_told_only_of_the_removal_of_the_last_copy() -> None:
    local, shared = PreciseIndex(1 << 22), Shared()
    tee = Tee(local, shared)
    data = ids(3)
    copy = BlockStored([2], 1, data[64:128], 16)
    tee.apply_many([(POD, [stored(data), copy]), (OTHER, [stored(data)])])
    shared.heard.clear()
    both, cpu = BlockRemoved([2, 3]), BlockRemoved([2], "cpu")
    tee.apply_many([(POD, [both, cpu, AllBlocksCleared()]), (OTHER, [both])])
    assert shared.heard.pop() == [(POD, [both, cpu, AllBlocksCleared()]), (OTHER, [both])]  # all is gone at the end
    tee.apply_many([(POD, [stored(data), copy])])
    shared.heard.clear()
    tee.apply_many([(POD, [both, cpu]), ("10.0.0.9:1", [both])])
    assert shared.heard.pop() == [(POD, [BlockRemoved([3]), cpu]), ("10.0.0.9:1", [both])]
    tee.apply_many([(POD, [both])])
    assert shared.heard.pop() == [(POD, [both])]
    local.apply(POD, [stored(data, medium="cpu"), BlockStored([2], 1, data[64:128], 16, medium="cpu")])
    tee.apply_many([(POD, [cpu, BlockRemoved([2], "cpu", 1)])])
    assert shared.heard.pop() == [(POD, [BlockRemoved([], "cpu"), BlockRemoved([2], "cpu", 1)])]


async def test_copies_of_a_real_server_count_for_who_only_reads(table: EndpointTable, server: RedisServer) -> None:
    """vLLM 0.32 with 48 blocks of 32 tokens: what it reported as cached, and what the reader would have predicted."""
    path = Path(__file__).parents[2] / "data" / "prefixcache" / "copies.jsonl"
    requests = [msgspec.json.decode(line) for line in path.read_text().splitlines()]
    decoder, wrong = Decoder(), 0
    async with (
        producer(table, address=server.url, tokens=32) as learns,
        producer(table, address=server.url, tokens=32, readOnly=True) as asks,
    ):
        for request in requests:
            prompt = request["prompt"]
            data = np.array(prompt, dtype="<u4").tobytes()

            async def right(data: bytes = data, prompt: list[int] = prompt, cached: int = request["cached"]) -> bool:
                predicted = max(await matched(asks, data)) * 32  # only one server is told of
                return min(predicted, (len(prompt) - 1) // 32 * 32) == cached

            try:
                await until(right, 5)  # the events have to get there
            except TimeoutError:
                wrong += 1
            for payload in request["payloads"]:
                batch = decoder.decode(base64.b64decode(payload))
                assert batch is not None
                learn(learns, POD, *batch.events)
    assert len(requests) == 70
    assert wrong == 0
