"""Pickers over one real server: what one writes the others find, and nobody waits for a server that does not answer."""

from __future__ import annotations

import asyncio
import logging
import random
import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import numpy as np
import pytest

from benchmarks.redis_server import RedisServer
from epp.kvevents.events import AllBlocksCleared, BlockExtras, BlockRemoved, BlockStored
from epp.prefixcache.precise.hashing import BlockHasher, Keys
from epp.prefixcache.precise.prompts import prompt_keys
from epp.prefixcache.shared.index import CONNECTIONS, SharedIndex
from epp.prefixcache.shared.layout import CHUNK, prefix
from epp.prefixcache.shared.matching import Reach
from epp.prefixcache.shared.server import Server
from epp.prefixcache.shared.settings import SharedSettings

Connect = Callable[..., Awaitable[SharedIndex]]
Until = Callable[[Callable[[], bool]], Awaitable[None]]
HASHER = BlockHasher()
ONE, TWO = "10.0.0.1:8000", "10.0.0.2:8000"


def ids(blocks: int, seed: int = 0, size: int = 16) -> bytes:
    return np.random.default_rng(seed).integers(0, 90_000, blocks * size, dtype=np.uint32).tobytes()


def keys_of(data: bytes, size: int = 16, **more: Any) -> Keys:
    return prompt_keys(HASHER, data, size, **more)


