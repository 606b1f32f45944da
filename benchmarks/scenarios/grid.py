"""Prompt size by response chunks by endpoints, TLS on and off: CPU, latency, memory, beside the echo picker.

CPU comes from 16 streams in flight, each sending its next chunk as soon as the last was echoed. Pick latency comes from
Poisson arrivals at a rate that keeps the picker busy for a fifth of the time: under a closed loop it would measure the
loop. The echo picker gets the first load of each cell, in the same minute.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.bench import Bench, row
from benchmarks.figures import Outcome, Table, columns
from benchmarks.load.generator import Load
from benchmarks.processes import Target, baseline, target
from benchmarks.procfs import resident_bytes

SUMMARY = "prompts of 0.5 to 450 KB x 1 to 1000 chunks x 10 to 1000 endpoints, TLS on and off"
BUSY = 0.2
MOST_RATE = 200.0

COLUMNS = columns(
    ("tls", "TLS"),
    ("endpoints", "endpoints"),
    ("body", "prompt KB", 1),
    ("chunks", "chunks"),
    ("cpu", "CPU us/request"),
    ("unit", "grpc.aio us/request"),
    ("ratio", "of grpc.aio", 3),
    ("peak", "requests/s per core"),
    ("pick50", "pick p50 ms", 2),
    ("pick99", "pick p99 ms", 2),
    ("rss", "RSS MB"),
)


@dataclass(frozen=True, slots=True)
class Plan:
    """The edges of the grid."""

    tls: tuple[bool, ...]
    endpoints: tuple[int, ...]
    bodies: tuple[int, ...]
    chunks: tuple[int, ...]

    def loads(self) -> Iterator[Load]:
        """One per cell of a picker."""
        for body in self.bodies:
            for chunks in self.chunks:
                yield Load(body=body, chunks=chunks)


SMOKE = Plan((False,), (2,), (4096,), (1,))
QUICK = Plan((False,), (10, 1000), (500, 4096, 450_000), (1, 100))
FULL = Plan((False, True), (10, 100, 1000), (500, 4096, 32_768, 450_000), (1, 100, 1000))


async def run(bench: Bench, outcome: Outcome) -> None:
    """One picker for each number of endpoints."""
    plan = bench.pick(smoke=SMOKE, quick=QUICK, full=FULL)
    table = Table("per cell", COLUMNS, [])
    outcome.tables.append(table)
    for tls in plan.tls:
        async with baseline(bench.subfolder(), tls=tls) as unit:
            for endpoints in plan.endpoints:
                async with bench.picker(endpoints, tls=tls) as process:
                    for load in plan.loads():
                        await _cell(bench, table, target("epp", process), unit, endpoints, bench.sized(load))


async def _cell(bench: Bench, table: Table, picker: Target, unit: Target, endpoints: int, load: Load) -> None:
    size = f"{load.body / 1000:g} KB, {load.chunks} chunks, {endpoints} endpoints{', TLS' if picker.tls else ''}"
    runs = await bench.side_by_side(size, {"epp": picker, "grpc.aio": unit}, load, rounds=1)
    cpu, reference = runs["epp"][0]["cpu_us"], runs["grpc.aio"][0]["cpu_us"]
    bench.say(f"{size}: paced")
    rate = min(MOST_RATE, max(2.0, BUSY * 1e6 / cpu)) if cpu else 2.0
    paced = await bench.run(picker, bench.sized(Load(body=load.body, chunks=load.chunks, rate=round(rate, 1))))
    table.rows.append(
        row(
            load,
            tls="on" if picker.tls else "off",
            endpoints=endpoints,
            body=load.body / 1000,
            chunks=load.chunks,
            cpu=cpu or None,
            unit=reference or None,
            ratio=cpu / reference if reference else None,
            peak=1e6 / cpu if cpu else None,
            pick50=paced["p50"] / 1e3,
            pick99=paced["p99"] / 1e3,
            rss=resident_bytes(picker.pid) / 1e6,
        )
    )
