"""The prefix index that pickers share, on a real redis-server on loopback, beside the local one.

The index runs in this process, on one core; the server is a process of its own and shares the machine. A lookup in a
shared index is a round trip or two, so its latency depends on the network between: here it is loopback, which is the
least that it can cost. CPU is what the picker spends, client library included; the server's is given beside it.
"""

from __future__ import annotations

import asyncio
import logging
import random
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from statistics import median

import numpy as np

from benchmarks.bench import Bench, row
from benchmarks.figures import Outcome, Row, Table, bound, columns
from benchmarks.procfs import cpu_seconds, resident_bytes
from benchmarks.redis_server import RedisServer
from epp.kvevents.events import BlockStored
from epp.prefixcache.precise.hashing import Keys
from epp.prefixcache.precise.index import PreciseIndex
from epp.prefixcache.precise.prompts import prompt_keys
from epp.prefixcache.shared.index import CLIENT_TIMEOUT, CONNECTIONS, SharedIndex
from epp.prefixcache.shared.server import Server
from epp.prefixcache.shared.settings import SharedSettings

SUMMARY = "prefix index shared in Redis: lookup and ingestion beside the local index, and a server that stalls"
BLOCK_SIZE = 16
RUN = 16  # blocks per event
HOLDERS = [f"10.0.0.{number}:8000" for number in range(8)]
LENGTHS = (64, 512, 2048)
BUDGET = SharedSettings().budget
MOST_STALL_MS = 4 * BUDGET * 1e3
"""For a server that does not answer: the budget, and what the event loop adds on a busy core."""

LOOKUPS = columns(
    ("index", "index"),
    ("prompt", "prompt"),
    ("cpu", "picker CPU us", 1),
    ("p50", "p50 us", 1),
    ("p99", "p99 us", 1),
    ("server", "server CPU us", 1),
)
WRITES = columns(
    ("what", "what"),
    ("blocks", "blocks"),
    ("rate", "blocks/s"),
    ("cpu", "picker CPU us/block", 2),
    ("server", "server CPU us/block", 2),
    ("memory", "server bytes/block"),
)
COMMAND = "SharedIndex on redis-server, loopback"


@dataclass(slots=True)
class Stage:
    """Both indexes, with the same blocks in them, and the prompts that they were told."""

    local: PreciseIndex
    shared: SharedIndex
    server: RedisServer
    prompts: list[bytes]

    def keys(self, prompt: bytes, blocks: int) -> Keys:
        """Of the first blocks of a prompt."""
        return prompt_keys(self.local.hasher, prompt[: blocks * BLOCK_SIZE * 4], BLOCK_SIZE)

    @property
    def server_cpu(self) -> float:
        """Seconds so far."""
        assert self.server.process is not None
        return cpu_seconds(self.server.process.pid)


async def run(bench: Bench, outcome: Outcome) -> None:
    """Ask, fill, then stop the server in the middle."""
    lookups = Table(f"lookups, {len(HOLDERS)} holders of each block, keys given", LOOKUPS, [])
    writes = Table("ingestion, events of 16 blocks", WRITES, [])
    outcome.tables += [lookups, writes]
    folder = bench.subfolder()
    async with RedisServer(folder) as server, _stage(server) as stage:
        bench.say("storing prompts that are asked for")
        await _fill(stage, bench.pick(smoke=2, quick=20, full=20))
        await _lookups(bench, stage, lookups)
        bench.say("storing new blocks")
        await _ingest(bench, stage, writes)
        bench.say("a server that stalls")
        await _stall(stage, lookups, outcome)


@asynccontextmanager
async def _stage(server: RedisServer) -> AsyncIterator[Stage]:
    local = PreciseIndex(1 << 30)
    shared = SharedIndex(
        Server(server.url, connections=CONNECTIONS + 2, timeout=CLIENT_TIMEOUT),
        local.hasher,
        SharedSettings(budget=1.0, most_blocks=max(LENGTHS), most_pending_bytes=1 << 30),
        clock=time.monotonic,
        rng=random.Random(1),
        log=logging.getLogger("benchmarks.shared"),
        name="benchmark",
    )
    shared.start()
    try:
        await _until(lambda: shared.up)
        yield Stage(local, shared, server, [])
    finally:
        await shared.stop()


async def _fill(stage: Stage, prompts: int) -> None:
    rng = np.random.default_rng(1)
    for _ in range(prompts):
        events = list(_events(rng, max(LENGTHS)))
        for endpoint in HOLDERS:
            stage.local.apply(endpoint, events)
            stage.shared.apply(endpoint, events)
        stage.prompts.append(b"".join(event.token_ids for event in events))
    await _drained(stage.shared)


