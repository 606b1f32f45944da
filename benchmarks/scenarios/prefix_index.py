"""The precise prefix index alone: memory, lookup and ingestion at a size that no cache of the processor holds.

It runs in this process, on one core, without sockets. Times are of the process's CPU, so that other work on the machine
counts only where it spoils the caches; the best of several rounds is what the code can do, the median what it did here.
How many blocks a second it takes is told by the wall clock, of calls as the receiver makes them at such a rate.
"""

from __future__ import annotations

import asyncio
import gc
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from statistics import median

import numpy as np

from benchmarks.bench import Bench, row
from benchmarks.figures import Outcome, Table, bound, columns
from benchmarks.procfs import resident_bytes
from epp.kvevents.events import BlockRemoved, BlockStored
from epp.prefixcache.precise.index import PreciseIndex
from epp.prefixcache.precise.prompts import prompt_keys

SUMMARY = "precise prefix index, 10 M blocks, 64 endpoints: bytes per block, 8 192-block lookup, blocks per second"
BLOCK_SIZE = 16
RUN = 16  # blocks per event
EVENTS = 64  # per call
ENDPOINTS = [f"10.0.0.{number}:8000" for number in range(64)]
MOST_BYTES = 64.0
MOST_LOOKUP_MS = 1.5
MOST_MICROSECONDS = 1.0
MOST_CALL_MS = 5.0
PROMPT = 8192

COLUMNS = columns(
    ("what", "what"),
    ("blocks", "blocks held"),
    ("best", "best", 3),
    ("middle", "median", 3),
    ("worst", "worst", 3),
    ("unit", "unit"),
)


async def run(bench: Bench, outcome: Outcome) -> None:
    """Fill, ask, go on storing, replace, clear."""
    await asyncio.to_thread(_measure, bench, outcome)


