"""How old the values are that picks are made from, under traffic, and what keeping them fresh costs.

A plugin in the picker notes the age of the picked endpoint's values at each pick. The cost of collecting is the
difference to a picker that gets the same requests and collects almost nothing; both run in turn.
"""

from __future__ import annotations

import asyncio
import math

import aiohttp

from benchmarks.bench import ONLY_PICKS, Bench, row
from benchmarks.configuration import PICK_AGES, text, with_pick_ages
from benchmarks.figures import Outcome, Table, bound, columns, middle
from benchmarks.load.generator import Load
from benchmarks.processes import target
from epp.demo.picker import PickerProcess

SUMMARY = "traffic to 100 endpoints: age of the scraped values at the pick, and cores spent collecting"
MOST_AGE_MS = 300.0
MOST_CORES = 0.25

COLUMNS = columns(
    ("rate", "picks/s"),
    ("p50", "age p50 ms"),
    ("p99", "age p99 ms"),
    ("max", "age max ms"),
    ("cores", "cores", 3),
    ("without", "cores without collecting", 3),
    ("collecting", "cores collecting", 3),
)


async def run(bench: Bench, outcome: Outcome) -> None:
    """Several rates: few picks leave most endpoints cold, many make all of them hot."""
    table = Table(f"medians of {bench.rounds} interleaved runs", COLUMNS, [])
    outcome.tables.append(table)
    endpoints = bench.pick(smoke=5, quick=100, full=100)
    ages: list[float] = []
    cores: list[float] = []
    command = ""
    config = text(with_pick_ages())
    async with (
        bench.picker(endpoints, config=config) as fresh,
        bench.picker(endpoints, config=config, flags=ONLY_PICKS) as stale,
    ):
        targets = {"collecting": target("collecting", fresh), "without": target("without", stale)}
        for rate in bench.pick(smoke=(50.0,), quick=(300.0,), full=(30.0, 100.0, 300.0)):
            load = bench.sized(Load(chunks=1, rate=rate, streams=0))
            # The first picks after an idle time see old values; the claim is about traffic that lasts.
            await asyncio.gather(*(bench.run(each, load) for each in targets.values()))
            await _ages(fresh)
            runs = await bench.side_by_side(f"{rate:g} picks/s", targets, load)
            seen = await _ages(fresh)
            busy, without = middle(runs["collecting"], "util"), middle(runs["without"], "util")
            command = str(load)
            cells = {"cores": busy, "without": without, "collecting": busy - without}
            table.rows.append(row(load, rate=rate, p50=seen["p50"], p99=seen["p99"], max=seen["max"], **cells))
            ages.append(seen["p99"])
            cores.append(busy - without)
    name = f"traffic to {endpoints} endpoints"
    outcome.verdicts.append(
        bound(f"{name}: age at the pick, p99", max(ages, default=math.nan), "ms", MOST_AGE_MS, command)
    )
    outcome.verdicts.append(bound(f"{name}: collecting", max(cores, default=math.nan), "cores", MOST_CORES, command))


async def _ages(process: PickerProcess) -> dict[str, float]:
    """What the plugin saw since the last look."""
    url = f"http://127.0.0.1:{process.metrics_port}/debug/plugins/state"
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        answer.raise_for_status()
        state: dict[str, float] = (await answer.json())["plugins"][PICK_AGES]["state"]
    if not state["picks"]:
        raise RuntimeError("the picker picked nothing while ages were noted")
    return state
