"""Hundreds of thousands of requests of all sizes, with resets on their way and connections that die: does it leak?

RSS is read after every round; what grew after the first half of the rounds is the verdict, for caches fill first. At
the end every in-flight counter must be back at zero.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from statistics import median

from benchmarks.bench import Bench, row
from benchmarks.figures import Outcome, Table, bound, columns
from benchmarks.inflight import FLAGS, PREFIX, InFlight, in_flight, total
from benchmarks.load.generator import Load
from benchmarks.processes import target
from benchmarks.procfs import resident_bytes
from epp.demo.picker import PickerProcess

SUMMARY = "300 000 requests with disconnects and resets: memory over time, in-flight counters back at zero"
MOST_GROWTH = 0.05
RESETS = 0.1
DISCONNECTS = 1.0
# Of each 20 requests, so many of each kind.
MIX = (
    (10, Load(body=4096, chunks=10, streams=64, connections=4)),
    (6, Load(body=512, chunks=1, streams=64, connections=8)),
    (3, Load(body=32_768, chunks=20, streams=32, connections=2)),
    (1, Load(body=450_000, chunks=5, streams=8, connections=2)),
)

COLUMNS = columns(
    ("requests", "requests"),
    ("resets", "reset"),
    ("lost", "cut by disconnects"),
    ("rss", "RSS MB", 1),
    ("index", "prefix index MB", 2),
    ("running", "in flight after"),
)


async def run(bench: Bench, outcome: Outcome) -> None:
    """Rounds of the mix until the number is reached."""
    wanted = bench.requests or bench.pick(smoke=400, quick=30_000, full=300_000)
    rounds = bench.pick(smoke=2, quick=10, full=30)
    table = Table("after each round", COLUMNS, [])
    outcome.tables.append(table)
    sizes: list[float] = []
    requests = resets = lost = 0
    command = f"extproc-load --reset {RESETS} --disconnect {DISCONNECTS}, mixed"
    async with bench.picker(10, flags=FLAGS) as process:
        picker = target("epp", process)
        for number in range(rounds):
            for share, load in MIX:
                bench.say(f"{requests} of {wanted} requests")
                count = max(1, wanted * share // (20 * rounds))
                figures = await bench.run(
                    picker,
                    replace(load, once=count, reset=RESETS, disconnect=DISCONNECTS, warm_up=0, seconds=900.0),
                )
                requests += figures["started"]
                resets += figures["resets"]
                lost += figures["lost"]
            left = await _drained(process)
            sizes.append(resident_bytes(process.pid) / 1e6)
            index = total(await process.metrics(), PREFIX + "prefix_indexer_bytes") / 1e6
            cells = {"resets": resets, "lost": lost, "rss": sizes[-1], "index": index, "running": left.streams}
            table.rows.append(row(command, requests=requests, **cells))
            bench.say(f"round {number + 1} of {rounds}: {sizes[-1]:.0f} MB")
        left = await _drained(process)
    middle = len(sizes) // 2
    growth = median(sizes[-max(1, middle // 2) :]) / median(sizes[middle : middle + max(1, middle // 2)]) - 1
    outcome.verdicts.append(bound("RSS growth over the second half", growth * 100, "%", MOST_GROWTH * 100, command))
    for name, value in (
        ("streams", left.streams),
        ("requests by model", left.running),
        ("requests by endpoint", left.requests),
        ("tokens by endpoint", left.tokens),
    ):
        outcome.verdicts.append(bound(f"{name} in flight at the end", value, "", 0, command))


async def _drained(process: PickerProcess, seconds: float = 5.0) -> InFlight:
    """What is in flight once it is nothing, or after some seconds: resets are on their way when the load ends."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while True:
        left = await in_flight(process)
        if left.nothing or loop.time() > deadline:
            return left
        await asyncio.sleep(0.1)
