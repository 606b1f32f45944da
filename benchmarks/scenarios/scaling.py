"""What one pick costs with 10, 100 and 1000 endpoints.

The load is a prompt of 4 KB and an answer of which the picker sees only the headers, so that the pick is most of it.
Collecting is all but off: it goes by time, not by request, and `idle` and `freshness` measure it.
"""

from __future__ import annotations

from contextlib import AsyncExitStack

from benchmarks.bench import ONLY_PICKS, Bench, row
from benchmarks.figures import Outcome, Table, bound, columns, middle, paired_ratio
from benchmarks.load.generator import Load
from benchmarks.processes import Target, target
from benchmarks.procfs import resident_bytes

SUMMARY = "cost of a pick with 10, 100 and 1000 endpoints"
MOST = 3.0

COLUMNS = columns(
    ("endpoints", "endpoints"),
    ("cpu", "CPU us/request"),
    ("ratio", "of the smallest", 2),
    ("peak", "requests/s per core"),
    ("pick50", "pick p50 ms", 2),
    ("pick99", "pick p99 ms", 2),
    ("rss", "RSS MB"),
)


async def run(bench: Bench, outcome: Outcome) -> None:
    """All pickers are alive; they are measured in turn."""
    counts = bench.pick(smoke=(2, 20), quick=(10, 1000), full=(10, 100, 1000))
    table = Table(f"medians of {bench.rounds} interleaved runs", COLUMNS, [])
    outcome.tables.append(table)
    load = bench.sized(Load(chunks=0, streams=16))
    async with AsyncExitStack() as stack:
        targets: dict[str, Target] = {}
        for count in counts:
            process = await stack.enter_async_context(bench.picker(count, flags=ONLY_PICKS))
            targets[str(count)] = target(f"{count} endpoints", process)
        runs = await bench.side_by_side("endpoints", targets, load)
        for name, measured in runs.items():
            cpu = middle(measured, "cpu_us")
            table.rows.append(
                row(
                    load,
                    endpoints=int(name),
                    cpu=cpu,
                    ratio=paired_ratio(measured, runs[str(counts[0])], "cpu_us"),
                    peak=1e6 / cpu if cpu else None,
                    pick50=middle(measured, "p50") / 1e3,
                    pick99=middle(measured, "p99") / 1e3,
                    rss=resident_bytes(targets[name].pid) / 1e6,
                )
            )
    few, many = str(counts[0]), str(counts[-1])
    growth = paired_ratio(runs[many], runs[few], "cpu_us")
    outcome.verdicts.append(bound(f"cost of a pick, {many} against {few} endpoints", growth, "x", MOST, str(load)))
