"""Picks while the servers publish half a million blocks a second: a real picker, real ZMQ, real requests.

The index is precise, the prompts are token ids of which one server each holds all blocks, and 64 publishers in a
process of their own send blocks that nobody has seen before. Load with and without the storm alternates on one picker.
Taken is what the picker's metrics say it stored; what it could not take waits at the publishers, and is dropped there
when that gets too much: then it is a gap, which a replay repairs or the metrics count as lost.

Publishers, ZMQ's threads, load generator and picker share this machine's cores. On two, the storm alone fills them: the
table says what rate was published and what was taken.
"""

from __future__ import annotations

import asyncio
import json
import re
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks import processes
from benchmarks.bench import Bench, Figures, row
from benchmarks.configuration import everything_on, text
from benchmarks.figures import Outcome, Table, bound, columns, middle
from benchmarks.kv_publishers import BLOCK_SIZE, BLOCKS
from benchmarks.load.generator import Load
from benchmarks.procfs import cpu_seconds, resident_bytes
from epp.demo.picker import PickerProcess
from epp.demo.ports import free_ports

SUMMARY = "picks beside a storm of KV events: 64 publishers, 500 000 new blocks a second, index of up to 2 GiB"
SERVERS = 64
RATE = 500_000.0
REQUESTS = 50.0
MOST_P99_MS = 10.0
SETTLE = 1.5  # seconds: what is on its way when the storm begins or ends; metrics are brought up to date once a second
STORED = "prefix_index_stored_total"
ORPHANS = "prefix_index_orphans_total"
LOST = "kv_event_lost_total"

COLUMNS = columns(
    ("storm", "storm"),
    ("published", "published blocks/s"),
    ("taken", "stored blocks/s"),
    ("requests", "requests"),
    ("pick50", "pick p50 ms", 2),
    ("pick99", "pick p99 ms", 2),
    ("longest", "longest ms", 1),
    ("cores", "picker cores", 2),
    ("lag", "lag ms"),
    ("gaps", "gaps"),
    ("lost", "messages lost"),
    ("replayed", "replays"),
    ("blocks", "blocks held"),
    ("rss", "RSS MB"),
)


def config(port: int) -> str:
    """The default configuration with the precise index for the approximate one."""
    loaded = everything_on()
    precise = {
        "type": "precise-prefix-cache-producer",
        "parameters": {
            "tokenProcessorConfig": {"blockSizeTokens": BLOCK_SIZE},
            "indexerConfig": {"kvBlockIndexConfig": {"enableMetrics": True}},
            "kvEventsConfig": {
                "podDiscoveryConfig": {"podLabelSelector": "", "socketPort": port, "replaySocketPort": port + 1}
            },
        },
    }
    for plugin in loaded["plugins"]:
        if plugin["type"] == "prefix-cache-scorer":
            plugin["parameters"] = {"prefixMatchInfoProducerName": precise["type"]}
    loaded["plugins"] += [{"type": "token-producer"}, precise]
    return text(loaded)


@dataclass(frozen=True, slots=True)
class Counted:
    """What publishers and picker have counted so far, at a moment of the event loop's clock."""

    at: float
    published: int
    metrics: dict[str, float]
    cpu: float

    def since(self, before: Counted) -> Figures:
        """Rates, and counts between the two."""
        seconds = self.at - before.at

        def grown(name: str) -> float:
            return self.metrics.get(name, 0.0) - before.metrics.get(name, 0.0)

        return {
            "published": (self.published - before.published) / seconds,
            "taken": grown(STORED) / seconds,
            "gaps": grown("kv_event_gaps_total"),
            "lost": grown(LOST),
            "replayed": grown("kv_event_replays_total"),
            "cores": (self.cpu - before.cpu) / seconds,
            "lag": self.metrics.get("kv_event_lag_seconds", 0.0) * 1e3,
            "blocks": self.metrics.get("prefix_indexer_size", 0.0),
        }


@dataclass(slots=True)
class Publishers:
    """The process with the publishers."""

    process: asyncio.subprocess.Process
    figures: Path

    def toggle(self) -> None:
        """Start the storm, or stop it."""
        self.process.send_signal(signal.SIGUSR1)

    def blocks(self) -> int:
        """Published so far."""
        counted: int = json.loads(self.figures.read_bytes())["blocks"]
        return counted