def stored(data: bytes, first: int = 1, parent: int | None = None, size: int = 16, **more: Any) -> BlockStored:
    return BlockStored(range(first, first + len(data) // (4 * size)), parent, data, size, **more)


async def written(index: SharedIndex, until: Until) -> None:
    """Until all that it was told is there."""
    began = index.stats.errors

    def done() -> bool:
        assert index.stats.errors == began
        return index.settled

    await until(done)


async def reach(index: SharedIndex, data: bytes, size: int = 16, **more: Any) -> dict[str, int]:
    found = await index.lookup({size: [keys_of(data, size, **more)]})
    assert found is not None
    return {name: each.blocks for name, each in found[size][0].items()}


async def finds(index: SharedIndex, data: bytes, expected: dict[str, int], **more: Any) -> None:
    async with asyncio.timeout(30):
        while await reach(index, data, **more) != expected:  # noqa: ASYNC110 - there is no event for it
            await asyncio.sleep(0.02)


async def finds_again(index: SharedIndex, data: bytes) -> None:
    async with asyncio.timeout(30):
        while True:
            found = await index.lookup({16: [keys_of(data)]})
            if found is not None and found[16][0]:
                return
            await asyncio.sleep(0.05)


async def test_what_one_learns_the_other_finds(connect: Connect, until: Until) -> None:
    learns, asks = await connect(), await connect(weights={"cpu": 0.5})
    data = ids(300)
    learns.apply(ONE, [stored(data[: 64 * 200])])
    learns.apply(TWO, [stored(data[: 64 * 7], medium="cpu")])
    learns.apply(ONE, [stored(data[64 * 200 :], 201, parent=200)])
    await finds(asks, data, {ONE: 300, TWO: 7})
    found = await asks.lookup({16: [keys_of(data), keys_of(ids(5, 9)), keys_of(data[:640])]})
    assert found is not None
    assert found[16] == [
        {ONE: Reach(300, 300.0), TWO: Reach(7, 3.5)},
        {},
        {ONE: Reach(10, 10.0), TWO: Reach(7, 3.5)},
    ]
    assert asks.stats.lookups["hit"] >= 1
    await written(learns, until)
    assert learns.stats.written == 307


async def test_every_holder_in_its_best_tier(connect: Connect) -> None:
    learns = await connect(weights={"cpu": 0.5})
    data = ids(4)
    learns.apply(ONE, [stored(data, medium="cpu"), BlockStored((1, 2), None, b"", 16)])
    await finds(learns, data, {ONE: 4})
    async with asyncio.timeout(30):
        while (await learns.lookup({16: [keys_of(data)]})) != {16: [{ONE: Reach(4, 3.0)}]}:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_removals_find_their_blocks_whoever_wrote_them(connect: Connect, client: Any, until: Until) -> None:
    first, second = await connect(), await connect()
    data = ids(4)
    first.apply(ONE, [stored(data), stored(data, group=1)])
    first.apply(TWO, [stored(data)])
    await finds(second, data, {ONE: 4, TWO: 4})
    second.apply(ONE, [BlockRemoved((3, 4))])
    await written(second, until)
    assert await reach(second, data) == {ONE: 4, TWO: 4}  # the other cache group holds them still
    second.apply(ONE, [BlockRemoved((3, 4), group=1), BlockRemoved((99,))])
    await finds(second, data, {ONE: 2, TWO: 4})
    second.apply(TWO, [BlockRemoved((1, 2, 3, 4))])
    second.apply(ONE, [BlockRemoved((1, 2)), BlockRemoved((1, 2), group=1)])
    await finds(second, data, {})
    await written(second, until)
    assert client.keys("*") == [f"{prefix('')}sizes".encode()]  # nothing is left behind


async def test_parents_are_found_by_who_did_not_write_them(connect: Connect, until: Until) -> None:
    first, second = await connect(), await connect()
    data = ids(6)
    first.apply(ONE, [stored(data[: 64 * 3])])
    await finds(second, data, {ONE: 3})
    second.apply(ONE, [stored(data[64 * 3 :], 4, parent=3)])
    second.apply(ONE, [stored(ids(2, 5), 50, parent=77)])
    await finds(second, data, {ONE: 6})
    await written(second, until)  # the answer to a write comes after others can see it
    assert second.stats.orphans == 2


async def test_what_tells_equal_tokens_apart(connect: Connect, until: Until) -> None:
    index, other = await connect(), await connect(seed="other")
    data = ids(2)
    index.apply(ONE, [stored(data, lora_name="tuned")])
    index.apply(TWO, [stored(data, 10, extras=(BlockExtras(("picture",), "salt"), None))])
    index.apply(TWO, [BlockStored((20, 21), None, data, 16, extras=(None,))])
    index.apply(ONE, [stored(ids(2, 3, 32), 30, size=32)])
    await finds(index, data, {ONE: 2}, adapter="tuned")
    await finds(index, ids(2, 3, 32), {ONE: 2}, size=32)
    assert await reach(index, data) == {}
    assert await reach(index, data, cache_salt="salt") == {}
    await written(index, until)
    assert index.stats.malformed == 2
    await until(lambda: index.block_sizes == [16, 32])
    assert other.block_sizes == []  # another seed: nothing in common
    assert await reach(other, data, adapter="tuned") == {}


async def test_a_cleared_endpoint_is_gone_for_all(connect: Connect, until: Until) -> None:
    first, second = await connect(), await connect()
    data = ids(3 * CHUNK)
    first.apply(ONE, [stored(data)])
    first.apply("10.0.0.11:8000", [stored(data)])
    first.apply(TWO, [stored(data)])
    everybody = {ONE: 3 * CHUNK, "10.0.0.11:8000": 3 * CHUNK, TWO: 3 * CHUNK}
    await finds(second, data, everybody)
    second.clear(ONE)  # it has told nothing: what others wrote stays
    await written(second, until)
    assert await reach(second, data) == everybody
    first.apply(ONE, [AllBlocksCleared(), stored(data[:64])])
    await finds(second, data, {ONE: 1, "10.0.0.11:8000": 3 * CHUNK, TWO: 3 * CHUNK})
    second.remove(TWO)  # left the pool
    first.clear(ONE)
    await finds(second, data, {"10.0.0.11:8000": 3 * CHUNK})
    await until(lambda: first.stats.cleared == 3 * CHUNK + 1)


async def test_entries_expire(connect: Connect, client: Any, until: Until) -> None:
    index, forever = await connect(ttl=1), await connect(ttl=0)
    index.apply(ONE, [stored(ids(3)), BlockStored((1,), None, b"", 16, medium="cpu")])
    await finds(index, ids(3), {ONE: 3})
    assert all(0 < client.pttl(name) <= 1000 for name in client.keys("*"))
    await until(lambda: not client.keys("*"))
    forever.apply(ONE, [stored(ids(3))])
    await finds(index, ids(3), {ONE: 3})
    assert {client.pttl(name) for name in client.keys("*")} == {-1}


async def test_who_only_reads_writes_nothing(connect: Connect, client: Any, until: Until) -> None:
    index = await connect(read_only=True)
    index.apply(ONE, [stored(ids(3))])
    index.remove(ONE)
    assert not len(index.pending)
    assert client.keys("*") == []
    assert await reach(index, ids(3)) == {}
    assert index.stats.lookups == {"miss": 1}


async def test_a_server_that_stalls_costs_the_budget_and_soon_nothing(
    connect: Connect, server: RedisServer, until: Until
) -> None:
    index = await connect(budget=0.05)
    index.apply(ONE, [stored(ids(3))])
    await finds_again(index, ids(3))
    server.send(signal.SIGSTOP)
    counts = index.stats.lookups
    before = sum(counts.get(outcome, 0) for outcome in ("late", "failed", "down"))
    for _ in range(3):
        assert await index.lookup({16: [keys_of(ids(3))]}) is None
    assert sum(counts.get(outcome, 0) for outcome in ("late", "failed", "down")) == before + 3
    down = counts.get("down", 0)
    await index.lookup({16: [keys_of(ids(3))]})
    assert counts["down"] > down  # not even asked any more
    await until(lambda: not index.up)
    index.apply(ONE, [stored(ids(3, 8), 50)])
    server.send(signal.SIGCONT)
    await until(lambda: index.up)
    await finds_again(index, ids(3, 8))


async def test_a_server_that_dies_is_found_again_and_gets_what_waited(
    connect: Connect, server: RedisServer, until: Until, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    index = await connect(budget=0.2)
    await server.kill()
    index.apply(ONE, [stored(ids(3))])
    assert await index.lookup({16: [keys_of(ids(3))]}) is None
    await until(lambda: not index.up and index.stats.errors > 0)
    assert "the local one goes on alone" in caplog.text
    assert await index.lookup({16: [keys_of(ids(3))]}) is None
    assert index.stats.lookups["down"] >= 1
    assert not index.settled
    await server.start()
    await until(lambda: index.up)
    await finds_again(index, ids(3))
    await until(lambda: index.settled)
    assert caplog.text.count("cannot be reached") == 1  # once a minute


async def test_it_ends_though_the_client_loses_a_cancellation() -> None:
    """As redis-py does, now and then: `asyncio.timeout(0)` takes a cancellation that is on its way for its own."""
    asked = asyncio.Event()

    class Deaf(Server):
        async def members(self, name: str) -> set[bytes]:
            if not asked.is_set():
                asked.set()
                with suppress(asyncio.CancelledError):
                    await asyncio.sleep(60)
            return set()

    index = SharedIndex(
        Deaf("redis://127.0.0.1:1", connections=1, timeout=0.3),
        HASHER,
        SharedSettings(),
        clock=asyncio.get_running_loop().time,
        rng=random.Random(1),
        log=logging.getLogger("epp.shared"),
        name="test",
    )
    index.start()
    async with asyncio.timeout(30):
        await asked.wait()
        await index.stop()
    assert not index.up


async def test_no_more_lookups_at_a_time_than_connections(connect: Connect, server: RedisServer) -> None:
    index = await connect(budget=0.02)
    server.send(signal.SIGSTOP)
    asked = [asyncio.create_task(index.lookup({16: [keys_of(ids(3))]})) for _ in range(CONNECTIONS + 3)]
    assert await asyncio.gather(*asked) == [None] * (CONNECTIONS + 3)
    assert index.stats.lookups == {"late": CONNECTIONS, "busy": 3}


async def test_a_full_queue_drops_and_what_it_dropped_is_cleared(
    connect: Connect, server: RedisServer, until: Until
) -> None:
    index = await connect(most_pending_bytes=6000)
    index.apply(ONE, [stored(ids(3))])
    await finds(index, ids(3), {ONE: 3})
    server.send(signal.SIGSTOP)
    await until(lambda: not index.up)
    for number in range(100):
        index.apply(TWO, [stored(ids(3, 1 + number), 100 + 3 * number)])
    index.apply(ONE, [BlockRemoved(tuple(range(3, 60)))])
    assert index.pending.bytes <= 6000
    assert index.pending.dropped > 200
    assert index.pending.stale == {ONE}
    server.send(signal.SIGCONT)
    await until(lambda: index.up and not index.pending.stale)
    async with asyncio.timeout(30):
        while await index.lookup({16: [keys_of(ids(3))]}) != {16: [{}]}:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def test_a_server_without_memory_refuses_and_says_so(
    connect: Connect, client: Any, until: Until, caplog: pytest.LogCaptureFixture
) -> None:
    index = await connect()
    client.config_set("maxmemory", "1")
    index.apply(ONE, [stored(ids(3)), BlockRemoved((7,))])
    await until(lambda: index.stats.refused == 4)
    assert "cannot be used" in caplog.text
    assert index.up
    client.config_set("maxmemory", "0")
    await until(lambda: not index.pending.stale)
    index.apply(ONE, [stored(ids(3))])
    await finds(index, ids(3), {ONE: 3})


async def test_what_is_not_ours_is_left_alone(connect: Connect, client: Any) -> None:
    index = await connect()
    index.apply(ONE, [stored(ids(2))])
    await finds(index, ids(2), {ONE: 2})
    name = f"{prefix('')}b".encode() + keys_of(ids(2))[:1].tobytes()
    assert client.get(name) == b"\n10.0.0.1:8000|gpu|0\n"
    client.append(name, "nonsense\n")
    client.set("engine:17", "5")
    client.hset(f"{prefix('')}b12345678", "a hash", "")
    client.sadd(f"{prefix('')}sizes", "many", "0", str(1 << 20))
    assert await reach(index, ids(2)) == {ONE: 2}
    index.remove(ONE)
    await finds(index, ids(2), {})
    assert client.get(name) == b"\nnonsense\n"
    assert client.get("engine:17") == b"5"
