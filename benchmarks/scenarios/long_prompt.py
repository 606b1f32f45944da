"""Prompts of 450 KB: what one costs, and how long everybody else waits for them.

A steady stream of 4 KB requests with 100 chunks runs alone, then together with a few long prompts per second, in turn.
A chunk's delay is the time from sending it to its echo. On a machine whose cores are busy with other work, delays of
milliseconds occur without any long prompt: the row without them shows how many.
"""

from __future__ import annotations

import asyncio

from benchmarks.bench import Bench, Figures, row
from benchmarks.figures import Outcome, Table, bound, columns, middle
from benchmarks.load.generator import Load
from benchmarks.processes import Target, target

SUMMARY = "450 KB prompts, 100 endpoints: CPU of one, and the chunk delay of other streams beside them"
LONG = 450_000
MOST_CPU_MS = 6.0
MOST_DELAY_MS = 5.0
TOKEN_MS = 10.0

COST_COLUMNS = columns(
    ("load", "load"),
    ("cpu", "CPU ms/request", 2),
    ("pick50", "pick p50 ms", 2),
    ("pick99", "pick p99 ms", 2),
)
DELAY_COLUMNS = columns(
    ("beside", "beside"),
    ("samples", "chunks"),
    ("p50", "p50 ms", 2),
    ("p90", "p90 ms", 2),
    ("p99", "p99 ms", 2),
    ("p999", "p99.9 ms", 2),
    ("max", "max ms", 2),
    ("late", "over 5 ms"),
)


async def run(bench: Bench, outcome: Outcome) -> None:
    """Cost first, then delays."""
    async with bench.picker(bench.pick(smoke=2, quick=100, full=100)) as process:
        picker = target("epp", process)
        await _cost(bench, outcome, picker)
        await _delay(bench, outcome, picker)


async def _cost(bench: Bench, outcome: Outcome, picker: Target) -> None:
    # At 10 a second, reading the metrics of 100 endpoints is most of it: that goes by time.
    table = Table("cost of a 450 KB prompt", COST_COLUMNS, [])
    outcome.tables.append(table)
    closed = bench.sized(Load(body=LONG, chunks=1, streams=1, connections=1))
    paced = bench.sized(Load(body=LONG, chunks=1, connections=1, rate=10.0))
    for name, load in (("one after the other", closed), ("10 per second, collecting included", paced)):
        runs = (await bench.side_by_side(f"450 KB, {name}", {"epp": picker}, load))["epp"]
        cpu = middle(runs, "cpu_us") / 1e3
        cells = {"pick50": middle(runs, "p50") / 1e3, "pick99": middle(runs, "p99") / 1e3}
        table.rows.append(row(load, load=name, cpu=cpu, **cells))
        if load is closed:
            outcome.verdicts.append(bound("CPU of a 450 KB prompt, 100 endpoints", cpu, "ms", MOST_CPU_MS, str(load)))


async def _delay(bench: Bench, outcome: Outcome, picker: Target) -> None:
    table = Table("chunk delay of 4 KB requests", DELAY_COLUMNS, [])
    outcome.tables.append(table)
    others = bench.sized(Load(rate=20.0, token_ms=TOKEN_MS))
    long = bench.sized(Load(body=LONG, chunks=1, connections=1, rate=5.0))
    alone: list[Figures] = []
    beside: list[Figures] = []
    for number in range(bench.rounds):
        bench.say(f"chunk delay, round {number + 1} of {bench.rounds}")
        alone.append(await bench.run(picker, others))
        together = await asyncio.gather(bench.run(picker, others), bench.run(picker, long))
        beside.append(together[0])
    for name, runs, command in (("nothing", alone, str(others)), ("long prompts", beside, f"{others} & {long}")):
        table.rows.append(
            row(
                command,
                beside=name,
                samples=sum(run["tn"] for run in runs),
                p50=middle(runs, "tp50") / 1e3,
                p90=middle(runs, "tp90") / 1e3,
                p99=middle(runs, "tp99") / 1e3,
                p999=middle(runs, "tp999") / 1e3,
                max=middle(runs, "tpmax") / 1e3,
                late=sum(run["tover5ms"] for run in runs),
            )
        )
    added = (middle(beside, "tpmax") - middle(alone, "tpmax")) / 1e3
    name = "longest chunk delay that 450 KB prompts add"
    outcome.verdicts.append(bound(name, added, "ms", MOST_DELAY_MS, str(long)))