async def run(bench: Bench, outcome: Outcome) -> None:
    """Calm and storm in turn."""
    rate = bench.pick(smoke=20_000.0, quick=RATE, full=RATE)
    seconds, warm_up = bench.pick(smoke=(1.0, 0.3), quick=(4.0, 1.0), full=(6.0, 1.0))
    load = Load(rate=REQUESTS, chunks=0, ids=BLOCKS * BLOCK_SIZE, seconds=seconds, warm_up=warm_up)
    table = Table(f"medians of {bench.rounds} runs, {REQUESTS:g} requests/s of {BLOCKS} blocks", COLUMNS, [])
    outcome.tables.append(table)
    runs: dict[str, list[Figures]] = {"off": [], "on": []}
    async with _stage(bench, rate) as (picker, publishers):
        for number in range(bench.rounds):
            for storm, measured in runs.items():
                bench.say(f"storm {storm}, round {number + 1} of {bench.rounds}")
                if storm == "on":
                    publishers.toggle()
                await asyncio.sleep(SETTLE)
                before = await _count(picker, publishers)
                figures = await bench.run(processes.target("epp", picker), load)
                after = await _count(picker, publishers)
                if storm == "on":
                    publishers.toggle()
                    await _calm(picker)
                measured.append(figures | after.since(before) | {"rss": resident_bytes(picker.pid)})
        end = await _count(picker, publishers)
    for storm, measured in runs.items():
        if storm == "off":
            for run in measured:
                run["lag"] = float("nan")  # what was measured with the last message
        table.rows.append(
            row(
                load,
                storm=storm,
                requests=sum(run["streams"] for run in measured),
                pick50=middle(measured, "p50") / 1e3,
                pick99=middle(measured, "p99") / 1e3,
                longest=max(run["pmax"] for run in measured) / 1e3,
                rss=max(run["rss"] for run in measured) / 1e6,
                blocks=max(run["blocks"] for run in measured),
                gaps=sum(run["gaps"] for run in measured),
                lost=sum(run["lost"] for run in measured),
                replayed=sum(run["replayed"] for run in measured),
                **{key: middle(measured, key) for key in ("published", "taken", "cores", "lag")},
            )
        )
    what = f"pick p99 while {middle(runs['on'], 'taken') / 1e3:,.0f} k blocks/s are stored"
    outcome.verdicts.append(bound(what, middle(runs["on"], "p99") / 1e3, "ms", MOST_P99_MS, str(load)))
    share = 1 - middle(runs["on"], "taken") / max(1.0, middle(runs["on"], "published"))
    silent = end.published - sum(end.metrics.get(name, 0.0) for name in (STORED, ORPHANS)) - end.metrics[LOST] * BLOCKS
    outcome.verdicts.append(bound("published blocks that are neither stored nor counted", silent, "", 0.0, str(load)))
    outcome.verdicts.append(bound("share of the published blocks that is not taken at once", share, "", 0.1, str(load)))


@asynccontextmanager
async def _stage(bench: Bench, rate: float) -> AsyncIterator[tuple[PickerProcess, Publishers]]:
    folder = bench.subfolder()
    (port,) = free_ports(1)
    figures = folder / "figures.json"
    arguments = ["--publishers", SERVERS, "--rate", rate, "--port", port, "--figures", figures]
    module = ("-m", "benchmarks.kv_publishers", *map(str, arguments))
    async with (
        processes.static_servers(folder, SERVERS) as servers,
        processes.child(*module, log=folder / "publishers.log") as (process, _),
        processes.picker(folder, servers, config=config(port)) as picker,
    ):
        publishers = Publishers(process, figures)
        await _calm(picker)
        yield picker, publishers


async def _count(picker: PickerProcess, publishers: Publishers) -> Counted:
    """Just after the picker has brought its metrics up to date, which it does once a second."""
    loop = asyncio.get_running_loop()
    stale = metrics = await _metrics(picker)
    deadline = loop.time() + SETTLE
    while metrics.get(STORED) == stale.get(STORED) and loop.time() < deadline:
        await asyncio.sleep(0.03)
        metrics = await _metrics(picker)
    return Counted(loop.time(), publishers.blocks(), metrics, cpu_seconds(picker.pid))


async def _calm(picker: PickerProcess) -> None:
    """Wait until the picker has stored all that it will: the queues are empty."""
    last = -1.0
    for _ in range(60):
        await asyncio.sleep(SETTLE)
        stored = (await _metrics(picker)).get(STORED, 0.0)
        if stored == last and stored > 0:
            return
        last = stored
    raise TimeoutError("the picker still stores blocks, long after the last was published")


async def _metrics(picker: PickerProcess) -> dict[str, float]:
    found: dict[str, float] = {}
    page = await picker.metrics()
    for name, value in re.findall(
        r"^(?:llm_d_epp_)?(kv_event_\w+|prefix_index\w*)\{[^}]*\} (\S+)$", page, re.MULTILINE
    ):
        found[name] = found.get(name, 0.0) + float(value)
    return found