async def _lookups(bench: Bench, stage: Stage, table: Table) -> None:
    times = bench.pick(smoke=5, quick=400, full=2000)
    strangers = [np.random.default_rng(9).integers(0, 90_000, 2048 * BLOCK_SIZE, dtype=np.uint32).tobytes()]

    async def local(keys: Keys) -> None:
        stage.local.match(keys)

    async def shared(keys: Keys) -> None:
        if await stage.shared.lookup({BLOCK_SIZE: [keys]}) is None:
            raise RuntimeError("the shared index did not answer a lookup")

    cases: list[tuple[str, Callable[[Keys], Awaitable[None]], str, int, list[bytes]]] = []
    for blocks in LENGTHS:
        cases.append(("local", local, f"{blocks} blocks, known", blocks, stage.prompts))
        cases.append(("shared", shared, f"{blocks} blocks, known", blocks, stage.prompts))
    cases.append(("local", local, "2048 blocks, unknown", 2048, strangers))
    cases.append(("shared", shared, "2048 blocks, unknown", 2048, strangers))
    for name, call, what, blocks, prompts in cases:
        bench.say(f"{name}: {what}")
        keys = [stage.keys(prompt, blocks) for prompt in prompts]
        server = stage.server_cpu
        walls, cpu = await _timed(call, keys, times)
        spent = (stage.server_cpu - server) / times * 1e6
        table.rows.append(_row(name, what, walls, cpu, spent if name == "shared" else None))


async def _timed(call: Callable[[Keys], Awaitable[None]], keys: list[Keys], times: int) -> tuple[list[float], float]:
    """Wall times in microseconds, and CPU microseconds per call."""
    walls = []
    for each in keys[:3]:
        await call(each)
    cpu = time.process_time()
    for number in range(times):
        began = time.perf_counter()
        await call(keys[number % len(keys)])
        walls.append((time.perf_counter() - began) * 1e6)
    return walls, (time.process_time() - cpu) / times * 1e6


async def _ingest(bench: Bench, stage: Stage, table: Table) -> None:
    blocks = bench.pick(smoke=4096, quick=131_072, full=524_288)
    events = list(_events(np.random.default_rng(2), blocks))
    cases = (
        ("new blocks, local", stage.local, 1),
        ("new blocks", stage.shared, 1),
        ("held by others", stage.shared, 7),
    )
    first = 0
    for what, index, holders in cases:
        total = blocks * holders
        shared = index is stage.shared
        memory, wall, cpu, server = _memory(stage), time.perf_counter(), time.process_time(), stage.server_cpu
        for endpoint in HOLDERS[first : first + holders]:
            for begin in range(0, len(events), 64):
                index.apply(endpoint, events[begin : begin + 64])
                while len(stage.shared.pending) > 4096:  # noqa: ASYNC110 - there is no event for it
                    await asyncio.sleep(0.001)
        if shared:
            await _drained(stage.shared)
            first += holders
        table.rows.append(
            row(
                COMMAND,
                what=what,
                blocks=total,
                rate=total / (time.perf_counter() - wall),
                cpu=(time.process_time() - cpu) / total * 1e6,
                server=(stage.server_cpu - server) / total * 1e6 if shared else None,
                memory=(_memory(stage) - memory) / total if shared else None,
            )
        )


async def _stall(stage: Stage, table: Table, outcome: Outcome) -> None:
    """Lookups with the default budget while the server is stopped, then those after it was given up."""
    shared = stage.shared
    shared.settings = SharedSettings()
    keys = stage.keys(stage.prompts[0], 512)
    stage.server.send(signal.SIGSTOP)
    waits = []
    try:
        while not shared.stats.lookups.get("down"):
            began = time.perf_counter()
            if await shared.lookup({BLOCK_SIZE: [keys]}) is not None:
                raise RuntimeError("a stopped server has answered")
            waits.append((time.perf_counter() - began) * 1e6)
        waits.pop()
        table.rows.append(_row("shared", "512 blocks, server stalls", waits, float("nan"), None))

        async def call(keys: Keys) -> None:
            await shared.lookup({BLOCK_SIZE: [keys]})

        walls, cpu = await _timed(call, [keys], 50)
        table.rows.append(_row("shared", "512 blocks, given up", walls, cpu, None))
    finally:
        stage.server.send(signal.SIGCONT)
    outcome.verdicts.append(
        bound("wait for a shared index that stalls", median(waits) / 1e3, "ms", MOST_STALL_MS, COMMAND)
    )


def _row(name: str, what: str, walls: list[float], cpu: float, server: float | None) -> Row:
    p99 = float(np.percentile(walls, 99))
    return row(COMMAND, index=name, prompt=what, cpu=cpu, p50=median(walls), p99=p99, server=server)


def _events(rng: np.random.Generator, blocks: int) -> Iterator[BlockStored]:
    """One prompt in events of 16 blocks."""
    parent = None
    for _ in range(0, blocks, RUN):
        tokens = rng.integers(0, 150_000, RUN * BLOCK_SIZE, dtype=np.uint32).tobytes()
        hashes = rng.integers(1, 1 << 63, RUN, dtype=np.uint64).tolist()
        yield BlockStored(hashes, parent, tokens, BLOCK_SIZE)
        parent = hashes[-1]


def _memory(stage: Stage) -> int:
    assert stage.server.process is not None
    return resident_bytes(stage.server.process.pid)


async def _drained(shared: SharedIndex) -> None:
    written = -1
    while len(shared.pending) or shared.stats.written != written:
        written = shared.stats.written
        await asyncio.sleep(0.02)
    if shared.stats.errors or shared.pending.dropped:
        raise RuntimeError(f"the shared index did not take everything: {shared.stats}")


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - there is no event for it
            await asyncio.sleep(0.01)
