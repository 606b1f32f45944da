"""What a picker costs that nobody asks anything: default flags, 100 and 1000 endpoints."""

from __future__ import annotations

import asyncio

from benchmarks.bench import Bench, row
from benchmarks.figures import Outcome, Table, bound, columns
from benchmarks.procfs import resident_bytes

SUMMARY = "cores and memory of an idle picker with 100 and 1000 endpoints"
BOUNDS = {100: 0.05, 1000: 0.4}

COLUMNS = columns(("endpoints", "endpoints"), ("cores", "cores", 3), ("rss", "RSS MB"))


async def run(bench: Bench, outcome: Outcome) -> None:
    """One picker after the other, each after a time to settle."""
    settle, seconds = bench.pick(smoke=(0.2, 0.5), quick=(8.0, 10.0), full=(10.0, 20.0))
    table = Table(f"mean over {seconds:g} s", COLUMNS, [])
    outcome.tables.append(table)
    for count in bench.pick(smoke=(5,), quick=(100, 1000), full=(100, 1000)):
        command = f"epp serve, {count} endpoints, no traffic"
        async with bench.picker(count) as process:
            bench.say(f"{count} endpoints, settling")
            await asyncio.sleep(settle)
            bench.say(f"{count} endpoints, {seconds:g} s")
            cores = await bench.cores(process.pid, seconds)
            table.rows.append(row(command, endpoints=count, cores=cores, rss=resident_bytes(process.pid) / 1e6))
        if count in BOUNDS:
            outcome.verdicts.append(bound(f"idle, {count} endpoints", cores, "cores", BOUNDS[count], command))