def _measure(bench: Bench, outcome: Outcome) -> None:
    size = bench.pick(smoke=50_000, quick=2_000_000, full=10_000_000)
    table = Table("one core, block size 16, events of 16 blocks", COLUMNS, [])
    outcome.tables.append(table)
    rng = np.random.default_rng(1)
    before = _resident()
    index = PreciseIndex(int(size * 2 * 70))
    command = f"PreciseIndex, {size} blocks, {len(ENDPOINTS)} endpoints"

    def add(what: str, unit: str, values: list[float], at_most: float | None = None) -> None:
        cells = {"best": min(values), "middle": median(values), "worst": max(values)}
        table.rows.append(row(command, what=what, blocks=index.blocks.count, unit=unit, **cells))
        if at_most is not None:
            outcome.verdicts.append(bound(f"precise index: {what}", median(values), unit, at_most, command))

    bench.say(f"filling {size} blocks")
    held: list[list[BlockStored]] = []
    growing: list[float] = []
    for number, batch in enumerate(_batches(rng, size)):
        began = time.thread_time()
        index.apply(ENDPOINTS[number % 64], batch)
        growing.append((time.thread_time() - began) * 1e3)
        if number % (size // 16384 or 1) == 0:
            held.append(batch)
    add("memory", "bytes/block", [index.blocks.size_bytes / index.blocks.count], MOST_BYTES)
    add("resident memory of the process that came", "bytes/block", [(_resident() - before) / index.blocks.count])
    add("one call of 1 024 blocks while the index grows, CPU", "ms", growing)
    longest = [float(np.percentile(growing, share)) for share in (99, 99.9)]
    add("a call while the index grows, 99th percentile", "ms", longest[:1])
    add("a call while the index grows, 99.9th percentile", "ms", longest[1:], MOST_CALL_MS)
    bench.say("lookups")
    whole, match, calls = _lookups(index, rng, bench.pick(smoke=2, quick=8, full=8))
    add(f"lookup of {PROMPT} blocks, hashing included", "ms", whole, MOST_LOOKUP_MS)
    add(f"lookup of {PROMPT} blocks, keys given", "ms", match)
    add("lookup of 64 blocks, hashing included", "ms", calls)
    rounds = bench.pick(smoke=2, quick=5, full=10)
    bench.say("storing")
    gc.collect()
    gc.freeze()  # as the picker does after its start: the events kept here are no garbage
    per_round = bench.pick(smoke=8192, quick=131_072, full=131_072)
    stored = [_time(index, list(_batches(rng, per_round))) for _ in range(rounds)]
    add("store new blocks, 1 024 of one server in a call", "us/block", [cost for cost, _ in stored])
    add("one call of 1 024 blocks, wall clock", "ms", [worst * 1e3 for _, worst in stored])
    for most in (1024, 4096):
        many = [_time_many(index, list(_batches(rng, per_round)), most) for _ in range(rounds)]
        add(f"store new blocks, 64 of each of {most // 64} servers in a call", "us/block", [cpu for cpu, _ in many])
    passed = [wall for _, wall in many]
    add("store new blocks of 64 servers in a call, wall clock", "us/block", passed, MOST_MICROSECONDS)
    single = [[batch[n : n + 4] for batch in _batches(rng, 8192) for n in range(0, EVENTS, 4)] for _ in range(rounds)]
    add("store new blocks, 64 in a call", "us/block", [_time(index, batches)[0] for batches in single])
    again = [_time(index, held[: per_round // 1024]) for _ in range(rounds)]
    add("store blocks that others hold", "us/block", [cost for cost, _ in again])
    removals = [[BlockRemoved(event.block_hashes) for event in batch] for batch in held]
    add("remove", "us/block", [_time(index, removals[: per_round // 1024])[0]])
    gc.unfreeze()
    bench.say("clearing")
    began = time.process_time()
    index.clear(ENDPOINTS[5])
    at_once = time.process_time() - began
    slices = []
    busy = True
    while busy:
        began = time.perf_counter()
        busy = index.tidy()
        slices.append((time.perf_counter() - began) * 1e3)
    add("clear an endpoint: the call", "ms", [at_once * 1e3])
    add("clear an endpoint: one slice of the sweep", "ms", slices)


def _time(index: PreciseIndex, batches: list[list[BlockStored]] | list[list[BlockRemoved]]) -> tuple[float, float]:
    """CPU microseconds per block, and the longest call in seconds."""
    blocks, worst = 0, 0.0
    began = time.process_time()
    for number, batch in enumerate(batches):
        start = time.perf_counter()
        index.apply(ENDPOINTS[number % 64], batch)
        worst = max(worst, time.perf_counter() - start)
        blocks += sum(len(event.block_hashes) for event in batch)
    return (time.process_time() - began) / blocks * 1e6, worst


def _time_many(index: PreciseIndex, batches: list[list[BlockStored]], most: int) -> tuple[float, float]:
    """CPU and wall-clock microseconds per block when a prompt each of many servers goes in one call.

    So the receiver gathers them; a million blocks a second fill its calls. CPU counts the thread that prepares pages.
    """
    prompts = [batch[n : n + 4] for batch in batches for n in range(0, EVENTS, 4)]
    calls = most // (4 * RUN)
    began, start = time.process_time(), time.perf_counter()
    for begin in range(0, len(prompts), calls):
        index.apply_many([(ENDPOINTS[n % 64], prompts[n]) for n in range(begin, min(begin + calls, len(prompts)))])
    blocks = len(prompts) * 4 * RUN
    return (time.process_time() - began) / blocks * 1e6, (time.perf_counter() - start) / blocks * 1e6


def _batches(rng: np.random.Generator, blocks: int) -> Iterator[list[BlockStored]]:
    """Prompts of 64 blocks in four events each, chained; a call of 64 events is one server's."""
    for _ in range(0, blocks, RUN * EVENTS):
        tokens = rng.integers(0, 150_000, (EVENTS, RUN * BLOCK_SIZE), dtype=np.uint32)
        hashes = rng.integers(1, 1 << 63, (EVENTS, RUN), dtype=np.uint64).tolist()
        yield [
            BlockStored(hashes[n], hashes[n - 1][-1] if n % 4 else None, tokens[n].tobytes(), BLOCK_SIZE)
            for n in range(EVENTS)
        ]


def _lookups(
    index: PreciseIndex, rng: np.random.Generator, rounds: int
) -> tuple[list[float], list[float], list[float]]:
    """Milliseconds: long prompts with hashing, without it, and short prompts. 8 servers hold each, stored in pieces."""
    prompts = []
    for _ in range(rounds):
        data = rng.integers(0, 150_000, PROMPT * BLOCK_SIZE, dtype=np.uint32).tobytes()
        hashes = rng.integers(1, 1 << 63, PROMPT, dtype=np.uint64).tolist()
        width = RUN * BLOCK_SIZE * 4
        others = _batches(rng, PROMPT * 16)
        for begin in range(0, PROMPT, RUN):
            at = begin // RUN * width
            event = BlockStored(
                hashes[begin : begin + RUN], hashes[begin - 1] if begin else None, data[at : at + width], BLOCK_SIZE
            )
            for endpoint in ENDPOINTS[:8]:
                index.apply(endpoint, [event])
            if begin % 64 == 0:
                index.apply(ENDPOINTS[9], next(others))
        prompts.append(data)
    whole, match, short = [], [], []
    for data in prompts:
        known = prompt_keys(index.hasher, data, BLOCK_SIZE)
        whole.append(_milliseconds(partial(_ask, index, data)))
        match.append(_milliseconds(partial(index.match, known)))
        short.append(_milliseconds(partial(_ask, index, data[: 64 * BLOCK_SIZE * 4])))
    return whole, match, short


def _ask(index: PreciseIndex, data: bytes) -> None:
    index.match(prompt_keys(index.hasher, data, BLOCK_SIZE))


def _milliseconds(call: Callable[[], object]) -> float:
    began = time.process_time()
    call()
    return (time.process_time() - began) * 1e3


def _resident() -> int:
    return resident_bytes(os.getpid())
